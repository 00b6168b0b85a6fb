"""Fine-tune the multimodal model to name intents: Ray Train, DeepSpeed and PEFT, fed by Ray Data.

Makes adapter/NAME from samples/NAME (and the corpus, features and rulebase that it was made from): for each task, or
for all of them jointly, the trained weights (a PEFT adapter, or a whole model for tiny-*), what a model that never saw
a fold says of its dialogues (held_out.json, which the gate is chosen with), losses and validations (training.json) and
TensorBoard events. Each model and held-out fold is a run of its own under Ray Train.

Interrupted, the same command goes on: a killed worker is restarted from the run's last checkpoint, a killed driver
finds it again, and runs that were finished are not repeated. Checkpoints lie beside the store's artefacts until the
artefact is written. The losses are those of mmd.intent.finetune.finetune_plain, whatever the number of workers and
the ZeRO stage. With --force everything is trained anew, also what an interrupted forced run had done.

    mmd finetune_mllm --set models.mllm=tiny-smolvlm                       the built-in shop corpus
    mmd finetune_mllm --corpus taobao=../shared/data/taobao --set models.mllm=gemma3-270m
    mmd finetune_mllm --set intent.finetune.method=frozen --set models.mllm=gemma3-270m     a head; no training
    mmd finetune_mllm --set intent.finetune.workers=2 --set intent.finetune.deepspeed.stage=3
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.glue.cluster import quiet_data, quiet_logger, ray_cluster
from jobs.glue.entry import JobContext, console, main
from jobs.glue.frozen import TRAINING_FILE, make_frozen
from jobs.glue.metric_logs import EVENTS_FILE, mlflow_log, require_mlflow, scalars_of, write_events
from jobs.glue.nodes import threads_each
from jobs.glue.placing import HELD_OUT, Pass, make_datasets, ordered_shards, placed_rows, plan_passes, read_rows
from jobs.glue.train import (
    RunPlace,
    Scaling,
    StepReporter,
    TrainingOutput,
    fit,
    gpus_wanted,
    make_by_training,
    start_monitor,
    watch,
)
from mmd.artifacts import Artifact, ArtifactWriter
from mmd.corpora.store import Corpus
from mmd.errors import ConfigError
from mmd.intent.finetune import (
    BEST,
    LAST,
    Collator,
    Finetuning,
    HeldOutJudge,
    HeldOutScores,
    load_state,
    prepare_mllm,
    read_outcome,
    require_base,
    restore_optimizer,
    restore_weights,
)
from mmd.intent.mllm import HeldOutScore, MllmIndex, MllmTask, calibrate, save_held_out, save_mllm_index, save_mllm_task
from mmd.intent.samples import Samples, sample_from_row
from mmd.intent.settings import IntentSettings
from mmd.intent.training_plan import (
    Division,
    SampleKey,
    StepPlan,
    TrainingRun,
    divide,
    plan_runs,
    recipe_for,
    serving_runs,
)
from mmd.models.ahead import ahead
from mmd.models.course import TrainState
from mmd.models.resolve import resolve
from mmd.models.settings import ModelSettings
from mmd.tables import plain_table

_BATCHES_AHEAD = 4
_OPERATION = {"mlflow_uri", "max_failures", "checkpoint_every", "threads"}  # change how, not what


@dataclass(frozen=True)
class RunJob:
    """What a worker needs to know of a run; sent to it by Ray.

    Attributes:
        run: which model, and what is held out.
        base: name of the model that is fine-tuned.
        plan: samples and rates of every step.
        passes: readings of the shards.
        labels: task → its labels.
        intent: settings of prompts and training.
        models: settings of the model.
        has_held_out: whether there is a held-out fold.
        threads: CPU threads of a worker.
    """

    run: TrainingRun
    base: str
    plan: StepPlan
    passes: tuple[Pass, ...]
    labels: Mapping[str, tuple[str, ...]]
    intent: IntentSettings
    models: ModelSettings
    has_held_out: bool
    threads: int


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder of weights and outcome, and what the outcome says."""

    run: TrainingRun
    plan: StepPlan
    division: Division
    folder: Path
    state: TrainState
    held_out: HeldOutScores


def run(context: JobContext) -> Artifact:
    """Write adapter/NAME unless the same was trained before."""
    base = require_base(context.config.models)
    require_mlflow(context.config.intent.finetune.mlflow_uri)
    inputs = context.lineage("samples")
    require_hints(context, inputs["samples"])
    settings, seeds = finetune_settings(context), {"finetune": context.config.seed}
    if context.config.intent.finetune.method == "frozen":
        if found := context.existing("adapter", settings, inputs, seeds):
            return found
        resolve(base, context.config.models)  # missing weights are told here, not by a worker
        return make_frozen(context, base, inputs, settings, seeds)
    tasks = Corpus(inputs["corpus"]).tasks

    def train(place: RunPlace, scratch: Path) -> list[RunResult]:
        resolve(base, context.config.models)
        return train_runs(context, Samples(inputs["samples"]), tasks, place, scratch)

    def write(writer: ArtifactWriter, results: Sequence[RunResult], scratch: Path) -> dict[str, Any]:
        write_adapter(writer, results, context, tasks, scratch)
        return metrics_of(results)

    return make_by_training(
        context,
        TrainingOutput("finetune_mllm", "adapter", settings, inputs, seeds),
        train=train,
        write=write,
        tell=lambda results, _: print_results(results),
    )


def require_hints(context: JobContext, samples: Artifact) -> None:
    """Check that prompts will tell as many rules as the samples' hints do.

    Raises:
        ConfigError: they would not; a model would be asked otherwise than it was taught.
    """
    asked = context.config.intent.prompt.hints
    made = samples.manifest.settings.get("hints", asked)
    if made != asked:
        raise ConfigError(
            f"intent.prompt.hints={asked}: {samples.ref} was made with {made}; set it to {made}, or run `mmd augment` "
            f"with {asked} first."
        )


def finetune_settings(context: JobContext) -> dict[str, Any]:
    """Return the settings that the weights depend on."""
    intent, models = context.config.intent, context.config.models
    if intent.finetune.method == "frozen":
        kept: dict[str, Any] = {"include": {"method", "frozen"}}
    else:
        kept = {"exclude": _OPERATION | {"frozen"}}
    return {
        "finetune": intent.finetune.model_dump(mode="json", **kept),
        "prompt": intent.prompt.model_dump(mode="json"),
        "mllm": models.mllm,
        "dtype": models.dtype,
    }


def sample_keys(samples: Samples) -> list[SampleKey]:
    """Return what the planner needs of every sample."""
    return [SampleKey(**row) for row in samples.index().to_pylist()]


def train_runs(
    context: JobContext, samples: Samples, tasks: Mapping[str, tuple[str, ...]], place: RunPlace, scratch: Path
) -> list[RunResult]:
    """Train every run of the plan, one after the other; finished ones are only read."""
    intent = context.config.intent
    keys = sample_keys(samples)
    folds = max((key.fold for key in keys), default=-1) + 1
    runs = plan_runs(intent.finetune, sorted({key.task for key in keys}), folds)
    with ray_cluster(context.config.cluster), quiet_data(), quiet_logger("ray.train"):
        return [train_run(context, each, samples, keys, tasks, place, scratch) for each in runs]


def train_run(
    context: JobContext,
    each: TrainingRun,
    samples: Samples,
    keys: Sequence[SampleKey],
    tasks: Mapping[str, tuple[str, ...]],
    place: RunPlace,
    scratch: Path,
) -> RunResult:
    """Train one run under Ray Train, or read it if it was finished before."""
    intent, models = context.config.intent, context.config.models
    base, finetune = require_base(models), intent.finetune
    division = divide(keys, each)
    plan = StepPlan(division.train, recipe_for(finetune, base), context.config.seed, finetune.hint_share)
    own = RunPlace(place.path, each.name)
    checkpoint = own.finished()
    if checkpoint is None:
        use_gpu = gpus_wanted(context.config, finetune.workers)
        passes = tuple(plan_passes(plan, samples.row_bytes))
        judged = [(key.task, key.id) for key in division.held_out]
        job = RunJob(
            run=each,
            base=base,
            plan=plan,
            passes=passes,
            labels={task: tuple(tasks[task]) for task in each.tasks},
            intent=intent,
            models=models if use_gpu else models.model_copy(update={"device": "cpu"}),
            has_held_out=bool(division.held_out),
            threads=finetune.threads or threads_each(finetune.workers),
        )
        datasets = make_datasets(samples.shards(), passes, [HELD_OUT] * bool(judged))
        told = f"{len(division.train)} samples, {len(division.held_out)} held out, {plan.total_steps} steps"
        console.print(f"{each.name}: {told}", markup=False)
        monitor = start_monitor()
        parameters = {"base": base, "samples": len(division.train), **asdict(plan.recipe)}
        with mlflow_log(finetune.mlflow_uri, f"{context.name} {each.name}", parameters) as log:

            def on_row(row: dict[str, Any]) -> None:
                if log is not None:
                    log.add(row["step"], scalars_of(row))

            with watch(monitor, each.name, plan.total_steps, on_row):
                checkpoint = fit(
                    train_worker,
                    {"job": job, "monitor": monitor},
                    datasets,
                    ordered_shards(plan, passes, {HELD_OUT: judged}),
                    own,
                    Scaling(finetune.workers, use_gpu, context.config.cluster.placement, finetune.max_failures),
                )
    folder = scratch / each.name
    own.fetch(checkpoint, str(folder))
    state, held_out = read_outcome(folder)
    return RunResult(each, plan, division, folder, state, held_out)


def train_worker(config: Mapping[str, Any]) -> None:
    """Train on one worker of a run; Ray Train calls it, on all workers alike.

    The model is loaded, a checkpoint's weights are put in, and only then DeepSpeed shards it; the worker's own part of
    the optimizer's state comes last.
    """
    import ray.train
    import torch

    job: RunJob = config["job"]
    rank = ray.train.get_context().get_world_rank()
    prepare_process(job)
    from mmd.intent.engines import DeepSpeedEngine

    mllm = prepare_mllm(job.base, job.plan.recipe, job.intent, job.models, job.plan.seed)
    with tempfile.TemporaryDirectory() as folder:
        state, best = None, None
        if found := ray.train.get_checkpoint():
            found.to_directory(folder)
            state, best = load_state(Path(folder))
            restore_weights(mllm, Path(folder))
        engine = DeepSpeedEngine(mllm, job.plan.recipe, job.intent.finetune.deepspeed)
        if found:
            restore_optimizer(engine, Path(folder))
    judge = held_out_judge(job, mllm)
    every = job.intent.finetune.validate_every
    loop = Finetuning(job.plan, mllm, engine, judge, validate_every=every, state=state, best=best)
    batches = ahead(loaded_batches(job, loop.state.step, rank), _BATCHES_AHEAD)
    reporter = StepReporter(config["monitor"], job.plan.global_batch) if rank == 0 else None
    loop.train(
        batches,
        on_step=reporter,
        checkpoint_every=job.intent.finetune.checkpoint_every,
        on_checkpoint=lambda at: report_checkpoint(at, None),
    )
    report_checkpoint(loop, job)
    torch.distributed.barrier()


def prepare_process(job: RunJob) -> None:
    """Set up a worker process: threads, device, and DeepSpeed's idea of the machine (read when it is imported)."""
    import ray.train.torch
    import torch

    torch.set_num_threads(job.threads)
    if job.models.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    else:
        torch.cuda.set_device(ray.train.torch.get_device())


def held_out_judge(job: RunJob, mllm: Any) -> HeldOutJudge | None:  # noqa: ANN401 (an Mllm; its module loads late)
    """Read the held-out originals from their dataset; every worker reads all of them."""
    import ray.train

    if not job.has_held_out:
        return None
    samples = [sample_from_row(row) for row in read_rows(ray.train.get_dataset_shard(HELD_OUT))]
    return HeldOutJudge(mllm, samples, job.labels, job.intent.prompt)


def loaded_batches(job: RunJob, first_step: int, rank: int) -> Any:  # noqa: ANN401 (an iterator of tensor batches)
    """Yield this worker's micro-batches: pictures decoded and processed, prompts encoded, by a tokenizer of its own."""
    import ray.train

    from mmd.models.mllm import load_encoder

    collate = Collator(load_encoder(job.base, job.models), job.plan, job.labels, job.intent.prompt)
    shard = ray.train.get_dataset_shard
    yield from map(collate, placed_rows(job.passes, shard, job.plan, first_step, rank, sample_from_row))


def report_checkpoint(loop: Finetuning, finished: RunJob | None) -> None:
    """Save and report a checkpoint, each worker its part; Ray joins them in one folder.

    Args:
        loop: the loop, on this worker.
        finished: the run, if it is done: the outcome goes into the checkpoint, too.
    """
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        loop.save(Path(folder))
        if finished is not None:
            loop.finish(Path(folder), finished.plan.recipe.method)
        row = {"step": loop.state.step, "loss": loop.state.history[-1]["loss"]}
        ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder))


# ---------------------------------------------------------------- the artefact


def write_adapter(
    writer: ArtifactWriter,
    results: Sequence[RunResult],
    context: JobContext,
    tasks: Mapping[str, tuple[str, ...]],
    scratch: Path,
) -> None:
    """Write weights, index, held-out scores, losses and events."""
    by_name = {result.run.name: result for result in results}
    serving = {model: by_name[chosen.name] for model, chosen in serving_runs([r.run for r in results]).items()}
    for model, result in serving.items():
        save_mllm_task(writer, model, result.folder / LAST)
        if (result.folder / BEST).is_dir():
            save_mllm_task(writer, f"{BEST}/{model}", result.folder / BEST)
    scores = join_held_out(results)
    save_held_out(writer, scores)
    golds: dict[str, dict[str, str]] = {}
    for key in (key for result in results for key in result.division.held_out):
        golds.setdefault(key.task, {})[key.parent_id] = key.label
    save_mllm_index(
        writer,
        MllmIndex(
            base=require_base(context.config.models),
            method=results[0].plan.recipe.method,
            prompt=context.config.intent.prompt,
            tasks={
                task: task_entry(model, tuple(tasks[task]), scores.get(task, {}), golds.get(task, {}))
                for model, result in serving.items()
                for task in result.run.tasks
            },
        ),
    )
    writer.write_json(TRAINING_FILE, {"runs": {result.run.name: training_record(result) for result in results}})
    for result in results:
        events = scratch / "events" / result.run.name / EVENTS_FILE
        write_events(events, event_rows(result.state))
        writer.write_bytes(f"tensorboard/{result.run.name}/{EVENTS_FILE}", events.read_bytes())


def join_held_out(results: Sequence[RunResult]) -> HeldOutScores:
    """Return task → dialogue id → scores, over all held-out folds."""
    out: HeldOutScores = {}
    for result in results:
        for task, by_id in result.held_out.items():
            out.setdefault(task, {}).update(by_id)
    return out


def task_entry(
    folder: str, labels: tuple[str, ...], scores: Mapping[str, HeldOutScore], golds: Mapping[str, str]
) -> MllmTask:
    """Return a task's entry in the index, with the temperatures that fit its held-out scores.

    Prompts with a hint have one of their own, fitted to the dialogues that have a hint: told what rules say, a model
    is surer of itself. Nothing held out leaves the temperature 1, no hints leave one temperature for all.

    Args:
        folder: of the weights.
        labels: of the task.
        scores: dialogue id → held-out log-likelihoods.
        golds: dialogue id → right label.
    """
    plain = np.array([score.plain for score in scores.values()])
    told = {key: score.hinted for key, score in scores.items() if score.told}
    return MllmTask(
        folder=folder,
        labels=labels,
        temperature=calibrate(plain, labels, [golds[key] for key in scores]),
        hinted_temperature=calibrate(np.array(list(told.values())), labels, [golds[key] for key in told])
        if told
        else None,
    )


def training_record(result: RunResult) -> dict[str, Any]:
    """Return what the artefact keeps of a run's course."""
    return {
        "tasks": list(result.run.tasks),
        "held_out_fold": result.run.held_out_fold,
        "recipe": asdict(result.plan.recipe),
        "samples": len(result.division.train),
        "originals_held_out": len(result.division.held_out),
        **result.state.to_json(),
    }


def event_rows(state: TrainState) -> list[tuple[int, dict[str, float]]]:
    """Return a run's scalars by step."""
    checked = {v["step"]: v["weighted_f1"] for v in state.validations}
    return [
        (int(row["step"]), scalars_of({**row, "validation": checked.get(int(row["step"]), {})}))
        for row in state.history
    ]


def metrics_of(results: Sequence[RunResult]) -> dict[str, Any]:
    """Return the metrics of the manifest."""
    out: dict[str, Any] = {}
    for result in results:
        name, state = result.run.name, result.state
        out[f"{name} steps"] = state.step
        out[f"{name} loss"] = state.history[-1]["loss"]
        if state.validations:
            for task, f1 in state.validations[-1]["weighted_f1"].items():
                out[f"{name} {task} held-out weighted F1"] = f1
            out[f"{name} best step"] = state.best_step
    return out


def print_results(results: Sequence[RunResult]) -> None:
    """Print each run's course."""
    table = plain_table(
        "run", "samples", "steps", "first loss", "last loss", "held-out weighted F1", title="fine-tuning"
    )
    for result in results:
        state = result.state
        scores = state.validations[-1]["weighted_f1"] if state.validations else {}
        table.add_row(
            result.run.name,
            str(len(result.division.train)),
            str(state.step),
            f"{state.history[0]['loss']:.3f}",
            f"{state.history[-1]['loss']:.3f}",
            "  ".join(f"{task} {f1:.3f}" for task, f1 in scores.items()) or "–",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main("finetune_mllm", __doc__, run))
