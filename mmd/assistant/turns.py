"""Turns that are asked of an assistant for a choice or a measurement: those that the agent of a corpus answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mmd.assistant.types import AssistantQuery
from mmd.retrieval.facts import Facts, with_titles
from mmd.retrieval.samples import by_precedence, chat_of, is_empty, make_query, right_responses
from mmd.retrieval.types import Response
from mmd.schema import Dialogue, Image
from mmd.splits import held_out

Judged = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class AskedTurn:
    """A turn of the agent, and what was known before it.

    Attributes:
        id: ``<dialogue>#<turn index>``.
        dialogue_id: of the dialogue.
        query: the dialogue up to it, pictures included.
        right: the responses that the agent gave, all of one modality; never none.
        items: ids of the products that it named.
        text: what it said, titles put in for mentions.
    """

    id: str
    dialogue_id: str
    query: AssistantQuery
    right: tuple[Response, ...]
    items: tuple[str, ...]
    text: str

    @property
    def modality(self) -> str:
        """Of the right response."""
        return self.right[0].modality


@dataclass(frozen=True)
class HeldOut:
    """What the parts of an assistant hold out of training: (share, seed) of each of them."""

    shares: tuple[tuple[float, int], ...]

    def part(self, dialogue: Dialogue) -> Judged:
        """Say what a dialogue is for; ``validation`` where no part learnt from it, ``train`` else."""
        if dialogue.split == "test":
            return "test"
        key = chat_of(dialogue) or dialogue.id
        unseen = bool(self.shares) and all(held_out(key, share, seed) for share, seed in self.shares)
        return "validation" if unseen else "train"


def asked_turns(
    dialogues: Iterable[Dialogue], facts: Facts, modalities: Sequence[str], images: Mapping[str, Image]
) -> Iterator[AskedTurn]:
    """Yield the turns of the agent that are answers, as retrieval counts them, in order.

    Args:
        dialogues: to go through.
        facts: of their corpus.
        modalities: that a response may be of.
        images: the corpus's pictures, their text recognised.

    Raises:
        ConfigError: a modality is unknown.
    """
    kinds = by_precedence(modalities)
    for dialogue in dialogues:
        for index in range(1, len(dialogue.turns)):
            turn, before = dialogue.turns[index], dialogue.turns[:index]
            right = right_responses(dialogue, index, facts, kinds) if turn.speaker == "agent" else []
            if not right or is_empty(make_query(before, facts.settings)):
                continue
            named = {i for earlier in before for i in earlier.image_ids}
            key = f"{dialogue.id}#{index}"
            yield AskedTurn(
                id=key,
                dialogue_id=dialogue.id,
                query=AssistantQuery(key, before, {i: images[i] for i in sorted(named) if i in images}),
                right=tuple(right),
                items=tuple(i for i in turn.item_ids if i in facts.items),
                text=with_titles(turn.text, facts.titles).strip(),
            )
