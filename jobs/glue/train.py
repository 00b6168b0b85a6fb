"""Ray Train for training jobs: rows in their places, reports to the driver, and runs that are found again.

The samples' Parquet shards are a Ray Data dataset. A step's samples are decided by the plan
(:class:`mmd.intent.training_plan.StepPlan`), not by which block arrives first, since only then do one worker and many,
an interrupted run and an uninterrupted one, learn from the same samples in the same order.
"""

from __future__ import annotations

import json
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import structlog

from jobs.glue.cluster import own_error
from jobs.glue.progress import progress
from mmd.errors import MmdError
from mmd.intent.samples import SAMPLES, Sample, sample_from_row
from mmd.intent.training_plan import StepPlan

POSITIONS = "positions"
HELD_OUT = "held_out"
FINISHED_FILE = "finished.json"
_PASS_BYTES = 1 << 30
_REPORT_WAIT_S = 30.0
log = structlog.get_logger(__name__)


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


def plan_passes(plan: StepPlan, row_bytes: float, budget: int = _PASS_BYTES) -> list[Pass]:
    """Cut all positions into passes whose rows fit a worker's memory.

    A set that fits as a whole is read once for all epochs. A larger one is read again for each pass.

    Args:
        plan: what is trained.
        row_bytes: mean size of a sample.
        budget: bytes that a worker may hold of a pass.
    """
    total = plan.total_positions
    if len(plan.keys) * row_bytes <= budget:
        return [Pass(0, total)]
    steps = max(1, int(budget * plan.recipe.workers / row_bytes) // plan.global_batch)
    size = steps * plan.global_batch
    return [Pass(start, min(start + size, total)) for start in range(0, total, size)]


class PlaceRows:
    """Keeps the rows that a worker needs in a pass, once each, with the positions that the plan has for them.

    Args:
        plan: where samples go.
        part: the pass.
        worker: its rank.
    """

    def __init__(self, plan: StepPlan, part: Pass, worker: int) -> None:
        places: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for position in range(part.start, part.end):
            if plan.worker_of(position) == worker:
                key = plan.keys[plan.sample(position)]
                places[key.task, key.id].append(position)
        self._places = dict(places)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the rows that have positions, these in a column of their own."""
        keys = zip(block["task"].to_pylist(), block["id"].to_pylist(), strict=True)
        places = [self._places.get(key, []) for key in keys]
        rows = block.select(SAMPLES.names).append_column(POSITIONS, pa.array(places, pa.list_(pa.int64())))
        return rows.filter(pa.array([bool(found) for found in places], pa.bool_()))


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


def make_datasets(shards: Sequence[str], passes: Sequence[Pass], *, has_held_out: bool) -> dict[str, Any]:
    """Return the lazy datasets of a run: one a pass, and one for the held-out originals."""
    import ray.data

    names = [part.name for part in passes] + [HELD_OUT] * has_held_out
    return {name: ray.data.read_parquet(list(shards), override_num_blocks=len(shards)) for name in names}


def ordered_shards(plan: StepPlan, passes: Sequence[Pass], held_out: Sequence[tuple[str, str]]) -> Any:  # noqa: ANN401
    """Return the :class:`ray.train.DataConfig` that gives each worker its own rows with their places.

    Args:
        plan: where samples go.
        passes: of the datasets of :func:`make_datasets`.
        held_out: (task, id) of the held-out originals, which every worker gets.
    """
    import ray.train

    places = {part.name: part for part in passes}

    class OrderedShards(ray.train.DataConfig):
        """Each worker executes a dataset of its own, of its rows.

        Train's own split hands blocks to whichever worker asks first, in an order that changes between executions,
        and drops the remainder of an uneven division: batches would depend on timing, and a resumed run could not
        repeat what a killed one saw. Sorting by Ray Data would be a shuffle of 200 partitions for a few hundred rows.
        Instead the rows carry their positions, and the worker puts them in place (:func:`placed_samples`). The price:
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
            chosen = KeepRows(held_out) if name == HELD_OUT else PlaceRows(plan, places[name], rank)
            return dataset.map_batches(chosen, batch_format="pyarrow", batch_size=None).iterator()

    return OrderedShards()


def read_rows(iterator: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 (a ray.data.DataIterator)
    """Yield the rows of a dataset, in whatever order they come."""
    for block in iterator.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from block.to_pylist()


def placed_samples(
    passes: Sequence[Pass], shard: Callable[[str], Any], plan: StepPlan, first_step: int, rank: int
) -> Iterator[list[tuple[int, Sample]]]:
    """Yield a worker's micro-batches from a step on, as (position, sample) rows; inside a Train worker.

    Args:
        passes: of the run; those before the step are not read.
        shard: name → this worker's ``DataIterator`` (``ray.train.get_dataset_shard``).
        plan: what belongs into each micro-batch.
        first_step: steps before it are done.
        rank: of the worker.

    Raises:
        TrainError: a planned sample did not come.
    """
    for part in passes:
        steps = range(max(first_step, part.start // plan.global_batch), part.end // plan.global_batch)
        if not steps:
            continue
        samples: dict[int, Sample] = {}
        for row in read_rows(shard(part.name)):
            samples |= dict.fromkeys(row[POSITIONS], sample_from_row(row))
        for step in steps:
            for micro in range(plan.recipe.accumulate):
                try:
                    yield [(p, samples[p]) for p in plan.micro_positions(step, micro, rank)]
                except KeyError as err:
                    raise TrainError(
                        f"worker {rank}: no sample came for position {err} of the plan; the samples artefact is not "
                        "what the run was planned with. Run `mmd augment --force`, then this again."
                    ) from None


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
    """Show a progress bar of a run's steps and hand each report to ``on_row``, while the ``with`` trains.

    What goes wrong with a report neither ends the training nor hides its error: it is logged once.
    """
    import ray

    done = threading.Event()
    shown = 0
    told = False

    def drain() -> None:
        nonlocal shown, told
        try:
            for row in ray.get(monitor.take.remote(), timeout=_REPORT_WAIT_S):
                advance(row["step"] - shown, samples=row.get("samples", 0))
                shown = row["step"]
                on_row(row)
        except Exception as err:  # noqa: BLE001 (reports are for the eye; whatever stops them must not stop training)
            if not told:
                log.warning("progress_not_shown", run=title, error=f"{type(err).__name__}: {err}"[:300])
            told = True

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
            try:
                thread.join()
                drain()
            finally:
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

    def exists(self) -> bool:
        """Say whether anything is kept of the run."""
        fs, root = fsspec.core.url_to_fs(self.path)
        return bool(fs.exists(root))

    def remove(self) -> None:
        """Remove the run."""
        fs, root = fsspec.core.url_to_fs(self.path)
        if fs.exists(root):
            fs.rm(root, recursive=True)

    def fetch(self, checkpoint: str, folder: str) -> None:
        """Copy a checkpoint into a local folder."""
        fs, root = fsspec.core.url_to_fs(self.path)
        fs.get(f"{root}/{checkpoint}", folder, recursive=True)


@contextmanager
def own_interrupts() -> Iterator[None]:
    """Let Ctrl-C end a training as it ends everything else, and later steps as if there had been no training.

    Ray Train puts in a handler of its own that aborts the run and exits, and never takes it out again.

    Raises:
        KeyboardInterrupt: the run was aborted by Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set, and Ray sets none
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def fit(
    loop: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    datasets: Mapping[str, Any],
    data_config: Any,  # noqa: ANN401 (a ray.train.DataConfig)
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
        dataset_config=data_config,
        run_config=ray.train.RunConfig(
            name=place.name,
            storage_path=place.storage,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        with own_interrupts():
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
        if (own := own_error(failure)) is not None:
            return own
    first = next(iter(failures.values()), err)
    lines = str(first).strip().splitlines() or [type(first).__name__]
    return TrainError(f"run {place.name} failed: {lines[-1]} (its checkpoints are kept under {place.path})")
