"""An index in parts: each holds some of the responses, and what they find is merged into what one index would find."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mmd.artifacts import Artifact
from mmd.errors import ArtifactError, RequestError
from mmd.retrieval.index import INFO_FILE, Found, ResponseIndex
from mmd.retrieval.structures import Vectors

SHARDS_FILE = "shards.json"
"""In a modality's folder when it is spread: how many parts there are."""


class Searcher(Protocol):
    """What finds responses: an index, its parts together, or actors that hold them."""

    def search(self, vectors: npt.ArrayLike, k: int) -> Found:
        """Find the ``k`` best responses of each query."""
        ...

    def __len__(self) -> int:
        """Return how many responses can be found."""
        ...


def shard_of(response_id: str, shards: int) -> int:
    """Return the part that a response belongs to, the same on every machine."""
    return int.from_bytes(hashlib.sha256(response_id.encode()).digest()[:8], "big") % shards


def shard_folder(folder: str, shard: int) -> str:
    """Return the folder of a part of ``folder``."""
    return f"{folder}/shard-{shard:03d}"


def merge_top_k(parts: Sequence[Found], k: int) -> Found:
    """Return the first ``k`` of what disjoint parts found: by falling score, ties by id, as one index orders them.

    Args:
        parts: each with the same number of queries, and the first ``k`` of its own for each.
        k: responses wanted a query.

    Raises:
        RequestError: the parts answered different numbers of queries.
    """
    counts = {len(part.ids) for part in parts}
    if len(counts) > 1:
        raise RequestError(f"index: parts answered {sorted(counts)} queries; ask all of them the same.")
    rows = counts.pop() if counts else 0
    merged = [list(_first((_ranked(part, row) for part in parts), k)) for row in range(rows)]
    width = max(map(len, merged), default=0)
    scores = np.array([[-score for score, _ in row] for row in merged], np.float32).reshape(rows, width)
    return Found([[name for _, name in row] for row in merged], scores)


def _ranked(part: Found, row: int) -> Iterator[tuple[float, str]]:
    return zip((-part.scores[row]).tolist(), part.ids[row], strict=True)


def _first(ranked: Iterable[Iterator[tuple[float, str]]], k: int) -> Iterator[tuple[float, str]]:
    for _, found in zip(range(k), heapq.merge(*ranked), strict=False):
        yield found


class ShardedIndex:
    """Parts in one process, which together answer as one index does where each of them is exact.

    Args:
        parts: the part at place i holds the responses whose :func:`shard_of` is i.
    """

    def __init__(self, parts: Sequence[ResponseIndex]) -> None:
        self.parts = tuple(parts)

    def __len__(self) -> int:
        """Return how many responses can be found."""
        return sum(map(len, self.parts))

    def __contains__(self, response_id: str) -> bool:
        """Say whether a response can be found."""
        return response_id in self.parts[shard_of(response_id, len(self.parts))]

    def search(self, vectors: npt.ArrayLike, k: int) -> Found:
        """Find the ``k`` best responses of each query (n, dim) over all parts."""
        return merge_top_k([part.search(vectors, k) for part in self.parts], k)

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Add vectors (len(ids), dim), each to its part."""
        for shard, rows in deal(ids, len(self.parts)).items():
            self.parts[shard].add([ids[row] for row in rows], np.asarray(vectors)[rows])

    def delete(self, ids: Sequence[str]) -> None:
        """Delete responses from their parts.

        Raises:
            RequestError: an id is not there; then nothing is deleted.
        """
        if missing := [i for i in ids if i not in self]:
            raise RequestError(f"index: {len(missing)} ids to delete are not in it, the first is {missing[0]!r}.")
        for shard, rows in deal(ids, len(self.parts)).items():
            self.parts[shard].delete([ids[row] for row in rows])


def deal(ids: Sequence[str], shards: int) -> Mapping[int, list[int]]:
    """Return shard → rows of the ids that belong to it; shards without any are left out."""
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for row, response_id in enumerate(ids):
        rows[shard_of(response_id, shards)].append(row)
    return rows


def shard_count(artifact: Artifact, folder: str) -> int:
    """Return in how many parts a modality's index is stored; 0: it is not spread.

    Raises:
        ArtifactError: the artefact has no such index.
    """
    if artifact.has(f"{folder}/{SHARDS_FILE}"):
        return int(json.loads(artifact.read_bytes(f"{folder}/{SHARDS_FILE}"))["shards"])
    if not artifact.has(f"{folder}/{INFO_FILE}"):
        raise ArtifactError(
            f"{artifact.ref}: holds no index of modality {folder!r}; run `mmd build_index` for the retriever that asks."
        )
    return 0


def load_index(
    artifact: Artifact, folder: str, *, encoder: str | None = None, threads: int = 0
) -> ResponseIndex | ShardedIndex:
    """Read a modality's index, in parts or not; arguments and errors as of :meth:`ResponseIndex.load`."""
    shards = shard_count(artifact, folder)
    if not shards:
        return ResponseIndex.load(artifact, folder, encoder=encoder, threads=threads)
    return ShardedIndex(
        [
            ResponseIndex.load(artifact, shard_folder(folder, shard), encoder=encoder, threads=threads)
            for shard in range(shards)
        ]
    )
