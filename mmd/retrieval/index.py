"""The index of one modality's responses: vectors in, ids of the nearest out; it grows and shrinks without rebuilding.

Scores are inner products, so cosines for the unit vectors that towers make. What FAISS finds is scored again, each pair
by itself and in the same way: equal vectors then score equally wherever they lie, ties go by id, and an index that is
spread over shards answers as one that is not.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mmd.artifacts import Artifact, ArtifactWriter
from mmd.errors import ArtifactError, RequestError
from mmd.retrieval import structures
from mmd.retrieval.gpu import GpuCopy, gpus
from mmd.retrieval.structures import Choice, Slots, StructureKind, Vectors, faiss_threads

IDS = pa.schema([("id", pa.string()), ("deleted", pa.bool_())])
"""Row number = slot, the number by which FAISS knows a vector."""
INDEX_FILE, INFO_FILE, IDS_FOLDER = "index.faiss", "index.json", "ids"
REBUILD_ABOVE = 0.2
"""Share of deleted vectors above which rebuilding pays: they take memory and are still walked over."""
_SLACK = 8  # more than asked for, so that near ties are settled by the scores given in the end
_ROUNDING = 1e-5  # by which two ways of adding up the score of unit vectors may differ, with room
_BLOCK, _BLOCK_SLOTS = 1024, 1 << 20  # queries, and slots of all of them, that are worked on at a time


class Found(NamedTuple):
    """What a search found.

    Attributes:
        ids: a query's ids, best first; ``min(k, responses)`` of them.
        scores: (queries, min(k, responses)), falling.
    """

    ids: list[list[str]]
    scores: Vectors


@dataclass(frozen=True)
class Tuned:
    """How hard an index searches, and what that finds.

    Attributes:
        effort: see :func:`mmd.retrieval.structures.search`.
        recall: recall@10 against exact search on the queries it was tuned with; 1 for exact structures.
        queries: how many these were.
    """

    effort: int = 0
    recall: float = 1.0
    queries: int = 0


class ResponseIndex:
    """Vectors with ids in a FAISS structure.

    Deleted vectors stay in the structure, passed over, until it is built anew; :attr:`wants_rebuild` says when that
    pays. An index may be used by several threads. Where FAISS has GPUs (``faiss-gpu``), a copy there is searched.

    Args:
        dim: numbers of a vector.
        choice: the structure; default: exact search.
        encoder: hash of the encoder whose vectors these are.
        threads: of a search; 0: all cores.
    """

    def __init__(self, dim: int, choice: Choice | None = None, *, encoder: str = "", threads: int = 0) -> None:
        self.dim = dim
        self.choice = choice or Choice("flat")
        self.encoder = encoder
        self.threads = threads
        self.tuned = Tuned()
        self.gpu = GpuCopy(self.choice.kind) if gpus() else None
        self._structure: Any = None
        self._ids: npt.NDArray[np.object_] = np.empty(0, object)
        self._living: npt.NDArray[np.bool_] = np.empty(0, bool)
        self._slots: dict[str, int] = {}
        self._lock = threading.RLock()

    @property
    def kind(self) -> StructureKind:
        """The structure's kind."""
        return self.choice.kind

    def __len__(self) -> int:
        """Return how many responses can be found."""
        return len(self._slots)

    def __contains__(self, response_id: object) -> bool:
        """Say whether a response can be found."""
        return response_id in self._slots

    @property
    def deleted(self) -> int:
        """Vectors that are still stored, but deleted."""
        return len(self._ids) - len(self._slots)

    @property
    def wants_rebuild(self) -> bool:
        """Whether so many are deleted that building anew pays."""
        return self.deleted > REBUILD_ABOVE * max(1, len(self._ids))

    def add(self, ids: Sequence[str], vectors: npt.ArrayLike) -> None:
        """Add vectors (len(ids), dim); the first ones train a structure that learns.

        Raises:
            RequestError: an id is there already or given twice, or the vectors are of another size or not finite.
        """
        rows = checked_vectors(vectors, self.dim, "vectors")
        if len(rows) != len(ids):
            raise RequestError(f"index: {len(ids)} ids for {len(rows)} vectors; give each vector its id.")
        with self._lock, faiss_threads(self.threads):
            self._refuse_known(ids)
            if not len(rows):
                return
            if self._structure is None:
                self._structure = structures.build(self.choice, self.dim, rows)
            self._structure.add(rows)
            first = len(self._ids)
            self._ids = np.append(self._ids, np.array(ids, object))
            self._living = np.append(self._living, np.ones(len(ids), bool))
            self._slots.update(zip(ids, range(first, first + len(ids)), strict=True))

    def delete(self, ids: Sequence[str]) -> None:
        """Delete responses; they are never found again, and may be added anew.

        Raises:
            RequestError: an id is not there; then nothing is deleted.
        """
        with self._lock:
            if missing := [i for i in ids if i not in self._slots]:
                raise RequestError(f"index: {len(missing)} ids to delete are not in it, the first is {missing[0]!r}.")
            for response_id in dict.fromkeys(ids):
                self._living[self._slots.pop(response_id)] = False

    def search(self, vectors: npt.ArrayLike, k: int) -> Found:
        """Find the ``k`` responses of highest score for each of the query vectors (n, dim), ties by id.

        Fewer come back only where the index holds fewer.

        Raises:
            RequestError: ``k`` below 1, or vectors of another size or not finite.
        """
        queries = checked_vectors(vectors, self.dim, "queries")
        if k < 1:
            raise RequestError(f"index: {k} responses were asked for; ask for at least 1.")
        with self._lock, faiss_threads(self.threads):
            k = min(k, len(self))
            if not k or not len(queries):
                return Found([[] for _ in queries], np.empty((len(queries), k), np.float32))
            size = max(1, min(_BLOCK, _BLOCK_SLOTS // k))
            blocks = [self._search(queries[at : at + size], k) for at in range(0, len(queries), size)]
        return Found([row for ids, _ in blocks for row in ids], np.concatenate([scores for _, scores in blocks]))

    def _search(self, queries: Vectors, k: int) -> Found:
        """Search a block, ``k`` not above the number of responses; what was not settled is searched harder."""
        effort = self.tuned.effort
        ids: list[list[str]] = [[] for _ in queries]
        scores = np.empty((len(queries), k), np.float32)
        work = [(np.arange(len(queries)), k if effort else k + _SLACK, effort)]
        while work:
            rows, fetch, effort = work.pop()
            fetch = min(fetch, len(self))
            if len(rows) > 1 and len(rows) * fetch > 2 * _BLOCK_SLOTS:  # many ties: fewer queries at a time
                work += [(half, fetch, effort) for half in np.array_split(rows, 2)]
                continue
            slots, exact, done = self._try(queries[rows], k, fetch, effort)
            for at, named, own in zip(rows[done].tolist(), *self._named(slots[done], exact[done], k), strict=True):
                ids[at], scores[at] = named, own
            if not done.all():
                work.append((rows[~done], k + _SLACK if effort else 4 * fetch, 0))
        return Found(ids, scores)

    def _try(self, queries: Vectors, k: int, fetch: int, effort: int) -> tuple[Slots, Vectors, npt.NDArray[np.bool_]]:
        """Return slots and scores (n, fetch), best first, and which queries they settle."""
        rough, slots = self.fetch(queries, fetch, effort)
        exact = self._score(queries, slots)
        order = np.argsort(-exact, axis=1, kind="stable")
        exact, slots = np.take_along_axis(exact, order, 1), np.take_along_axis(slots, order, 1)
        if effort:
            return slots, exact, slots[:, k - 1] >= 0
        return slots, exact, self._settled(rough, exact, k) | (fetch == len(self))

    def fetch(self, queries: Vectors, k: int, effort: int) -> tuple[Vectors, Slots]:
        """Return scores and slots (n, k) as the structure finds them with this effort, −1 where it finds no more."""
        living = self._living if self.deleted else None
        if self.gpu and (found := self.gpu.search(self._structure, queries, k, effort, living)):
            return found
        return structures.search(self._structure, self.kind, queries, k, effort=effort, living=living)

    def _score(self, queries: Vectors, slots: Slots) -> Vectors:
        """Return the scores (n, k) of slots, −∞ where there is none."""
        scores = structures.inner_products(self._structure, self.kind, queries, slots)
        scores[slots < 0] = -np.inf
        return scores

    @staticmethod
    def _settled(rough: Vectors, exact: Vectors, k: int) -> npt.NDArray[np.bool_]:
        """Say for which queries nothing that was not fetched can be among the first ``k``, ties included."""
        slip = _ROUNDING * np.maximum(1, np.abs(rough[:, 0]))
        return rough[:, -1] < exact[:, k - 1] - slip

    def _named(self, slots: Slots, scores: Vectors, k: int) -> tuple[list[list[str]], Vectors]:
        """Return ids and scores of each query's first ``k``, ties in order of id; each row's ``scores`` fall."""
        tied = np.flatnonzero((scores[:, 1:] == scores[:, :-1]).any(axis=1))
        for row in tied.tolist():
            falling = zip((-scores[row]).tolist(), self._ids[slots[row]].tolist(), slots[row].tolist(), strict=True)
            slots[row] = [slot for _, _, slot in sorted(falling)]  # equal scores change places among themselves only
        return self._ids[slots[:, :k]].tolist(), scores[:, :k]

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """Return the vectors (len(ids), dim) of responses as they are stored: whole, or what their codes say.

        Raises:
            RequestError: an id is not there.
        """
        with self._lock:
            if missing := [i for i in ids if i not in self._slots]:
                raise RequestError(f"index: no response {missing[0]!r}.")
            if not ids:
                return np.empty((0, self.dim), np.float32)
            return structures.stored(self._structure, self.kind, np.array([self._slots[i] for i in ids], np.int64))

    def ids(self) -> list[str]:
        """Return the ids that can be found, oldest first."""
        return list(self._slots)

    def _refuse_known(self, ids: Sequence[str]) -> None:
        seen: set[str] = set()
        for response_id in ids:
            if response_id in self._slots or response_id in seen:
                raise RequestError(f"index: {response_id!r} is there already or given twice; delete it first.")
            seen.add(response_id)

    def save(self, writer: ArtifactWriter, folder: str) -> None:
        """Write the index into a folder of an artefact."""
        import faiss

        info = {
            "dim": self.dim,
            "encoder": self.encoder,
            "choice": asdict(self.choice),
            "tuned": asdict(self.tuned),
            "slots": len(self._ids),
        }
        with self._lock:
            writer.write_json(f"{folder}/{INFO_FILE}", info)
            columns = [pa.array(self._ids, pa.string()), pa.array(~self._living, pa.bool_())]
            writer.write_table(f"{folder}/{IDS_FOLDER}", pa.table(columns, schema=IDS), rows_per_shard=1_000_000)
            if self._structure is not None:
                with writer.open(f"{folder}/{INDEX_FILE}") as handle:
                    faiss.write_index(self._structure, faiss.PyCallbackIOWriter(handle.write))

    @classmethod
    def load(cls, artifact: Artifact, folder: str, *, encoder: str | None = None, threads: int = 0) -> ResponseIndex:
        """Read an index from a folder of an artefact.

        Args:
            artifact: that holds it.
            folder: where.
            encoder: hash of the encoder that shall be asked; none: not checked.
            threads: of a search; 0: all cores.

        Raises:
            ArtifactError: it holds another encoder's vectors, or its parts do not fit each other.
        """
        import faiss

        info = read_info(artifact, folder, encoder)
        index = cls(info["dim"], Choice(**info["choice"]), encoder=info["encoder"], threads=threads)
        index.tuned = Tuned(**info["tuned"])
        table = artifact.read_table(f"{folder}/{IDS_FOLDER}", IDS)
        index._ids = np.array(table["id"].to_pylist(), object)
        index._living = ~np.array(table["deleted"].to_pylist(), bool)
        living = np.flatnonzero(index._living).tolist()
        index._slots = dict(zip(index._ids[index._living].tolist(), living, strict=True))
        if artifact.has(f"{folder}/{INDEX_FILE}"):
            with artifact.fs.open(f"{artifact.root}/{folder}/{INDEX_FILE}", "rb") as handle:
                index._structure = faiss.read_index(faiss.PyCallbackIOReader(handle.read))
        held = index._structure.ntotal if index._structure is not None else 0
        if held != len(index._ids) or held != info["slots"]:
            raise ArtifactError(
                f"{artifact.ref}: {folder} holds {held} vectors and {len(index._ids)} ids; run `mmd build_index "
                "--force`."
            )
        return index


def checked_vectors(vectors: npt.ArrayLike, dim: int, what: str) -> Vectors:
    """Return vectors as float32 (n, dim).

    Raises:
        RequestError: they are of another size, or not finite.
    """
    rows = np.ascontiguousarray(vectors, np.float32)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise RequestError(f"index: {what} of shape {rows.shape}; this index takes (n, {dim}).")
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise RequestError(f"index: row {bad} of the {what} holds NaN or infinity; check the encoder's input.")
    return rows


def read_info(artifact: Artifact, folder: str, encoder: str | None = None) -> Mapping[str, Any]:
    """Return what a stored index tells of itself; arguments as of :meth:`ResponseIndex.load`.

    Raises:
        ArtifactError: it holds another encoder's vectors.
    """
    info: Mapping[str, Any] = artifact.read_json(f"{folder}/{INFO_FILE}")
    if encoder is not None and info["encoder"] != encoder:
        raise ArtifactError(
            f"{artifact.ref}: {folder} holds vectors of encoder {info['encoder'][:12]!r}, not of {encoder[:12]!r}; "
            "run `mmd build_index` for this retriever."
        )
    return info
