"""Ray Train for training jobs: reports to the driver, and runs that are found again."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import structlog

from jobs.glue.cluster import joins, own_error
from jobs.glue.entry import JobContext, console
from jobs.glue.placing import TrainError
from jobs.glue.progress import progress
from jobs.glue.tune import BatchError, only_run, remove_run
from mmd.artifacts import Artifact, ArtifactWriter, Kind, version_for
from mmd.config import AppConfig, Placement
from mmd.errors import MmdError

T = TypeVar("T")
FINISHED_FILE = "finished.json"
_REPORT_WAIT_S = 30.0
log = structlog.get_logger(__name__)
GOES_ON = "goes on after step"


# ---------------------------------------------------------------- reports from the first worker to the driver


def start_monitor() -> Any:  # noqa: ANN401 (an actor handle)
    """Start the small actor through which the first worker's step reports reach the driver, on the driver's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)  # lives as long as we do
    return ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=here).remote()


class StepReporter:
    """Sends step reports to the driver without waiting for it.

    Args:
        monitor: actor that keeps them.
        samples: of a step.
    """

    def __init__(self, monitor: Any, samples: int) -> None:  # noqa: ANN401 (an actor handle)
        self._monitor, self._samples = monitor, samples

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Send one report."""
        self._monitor.put.remote({**row, "samples": self._samples})


@contextmanager
def watch(
    monitor: Any,  # noqa: ANN401 (an actor handle)
    title: str,
    total: int,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[None]:
    """Show a progress bar of a run's steps and hand each report to ``on_row``, while the ``with`` trains.

    Says so when the run goes on from a checkpoint, at the start or after a worker was lost. What goes wrong with a
    report neither ends the training nor hides its error: it is logged once.
    """
    import ray

    done = threading.Event()
    shown = 0
    told = False

    def drain() -> None:
        nonlocal shown, told
        try:
            for row in ray.get(monitor.take.remote(), timeout=_REPORT_WAIT_S):
                if row["step"] != shown + 1:
                    console.print(f"{title}: {GOES_ON} {row['step'] - 1}", markup=False)
                advance(row["step"] - shown, samples=row.get("samples", 0))
                shown = row["step"]
                if on_row:
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
        fs.makedirs(root, exist_ok=True)  # of an empty result Ray Data makes no folder
        with fs.open(f"{root}/{FINISHED_FILE}", "wb") as handle:
            handle.write(json.dumps({"checkpoint": checkpoint}).encode())

    def exists(self) -> bool:
        """Say whether anything is kept of the run."""
        fs, root = fsspec.core.url_to_fs(self.path)
        return bool(fs.exists(root))

    def remove(self) -> None:
        """Remove the run."""
        remove_run(self.path)

    def fetch(self, checkpoint: str, folder: str) -> None:
        """Copy a checkpoint into a local folder."""
        fs, root = fsspec.core.url_to_fs(self.path)
        fs.get(f"{root}/{checkpoint}", folder, recursive=True)


def remove_left_over(place: RunPlace) -> None:
    """Remove what a run left that was killed between writing its artefact and tidying up.

    A run that another process is at stays; so do those of a remote store, where no lock tells.
    """
    if "://" not in place.path and place.exists():
        with suppress(BatchError), only_run(place.path):
            place.remove()


@dataclass(frozen=True)
class TrainingOutput:
    """What a training job makes, and what that follows from.

    Attributes:
        verb: of the job.
        kind: of the artefact.
        settings: that the weights depend on.
        inputs: role → artefact.
        seeds: of the random choices.
    """

    verb: str
    kind: Kind
    settings: Mapping[str, Any]
    inputs: Mapping[str, Artifact]
    seeds: Mapping[str, int]


def make_by_training(
    context: JobContext,
    output: TrainingOutput,
    *,
    train: Callable[[RunPlace, Path], T],
    write: Callable[[ArtifactWriter, T, Path], Mapping[str, Any]],
    tell: Callable[[T, Artifact], None],
) -> Artifact:
    """Return the artefact that equal settings, inputs and seeds made before, or train and write it.

    Its runs keep their checkpoints until it is written. With ``force`` they start anew.

    Args:
        context: of the job.
        output: what shall be there in the end.
        train: trains in a place that outlives an interruption, with a folder that does not.
        write: writes what was trained, with that folder, and returns the manifest's metrics; seconds are added.
        tell: prints what came of it, with the artefact at hand.
    """
    kind, settings, inputs, seeds = output.kind, output.settings, output.inputs, output.seeds
    version = version_for(kind, settings, inputs, seeds)
    place = RunPlace(context.scratch(".train"), f"{output.verb}-{context.name}-{version}")
    if found := context.existing(kind, settings, inputs, seeds):
        remove_left_over(place)
        return found
    with tempfile.TemporaryDirectory() as folder, only_run(place.path):
        scratch = Path(folder)
        if context.force:
            place.remove()
        started = time.perf_counter()
        trained = train(place, scratch)
        seconds = time.perf_counter() - started
        with context.store.write(
            kind, context.name, settings=settings, inputs=inputs, seeds=seeds, replace=context.force
        ) as writer:
            writer.metrics = {**write(writer, trained, scratch), "train_s": seconds}
        place.remove()
    artifact = context.store.open(f"{kind}/{context.name}@{version}")
    tell(trained, artifact)
    return artifact


def gpus_wanted(config: AppConfig, workers: int) -> bool:
    """Say whether workers train on GPUs: where the cluster has one for each, unless the settings say otherwise.

    GPUs that an autoscaler would only bring when they are asked for do not count; in a cluster that was joined, and
    wherever there are some, too few are told.
    """
    import ray

    device, gpus = config.models.device, int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if device != "auto" or gpus >= workers:
        return device != "cpu"
    if gpus or joins(config.cluster):
        who = "1 worker trains" if workers == 1 else f"{workers} workers train"
        there = f"only {gpus} of {workers} GPUs are there now" if gpus else "no node with a GPU is there now"
        _say_once(
            f"note: {who} on CPUs, for {there}, and none is waited for. If the cluster may have more, raise the "
            "minimum of their group (minReplicas, with `ray up` min_workers) and start this again; models.device=cpu "
            "says that CPUs are meant."
        )
    return False


@cache
def _say_once(line: str) -> None:
    """Print a line, however many of a job's runs it is true of."""
    console.print(line, style="yellow", markup=False, soft_wrap=True)


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


@dataclass(frozen=True)
class Scaling:
    """Who trains a run.

    Attributes:
        workers: processes.
        use_gpu: whether each has a GPU.
        placement: on which nodes they run.
        max_failures: how often the run goes on from its last checkpoint after a worker was lost.
    """

    workers: int
    use_gpu: bool
    placement: Placement
    max_failures: int


def fit(
    loop: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    datasets: Mapping[str, Any],
    data_config: Any,  # noqa: ANN401 (a ray.train.DataConfig)
    place: RunPlace,
    scaling: Scaling,
) -> str:
    """Train with Ray Train and return the last checkpoint's folder name under the run.

    A run of this name that was interrupted in this storage goes on from its last checkpoint; so does one whose worker,
    or a worker's whole node, is lost, up to ``scaling.max_failures`` times.

    Raises:
        MmdError: what a worker raised, if that is the input's fault.
        TrainError: the run failed more often than allowed.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        loop,
        train_loop_config=dict(config),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.workers, use_gpu=scaling.use_gpu, placement_strategy=scaling.placement
        ),
        datasets=dict(datasets),
        dataset_config=data_config,
        run_config=ray.train.RunConfig(
            name=place.name,
            storage_path=place.storage,
            failure_config=ray.train.FailureConfig(max_failures=scaling.max_failures),
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
