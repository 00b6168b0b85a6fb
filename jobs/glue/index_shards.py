"""An index whose parts live in Ray actors, on as many nodes as it needs; it answers as the whole would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from jobs.glue.cluster import worker_errors
from mmd.artifacts import Artifact, ArtifactStore
from mmd.errors import RequestError
from mmd.retrieval.index import Found, ResponseIndex, checked_vectors, read_info
from mmd.retrieval.sharded import deal, merge_top_k, shard_count, shard_folder
from mmd.retrieval.structures import Vectors


@dataclass(frozen=True)
class ShardPlace:
    """Where a part of an index is read from.

    Attributes:
        store: path or URI that every node reaches.
        ref: ``index/NAME@VERSION``.
        folder: of the part inside.
        encoder: hash of the encoder that will be asked; none: not checked.
        threads: of a search.
    """

    store: str
    ref: str
    folder: str
    encoder: str | None
    threads: int


class IndexShard:
    """A process that holds one part."""

    def __init__(self, place: ShardPlace) -> None:
        artifact = ArtifactStore(place.store).open(place.ref)
        self._index = ResponseIndex.load(artifact, place.folder, encoder=place.encoder, threads=place.threads)

    def size(self) -> int:
        """Return how many responses can be found."""
        return len(self._index)

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return those of the ids that are not here."""
        return [response_id for response_id in ids if response_id not in self._index]

    def search(self, vectors: Vectors, k: int) -> Found:
        """Find this part's best."""
        return self._index.search(vectors, k)

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Add responses that belong here."""
        self._index.add(ids, vectors)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete responses."""
        self._index.delete(ids)


class ShardedSearch:
    """Asks all actors at once and merges what they find.

    Args:
        actors: handles of :class:`IndexShard`, in order of the shards.
        dim: numbers of a vector.
    """

    def __init__(self, actors: Sequence[Any], dim: int) -> None:
        self._actors = tuple(actors)
        self._dim = dim

    def __len__(self) -> int:
        """Return how many responses can be found."""
        return sum(_answers([actor.size.remote() for actor in self._actors]))

    def search(self, vectors: npt.ArrayLike, k: int) -> Found:
        """Find the ``k`` best responses of each query (n, dim) over all parts.

        Raises:
            RequestError: as of :meth:`ResponseIndex.search`.
        """
        import ray

        queries = ray.put(checked_vectors(vectors, self._dim, "queries"))  # sent once, whatever the number of actors
        return merge_top_k(_answers([actor.search.remote(queries, k) for actor in self._actors]), k)

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Add vectors (len(ids), dim), each to its part."""
        given, rows = checked_vectors(vectors, self._dim, "vectors"), deal(ids, len(self._actors))
        _answers([self._actors[s].add.remote([ids[r] for r in own], given[own]) for s, own in rows.items()])

    def delete(self, ids: Sequence[str]) -> None:
        """Delete responses from their parts.

        Raises:
            RequestError: an id is not there; then nothing is deleted.
        """
        parts = {s: [ids[r] for r in own] for s, own in deal(ids, len(self._actors)).items()}
        unknown = _answers([self._actors[s].missing.remote(own) for s, own in parts.items()])
        missing = [response_id for some in unknown for response_id in some]
        if missing:
            raise RequestError(f"index: {len(missing)} ids to delete are not in it, the first is {missing[0]!r}.")
        _answers([self._actors[s].delete.remote(own) for s, own in parts.items()])


@contextmanager
def sharded_search(
    store: str, artifact: Artifact, folder: str, *, encoder: str | None = None, threads: int = 1, cpus: float = 0.5
) -> Iterator[ShardedSearch]:
    """Start an actor for each part of a stored index; they end with the ``with``.

    Args:
        store: of the artefact, as every node reaches it.
        artifact: the index.
        folder: of the modality.
        encoder: hash of the encoder that will be asked; none: not checked.
        threads: of each actor's search.
        cpus: that Ray sets aside for each actor.

    Raises:
        ArtifactError: no such index, or one of another encoder.
    """
    import ray

    shards = shard_count(artifact, folder)
    folders = [shard_folder(folder, shard) for shard in range(shards)] or [folder]
    infos = [read_info(artifact, own, encoder) for own in folders]
    remote = ray.remote(IndexShard).options(num_cpus=cpus)
    actors: list[Any] = [remote.remote(ShardPlace(store, artifact.ref, own, encoder, threads)) for own in folders]
    try:
        _answers([actor.size.remote() for actor in actors])  # an actor that could not load says so here
        yield ShardedSearch(actors, infos[0]["dim"])
    finally:
        for actor in actors:
            ray.kill(actor)


def _answers(refs: Sequence[Any]) -> list[Any]:
    import ray

    with worker_errors():
        return list(ray.get(list(refs)))
