"""FAISS structures: which one suits how many vectors in how much memory, how it is built, searched and tuned.

Sources: HNSW, Malkov & Yashunin 2018 (arXiv 1603.09320); inverted lists and product quantisation, Jégou et al. 2011;
FAISS, Douze et al. 2024 (arXiv 2401.08281).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from mmd.errors import ConfigError

StructureKind = Literal["flat", "hnsw", "ivf_flat", "ivf_pq", "sq8"]
KINDS: tuple[StructureKind, ...] = get_args(StructureKind)
Vectors = npt.NDArray[np.float32]
Slots = npt.NDArray[np.int64]

EXACT_UP_TO = 20_000
"""Vectors up to which exact search answers in about a millisecond, so that nothing approximate is worth its error."""
EXACT_ON_GPU_UP_TO = 10_000_000
HNSW_LINKS = 16
"""Links of a node (M); the lowest layer has twice as many."""
HNSW_BUILD_EFFORT = 40
"""Nodes in sight while a node is linked (efConstruction): twice as many build for half as long again."""
_TRAINING_POINTS = 64  # a list; FAISS itself takes at most 256
_TRAINING_ROUNDS = 10
_MIN_POINTS = 39  # a list, below which FAISS finds the lists ill-trained
_PQ_CODES = 256  # values of a byte, hence centroids of a sub-quantiser
_MB = 2**20


@dataclass(frozen=True)
class Choice:
    """A structure for an index.

    Attributes:
        kind: of structure.
        parameters: hnsw: ``links``, ``build_effort``; ivf_*, sq8: ``lists``; ivf_pq: ``code_bytes`` too.
        bytes: of memory that it takes, ids of responses aside.
        reason: why this one, in words.
    """

    kind: StructureKind
    parameters: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    reason: str = ""


def describe_kind(kind: StructureKind, n: int, dim: int, reason: str = "as the settings say") -> Choice:
    """Return a structure of this kind with the parameters that suit ``n`` vectors of ``dim`` numbers.

    Raises:
        ConfigError: too few vectors to train the structure on.
    """
    parameters: dict[str, int] = {}
    if kind == "hnsw":
        parameters = {"links": HNSW_LINKS, "build_effort": HNSW_BUILD_EFFORT}
    elif kind != "flat":
        least = _PQ_CODES if kind == "ivf_pq" else _MIN_POINTS
        if n < least:
            raise ConfigError(
                f"index kind {kind} learns from at least {least} vectors, there are {n}; take flat, hnsw or auto."
            )
        parameters = {"lists": _lists(n)}
        if kind == "ivf_pq":
            parameters["code_bytes"] = _code_bytes(dim)
    return Choice(kind, parameters, structure_bytes(kind, n, dim, parameters), reason)


def choose_kind(n: int, dim: int, memory_mb: int, recall: float, *, gpus: int = 0) -> Choice:
    """Choose the structure that answers best within the memory.

    Exact search where it is quick enough anyway, on a GPU too, or recall 1 is asked for; then the quickest that fits: a
    graph over whole vectors, lists of whole vectors, lists of one byte a number, lists of product codes.

    Args:
        n: vectors.
        dim: numbers of a vector.
        memory_mb: that the structure may take, in MiB.
        recall: recall@10 against exact search that is wanted, in (0, 1].
        gpus: that FAISS can search on.

    Raises:
        ConfigError: nothing fits.
    """
    room = memory_mb * _MB
    exact = describe_kind("flat", n, dim)
    reasons = {
        f"{n:,} vectors are few": n <= EXACT_UP_TO,
        "recall 1 was asked for": recall >= 1,
        f"a GPU looks at all {n:,} vectors quickly": gpus > 0 and n <= EXACT_ON_GPU_UP_TO,
    }
    if exact.bytes <= room and (why := next((why for why, holds in reasons.items() if holds), "")):
        return Choice("flat", {}, exact.bytes, f"{why}: exact search takes {_mb(exact.bytes)}")
    if recall >= 1:
        raise ConfigError(
            f"{n:,} vectors take {_mb(exact.bytes)} for exact search, which index.recall=1 asks for, and "
            f"index.memory_mb is {memory_mb}; raise it, spread the index with index.shards, or ask for less recall."
        )
    larger = "exact search would be slow"
    for kind in ("hnsw", "ivf_flat", "sq8", "ivf_pq"):
        if n < _PQ_CODES and kind != "hnsw":
            continue
        choice = describe_kind(kind, n, dim)
        if choice.bytes <= room:
            why = f"{n:,} vectors: {larger}; {kind} takes {_mb(choice.bytes)} of {memory_mb:,} MiB"
            return Choice(kind, choice.parameters, choice.bytes, why)
        larger = f"{kind} would take {_mb(choice.bytes)}"
    raise ConfigError(
        f"{n:,} vectors of {dim} numbers fit no structure within index.memory_mb={memory_mb} ({larger}); raise it or "
        "spread the index over more processes with index.shards."
    )


def structure_bytes(kind: StructureKind, n: int, dim: int, parameters: Mapping[str, int]) -> int:
    """Return the memory of a structure: codes of the vectors, links or lists, and what finds a vector by its slot."""
    whole = 4 * dim
    if kind == "flat":
        return n * whole
    if kind == "hnsw":
        # Links of the lowest layer, a share 1/M in each layer above; offset, level and the lock of building.
        return int(n * (whole + 4 * 2 * parameters["links"] * (1 + 1 / parameters["links"]) + 12))
    code = whole if kind == "ivf_flat" else dim if kind == "sq8" else parameters["code_bytes"]
    return n * (int(code) + 16) + parameters["lists"] * whole  # slot in its list, and list of the slot


def _lists(n: int) -> int:
    """Return about 2 √n lists, a power of two, each with points enough to be trained."""
    wanted = 1 << round(math.log2(2 * math.sqrt(n)))
    return max(1, min(wanted, n // _MIN_POINTS))


def _code_bytes(dim: int) -> int:
    """Return the bytes of a product code: the most that divide ``dim`` into parts of three numbers or more."""
    return next((m for m in range(max(1, dim // 3), 0, -1) if dim % m == 0), 1)


def _mb(size: int) -> str:
    return f"{size / _MB:,.0f} MiB" if size >= _MB else f"{size / 1024:,.0f} KiB"


def build(choice: Choice, dim: int, vectors: Vectors) -> Any:  # noqa: ANN401 (faiss is untyped)
    """Return an empty structure, trained on ``vectors`` (n, dim) where it learns.

    Raises:
        ConfigError: too few vectors to train it on.
    """
    import faiss

    metric, parameters = faiss.METRIC_INNER_PRODUCT, choice.parameters
    if choice.kind == "flat":
        return faiss.IndexFlat(dim, metric)
    if choice.kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, parameters["links"], metric)
        graph.hnsw.efConstruction = parameters["build_effort"]
        return graph
    coarse, lists = faiss.IndexFlatIP(dim), parameters["lists"]
    if choice.kind == "ivf_flat":
        index = faiss.IndexIVFFlat(coarse, dim, lists, metric)
    elif choice.kind == "sq8":
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, faiss.ScalarQuantizer.QT_8bit, metric)
    else:
        index = faiss.IndexIVFPQ(coarse, dim, lists, parameters["code_bytes"], 8, metric)
        index.pq.cp.niter, index.pq.cp.min_points_per_centroid = _TRAINING_ROUNDS, 1
        index.pq.cp.max_points_per_centroid = _TRAINING_POINTS
    if len(vectors) < max(lists, _PQ_CODES if choice.kind == "ivf_pq" else 1):
        raise ConfigError(
            f"index kind {choice.kind} was planned for more than the {len(vectors)} vectors that it gets first, which "
            "it learns from; add all there are at once, or take flat, hnsw or auto."
        )
    index.cp.niter, index.cp.min_points_per_centroid = _TRAINING_ROUNDS, 1
    index.train(_training_points(vectors, lists))
    index.make_direct_map()
    return index


def _training_points(vectors: Vectors, lists: int) -> Vectors:
    """Draw what is enough to train on: always the same of the same vectors."""
    wanted = max(_TRAINING_POINTS * lists, 64 * _PQ_CODES)
    if len(vectors) <= wanted:
        return vectors
    rows = np.random.default_rng(0).choice(len(vectors), wanted, replace=False)
    return np.ascontiguousarray(vectors[np.sort(rows)])


def search(
    index: Any,  # noqa: ANN401 (faiss is untyped)
    kind: StructureKind,
    queries: Vectors,
    k: int,
    *,
    effort: int,
    living: npt.NDArray[np.bool_] | None = None,
) -> tuple[Vectors, Slots]:
    """Search a structure.

    Args:
        index: of FAISS.
        kind: of it.
        queries: (n, dim).
        k: slots wanted a query.
        effort: hnsw: nodes kept in sight; lists: how many are searched; 0: everything there is.
        living: (slots,) which may be found; none: all.

    Returns:
        Scores and slots, each (n, k), best first; slot −1 where no more was found.
    """
    import faiss

    chosen = None if living is None else faiss.IDSelectorBitmap(np.packbits(living, bitorder="little"))
    if kind == "flat" or (kind == "hnsw" and not effort):
        parameters = faiss.SearchParameters(sel=chosen)
        return cast("tuple[Vectors, Slots]", _whole(index, kind).search(queries, k, params=parameters))
    if kind == "hnsw":
        parameters = faiss.SearchParametersHNSW(efSearch=max(effort, 2 * k), sel=chosen)
    else:
        parameters = faiss.SearchParametersIVF(nprobe=effort or index.nlist, sel=chosen)
    return cast("tuple[Vectors, Slots]", index.search(queries, k, params=parameters))


def inner_products(
    index: Any,  # noqa: ANN401 (faiss is untyped)
    kind: StructureKind,
    queries: Vectors,
    slots: Slots,
) -> Vectors:
    """Return the inner products (n, k) of queries (n, dim) with the vectors in slots (n, k); any number for slot −1.

    Each is added up in the same order wherever the vector lies, which a matrix product does not promise.
    """
    import faiss

    if kind in {"flat", "hnsw"}:
        vectors, rows = _whole(index, kind).get_xb(), np.ascontiguousarray(slots)
    else:
        decoded = np.ascontiguousarray(stored(index, kind, np.maximum(slots, 0).ravel()))
        vectors, rows = faiss.swig_ptr(decoded), np.arange(slots.size, dtype=np.int64).reshape(slots.shape)
    out = np.zeros(slots.shape, np.float32)
    faiss.fvec_inner_products_by_idx(
        faiss.swig_ptr(out), faiss.swig_ptr(queries), vectors, faiss.swig_ptr(rows), index.d, *slots.shape
    )
    return out


def stored(index: Any, kind: StructureKind, slots: Slots) -> Vectors:  # noqa: ANN401 (faiss is untyped)
    """Return the vectors (len(slots), dim) as the structure keeps them: whole, or decoded from its codes."""
    import faiss

    if kind in {"flat", "hnsw"}:
        rows = faiss.rev_swig_ptr(_whole(index, kind).get_xb(), index.ntotal * index.d)
        return cast("Vectors", rows.reshape(index.ntotal, index.d)[slots])
    return cast("Vectors", index.reconstruct_batch(slots))


def _whole(index: Any, kind: StructureKind) -> Any:  # noqa: ANN401 (faiss is untyped)
    """Return the flat index that holds the whole vectors."""
    import faiss

    return index if kind == "flat" else faiss.downcast_index(index.storage)


@contextmanager
def faiss_threads(threads: int) -> Iterator[None]:
    """Let FAISS use so many threads when called from this thread; 0: all cores."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads or len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
