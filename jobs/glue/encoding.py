"""Encoding of responses by a trained retriever, in the driver and in Ray Data's actors.

A module of its own, since Ray pickles what a job's ``__main__`` defines by value, with all that its globals hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from jobs.evaluate_retrieval import open_retriever
from jobs.glue.entry import JobContext
from mmd.artifacts import Artifact
from mmd.config import AppConfig
from mmd.corpora.store import Corpus
from mmd.features.store import Features
from mmd.retrieval.samples import find_samples
from mmd.retrieval.structures import Vectors
from mmd.retrieval.types import Query, Response, SampleSet

if TYPE_CHECKING:
    from mmd.retrieval.inputs import InputMaker
    from mmd.retrieval.methods import Retriever

_TUNING_QUERIES = 500


@dataclass
class Encoding:
    """The retriever with what it reads, loaded when it is asked for; the same in the driver and in actors.

    Attributes:
        config: settings, with a store that is found from here.
        inputs: role → artefact, ``retriever`` and what it was trained on.
    """

    config: AppConfig
    inputs: Mapping[str, Artifact]

    @cached_property
    def _loaded(self) -> tuple[Retriever, InputMaker, Any]:
        return open_retriever(JobContext(self.config), self.inputs["retriever"], self._corpus, self._features)

    @property
    def _corpus(self) -> Corpus:
        return Corpus(self.inputs["corpus"])

    @property
    def _features(self) -> Features | None:
        return Features(self.inputs["features"]) if "features" in self.inputs else None

    @cached_property
    def samples(self) -> SampleSet:
        """All samples of the corpus, with all responses."""
        retriever, _, facts = self._loaded
        return find_samples(self._corpus.dialogues(), facts, retriever.spec.samples)

    def responses(self, responses: Sequence[Response]) -> Vectors:
        """Return unit vectors (n, dim)."""
        from mmd.retrieval.encode import encode_responses

        retriever, maker, _ = self._loaded
        return encode_responses(retriever, maker, responses)

    def queries(self, modality: str) -> Vectors:
        """Return vectors (n, dim) of training queries, such as the index will be asked with."""
        from mmd.retrieval.encode import encode_queries

        retriever, maker, _ = self._loaded
        own = [s.query for s in self.samples.samples if s.split == "train" and s.modality == modality]
        drawn = np.random.default_rng(0).permutation(len(own))[:_TUNING_QUERIES]
        some: list[Query] = [own[row] for row in sorted(drawn.tolist())]
        return encode_queries(retriever, maker, some, modality)


class ResponseEncoder:
    """A process with a warm retriever: rows of responses in, their vectors out."""

    def __init__(self, config: AppConfig, refs: Mapping[str, str]) -> None:
        store = JobContext(config).store
        self._encoding = Encoding(config, {role: store.open(ref, verify=False) for role, ref in refs.items()})

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode a batch."""
        vectors = self._encoding.responses([Response(**row) for row in batch.to_pylist()])
        flat = pa.array(vectors.ravel(), pa.float32())
        return pa.table({"id": batch["id"], "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})
