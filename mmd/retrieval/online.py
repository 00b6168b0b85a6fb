"""Retrieval online: an engine whose queries bring pictures along that no artefact knows.

Pictures are read when a query comes, one query at a time; ranking takes several queries at once. What one query brought
can be seen by the encoders only while it is ranked.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmd.artifacts import Artifact, ArtifactStore
from mmd.errors import ArtifactError, ModelError
from mmd.intent.online import OnlineFeatures, OnlineSettings
from mmd.intent.types import ImageFacts
from mmd.retrieval.engine import RetrievalAnswer, RetrievalEngine
from mmd.retrieval.pictures import ResponsePictures
from mmd.retrieval.types import Query
from mmd.schema import Image, text_id

Vectors = NDArray[np.float32]


class OnlineSources:
    """Vectors and files of texts and pictures that come online (:class:`mmd.retrieval.inputs.InputSources`).

    Args:
        features: reads texts and pictures, with a cache of recent ones.
        text_dim: length of a text's vector; 0 where none is asked for.
        picture_dim: length of a picture's vector; 0 where none is asked for.
    """

    def __init__(self, features: OnlineFeatures, text_dim: int, picture_dim: int) -> None:
        self.text_dim = text_dim
        self.picture_dim = picture_dim
        self._features = features
        self._shown: dict[str, ImageFacts] = {}
        self._viewers: Counter[str] = Counter()
        self._lock = threading.Lock()

    def look(self, images: Mapping[str, Image]) -> tuple[dict[str, ImageFacts], tuple[str, ...]]:
        """Read pictures; return what is known of each, its file included, and what could not be read and why."""
        return self._features.look(images, pixels=True)

    @contextmanager
    def showing(self, pictures: Iterable[Mapping[str, ImageFacts]]) -> Iterator[None]:
        """Let encoders see these pictures for the length of the ``with``; threads may show different ones at a time."""
        shown = {key: facts for some in pictures for key, facts in some.items()}
        with self._lock:
            self._shown |= shown
            self._viewers.update(shown.keys())
        try:
            yield
        finally:
            with self._lock:
                self._viewers.subtract(shown.keys())
                for key in [key for key in shown if self._viewers[key] <= 0]:
                    del self._viewers[key], self._shown[key]

    def text_vectors(self, texts: Sequence[str]) -> Vectors:
        """Return float32 (n, text_dim), rows of unit length; a text without words is a zero row.

        Raises:
            ModelError: texts cannot be read here.
        """
        vectors, problem = self._features.read(texts)
        if problem:
            raise ModelError(f"{problem}; without their words, dialogues cannot be answered.")
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
        for row, key in enumerate(image_ids):
            facts = self._shown.get(key)
            if facts is not None and facts.vector is not None:
                out[row], known[row] = facts.vector, True
        return out, known

    def picture_bytes(self, image_ids: Sequence[str]) -> list[bytes | None]:
        """Return encoded pictures, None for those that are not there."""
        shown = [self._shown.get(key) for key in image_ids]
        return [None if facts is None else facts.data for facts in shown]


@dataclass(frozen=True)
class PreparedRetrieval:
    """A query whose pictures have been read; the slow part that is not worth batching."""

    query: Query
    pictures: Mapping[str, ImageFacts]
    problems: tuple[str, ...]
    pictures_ms: float


class OnlineRetrieval:
    """A retrieval engine that answers dialogues with new pictures; safe to share between threads.

    Args:
        engine: ranks; its maker reads ``sources``.
        sources: of texts and pictures.
        context_turns: last turns of a dialogue that a query keeps.
        pictures: of the responses.
        degraded: what was missing at loading, repeated in answers.
    """

    def __init__(
        self,
        engine: RetrievalEngine,
        sources: OnlineSources,
        *,
        context_turns: int,
        pictures: ResponsePictures,
        degraded: tuple[str, ...] = (),
    ) -> None:
        self.engine = engine
        self.pictures = pictures
        self.degraded = degraded
        self._sources = sources
        self._context_turns = context_turns

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

    def rank(self, prepared: Sequence[PreparedRetrieval], k: int, modality: str | None = None) -> list[RetrievalAnswer]:
        """Return one answer a query, in order; see :meth:`RetrievalEngine.retrieve`.

        Raises:
            RequestError: a query has nothing to go by, or the modality is unknown.
            ModelError: texts cannot be read here.
        """
        with self._sources.showing(entry.pictures for entry in prepared):
            answers = self.engine.retrieve([entry.query for entry in prepared], k, modality)
        return [
            replace(answer, timings_ms={"pictures": entry.pictures_ms, **answer.timings_ms})
            for entry, answer in zip(prepared, answers, strict=True)
        ]

    @classmethod
    def from_store(
        cls,
        store: ArtifactStore,
        name: str,
        *,
        refs: Mapping[str, str] | None = None,
        settings: OnlineSettings | None = None,
    ) -> OnlineRetrieval:
        """Load what was trained on a corpus.

        Args:
            store: where the artefacts are.
            name: name of the corpus and of everything made from it.
            refs: role (``retriever``, ``index``) → ``kind/name@version`` where another version is wanted than the
                newest index and the retriever that it was made with.
            settings: of the extractors.

        Raises:
            ArtifactError: there is no index or retriever, or they do not belong together.
            ModelError: an extractor here differs from the one that the retriever was trained with.
        """
        artifacts = open_artifacts(store, name, refs or {})
        raise ModelError(f"{artifacts['index'].ref}: cannot be served yet.")


def open_artifacts(store: ArtifactStore, name: str, refs: Mapping[str, str]) -> dict[str, Artifact]:
    """Open an index and what it was made from.

    Raises:
        ArtifactError: one is missing, or the index is of another retriever than the wanted one.
    """
    index = store.open(refs.get("index") or f"index/{name}").of_kind("index", "`mmd build_index` writes one.")
    made_with = index.manifest.inputs["retriever"].split(" ")[0]  # inputs are "kind/name@version digest"
    retriever = store.open(refs.get("retriever") or made_with)
    retriever = retriever.of_kind("retriever", "`mmd train_retriever` writes one.")
    if retriever.ref != made_with:
        raise ArtifactError(
            f"{index.ref}: its vectors are {made_with}'s, not {retriever.ref}'s; run `mmd build_index` for that one."
        )
    return {"retriever": retriever, "index": index}
