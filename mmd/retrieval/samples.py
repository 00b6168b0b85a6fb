"""Samples of retrieval: which turns of dialogues are responses to be found, and from what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from mmd.corpora.store import Corpus
from mmd.features.store import Features
from mmd.intent.types import has_words
from mmd.retrieval.facts import STATED, Facts, context_text, turn_words
from mmd.retrieval.modalities import Modality, modality, response_id
from mmd.retrieval.settings import SampleSettings
from mmd.retrieval.types import Query, Response, Sample, SampleSet
from mmd.schema import Dialogue, Turn
from mmd.splits import held_out

__all__ = [
    "Facts",
    "Part",
    "chat_of",
    "context_text",
    "find_samples",
    "has_samples",
    "load_samples",
    "make_query",
    "part_of",
    "response_id",
    "turn_words",
]

Part = Literal["train", "validation", "test"]


def load_samples(corpus: Corpus, features: Features | None, settings: SampleSettings) -> SampleSet:
    """Return the samples of a corpus and the responses they may be answered by.

    Args:
        corpus: dialogues, pictures and catalogue.
        features: OCR of pictures that came without; None for none.
        settings: what is a sample.

    Raises:
        ConfigError: a modality is unknown.
    """
    return find_samples(corpus.dialogues(), Facts.load(corpus, features, settings), settings)


def has_samples(corpus: Corpus, settings: SampleSettings) -> bool:
    """Say whether any training dialogue has a response to learn from.

    Raises:
        ConfigError: a modality is unknown.
    """
    facts = Facts.load(corpus, None, settings)
    return any(find_samples([dialogue], facts, settings).samples for dialogue in corpus.dialogues("train"))


def find_samples(dialogues: Iterable[Dialogue], facts: Facts, settings: SampleSettings) -> SampleSet:
    """Return the samples of dialogues, in their order, and the responses.

    Turns without anything before them are none. A turn with several right responses gives a sample for each.

    Raises:
        ConfigError: a modality is unknown.
    """
    samples: list[Sample] = []
    responses: dict[str, Response] = {}
    kinds = by_precedence(settings.modalities)
    for dialogue in dialogues:
        for index in range(1, len(dialogue.turns)):
            right = right_responses(dialogue, index, facts, kinds)
            query = make_query(dialogue.turns[:index], settings)
            if not right or is_empty(query):
                continue
            responses |= {response.id: response for response in right}
            samples.extend(_samples(dialogue, index, query, right))
    occurring = {sample.modality for sample in samples}
    for kind in kinds:
        if kind.name in occurring:
            further = (kind.response(key, facts) for key in kind.candidates(facts))
            responses |= {response.id: response for response in further}
    return SampleSet(tuple(samples), responses, tuple(name for name in settings.modalities if name in occurring))


def by_precedence(names: Iterable[str]) -> list[Modality]:
    """Return the modalities of names, the one that goes before others first.

    Raises:
        ConfigError: a name is unknown.
    """
    return sorted((modality(name) for name in names), key=lambda kind: -kind.precedence)


def right_responses(dialogue: Dialogue, index: int, facts: Facts, kinds: Sequence[Modality]) -> list[Response]:
    """Return the right responses that a turn gives, all of one modality; none where it is no response.

    What the corpus states goes first; else the first of ``kinds`` that the turn could be. In a corpus that says which
    turns are answers, others (greetings, "one moment") are none, unless ``unstated`` takes them in.
    """
    stated = dialogue.meta.get(f"{STATED}{index}")
    if stated is None and facts.answers_stated and not facts.settings.unstated:
        return []
    for kind in sorted(kinds, key=lambda kind: kind.name != stated):
        if keys := kind.of_turn(dialogue.turns[index], dialogue, index, facts):
            return [kind.response(key, facts) for key in keys]
    return []


def make_query(turns: tuple[Turn, ...], settings: SampleSettings) -> Query:
    """Return the last ``context_turns`` turns as a query."""
    return Query(turns[-settings.context_turns :])


def is_empty(query: Query) -> bool:
    """Say whether a query has neither words nor pictures nor items."""
    return not any(has_words(turn.text) or turn.image_ids or turn.item_ids for turn in query.turns)


def _samples(dialogue: Dialogue, index: int, query: Query, right: list[Response]) -> Iterator[Sample]:
    ids = [response.id for response in right]
    for number, response in enumerate(right, start=1):
        yield Sample(
            id=f"{dialogue.id}#{index}" + (f".{number}" if number > 1 else ""),
            dialogue_id=dialogue.id,
            split=dialogue.split,
            query=query,
            modality=response.modality,
            response_id=response.id,
            also=tuple(other for other in ids if other != response.id),
            chat=chat_of(dialogue),
        )


def chat_of(dialogue: Dialogue) -> str | None:
    """Return the chat that several dialogues share turn by turn, as mmdial's do, each with another picture."""
    chat = dialogue.meta.get("dialog_file") if dialogue.source == "mmdial" else None
    return None if chat is None else f"{dialogue.meta.get('dialog_dataset', 'chat')}/{chat}"


def part_of(sample: Sample, fraction: float, seed: int) -> Part:
    """Return the part that a sample's dialogue is in: a share of the training split's is held out for validation.

    Args:
        sample: the sample.
        fraction: share of the training dialogues held out, in [0, 1).
        seed: of the choice, which is by hash: it depends on nothing but seed and dialogue.
    """
    if sample.split == "test":
        return "test"
    return "validation" if held_out(sample.conversation, fraction, seed) else "train"
