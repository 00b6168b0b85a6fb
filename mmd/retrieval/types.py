"""What retrieval works on: responses of any modality, samples (context → right response), and pools.

A **response** is a text, a picture or a product that could answer. Its id names the modality and the content, so equal
responses are one: ``text:<sha256>``, ``image:<sha256>``, ``product:<item id>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from mmd.schema import Split, Turn

RESPONSES = pa.schema(
    [
        ("id", pa.string()),
        ("modality", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("image_id", pa.string()),
    ]
)
"""``title``: what a person reads (an utterance, a picture's description, a product's title); ``text``: all words that
encoders see; ``image_id``: its picture, null for none."""


@dataclass(frozen=True, slots=True)
class Response:
    """A row of :data:`RESPONSES`."""

    id: str
    modality: str
    title: str
    text: str
    image_id: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A dialogue up to the turn that shall be found.

    Attributes:
        turns: oldest first; the last ``context_turns`` of the dialogue.
    """

    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A query with its right response.

    Attributes:
        id: ``<dialogue>#<turn index>``, with ``.<k>`` behind it from the second right response of a turn on.
        dialogue_id: of the dialogue.
        split: ``train`` or ``test``.
        query: what is known.
        modality: of the response.
        response_id: the right response.
        also: further right responses of the same turn; neither negatives nor distractors.
        chat: that several dialogues share; None: the dialogue shares its turns with no other.
    """

    id: str
    dialogue_id: str
    split: Split
    query: Query
    modality: str
    response_id: str
    also: tuple[str, ...] = ()
    chat: str | None = None

    @property
    def conversation(self) -> str:
        """What is held out as one: the chat, or the dialogue where it stands alone."""
        return self.chat or self.dialogue_id


@dataclass(frozen=True)
class SampleSet:
    """All samples of a corpus with the responses they may be answered by.

    Attributes:
        samples: in the corpus's order.
        responses: id → response: right responses of either split, and the whole catalogue for products.
        modalities: that occur, in the settings' order.
    """

    samples: tuple[Sample, ...]
    responses: Mapping[str, Response]
    modalities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates for one sample: the right response exactly once, distractors of its own drawing.

    Attributes:
        sample_id: of the sample.
        candidates: response ids, sorted by modality then id (an order that tells nothing of which is right).
        gold: the right one's id.
    """

    sample_id: str
    candidates: tuple[str, ...]
    gold: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved response; ``score`` is the cosine in [-1, 1] (or the re-ranker's, larger is better)."""

    response: Response
    score: float
