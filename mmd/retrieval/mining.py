"""Hard negatives: the wrong responses that the retriever, as it is, ranks highest.

They are mined anew where an epoch begins, among the training responses of the sample's own modality, since another
modality is told apart easily. What answers as well as the right response (its siblings of the same turn, and what reads
the same) is none.

Source: Xiong et al. 2021, "Approximate Nearest Neighbor Negative Contrastive Learning" (ANCE).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmd.intent.textnorm import normalise
from mmd.models.workers import Workers
from mmd.retrieval.steps import ChunkMaker
from mmd.retrieval.types import Response, Sample
from mmd.retrieval.validation import Floats, share_encoding, share_queries

if TYPE_CHECKING:
    import torch

    from mmd.retrieval.methods import Retriever

NONE = -1
_SCORES = 1 << 24  # cosines held at a time, float32
Mined = NDArray[np.int64]


class Miner:
    """Finds hard negatives for all training samples; workers share the encoding, and all of them get the result.

    Args:
        samples: in the order of the plan's keys.
        responses: the right ones of all samples, each once.
        count: negatives a sample.
        chunks: makes tower inputs.
        workers: who encode.
        device: of the retriever.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        responses: Sequence[Response],
        count: int,
        chunks: ChunkMaker,
        workers: Workers,
        device: torch.device | str = "cpu",
    ) -> None:
        self.responses = sorted(responses, key=lambda response: response.id)
        self._samples, self._count = samples, count
        self._chunks, self._workers, self._device = chunks, workers, device
        self._banned = banned_rows(samples, self.responses)

    def __call__(self, retriever: Retriever) -> Mined:
        """Return rows of ``responses``, int64 (n_samples, count), hardest first; -1 where there are no more."""
        queries = share_queries(retriever, self._workers, self._samples, self._chunks, self._device)[
            :, : retriever.spec.towers.dim
        ]
        vectors = share_encoding(
            retriever,
            self._workers,
            len(self.responses),
            lambda part: self._chunks.responses(self.responses[part]),
            self._device,
        )
        mined = np.full((len(self._samples), self._count), NONE, dtype=np.int64)
        for modality in sorted({sample.modality for sample in self._samples}):
            rows = np.flatnonzero([sample.modality == modality for sample in self._samples])
            own = np.flatnonzero([response.modality == modality for response in self.responses])
            mined[rows] = hardest(queries[rows], vectors[own], own, [self._banned[row] for row in rows], self._count)
        return mined


def banned_rows(samples: Sequence[Sample], responses: Sequence[Response]) -> list[frozenset[int]]:
    """Return, for each sample, the rows of responses that answer it: right ones, and those that read the same."""
    row_of = {response.id: row for row, response in enumerate(responses)}
    alike: defaultdict[str, set[int]] = defaultdict(set)
    words = [normalise(response.text) for response in responses]
    for row, text in enumerate(words):
        if text:
            alike[text].add(row)
    out = []
    for sample in samples:
        right = [row_of[r] for r in (sample.response_id, *sample.also) if r in row_of]
        out.append(frozenset(right).union(*(alike[words[row]] for row in right if words[row])))
    return out


def hardest(
    queries: Floats, responses: Floats, rows: NDArray[np.int64], banned: Sequence[frozenset[int]], count: int
) -> Mined:
    """Return the rows of the responses closest to each query, int64 (n, count); -1 where there are no more.

    Args:
        queries: (n, dim).
        responses: (m, dim).
        rows: (m,), what the responses are called.
        banned: rows that are no negatives of a query.
        count: how many.
    """
    out = np.full((len(queries), count), NONE, dtype=np.int64)
    block = max(1, _SCORES // max(1, len(responses)))
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ responses.T
        for place, own in enumerate(scores, start=start):
            enough = min(len(rows), count + len(banned[place]))
            found = np.argpartition(-own, enough - 1)[:enough]
            ordered = rows[found[np.lexsort((rows[found], -own[found]))]]  # equal cosines: by row
            kept = [row for row in ordered.tolist() if row not in banned[place]][:count]
            out[place, : len(kept)] = kept
    return out
