"""Ray Train for fine-tuning: ordered shards, prefetching, reports to the driver, and runs that are found again.

The samples' Parquet shards are a Ray Data dataset. A step's samples are decided by the plan
(:class:`mmd.intent.training_plan.StepPlan`), not by which block arrives first, since only then do one worker and many,
an interrupted run and an uninterrupted one, learn from the same samples in the same order. So each row is given the
positions that the plan has for it, each worker reads the rows of its own positions, sorted; see :class:`OrderedShards`.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from jobs.glue.progress import progress
from mmd.errors import MmdError
from mmd.intent.samples import SAMPLES
from mmd.intent.training_plan import StepPlan

T = TypeVar("T")
POSITION, WORKER = "position", "worker"
PLACED = pa.schema([*SAMPLES, (POSITION, pa.int64()), (WORKER, pa.int32())])
HELD_OUT = "held_out"
FINISHED_FILE = "finished.json"
_PASS_ROWS = 4096


class TrainError(MmdError):
    """A training failed for good; the message quotes the cause."""


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Pass:
    """One reading of the shards: the positions ``start`` … ``end`` - 1, whole steps."""

    start: int
    end: int

    @property
    def name(self) -> str:
        """Name of its dataset."""
        return f"samples-{self.start}"


def plan_passes(plan: StepPlan, rows: int = _PASS_ROWS) -> list[Pass]:
    """Cut all positions into passes of at least one epoch.

    Each pass reads and sorts the samples once. A small set is read once for several epochs, since a reading costs about
    a second however little is read; a large one is read once an epoch, and Ray Data sorts it out of core.
    """
    epochs = max(1, rows // len(plan.keys))
    steps = max(1, -(-epochs * len(plan.keys) // plan.global_batch))
    size, total = steps * plan.global_batch, plan.total_positions
    return [Pass(start, min(start + size, total)) for start in range(0, total, size)]


class PlaceRows:
    """Gives each row of a block the positions that a pass has for it: a row a position, none for other samples.

    Args:
        plan: where samples go.
        part: the pass.
    """

    def __init__(self, plan: StepPlan, part: Pass) -> None:
        places: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for position in range(part.start, part.end):
            key = plan.keys[plan.sample(position)]
            places[key.task, key.id].append(position)
        self._places = dict(places)
        self._worker_of = plan.worker_of

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the placed rows, with columns of :data:`PLACED`."""
        keys = zip(block["task"].to_pylist(), block["id"].to_pylist(), strict=True)
        placed = [(row, p) for row, key in enumerate(keys) for p in self._places.get(key, ())]
        table = block.select(SAMPLES.names).take(pa.array([row for row, _ in placed], pa.int64())).cast(SAMPLES)
        table = table.append_column(POSITION, pa.array([p for _, p in placed], pa.int64()))
        return table.append_column(WORKER, pa.array([self._worker_of(p) for _, p in placed], pa.int32()))


class OwnRows:
    """Keeps the rows of one worker.

    Args:
        worker: its rank.
    """

    def __init__(self, worker: int) -> None:
        self._worker = worker

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the worker's rows."""
        return block.filter(pc.equal(block[WORKER], self._worker))


class KeepRows:
    """Keeps the rows of some samples.

    Args:
        keys: (task, id) of what is kept.
    """

    def __init__(self, keys: Sequence[tuple[str, str]]) -> None:
        self._keys = frozenset(keys)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the rows that are kept."""
        keys = zip(block["task"].to_pylist(), block["id"].to_pylist(), strict=True)
        return block.filter(pa.array([key in self._keys for key in keys], pa.bool_()))


def make_datasets(
    shards: Sequence[str], plan: StepPlan, passes: Sequence[Pass], held_out: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return the lazy datasets of a run: one a pass, and the held-out originals."""
    import ray.data

    out: dict[str, Any] = {}
    for part in passes:
        rows = ray.data.read_parquet(list(shards), override_num_blocks=len(shards))
        out[part.name] = rows.map_batches(PlaceRows(plan, part), batch_format="pyarrow", batch_size=None)
    if held_out:
        rows = ray.data.read_parquet(list(shards), override_num_blocks=len(shards))
        out[HELD_OUT] = rows.map_batches(KeepRows(held_out), batch_format="pyarrow", batch_size=None)
    return out


def ordered_shards() -> Any:  # noqa: ANN401 (a subclass of ray.train.DataConfig, which only Ray's import can name)
    """Return the :class:`ray.train.DataConfig` that gives each worker its own rows, in the plan's order."""
    import ray.train

    class OrderedShards(ray.train.DataConfig):
        """Each worker executes a dataset of its own: its rows of a pass, sorted by position.

        Train's own split hands blocks to whichever worker asks first, in an order that changes between executions,
        and drops the remainder of an uneven division: batches would depend on timing, and a resumed run could not
        repeat what a killed one saw. The price is that every worker reads the shards (and drops the others' rows
        before they are sorted); for pictures of a few-shot set that is seconds.
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
            return [{name: _share(name, ds, rank) for name, ds in datasets.items()} for rank in range(world_size)]

    def _share(name: str, dataset: Any, rank: int) -> Any:  # noqa: ANN401 (Ray has no types for these)
        if name == HELD_OUT:
            return dataset.iterator()
        # A filter by expression would be pushed below the placing, to where there is no such column yet.
        own = dataset.map_batches(OwnRows(rank), batch_format="pyarrow", batch_size=None)
        return own.sort(POSITION).iterator()

    return OrderedShards()


def placed_batches(
    passes: Sequence[Pass], shard: Callable[[str], Any], plan: StepPlan, first_step: int, rank: int
) -> Iterator[list[dict[str, Any]]]:
    """Yield a worker's micro-batches from a step on, as rows; inside a Train worker.

    Args:
        passes: of the run.
        shard: name → this worker's ``DataIterator`` (``ray.train.get_dataset_shard``).
        plan: what belongs into each micro-batch; what arrives is checked against it.
        first_step: steps before it are done; their rows are not decoded.
        rank: of the worker.

    Raises:
        TrainError: other rows came than planned.
    """
    start = first_step * plan.global_batch
    wanted = (
        list(plan.micro_positions(step, micro, rank))
        for step in range(first_step, plan.total_steps)
        for micro in range(plan.recipe.accumulate)
    )
    for part in passes:
        if part.end <= start:
            continue
        for batch in shard(part.name).iter_batches(batch_size=plan.recipe.batch, batch_format="pyarrow"):
            if batch[POSITION][0].as_py() < start:
                continue
            expected, got = next(wanted, []), batch[POSITION].to_pylist()
            if got != expected:
                raise TrainError(
                    f"worker {rank}: samples {got} came where {expected} are planned; the samples artefact is not what "
                    "the run was planned with. Run `mmd augment --force`, then this again."
                )
            yield batch.to_pylist()


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """Yield the items of an iterator that a thread works through, up to ``count`` items ahead.

    Decoding of the next batches, and the start of the next pass, then overlap with training.
    """
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield cast("T", item)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# ---------------------------------------------------------------- reports from the first worker to the driver


def start_monitor() -> Any:  # noqa: ANN401 (an actor handle)
    """Start the small actor through which the first worker's step reports reach the driver."""
    import ray

    class Monitor:
        """Keeps reports until the driver takes them."""

        def __init__(self) -> None:
            self._rows: list[dict[str, Any]] = []

        def put(self, row: dict[str, Any]) -> None:
            """Take a report."""
            self._rows.append(row)

        def take(self) -> list[dict[str, Any]]:
            """Return the reports since the last call."""
            rows, self._rows = self._rows, []
            return rows

    return ray.remote(Monitor).options(num_cpus=0).remote()


@contextmanager
def watch(monitor: Any, title: str, total: int, on_row: Callable[[dict[str, Any]], None]) -> Iterator[None]:  # noqa: ANN401
    """Show a progress bar of a run's steps and hand each report to ``on_row``, while the ``with`` trains."""
    import ray

    done = threading.Event()
    shown = 0

    def drain() -> None:
        nonlocal shown
        for row in ray.get(monitor.take.remote()):
            advance(row["step"] - shown, samples=row.get("samples", 0))
            shown = row["step"]
            on_row(row)

    def poll() -> None:
        while not done.wait(0.5):
            drain()

    with progress(title, total, "steps") as advance:
        thread = threading.Thread(target=poll, daemon=True, name="watch")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            drain()
            ray.kill(monitor)


# ---------------------------------------------------------------- one run


@dataclass(frozen=True)
class RunPlace:
    """Where a run keeps its checkpoints: ``<storage>/<name>``, local or any fsspec URI."""

    storage: str
    name: str

    @property
    def path(self) -> str:
        """Folder or URI of the run."""
        return f"{self.storage}/{self.name}"

    def finished(self) -> str | None:
        """Return the last checkpoint of a run that was finished before."""
        fs, root = fsspec.core.url_to_fs(self.path)
        if not fs.exists(f"{root}/{FINISHED_FILE}"):
            return None
        with fs.open(f"{root}/{FINISHED_FILE}", "rb") as handle:
            return str(json.loads(handle.read())["checkpoint"])

    def finish(self, checkpoint: str) -> None:
        """Note the last checkpoint, by its folder's name."""
        fs, root = fsspec.core.url_to_fs(self.path)
        with fs.open(f"{root}/{FINISHED_FILE}", "wb") as handle:
            handle.write(json.dumps({"checkpoint": checkpoint}).encode())

    def remove(self) -> None:
        """Remove the run."""
        fs, root = fsspec.core.url_to_fs(self.path)
        if fs.exists(root):
            fs.rm(root, recursive=True)

    def fetch(self, checkpoint: str, folder: str) -> None:
        """Copy a checkpoint into a local folder."""
        fs, root = fsspec.core.url_to_fs(self.path)
        fs.get(f"{root}/{checkpoint}", folder, recursive=True)


def fit(
    loop: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    datasets: Mapping[str, Any],
    place: RunPlace,
    *,
    workers: int,
    use_gpu: bool,
    max_failures: int,
) -> str:
    """Train with Ray Train and return the last checkpoint's folder name under the run.

    A run of this name that was interrupted in this storage goes on from its last checkpoint.

    Raises:
        MmdError: what a worker raised, if that is the input's fault.
        TrainError: the run failed more often than allowed.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        loop,
        train_loop_config=dict(config),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        datasets=dict(datasets),
        dataset_config=ordered_shards(),
        run_config=ray.train.RunConfig(
            name=place.name,
            storage_path=place.storage,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as err:
        raise _cause(err, place) from err
    if result.checkpoint is None:
        raise TrainError(f"run {place.name}: ended without a checkpoint; remove {place.path} and run this again.")
    checkpoint = str(result.checkpoint.path).rstrip("/").rpartition("/")[2]
    place.finish(checkpoint)
    return checkpoint


def _cause(err: Exception, place: RunPlace) -> MmdError:
    failures = getattr(err, "worker_failures", {})
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, MmdError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    first = next(iter(failures.values()), err)
    lines = str(first).strip().splitlines() or [type(first).__name__]
    return TrainError(f"run {place.name} failed: {lines[-1]} (its checkpoints are kept under {place.path})")


@contextmanager
def quiet_train() -> Iterator[None]:
    """Silence Ray Train's log lines of each controller and worker; its errors are raised."""
    logger = logging.getLogger("ray.train")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
