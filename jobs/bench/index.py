"""The index of responses at a million vectors: recall, queries a second, memory and time to build, beside hnswlib.

Vectors are drawn so that they look like a sentence encoder's: topics of unequal size on a surface of ``--latent``
dimensions, bent into ``--dim`` numbers by tanh, with noise of its own in each number, then brought to length 1. Queries
are further draws, which no structure holds. Every structure is timed in turn with exact search (FAISS's flat index, the
same batch of 1,000 queries, as many threads) so that what else the machine does weighs on both; ``times_exact`` is the
median of the ratios of neighbouring measurements.

    python -m jobs.bench index
    python -m jobs.bench index --vectors 100000 --structures hnsw sq8 hnswlib usearch
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from jobs.glue.records import spread
from mmd.errors import ConfigError
from mmd.retrieval.index import ResponseIndex
from mmd.retrieval.structures import HNSW_BUILD_EFFORT, HNSW_LINKS, KINDS, Slots, Vectors, describe_kind, faiss_threads
from mmd.retrieval.tuning import EFFORTS, Truth, build_index, tune

OTHERS = ("hnswlib", "usearch")
_K = 10
_BATCH = 1000  # queries; exact search is quicker a query with many at a time
_SINGLE = 200  # queries asked one at a time
_TUNING = 500
_TOPICS = 2000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add sizes, structures and repeats."""
    parser.add_argument("--vectors", type=int, default=1_000_000, help="stored (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=384, help="numbers of a vector (default: %(default)s)")
    parser.add_argument("--latent", type=int, default=24, help="dimensions of the surface (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=0.35, help="of each number (default: %(default)s)")
    parser.add_argument("--recall", type=float, default=0.95, help="recall@10 tuned for (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of every structure (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each side (default: %(default)s)")
    parser.add_argument(
        "--structures",
        nargs="+",
        choices=(*KINDS, *OTHERS),
        default=["hnsw", "hnswlib", "ivf_pq", "sq8"],
        help="beside flat, which is always there (default: %(default)s)",
    )


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Build and measure each structure, one after the other, next to exact search."""
    threads, stored = options["threads"], options["vectors"]
    drawn = sentence_like(stored + _TUNING + _BATCH, options["dim"], options["latent"], options["noise"], seed=0)
    vectors, tuning, queries = drawn[:stored], drawn[stored:-_BATCH], drawn[-_BATCH:]
    with faiss_threads(threads):
        truth = Truth.of(queries, vectors)
        exact = Exact(vectors)
        results: dict[str, Any] = {}
        for name in options["structures"]:
            results[name] = measure(name, vectors, tuning, truth, exact, options)
            print(name, results[name], file=sys.stderr, flush=True)  # a run takes long, and may be cut short
    return {
        "config": dict(options),
        "threads": threads,
        "cores": len(os.sched_getaffinity(0)),
        "warmup": 1,
        "repeats": options["repeats"],
        "float_bytes_a_vector": 4 * options["dim"],
        "tenth_cosine_mean": float(truth.least.mean()),
        "flat": {"build_s": exact.build_s, "bytes_a_vector": 4.0 * options["dim"], "recall_at_10": 1.0},
        "structures": results,
        "targets": {"recall_at_10": 0.95, "times_exact": 20, "compressed_bytes_share": 1 / 8},
    }


def sentence_like(n: int, dim: int, latent: int, noise: float, seed: int) -> Vectors:
    """Draw unit vectors (n, dim) as the module's text says; the same ``seed``, the same vectors."""
    draw = np.random.default_rng(seed)
    return Surface(dim, latent, noise, draw).vectors(n, draw)


class Surface:
    """Topics on a bent surface, from which vectors are drawn.

    Args:
        dim: numbers of a vector.
        latent: dimensions of the surface.
        noise: of each number.
        draw: of the surface itself.
    """

    def __init__(self, dim: int, latent: int, noise: float, draw: np.random.Generator) -> None:
        self._noise = noise
        self._bend = (draw.standard_normal((latent, dim)) / np.sqrt(latent)).astype(np.float32)
        self._centres = draw.standard_normal((_TOPICS, latent), dtype=np.float32)
        weights = np.arange(1, _TOPICS + 1) ** -0.7
        self._shares = weights / weights.sum()

    def vectors(self, n: int, draw: np.random.Generator) -> Vectors:
        """Draw ``n`` unit vectors (n, dim)."""
        topic = draw.choice(_TOPICS, n, p=self._shares)
        out = np.empty((n, self._bend.shape[1]), np.float32)
        for start in range(0, n, 50_000):
            some = slice(start, min(n, start + 50_000))
            place = self._centres[topic[some]]
            place += 0.6 * draw.standard_normal(place.shape, dtype=np.float32)
            rows = np.tanh(place @ self._bend)
            rows += self._noise * draw.standard_normal(rows.shape, dtype=np.float32)
            out[some] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return out


class Candidate(Protocol):
    """A structure under measurement."""

    def rows(self, queries: Vectors) -> Slots:
        """Return the rows (n, 10) found; −1 for none."""
        ...


class Exact:
    """Exact search over all vectors, by FAISS."""

    def __init__(self, vectors: Vectors) -> None:
        import faiss

        started = time.perf_counter()
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)
        self.build_s = time.perf_counter() - started

    def rows(self, queries: Vectors) -> Slots:
        """Return the right rows."""
        return self._index.search(queries, _K)[1]  # type: ignore[no-any-return]


class Ours:
    """A :class:`ResponseIndex`, searched as everyone searches it: ids and scores, ties settled."""

    def __init__(self, name: str, vectors: Vectors, tuning: Vectors, options: Mapping[str, Any]) -> None:
        choice = describe_kind(name, len(vectors), vectors.shape[1])  # type: ignore[arg-type]
        self.index: ResponseIndex = build_index(
            [str(i) for i in range(len(vectors))],
            vectors,
            choice,
            recall=options["recall"],
            queries=tuning,
            threads=options["threads"],
        )
        self.told = {
            "parameters": dict(choice.parameters),
            "bytes_a_vector": choice.bytes / len(vectors),
            "tuned": asdict(self.index.tuned),
        }

    def rows(self, queries: Vectors) -> Slots:
        """Return the rows whose numbers are the ids found."""
        return np.array(self.index.search(queries, _K).ids).astype(np.int64)


class Hnswlib:
    """Hnswlib's graph with the same links and build effort as ours, tuned by the same rule."""

    def __init__(self, vectors: Vectors, tuning: Vectors, options: Mapping[str, Any]) -> None:
        hnswlib = _optional("hnswlib")
        self._threads = options["threads"]
        self._index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        self._index.init_index(len(vectors), M=HNSW_LINKS, ef_construction=HNSW_BUILD_EFFORT, random_seed=0)
        self._index.add_items(vectors, num_threads=self._threads)
        tuned = tune(
            lambda effort: self._found(tuning, effort), Truth.of(tuning, vectors), EFFORTS["hnsw"], options["recall"]
        )
        self._index.set_ef(tuned.effort)
        self.told = {"parameters": {"links": HNSW_LINKS, "build_effort": HNSW_BUILD_EFFORT}, "tuned": asdict(tuned)}

    def _found(self, queries: Vectors, effort: int) -> Slots:
        self._index.set_ef(effort)
        return self.rows(queries)

    def rows(self, queries: Vectors) -> Slots:
        """Search with the effort set."""
        return self._index.knn_query(queries, _K, num_threads=self._threads)[0].astype(np.int64)  # type: ignore[no-any-return]


class Usearch:
    """Usearch's graph with the same links and build effort as ours, tuned by the same rule."""

    def __init__(self, vectors: Vectors, tuning: Vectors, options: Mapping[str, Any]) -> None:
        index = _optional("usearch.index")
        self._threads = options["threads"]
        self._index = index.Index(
            ndim=vectors.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=HNSW_LINKS,
            expansion_add=HNSW_BUILD_EFFORT,
        )
        self._index.add(np.arange(len(vectors)), vectors, threads=self._threads)
        tuned = tune(
            lambda effort: self._found(tuning, effort), Truth.of(tuning, vectors), EFFORTS["hnsw"], options["recall"]
        )
        self._index.expansion_search = tuned.effort
        self.told = {"parameters": {"links": HNSW_LINKS, "build_effort": HNSW_BUILD_EFFORT}, "tuned": asdict(tuned)}

    def _found(self, queries: Vectors, effort: int) -> Slots:
        self._index.expansion_search = effort
        return self.rows(queries)

    def rows(self, queries: Vectors) -> Slots:
        """Search with the effort set."""
        return self._index.search(queries, _K, threads=self._threads).keys.astype(np.int64)  # type: ignore[no-any-return]


def _optional(module: str) -> Any:  # noqa: ANN401 (untyped packages)
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise ConfigError(f"{module} is not installed; pip install -e '.[bench]'.") from err


def measure(
    name: str, vectors: Vectors, tuning: Vectors, truth: Truth, exact: Exact, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Build a structure and measure it in turn with exact search."""
    gc.collect()
    resident, started, cpu = _resident(), time.perf_counter(), time.process_time()
    built: Any = (
        Hnswlib(vectors, tuning, options)
        if name == "hnswlib"
        else Usearch(vectors, tuning, options)
        if name == "usearch"
        else Ours(name, vectors, tuning, options)
    )
    build_s, build_cpu_s = time.perf_counter() - started, time.process_time() - cpu
    grown = _resident() - resident
    recall = float(truth.recalls(built.rows(truth.queries)).mean())
    pairs = [_pair(built, exact, truth.queries) for _ in range(options["repeats"])]
    return {
        **built.told,
        "build_s": build_s,
        "build_cpu_s": build_cpu_s,
        "resident_bytes_a_vector": grown / len(vectors),
        "recall_at_10": recall,
        "queries_per_s": spread([p.ours for p in pairs]),
        "exact_queries_per_s": spread([p.exact for p in pairs]),
        "times_exact": spread([p.ours / p.exact for p in pairs]),
        "times_exact_by_cpu_time": spread([p.exact_cpu_s / p.ours_cpu_s for p in pairs]),
        "one_query_ms": _one_at_a_time(built.rows, truth.queries[:_SINGLE]),
    }


@dataclass(frozen=True)
class Pair:
    """Neighbouring measurements: queries a second, and processor seconds a query over all threads."""

    ours: float
    exact: float
    ours_cpu_s: float
    exact_cpu_s: float


def _pair(built: Candidate, exact: Candidate, queries: Vectors) -> Pair:
    exact_s, exact_cpu = _clocked(lambda: exact.rows(queries))
    ours_s, ours_cpu = _clocked(lambda: built.rows(queries))
    return Pair(len(queries) / ours_s, len(queries) / exact_s, ours_cpu / len(queries), exact_cpu / len(queries))


def _clocked(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _one_at_a_time(rows: Callable[[Vectors], Slots], queries: Vectors) -> dict[str, float]:
    times = [_clocked(lambda q=query: rows(q[None]))[0] * 1000 for query in queries]  # type: ignore[misc]
    return {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}


def _resident() -> int:
    """Return the bytes of memory that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)
