"""Training teachers and students inside Ray Train's workers: what each of them opens, runs and reports.

The samples of conversations are small beside what is computed of them: every worker reads the graph artefact whole and
takes its share of each step (:class:`mmd.recommend.steps.StepPlan`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fsspec
import pyarrow.parquet as pq

from jobs.glue.entry import console
from jobs.glue.metric_logs import EVENTS_FILE, write_events
from jobs.glue.train import RunPlace, Scaling, StepReporter, fit, gpus_wanted, start_monitor, watch
from mmd.artifacts import Artifact, ArtifactStore, ArtifactWriter
from mmd.config import AppConfig
from mmd.errors import ModelError
from mmd.models.course import TrainState
from mmd.models.threads import torch_threads, worker_threads
from mmd.recommend.conversations import Conversations
from mmd.recommend.training import Training
from mmd.tables import plain_table

if TYPE_CHECKING:
    import torch

    from mmd.models.engines import Engine
    from mmd.models.workers import Workers
    from mmd.recommend.cache import TeacherOutputs
    from mmd.recommend.runs import Ground
    from mmd.recommend.teachers import DialogueTask

What = Literal["recommender", "dialogue", "student"]
TITLES: dict[What, str] = {
    "recommender": "recommendation teacher",
    "dialogue": "dialogue teacher",
    "student": "student",
}
TRAINING_FILE = "training.json"


def require_backbone(config: AppConfig) -> None:
    """Refuse a language model that is not here, or is no causal one, before anything is trained.

    Raises:
        ModelError: its weights are missing, or it is of another kind.
    """
    from mmd.models.resolve import require_kind

    backbone = config.recommend.backbone
    if backbone.kind == "lm":
        try:
            require_kind(backbone.model, config.models, ("language",))
        except ModelError as error:
            raise ModelError(f"recommend.backbone.model: {error}") from None


@dataclass(frozen=True)
class RecommendJob:
    """What a worker needs to know; sent to it by Ray.

    Attributes:
        what: is trained.
        config: all settings.
        store: URI of the artefact store, as workers find it.
        inputs: role → reference.
        outputs: folder or URI of what the teachers say; of a student that is distilled.
        on_cpu: whether workers train on CPUs.
    """

    what: What
    config: AppConfig
    store: str
    inputs: Mapping[str, str]
    outputs: str | None = None
    on_cpu: bool = True

    def open(self, role: str) -> Artifact:
        """Open an input; the driver has verified it."""
        return ArtifactStore(self.store).open(self.inputs[role], verify=False)

    def digests(self) -> dict[str, str]:
        """Return role → digest of the inputs' files: a reference stays when an artefact is made anew, this does not."""
        return {role: self.open(role).manifest.digest for role in self.inputs}

    def ground(self) -> Ground:
        """Open what the training stands on."""
        from mmd.recommend.runs import Ground

        config = self.config
        part_seed = self.open("teacher").manifest.seeds["teacher"] if "teacher" in self.inputs else config.seed
        return Ground(Conversations(self.open("graph")), config.recommend, config.seed, config.models, part_seed)


# ---------------------------------------------------------------- inside a worker


def train_worker(config: Mapping[str, Any]) -> None:
    """Train on one worker; Ray Train calls it, on all workers alike."""
    import ray.train
    import ray.train.torch

    from mmd.models.workers import Alone, ProcessGroup

    job: RecommendJob = config["job"]
    train = job.config.recommend.train
    with torch_threads(worker_threads(train.threads, train.workers)):
        device = "cpu" if job.on_cpu else ray.train.torch.get_device()
        workers = ProcessGroup() if train.workers > 1 else Alone()
        loop = make_loop(job, job.ground(), device, workers)
        if found := ray.train.get_checkpoint():
            with found.as_directory() as folder:
                loop.resume(Path(folder))
        reporter = StepReporter(config["monitor"], loop.plan.batch) if workers.rank == 0 else None
        loop.train(reporter, train.checkpoint_every, report_checkpoint)
        report_checkpoint(loop)


def make_loop(job: RecommendJob, ground: Ground, device: torch.device | str, workers: Workers) -> Training[Any]:
    """Return the loop of this worker."""
    from mmd.recommend import runs

    settings, name = job.config.recommend, TITLES[job.what]
    if job.what == "recommender":
        ranking = runs.recommender_task(ground, device)
        steps, mentions = settings.recommender.steps, runs.ranked_mentions(ground)
        return Training(ranking, mentions, steps, ground.seed, workers=workers, name=name)
    task: DialogueTask
    if job.what == "dialogue":
        task, steps = runs.dialogue_task(ground, runs.new_talker(ground, device)), settings.dialogue
    else:
        outputs = None if job.outputs is None else read_outputs(job.outputs)
        task = runs.student_task(ground, runs.student_talker(ground, job.open("teacher"), device), outputs)
        steps = settings.student
    engine = deepspeed_engine(job, task.model, steps.batch) if wants_deepspeed(job) else None
    return Training(
        task,
        ground.responses.train,
        steps,
        ground.seed,
        workers=workers,
        engine=engine,
        name=TITLES[job.what],
        judge_start=job.what == "student" and settings.distill.start == "teacher",
    )


def wants_deepspeed(job: RecommendJob) -> bool:
    """Say whether DeepSpeed makes the steps of φ and θ: where its state shall be sharded, and on several GPUs."""
    train = job.config.recommend.train
    return train.deepspeed_stage > 0 or (train.workers > 1 and not job.on_cpu)


def deepspeed_engine(job: RecommendJob, module: torch.nn.Module, batch: int) -> Callable[[], Engine]:
    """Return what makes DeepSpeed's engine, once the weights are in place."""
    from mmd.models.engines import DeepSpeedEngine, ZeroStage

    if job.on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
    settings = job.config.recommend
    steps = settings.dialogue if job.what == "dialogue" else settings.student
    share = -(-batch // settings.train.workers)
    return lambda: DeepSpeedEngine(module, steps, ZeroStage(settings.train.deepspeed_stage), share)


def report_checkpoint(loop: Training[Any]) -> None:
    """Save this worker's part of a checkpoint and report it; workers without a part report none."""
    import ray.train

    row = {"step": loop.state.step}
    with tempfile.TemporaryDirectory() as folder:
        loop.save(Path(folder))
        has_part = any(Path(folder).iterdir())
        ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder) if has_part else None)


def read_outputs(folder: str) -> TeacherOutputs:
    """Read what the teachers said."""
    from mmd.recommend.cache import TeacherOutputs

    fs, root = fsspec.core.url_to_fs(folder)
    tables = []
    for path in sorted(fs.glob(f"{root}/*.parquet")):
        with fs.open(path, "rb") as handle:
            tables.append(pq.read_table(handle))
    return TeacherOutputs.from_tables(tables)


# ---------------------------------------------------------------- the driver


def fit_run(job: RecommendJob, place: RunPlace, steps: int, samples: int, scratch: Path) -> TrainState:
    """Train under Ray Train, or find the run finished before; its last checkpoint ends up in ``scratch``.

    Args:
        job: what is trained.
        place: of the run's checkpoints.
        steps: planned.
        samples: to learn from.
        scratch: local folder that is not there yet.
    """
    train = job.config.recommend.train
    checkpoint = place.finished()
    if checkpoint is None:
        console.print(f"{TITLES[job.what]}: {samples} samples, {steps} steps", markup=False)
        monitor = start_monitor()
        with watch(monitor, TITLES[job.what], steps):
            checkpoint = fit(
                train_worker,
                {"job": job, "monitor": monitor},
                {},
                None,
                place,
                Scaling(train.workers, not job.on_cpu, job.config.cluster.placement, train.max_failures),
            )
    place.fetch(checkpoint, str(scratch))
    return TrainState.load(scratch)


def trains_on_cpu(config: AppConfig) -> bool:
    """Say whether workers train on CPUs; a cluster must be connected."""
    return not gpus_wanted(config, config.recommend.train.workers)


def write_training(writer: ArtifactWriter, states: Mapping[str, TrainState], record: Mapping[str, Any]) -> None:
    """Write what was measured while training: ``training.json``, and TensorBoard events a run.

    Args:
        writer: of the artefact.
        states: run → its course.
        record: what else is told.
    """
    runs = {name: state.to_json() for name, state in states.items()}
    writer.write_json(TRAINING_FILE, {**record, **runs})
    with tempfile.TemporaryDirectory() as folder:
        for name, state in states.items():
            events = Path(folder) / name / EVENTS_FILE
            write_events(events, event_rows(state))
            writer.write_bytes(f"tensorboard/{name}/{EVENTS_FILE}", events.read_bytes())


def event_rows(state: TrainState) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (step, scalars) for TensorBoard."""
    places = ("step", "epoch")
    for prefix, rows in (("train", state.history), ("validation", state.validations)):
        for row in rows:
            yield int(row["step"]), {f"{prefix}/{name}": value for name, value in row.items() if name not in places}


def print_state(title: str, state: TrainState, parameters: int, held_out: str) -> None:
    """Print a run's validations; the best is marked.

    Args:
        title: of the run.
        state: its course.
        parameters: of the network.
        held_out: what was judged on, in words.
    """
    names = [name for name in (state.validations[0] if state.validations else {}) if name not in ("step", "epoch")]
    heads = ("step", "epoch", *(name.replace("_", " ") for name in names))  # breaks between words
    table = plain_table(*heads, title=f"{title}, {parameters:,} parameters; judged on {held_out}")
    for found in state.validations:
        mark = "*" if found["step"] == state.best_step else ""
        numbers = [f"{found[name]:.4g}" for name in names]
        table.add_row(f"{found['step']:.0f}{mark}", f"{found['epoch']:.1f}", *numbers)
    console.print(table)


def held_out_words(count: int, what: str) -> str:
    """Say in words what numbers of a training are over."""
    return f"{count:,} held-out {what} of the training split"


def best_metrics(what: str, state: TrainState) -> dict[str, float]:
    """Return the best validation's numbers for a manifest."""
    return {f"{what}_{name}": value for name, value in (state.best or {}).items() if name not in ("epoch", "score")}


def trained_settings(config: AppConfig, *parts: str) -> dict[str, Any]:
    """Return the parts of ``recommend`` that weights depend on; of ``train`` only the arithmetic, the rest is how."""
    return config.recommend.model_dump(mode="json", include={**dict.fromkeys(parts, True), "train": {"dtype"}})
