"""Rows of Ray Data in the places that a training plan has for them.

The samples' Parquet shards are a Ray Data dataset. A step's samples are decided by the plan, not by which block arrives
first, since only then do one worker and many, an interrupted run and an uninterrupted one, learn from the same samples
in the same order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from mmd.errors import MmdError

T = TypeVar("T")
Key = tuple[str, ...]
POSITIONS = "positions"
HELD_OUT = "held_out"
_PASS_BYTES = 1 << 30


class TrainError(MmdError):
    """A training failed for good; the message quotes the cause."""


class Plan(Protocol):
    """What placing asks of a training plan. Positions count samples through all steps, ``global_batch`` a step."""

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns of a row that tell which sample it is."""
        ...

    @property
    def samples_count(self) -> int:
        """How many samples there are."""
        ...

    @property
    def workers(self) -> int:
        """How many processes share a step."""
        ...

    @property
    def global_batch(self) -> int:
        """Positions of a step, over all workers."""
        ...

    @property
    def total_positions(self) -> int:
        """Positions of the run."""
        ...

    def placed_keys(self, start: int, end: int, worker: int) -> Iterator[tuple[int, Key]]:
        """Yield a worker's positions in ``start`` … ``end`` - 1 (whole steps) with the keys of their samples."""
        ...

    def batches(self, step: int, worker: int) -> Iterator[range]:
        """Yield the positions of each of a worker's (micro-)batches in a step."""
        ...


@dataclass(frozen=True)
class Pass:
    """One reading of the shards: the positions ``start`` … ``end`` - 1, whole steps."""

    start: int
    end: int

    @property
    def name(self) -> str:
        """Name of its dataset."""
        return f"samples-{self.start}"


def plan_passes(plan: Plan, row_bytes: float, budget: int = _PASS_BYTES) -> list[Pass]:
    """Cut all positions into passes whose rows fit a worker's memory.

    A set that fits as a whole is read once for all epochs. A larger one is read again for each pass.

    Args:
        plan: what is trained.
        row_bytes: mean size of a sample.
        budget: bytes that a worker may hold of a pass.
    """
    total = plan.total_positions
    if plan.samples_count * row_bytes <= budget:
        return [Pass(0, total)]
    steps = max(1, int(budget * plan.workers / row_bytes) // plan.global_batch)
    size = steps * plan.global_batch
    return [Pass(start, min(start + size, total)) for start in range(0, total, size)]


class PlaceRows:
    """Keeps the rows that a worker needs in a pass, once each, with the positions that the plan has for them.

    Args:
        plan: where samples go.
        part: the pass.
        worker: its rank.
    """

    def __init__(self, plan: Plan, part: Pass, worker: int) -> None:
        places: defaultdict[Key, list[int]] = defaultdict(list)
        for position, key in plan.placed_keys(part.start, part.end, worker):
            places[key].append(position)
        self._places, self._columns = dict(places), plan.key_columns

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the rows that have positions, these in a column of their own."""
        places = [self._places.get(key, []) for key in _keys(block, self._columns)]
        rows = block.append_column(POSITIONS, pa.array(places, pa.list_(pa.int64())))
        return rows.filter(pa.array([bool(found) for found in places], pa.bool_()))


class KeepRows:
    """Keeps the rows of some samples.

    Args:
        keys: of what is kept.
        columns: that keys are made of.
    """

    def __init__(self, keys: Collection[Key], columns: tuple[str, ...]) -> None:
        self._keys, self._columns = frozenset(keys), columns

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the rows that are kept."""
        return block.filter(pa.array([key in self._keys for key in _keys(block, self._columns)], pa.bool_()))


def _keys(block: pa.Table, columns: Sequence[str]) -> Iterator[Key]:
    return zip(*(block[name].to_pylist() for name in columns), strict=True)


def make_datasets(shards: Sequence[str], passes: Sequence[Pass], shared: Collection[str] = ()) -> dict[str, Any]:
    """Return the lazy datasets of a run: one a pass, and one for each name that all workers shall read."""
    import ray.data

    names = [*(part.name for part in passes), *shared]
    return {name: ray.data.read_parquet(list(shards), override_num_blocks=len(shards)) for name in names}


def ordered_shards(plan: Plan, passes: Sequence[Pass], shared: Mapping[str, Collection[Key]]) -> Any:  # noqa: ANN401
    """Return the :class:`ray.train.DataConfig` that gives each worker its own rows with their places.

    Args:
        plan: where samples go.
        passes: of the datasets of :func:`make_datasets`.
        shared: dataset → keys of the rows that every worker gets of it.
    """
    import ray.train

    places = {part.name: part for part in passes}

    class OrderedShards(ray.train.DataConfig):
        """Each worker executes a dataset of its own, of its rows.

        Train's own split hands blocks to whichever worker asks first, in an order that changes between executions,
        and drops the remainder of an uneven division: batches would depend on timing, and a resumed run could not
        repeat what a killed one saw. Sorting by Ray Data would be a shuffle of 200 partitions for a few hundred rows.
        Instead the rows carry their positions, and the worker puts them in place (:func:`placed_rows`). The price:
        every worker reads the shards, and holds the rows of a pass.
        """

        def __init__(self) -> None:
            super().__init__(datasets_to_split=[])

        def configure(
            self,
            datasets: dict[str, Any],
            world_size: int,
            *_: object,
            **__: object,
        ) -> list[dict[str, Any]]:
            """Return, for each worker, name → iterator."""
            return [{name: self._share(name, ds, rank) for name, ds in datasets.items()} for rank in range(world_size)]

        def _share(self, name: str, dataset: Any, rank: int) -> Any:  # noqa: ANN401 (Ray's datasets and iterators)
            chosen = PlaceRows(plan, places[name], rank) if name in places else KeepRows(shared[name], plan.key_columns)
            return dataset.map_batches(chosen, batch_format="pyarrow", batch_size=None).iterator()

    return OrderedShards()


def read_rows(iterator: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 (a ray.data.DataIterator)
    """Yield the rows of a dataset, in whatever order they come."""
    for block in iterator.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from block.to_pylist()


def placed_rows(
    passes: Sequence[Pass],
    shard: Callable[[str], Any],
    plan: Plan,
    first_step: int,
    rank: int,
    parse: Callable[[Mapping[str, Any]], T],
) -> Iterator[list[tuple[int, T]]]:
    """Yield a worker's (micro-)batches from a step on, as (position, sample); inside a Train worker.

    Args:
        passes: of the run; those before the step are not read.
        shard: name → this worker's ``DataIterator`` (``ray.train.get_dataset_shard``).
        plan: what belongs into each batch.
        first_step: steps before it are done.
        rank: of the worker.
        parse: row → sample.

    Raises:
        TrainError: a planned sample did not come.
    """
    for part in passes:
        steps = range(max(first_step, part.start // plan.global_batch), part.end // plan.global_batch)
        if not steps:
            continue
        samples: dict[int, T] = {}
        for row in read_rows(shard(part.name)):
            samples |= dict.fromkeys(row[POSITIONS], parse(row))
        for step in steps:
            for positions in plan.batches(step, rank):
                try:
                    yield [(p, samples[p]) for p in positions]
                except KeyError as err:
                    raise TrainError(
                        f"worker {rank}: no sample came for position {err} of the plan; the samples are not what the "
                        "run was planned with. Make them again (their job with --force), then run this again."
                    ) from None
