"""An index whose parts live in Ray actors, on as many nodes as it needs; it answers as the whole would.

A part whose process or node is lost is read again from the store, elsewhere, and gets again what was added and deleted
since; whoever asked waits meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import structlog

from jobs.glue.cluster import worker_errors
from mmd.artifacts import Artifact, ArtifactStore
from mmd.errors import ClusterError, RequestError
from mmd.retrieval.index import Found, ResponseIndex, checked_vectors, read_info
from mmd.retrieval.sharded import deal, merge_top_k, shard_count, shard_folder
from mmd.retrieval.structures import Vectors

_LOSSES = 5
"""Losses of one part during one request after which it is given up: its actor dies of what it is asked."""
log = structlog.get_logger(__name__)


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

    def node(self) -> str:
        """Return the id of the node that this runs on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

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


class HeldShard:
    """The driver's hold on a part: its actor, and what the actor was told to change, should it be lost.

    Args:
        place: where the part is read from.
        cpus: that Ray sets aside for the actor.
    """

    def __init__(self, place: ShardPlace, cpus: float) -> None:
        self._place, self._cpus = place, cpus
        self._changes: list[tuple[str, tuple[Any, ...]]] = []
        self.losses = 0
        self._actor = self._start()

    def ask(self, method: str, *given: Any) -> Any:  # noqa: ANN401 (arguments of IndexShard's methods; an ObjectRef)
        """Send a request; return the reference of its answer."""
        return getattr(self._actor, method).remote(*given)

    def note(self, method: str, *given: Any) -> None:  # noqa: ANN401 (as above)
        """Remember a change that was made."""
        self._changes.append((method, given))

    def replace(self) -> None:
        """Start another actor in place of one that was lost, with the same content; Ray runs its requests in order."""
        self.close()
        self.losses += 1
        log.warning("index_shard_lost", shard=self._place.folder, losses=self.losses)
        self._actor = self._start()
        for method, given in self._changes:
            self.ask(method, *given)

    def close(self) -> None:
        """End the actor."""
        import ray

        with suppress(ray.exceptions.RayError):
            ray.kill(self._actor)

    def _start(self) -> Any:  # noqa: ANN401 (an actor handle)
        import ray

        spread = {"num_cpus": self._cpus, "scheduling_strategy": "SPREAD"}
        return ray.remote(IndexShard).options(**spread).remote(self._place)


class ShardedSearch:
    """Asks all actors at once and merges what they find.

    Args:
        shards: in order of the parts.
        dim: numbers of a vector.
    """

    def __init__(self, shards: Sequence[HeldShard], dim: int) -> None:
        self._shards = tuple(shards)
        self._dim = dim

    def __len__(self) -> int:
        """Return how many responses can be found."""
        return sum(self._ask_all("size"))

    @property
    def losses(self) -> int:
        """How often a part was lost and read again."""
        return sum(shard.losses for shard in self._shards)

    def nodes(self) -> list[str]:
        """Return the id of each part's node."""
        return self._ask_all("node")

    def search(self, vectors: npt.ArrayLike, k: int) -> Found:
        """Find the ``k`` best responses of each query (n, dim) over all parts.

        Raises:
            RequestError: as of :meth:`ResponseIndex.search`.
            ClusterError: a part was lost again and again.
        """
        import ray

        queries = ray.put(checked_vectors(vectors, self._dim, "queries"))  # sent once, whatever the number of actors
        return merge_top_k(self._ask_all("search", queries, k), k)

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Add vectors (len(ids), dim), each to its part."""
        given, rows = checked_vectors(vectors, self._dim, "vectors"), deal(ids, len(self._shards))
        self._change("add", {s: ([ids[r] for r in own], given[own]) for s, own in rows.items()})

    def delete(self, ids: Sequence[str]) -> None:
        """Delete responses from their parts.

        Raises:
            RequestError: an id is not there; then nothing is deleted.
        """
        parts = {s: ([ids[r] for r in own],) for s, own in deal(ids, len(self._shards)).items()}
        missing = [response_id for some in self._ask("missing", parts).values() for response_id in some]
        if missing:
            raise RequestError(f"index: {len(missing)} ids to delete are not in it, the first is {missing[0]!r}.")
        self._change("delete", parts)

    def _change(self, method: str, given: Mapping[int, tuple[Any, ...]]) -> None:
        self._ask(method, given)
        for place, own in given.items():
            self._shards[place].note(method, *own)

    def _ask_all(self, method: str, *given: Any) -> list[Any]:  # noqa: ANN401 (arguments of IndexShard's methods)
        return list(self._ask(method, dict.fromkeys(range(len(self._shards)), given)).values())

    def _ask(self, method: str, given: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Ask some parts at once; return their answers by part. Parts that are lost are replaced and asked again."""
        asked = {place: self._shards[place].ask(method, *own) for place, own in given.items()}
        return {place: self._answer(place, ref, method, given[place]) for place, ref in asked.items()}

    def _answer(self, place: int, ref: Any, method: str, given: tuple[Any, ...]) -> Any:  # noqa: ANN401 (as above)
        import ray
        from ray.exceptions import ObjectLostError, RayActorError

        shard, last = self._shards[place], None
        for _ in range(_LOSSES):
            try:
                with worker_errors():
                    return ray.get(ref)
            except (RayActorError, ObjectLostError) as err:
                last = err
                shard.replace()
                ref = shard.ask(method, *given)
        raise ClusterError(
            f"index: part {place} was lost {_LOSSES} times while it was asked to {method}; the nodes may lack memory "
            "for it. Store the index in more parts (retrieval.index.shards)."
        ) from last


@contextmanager
def sharded_search(
    store: str, artifact: Artifact, folder: str, *, encoder: str | None = None, threads: int = 1, cpus: float = 0.5
) -> Iterator[ShardedSearch]:
    """Start an actor for each part of a stored index, spread over the nodes; they end with the ``with``.

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
    shards = shard_count(artifact, folder)
    folders = [shard_folder(folder, shard) for shard in range(shards)] or [folder]
    infos = [read_info(artifact, own, encoder) for own in folders]
    held = [HeldShard(ShardPlace(store, artifact.ref, own, encoder, threads), cpus) for own in folders]
    try:
        search = ShardedSearch(held, infos[0]["dim"])
        len(search)  # an actor that could not load says so here
        yield search
    finally:
        for shard in held:
            shard.close()
