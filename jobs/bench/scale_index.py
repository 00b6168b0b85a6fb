"""An index that is built from vectors which never lie in memory together: drawn, added, compared, forgotten."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.bench.index import Surface
from mmd.retrieval.index import ResponseIndex
from mmd.retrieval.structures import Choice, Slots, StructureKind, Vectors, describe_kind, faiss_threads
from mmd.retrieval.tuning import EFFORTS, tune

DEPTH = 10
_LATENT, _NOISE, _SEED = 24, 0.35, 0  # as `bench index` draws
_FIRST, _CHUNK = 300_000, 100_000  # vectors that a structure learns from, and that are added at a time
_QUERIES = 500  # to tune with, and as many others to judge with
_SINGLE = 200  # asked one at a time


@dataclass(frozen=True)
class Nearest:
    """The nearest vectors of queries as far as they are known.

    Attributes:
        queries: (n, dim).
        scores: (n, depth) inner products, falling.
        right: (n, depth) rows that have them.
    """

    queries: Vectors
    scores: Vectors
    right: Slots

    @classmethod
    def none(cls, queries: Vectors) -> Nearest:
        """Return what is known before any vector was seen."""
        shape = (len(queries), DEPTH)
        return cls(queries, np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64))

    def seen(self, vectors: Vectors, first: int) -> Nearest:
        """Return what is known after more vectors (m, dim), whose rows count from ``first``."""
        import faiss

        scores, rows = faiss.knn(self.queries, vectors, min(DEPTH, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        scores, rows = np.hstack([self.scores, scores]), np.hstack([self.right, rows + first])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        return Nearest(self.queries, np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1))

    def part(self, some: slice) -> Nearest:
        """Return what is known of some of the queries."""
        return Nearest(self.queries[some], self.scores[some], self.right[some])

    def recalls(self, rows: Slots) -> npt.NDArray[np.float64]:
        """Return each query's share of its nearest among rows (n, depth)."""
        return np.array(
            [len(np.intersect1d(found, right)) / DEPTH for found, right in zip(rows, self.right, strict=True)]
        )


class Clock:
    """Seconds and processor seconds by what they went into."""

    def __init__(self) -> None:
        self.spent: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, started: tuple[float, float]) -> None:
        """Count the time since ``started``, which :meth:`now` gave."""
        wall, cpu = (now - then for now, then in zip(self.now(), started, strict=True))
        own = self.spent.setdefault(name, {"seconds": 0.0, "cpu_s": 0.0})
        own["seconds"] += wall
        own["cpu_s"] += cpu

    @staticmethod
    def now() -> tuple[float, float]:
        """Return the time and this process's processor time."""
        return time.perf_counter(), time.process_time()


def index_streamed(
    vectors: int,
    kind: StructureKind,
    *,
    dim: int = 384,
    lists: int = 0,
    recall: float = 0.92,
    threads: int = 1,
    within_s: float = math.inf,
) -> dict[str, Any]:
    """Build, tune and judge an index of drawn vectors.

    Args:
        vectors: to be stored.
        kind: of structure.
        dim: numbers of a vector.
        lists: of a structure that has lists; 0: as many as it takes by itself.
        recall: recall@10 that is tuned for.
        threads: of building and searching.
        within_s: after which no more vectors are added; what is told then is of as many as were.
    """
    surface = Surface(dim, _LATENT, _NOISE, np.random.default_rng(_SEED))
    choice = describe_kind(kind, vectors, dim)
    if lists and "lists" in choice.parameters:
        choice = Choice(kind, {**choice.parameters, "lists": lists}, choice.bytes, "as asked for")
    index, clock, begun = ResponseIndex(dim, choice, threads=threads), Clock(), time.monotonic()
    nearest = Nearest.none(surface.vectors(2 * _QUERIES, np.random.default_rng([_SEED, 0])))
    with faiss_threads(threads):
        for first, count in pieces(vectors):
            started = clock.now()
            drawn = surface.vectors(count, np.random.default_rng([_SEED, 1, first]))
            clock("draw", started)
            started = clock.now()
            index.add([str(row) for row in range(first, first + count)], drawn)
            clock("train, add" if not first else "add", started)
            started = clock.now()
            nearest = nearest.seen(drawn, first)
            clock("exact", started)
            print(f"{len(index):,} of {vectors:,} vectors", clock.spent, file=sys.stderr, flush=True)
            if time.monotonic() - begun > within_s:
                break
        started = clock.now()
        tuning = nearest.part(slice(_QUERIES))
        if kind != "flat":
            efforts = EFFORTS["hnsw" if kind == "hnsw" else "lists"]
            index.tuned = tune(lambda effort: index.fetch(tuning.queries, DEPTH, effort)[1], tuning, efforts, recall)
        clock("tune", started)
        return {
            "vectors": len(index),
            "asked_for": vectors,
            "dim": dim,
            "kind": kind,
            "parameters": dict(choice.parameters),
            "threads": threads,
            "tuned": asdict(index.tuned),
            "spent": clock.spent,
            "build_s": sum(own["seconds"] for name, own in clock.spent.items() if "add" in name),
            "build_cpu_s": sum(own["cpu_s"] for name, own in clock.spent.items() if "add" in name),
            "structure_bytes_a_vector": choice.bytes / vectors,
            "tenth_cosine_mean": float(nearest.scores[:, -1].mean()),
            "exact_queries_per_s": 2 * _QUERIES / clock.spent["exact"]["seconds"],
            **asked(index, nearest.part(slice(_QUERIES, None))),
        }


def pieces(vectors: int) -> Iterator[tuple[int, int]]:
    """Yield first row and number of the vectors that are added together: many at first, to learn from."""
    first = 0
    while first < vectors:
        count = min(vectors - first, _CHUNK if first else _FIRST)
        yield first, count
        first += count


def asked(index: ResponseIndex, nearest: Nearest) -> dict[str, Any]:
    """Ask all at once, then one by one, and judge what was found."""
    index.search(nearest.queries, DEPTH)  # warm-up
    clock, begun = Clock(), Clock.now()
    found = np.array(index.search(nearest.queries, DEPTH).ids).astype(np.int64)
    clock("search", begun)
    times = []
    for query in nearest.queries[:_SINGLE]:
        started = time.perf_counter()
        index.search(query[None], DEPTH)
        times.append((time.perf_counter() - started) * 1000)
    return {
        "recall_at_10": float(nearest.recalls(found).mean()),
        "queries_per_s": len(found) / clock.spent["search"]["seconds"],
        "query_cpu_ms": 1000 * clock.spent["search"]["cpu_s"] / len(found),
        "one_query_ms": {name: float(np.percentile(times, at)) for name, at in (("p50", 50), ("p99", 99))},
    }
