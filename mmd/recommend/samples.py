"""Samples of linked dialogues: what the agent says (φ, θ), and which items are mentioned (ψ).

A turn is a sample when something was said before it, whatever that was: its context is not empty.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mmd.recommend.settings import ConversationSettings
from mmd.recommend.types import Context, LinkedDialogue, LinkedTurn, MentionSample, ResponseSample
from mmd.schema import Speaker, Split
from mmd.splits import held_out


class OfDialogue(Protocol):
    """What belongs to a dialogue of a split."""

    @property
    def dialogue_id(self) -> str:
        """Of the dialogue."""
        ...

    @property
    def split(self) -> Split:
        """Of the dialogue."""
        ...


S = TypeVar("S", bound=OfDialogue)


@dataclass(frozen=True)
class Divided(Generic[S]):
    """Samples by use; no dialogue is in two of them."""

    train: tuple[S, ...]
    validation: tuple[S, ...]
    test: tuple[S, ...]


def context_of(turns: Sequence[LinkedTurn], settings: ConversationSettings) -> Context:
    """Return what is known after these turns, oldest first."""
    return Context(
        turns=tuple(turns[-settings.context_turns :]),
        entities=_by_last([entity for turn in turns for entity in turn.entities])[-settings.max_entities :],
        items=_by_last([item for turn in turns for item in turn.items]),
    )


def _by_last(mentioned: Sequence[int]) -> tuple[int, ...]:
    """Return what is mentioned without repeats, in order of last mention."""
    return tuple(dict.fromkeys(reversed(mentioned)))[::-1]


def response_samples(dialogue: LinkedDialogue, settings: ConversationSettings) -> list[ResponseSample]:
    """Return the agent's turns that have a context."""
    return [
        ResponseSample(f"{dialogue.id}#{index}", dialogue.id, dialogue.split, context_of(before, settings), turn)
        for index, before, turn in _answers(dialogue)
        if turn.speaker == "agent"
    ]


def mention_samples(
    dialogue: LinkedDialogue, settings: ConversationSettings, speakers: Collection[Speaker] = ("user", "agent")
) -> list[MentionSample]:
    """Return every mention of an item in turns that have a context.

    An item that a turn mentions twice gives two samples, and neither makes the other less novel: novel is what no
    *prior* turn mentions.
    """
    samples: list[MentionSample] = []
    for index, before, turn in _answers(dialogue):
        if turn.speaker not in speakers or not turn.items:
            continue
        context = context_of(before, settings)
        samples.extend(
            MentionSample(
                id=f"{dialogue.id}#{index}.{number}",
                dialogue_id=dialogue.id,
                split=dialogue.split,
                speaker=turn.speaker,
                context=context,
                item=item,
                novel=item not in context.items,
            )
            for number, item in enumerate(turn.items, start=1)
        )
    return samples


def _answers(dialogue: LinkedDialogue) -> Iterator[tuple[int, tuple[LinkedTurn, ...], LinkedTurn]]:
    """Yield index, prior turns and turn, from the second turn on."""
    for index in range(1, len(dialogue.turns)):
        yield index, dialogue.turns[:index], dialogue.turns[index]


def divide_samples(samples: Sequence[S], fraction: float, seed: int) -> Divided[S]:
    """Divide samples by dialogue; each part keeps the order.

    Args:
        samples: of any splits.
        fraction: share of the training split's dialogues held out for validation.
        seed: of that choice.
    """
    parts: dict[str, list[S]] = {"train": [], "validation": [], "test": []}
    for sample in samples:
        is_held = sample.split == "train" and held_out(sample.dialogue_id, fraction, seed)
        parts["validation" if is_held else sample.split].append(sample)
    return Divided(**{name: tuple(part) for name, part in parts.items()})
