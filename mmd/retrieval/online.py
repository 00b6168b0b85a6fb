"""Retrieval online: an engine whose queries bring pictures along that no artefact knows.

Pictures are read when a query comes, one query at a time; ranking takes several queries at once. What one query brought
can be seen by the encoders only while it is ranked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ModelError
from mmd.features.extract import ExtractorInfo
from mmd.intent.online import OnlineFeatures
from mmd.intent.types import ImageFacts
from mmd.models.threads import torch_threads
from mmd.retrieval.engine import RetrievalAnswer, RetrievalEngine
from mmd.retrieval.facts import Facts, ocr_words
from mmd.retrieval.pictures import ResponsePictures
from mmd.retrieval.types import Query
from mmd.schema import Image, text_id

Vectors = NDArray[np.float32]


class OnlineSources(Mapping[str, str]):
    """What encoders see of texts and pictures that come online.

    Vectors and files (:class:`mmd.retrieval.inputs.InputSources`), and, as a mapping, image id → words that stand for a
    picture.

    Args:
        features: reads texts and pictures, with a cache of recent ones.
        facts: of the corpus; its pictures keep the words that they had in training.
        extractors: role (``text``, ``vision``) → what makes the vectors; None where none are asked for.
        responses: pictures of responses, which a re-ranker looks at; None: nobody does.
    """

    def __init__(
        self,
        features: OnlineFeatures,
        facts: Facts,
        extractors: Mapping[str, ExtractorInfo | None],
        responses: ResponsePictures | None = None,
    ) -> None:
        self.extractors = dict(extractors)
        self.text_dim, self.picture_dim = (_dim(self.extractors.get(role)) for role in ("text", "vision"))
        self.titles = facts.titles
        self._features = features
        self._known = facts.pictures
        self._reads_ocr = facts.settings.picture_text in ("ocr", "both")
        self._responses = responses
        self._shown: Mapping[str, ImageFacts] = {}

    @property
    def pictures(self) -> Mapping[str, str]:
        """Image id → words, those on show included."""
        return self

    def look(self, images: Mapping[str, Image]) -> tuple[dict[str, ImageFacts], tuple[str, ...]]:
        """Read pictures; return what is known of each, its file included, and what could not be read and why."""
        return self._features.look(images, pixels=True)

    def show(self, pictures: Mapping[str, ImageFacts]) -> None:
        """Let encoders see these pictures, and no longer those before them."""
        self._shown = pictures

    # ------------------------------------------------------------ words of pictures

    def __getitem__(self, image_id: str) -> str:
        """Return the words that stand for a picture."""
        if image_id in self._known:
            return self._known[image_id]
        words = self._words(self._shown[image_id])
        if not words:
            raise KeyError(image_id)
        return words

    def _words(self, facts: ImageFacts) -> str:
        return ocr_words(line.text for line in facts.ocr) if self._reads_ocr else ""

    def __iter__(self) -> Iterator[str]:
        """Yield the ids of pictures that have words."""
        yield from self._known
        yield from (key for key, facts in self._shown.items() if key not in self._known and self._words(facts))

    def __len__(self) -> int:
        """Return how many pictures have words."""
        return sum(1 for _ in self)

    # ------------------------------------------------------------ vectors and files

    def text_vectors(self, texts: Sequence[str]) -> Vectors:
        """Return float32 (n, text_dim), rows of unit length; a text without words is a zero row.

        Raises:
            ModelError: texts cannot be read here.
        """
        vectors, problem = self._features.read(texts)
        if problem:
            raise ModelError(f"{problem}; a dialogue cannot be answered without its words.")
        out = np.zeros((len(texts), self.text_dim), np.float32)
        for row, text in enumerate(texts):
            found = vectors.get(text_id(text))
            if found is not None:
                out[row] = found
        return out

    def picture_vectors(self, image_ids: Sequence[str]) -> tuple[Vectors, NDArray[np.bool_]]:
        """Return float32 (n, picture_dim), and which of them are known; the others' rows are zero."""
        out = np.zeros((len(image_ids), self.picture_dim), np.float32)
        known = np.zeros(len(image_ids), np.bool_)
        for row, facts in enumerate(self._facts(image_ids)):
            if facts is not None and facts.vector is not None:
                out[row], known[row] = facts.vector, True
        return out, known

    def picture_bytes(self, image_ids: Sequence[str]) -> list[bytes | None]:
        """Return encoded pictures, None for those that are not there."""
        return [None if facts is None else facts.data for facts in self._facts(image_ids)]

    def _facts(self, image_ids: Sequence[str]) -> list[ImageFacts | None]:
        """Return what is known of pictures on show, and of those of responses; None for others."""
        own = {key: self._responses.get(key) for key in image_ids if key not in self._shown} if self._responses else {}
        # Responses are in words already: nothing is to be recognised in their pictures.
        unread = {key: replace(image, ocr=()) for key, image in own.items() if image is not None}
        known = {**self._features.look(unread, pixels=True)[0], **self._shown}
        return [known.get(key) for key in image_ids]


def _dim(info: ExtractorInfo | None) -> int:
    return 0 if info is None else info.dim


@dataclass(frozen=True)
class PreparedRetrieval:
    """A query whose pictures have been read; the slow part that is not worth batching."""

    query: Query
    pictures: Mapping[str, ImageFacts]
    problems: tuple[str, ...]
    pictures_ms: float


class OnlineRetrieval:
    """A retrieval engine that answers dialogues with new pictures; threads may share it, and rank one after another.

    Args:
        engine: ranks; its maker reads ``sources``.
        sources: of texts and pictures.
        pictures: of the responses.
        context_turns: last turns of a dialogue that a query keeps.
        threads: CPU threads of the encoders.
        degraded: what was missing at loading, repeated in answers.
    """

    def __init__(
        self,
        engine: RetrievalEngine,
        sources: OnlineSources,
        pictures: ResponsePictures,
        *,
        context_turns: int,
        threads: int = 1,
        degraded: tuple[str, ...] = (),
    ) -> None:
        self.engine = engine
        self.pictures = pictures
        self.degraded = degraded
        self._sources = sources
        self._context_turns = context_turns
        self._threads = threads
        self._lock = threading.Lock()  # tokenizers and encoders are not made for several threads

    @property
    def artifacts(self) -> Mapping[str, str]:
        """Role → reference of what answers."""
        return self.engine.artifacts

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that are ranked, in the retriever's order."""
        return self.engine.modalities

    def prepare(self, query: Query, images: Mapping[str, Image]) -> PreparedRetrieval:
        """Keep the end of the dialogue, and read the pictures in it."""
        turns = query.turns[-self._context_turns :]
        named = {image_id for turn in turns for image_id in turn.image_ids}
        started = time.perf_counter()
        facts, problems = self._sources.look({key: image for key, image in images.items() if key in named})
        return PreparedRetrieval(Query(turns), facts, problems, (time.perf_counter() - started) * 1000)

    def rank(
        self, prepared: Sequence[PreparedRetrieval], k: int, modality: str | None = None, *, each: bool = False
    ) -> list[RetrievalAnswer]:
        """Return one answer a query, in order; see :meth:`RetrievalEngine.retrieve`.

        Raises:
            RequestError: a query has nothing to go by, or the modality is unknown.
            ModelError: texts cannot be read here.
        """
        with self._lock, torch_threads(self._threads):
            self._sources.show({key: facts for entry in prepared for key, facts in entry.pictures.items()})
            try:
                answers = self.engine.retrieve([entry.query for entry in prepared], k, modality, each=each)
            finally:
                self._sources.show({})
        return [
            replace(answer, timings_ms={"pictures": entry.pictures_ms, **answer.timings_ms})
            for entry, answer in zip(prepared, answers, strict=True)
        ]
