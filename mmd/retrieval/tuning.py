"""Building an index that finds what it shall: how hard it searches is measured on vectors that it has not seen.

The graph of HNSW leads a stored vector to its own neighbours more easily than a new one, so the queries that an index
is tuned with are either real ones, or vectors held out while it is built and added when it is tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mmd.retrieval.index import ResponseIndex, Tuned
from mmd.retrieval.structures import Choice, Slots, Vectors, faiss_threads

EFFORTS: dict[str, tuple[int, ...]] = {
    "hnsw": (20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "lists": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
}
"""Efforts tried, growing: nodes in sight; lists searched."""
_QUERIES = 500  # held out at most; recall is then known within about half a point
_SHARE = 10  # one in so many is held out of a small index
_DEPTH = 10
_NEAR_BEST = 0.005
_TIE = 1e-6


class Judge(Protocol):
    """Queries, and which rows are right for them."""

    @property
    def queries(self) -> Vectors:
        """Return the queries (n, dim)."""
        ...

    def recalls(self, rows: Slots) -> npt.NDArray[np.float64]:
        """Return each query's share of right ones among rows (n, depth)."""
        ...


@dataclass(frozen=True)
class Truth:
    """What exact search says of queries.

    Attributes:
        queries: (n, dim).
        vectors: (m, dim), all that could be found.
        least: (n,) score of the last of the right ones.
        depth: how many are right for each.
    """

    queries: Vectors
    vectors: Vectors
    least: npt.NDArray[np.float32]
    depth: int

    @classmethod
    def of(cls, queries: Vectors, vectors: Vectors, depth: int = _DEPTH) -> Truth:
        """Search exactly, with all cores."""
        import faiss

        depth = min(depth, len(vectors))
        scores, _ = faiss.knn(queries, vectors, depth, metric=faiss.METRIC_INNER_PRODUCT)
        return cls(queries, vectors, scores[:, -1], depth)

    def recalls(self, rows: Slots) -> npt.NDArray[np.float64]:
        """Return each query's share of right ones among rows (n, depth) of the vectors; −1 is no row.

        What scores no less than the last right one is right: a tie is no miss.
        """
        hits = np.empty(len(rows))
        for at, own in enumerate(rows):
            scores = self.vectors[own[own >= 0]] @ self.queries[at]
            hits[at] = np.count_nonzero(scores >= self.least[at] - _TIE)
        return hits / self.depth


def build_index(
    ids: Sequence[str],
    vectors: Vectors,
    choice: Choice,
    *,
    recall: float,
    queries: Vectors | None = None,
    encoder: str = "",
    threads: int = 0,
) -> ResponseIndex:
    """Build an index of all vectors (n, dim) and tune it.

    Args:
        ids: of the vectors.
        vectors: of responses.
        choice: the structure.
        recall: recall@10 against exact search to be reached with least effort.
        queries: (m, dim) of the kind that will be asked; none: some vectors are held out to ask with.
        encoder: hash of the encoder.
        threads: of a search; 0: all cores.
    """
    index = ResponseIndex(vectors.shape[1], choice, encoder=encoder, threads=threads)
    if choice.kind == "flat" or len(ids) < _SHARE:
        index.add(ids, vectors)
        return index  # untuned, it looks at everything
    held_out = np.zeros(len(ids), bool)
    if queries is None or not len(queries):
        drawn = np.random.default_rng(0).choice(len(ids), min(_QUERIES, len(ids) // _SHARE), replace=False)
        held_out[drawn] = True
        queries = vectors[held_out]
    known = vectors[~held_out] if held_out.any() else vectors  # a copy of a million vectors where one is needed only
    index.add([ids[i] for i in np.flatnonzero(~held_out).tolist()], known)
    with faiss_threads(threads):
        truth = Truth.of(np.ascontiguousarray(queries, np.float32), known)

        def found(effort: int) -> Slots:  # slots are rows of ``known``: nothing else was added
            return index.fetch(truth.queries, truth.depth, effort)[1]

        index.tuned = tune(found, truth, EFFORTS["hnsw" if choice.kind == "hnsw" else "lists"], recall)
    index.add([ids[i] for i in np.flatnonzero(held_out).tolist()], vectors[held_out])
    return index


def tune(found: Callable[[int], Slots], truth: Judge, efforts: Sequence[int], recall: float) -> Tuned:
    """Return the least effort whose recall is above the wanted one by a standard error.

    Where none is, because the codes of a structure are too coarse: the least that comes near the best.

    Args:
        found: effort → rows found (n, depth), −1 for none: what is searched again for want of finds is a miss here.
        truth: to compare with.
        efforts: to try, growing.
        recall: wanted.
    """
    if not len(truth.queries):
        return Tuned(efforts[-1], 0.0, 0)
    tried: list[Tuned] = []
    for effort in efforts:
        shares = truth.recalls(found(effort))
        tried.append(Tuned(effort, float(shares.mean()), len(shares)))
        if shares.mean() - shares.std() / np.sqrt(len(shares)) >= recall:
            return tried[-1]
    best = max(t.recall for t in tried)
    return next(t for t in tried if t.recall >= best - _NEAR_BEST)
