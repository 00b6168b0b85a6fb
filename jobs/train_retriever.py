"""Train the retriever: DR, SDR or MDR on Ray Train, fed by Ray Data.

Makes retriever/NAME from corpus/NAME (and features/NAME where there are some): the weights of the best validation,
retriever.json, losses and validations (training.json) and TensorBoard events. Ray Data finds the samples in the
corpus's shards; each step's samples go to its workers, whose embeddings are gathered, so that all responses of a step
are negatives of each other. A tenth of the training dialogues is held out, and decides when to stop and what to keep.

Interrupted, the same command goes on: a killed worker is restarted from the last checkpoint, a killed driver finds it
again. The losses are those of mmd.retrieval.training.train_plain, whatever the number of workers (but for dropout).

    mmd train_retriever                                                 the built-in shop corpus
    mmd train_retriever --set retrieval.method=dr
    mmd train_retriever --corpus redial=../shared/data/redial --set retrieval.towers.text=minilm-l6-v2
    mmd train_retriever --set retrieval.training.workers=2 --set retrieval.training.micro_batch=32
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.parquet as pq
from rich.table import Table

from jobs.featurize import absolute_store
from jobs.glue.cluster import quiet_data, quiet_logger, ray_cluster, worker_errors
from jobs.glue.entry import JobContext, console, main
from jobs.glue.metric_logs import EVENTS_FILE, write_events
from jobs.glue.placing import HELD_OUT, Pass, make_datasets, ordered_shards, placed_rows, plan_passes, read_rows
from jobs.glue.train import RunPlace, StepReporter, fit, gpus_wanted, remove_left_over, start_monitor, watch
from jobs.glue.tune import only_run
from mmd.artifacts import Artifact, ArtifactStore, ArtifactWriter, version_for
from mmd.config import AppConfig
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError
from mmd.features.store import Features
from mmd.models.threads import torch_threads
from mmd.retrieval.batches import BatchPlan, key_of, recipe_for
from mmd.retrieval.facts import Facts
from mmd.retrieval.rows import KEY_COLUMNS, FindRows, response_of, sample_of
from mmd.retrieval.training import (
    Division,
    RetrieverTraining,
    TrainState,
    build_retriever,
    divide,
    load_state,
    load_trained,
    make_judge,
    make_miner,
    worker_threads,
)
from mmd.retrieval.types import Response, Sample, SampleSet

if TYPE_CHECKING:
    from mmd.retrieval.bases import BaseModels
    from mmd.retrieval.inputs import InputMaker
    from mmd.retrieval.methods import Retriever

TRAINING_FILE = "training.json"
MINED = "mined"
_BEST_FOLDER = "best"
_OPERATION = {"max_failures", "checkpoint_every", "threads"}  # change how, not what
_ROW_BYTES = 2_000  # of a sample in memory, words and ids


@dataclass(frozen=True)
class RetrieverJob:
    """What a worker needs to know; sent to it by Ray.

    Attributes:
        config: all settings.
        store: URI of the artefact store.
        inputs: role → reference of the corpus, and of its features where they are read.
        plan: samples and rates of every step.
        passes: readings of the samples' shards.
        modalities: that responses have, in the settings' order.
        mined: whether there are hard negatives.
        held_out: whether there are validation samples.
        on_cpu: whether workers train on CPUs.
    """

    config: AppConfig
    store: str
    inputs: Mapping[str, str]
    plan: BatchPlan
    passes: tuple[Pass, ...]
    modalities: tuple[str, ...]
    mined: bool
    held_out: bool
    on_cpu: bool


def run(context: JobContext) -> Artifact:
    """Write retriever/NAME unless the same was trained before."""
    inputs = inputs_of(context)
    settings, seeds = training_settings(context.config), {"retriever": context.config.seed}
    version = version_for("retriever", settings, inputs, seeds)
    place = RunPlace(context.scratch(".train"), f"train_retriever-{context.name}-{version}")
    if found := context.existing("retriever", settings, inputs, seeds):
        remove_left_over(place)
        return found
    with tempfile.TemporaryDirectory() as scratch, only_run(place.path):
        if context.force:
            place.remove()
        started = time.perf_counter()
        job, division, state = train(context, inputs, place, Path(scratch))
        seconds = time.perf_counter() - started
        with context.store.write(
            "retriever", context.name, settings=settings, inputs=inputs, seeds=seeds, replace=context.force
        ) as writer:
            retriever = write_retriever(writer, job, division, state, Path(scratch))
            writer.metrics = metrics_of(job.plan, division, state, retriever) | {"train_s": seconds}
        place.remove()
    print_result(retriever, state)
    return context.store.open(f"retriever/{context.name}@{version}")


def inputs_of(context: JobContext) -> dict[str, Artifact]:
    """Return the corpus and, where they were computed, its features: newest features lead to their own corpus."""
    corpus = context.open("corpus")
    made = [features for features in context.store.find("features") if features.manifest.name == context.name]
    for features in [context.pins["features"]] if "features" in context.pins else reversed(made):
        if features.manifest.inputs.get("corpus", "").split(" ")[0] == corpus.ref:
            return {"corpus": corpus, "features": features}
    return {"corpus": corpus}


def training_settings(config: AppConfig) -> dict[str, Any]:
    """Return the settings that the weights depend on."""
    retrieval = config.retrieval.model_dump(mode="json", include={"method", "samples", "towers", "training", "pools"})
    kept = {key: value for key, value in retrieval["training"].items() if key not in _OPERATION}
    pools = {key: retrieval["pools"][key] for key in ("size", "seed")}
    return {**retrieval, "training": kept, "pools": pools, "features": config.features.model_dump(mode="json")}


# ---------------------------------------------------------------- the driver


def train(
    context: JobContext, inputs: Mapping[str, Artifact], place: RunPlace, scratch: Path
) -> tuple[RetrieverJob, Division, TrainState]:
    """Train under Ray Train, or read the run if it was finished before; its last checkpoint ends up in ``scratch``."""
    config, training = context.config, context.config.retrieval.training
    with ray_cluster(config.cluster), quiet_data(), quiet_logger("ray.train"):
        shards = sample_shards(config, inputs, place)
        keys = read_keys(shards)
        division = divide(list(keys), config.retrieval.samples.validation_fraction, config.seed)
        plan = BatchPlan(tuple(map(key_of, division.train)), recipe_for(training, config.retrieval.towers), config.seed)
        occurring = {sample.modality for sample in keys}
        job = RetrieverJob(
            config=config,
            store=absolute_store(context),
            inputs={role: artifact.ref for role, artifact in inputs.items()},
            plan=plan,
            passes=tuple(plan_passes(plan, _ROW_BYTES)),
            modalities=tuple(name for name in config.retrieval.samples.modalities if name in occurring),
            mined=training.hard_negatives > 0,
            held_out=bool(division.held_out),
            on_cpu=not gpus_wanted(config.models, training.workers),
        )
        checkpoint = RunPlace(place.path, "run").finished() or fit_run(job, division, shards, place)
    RunPlace(place.path, "run").fetch(checkpoint, str(scratch / "run"))
    return job, division, load_state(scratch / "run")


def sample_shards(config: AppConfig, inputs: Mapping[str, Artifact], place: RunPlace) -> list[str]:
    """Find the training samples in the corpus's shards, once a run, and return the shards of their table.

    Raises:
        CorpusError: there is none.
    """
    import ray.data

    folder = RunPlace(place.path, "samples")
    if folder.finished() is None:
        folder.remove()
        corpus, features = Corpus(inputs["corpus"]), _features(inputs)
        facts = Facts.load(corpus, features, config.retrieval.samples)
        artifact = corpus.artifact
        local = artifact.protocol == "file"
        dialogues = ray.data.read_parquet(
            [artifact.path(s) if local else f"{artifact.root}/{s}" for s in artifact.shards("dialogues")],
            filesystem=None if local else artifact.fs,
        )
        with worker_errors():
            found = dialogues.map_batches(
                FindRows(facts, config.retrieval.samples), batch_format="pyarrow", batch_size=None
            )
            found.write_parquet(folder.path)
        folder.finish("samples")
    fs, root = fsspec.core.url_to_fs(folder.path)
    shards = sorted(fs.glob(f"{root}/*.parquet"))
    if not shards:
        raise CorpusError(
            f"{inputs['corpus'].ref}: no training dialogue has a response of {', '.join(_wanted(config))}; see "
            "retrieval.samples for what is one."
        )
    return [path if "://" not in folder.path else fs.unstrip_protocol(path) for path in shards]


def _wanted(config: AppConfig) -> tuple[str, ...]:
    return config.retrieval.samples.modalities


def _features(inputs: Mapping[str, Artifact]) -> Features | None:
    return Features(inputs["features"]) if "features" in inputs else None


def read_keys(shards: Sequence[str]) -> dict[Sample, Response]:
    """Return all samples, their queries left out, with their right responses."""
    found = {}
    for shard in shards:
        with fsspec.open(shard, "rb") as handle:
            for row in pq.read_table(handle, columns=KEY_COLUMNS).to_pylist():
                found[sample_of(row)] = response_of(row)
    return found


def fit_run(job: RetrieverJob, division: Division, shards: Sequence[str], place: RunPlace) -> str:
    """Run all steps and return the last checkpoint's name."""
    training, plan = job.config.retrieval.training, job.plan
    console.print(
        f"{job.config.retrieval.method}: {len(division.train)} samples, {len(division.held_out)} held out, "
        f"{plan.total_steps} steps of {plan.batch}",
        markup=False,
    )
    shared = {HELD_OUT: [(sample.id,) for sample in division.held_out]} if job.held_out else {}
    if job.mined:
        shared[MINED] = [(sample.id,) for sample in division.train]
    monitor = start_monitor()
    with watch(monitor, "train_retriever", plan.total_steps, lambda _: None):
        return fit(
            train_worker,
            {"job": job, "monitor": monitor},
            make_datasets(shards, job.passes, shared),
            ordered_shards(plan, job.passes, shared),
            RunPlace(place.path, "run"),
            workers=training.workers,
            use_gpu=not job.on_cpu,
            max_failures=training.max_failures,
        )


# ---------------------------------------------------------------- a worker


def train_worker(config: Mapping[str, Any]) -> None:
    """Train on one worker; Ray Train calls it, on all workers alike."""
    import ray.train
    import ray.train.torch

    job: RetrieverJob = config["job"]
    rank = ray.train.get_context().get_world_rank()
    with torch_threads(worker_threads(job.config.retrieval.training)):
        loop = make_loop(job, ray.train.torch.get_device() if not job.on_cpu else "cpu")
        if found := ray.train.get_checkpoint():
            with found.as_directory() as folder:
                loop.restore(Path(folder))
        reporter = StepReporter(config["monitor"], job.plan.batch) if rank == 0 else None
        loop.train(
            worker_rows(job, loop.state.step, rank),
            on_step=reporter,
            on_checkpoint=lambda at: report_checkpoint(at, finished=False),
        )
        report_checkpoint(loop, finished=True)


def make_loop(job: RetrieverJob, device: Any) -> RetrieverTraining:  # noqa: ANN401 (a torch device or its name)
    """Return the loop of this worker, its validation and training samples read where they are needed whole."""
    import ray.train

    from mmd.retrieval.steps import ChunkMaker
    from mmd.retrieval.workers import Alone, ProcessGroup

    settings = job.config.retrieval
    maker, bases = open_inputs(job)
    chunks = ChunkMaker(maker, settings.training.micro_batch, on_cpu=job.on_cpu)
    workers = ProcessGroup() if settings.training.workers > 1 else Alone()
    samples = {name: read_samples(ray.train.get_dataset_shard(name)) for name in _shared_names(job)}
    responses = {r.id: r for found in samples.values() for r in found.values()}
    held_out, mined = (tuple(samples.get(name, {})) for name in (HELD_OUT, MINED))
    division = Division(train=mined, held_out=held_out)
    return RetrieverTraining(
        job.plan,
        build_retriever(settings, maker, bases, device, job.config.seed),
        chunks,
        settings.training,
        workers=workers,
        judge=make_judge(division, SampleSet(held_out, responses, job.modalities), settings, chunks, workers, device),
        miner=make_miner(mined, responses, settings.training, chunks, workers, device),
        device=device,
    )


def _shared_names(job: RetrieverJob) -> list[str]:
    return [HELD_OUT] * job.held_out + [MINED] * job.mined


def read_samples(iterator: Any) -> dict[Sample, Response]:  # noqa: ANN401 (a ray.data.DataIterator)
    """Return a dataset's samples and right responses in the order of ids."""
    rows = sorted(read_rows(iterator), key=lambda row: str(row["id"]))
    return {sample_of(row): response_of(row) for row in rows}


def open_inputs(job: RetrieverJob) -> tuple[InputMaker, BaseModels]:
    """Open what tower inputs are made from."""
    from mmd.retrieval.bases import load_bases
    from mmd.retrieval.sources import build_maker, training_sources

    config = job.config
    store = ArtifactStore(job.store)
    inputs = {role: store.open(ref, verify=False) for role, ref in job.inputs.items()}
    corpus, features = Corpus(inputs["corpus"]), _features(inputs)
    towers = config.retrieval.towers
    bases = load_bases(towers, config.models)
    sources = training_sources(corpus, features, towers, config.features, config.models, job.store)
    facts = Facts.load(corpus, features, config.retrieval.samples)
    return build_maker(towers, job.modalities, facts, sources, bases), bases


def worker_rows(job: RetrieverJob, first_step: int, rank: int) -> Iterator[list[tuple[Sample, Response]]]:
    """Yield this worker's samples and right responses of each step."""
    import ray.train

    shard = ray.train.get_dataset_shard
    for placed in placed_rows(job.passes, shard, job.plan, first_step, rank, _parse):
        yield [pair for _, pair in placed]


def _parse(row: Mapping[str, Any]) -> tuple[Sample, Response]:
    return sample_of(row), response_of(row)


def report_checkpoint(loop: RetrieverTraining, *, finished: bool) -> None:
    """Save and report a checkpoint; the first worker's holds everything.

    Args:
        loop: the loop, on this worker.
        finished: whether the run is done: the spec goes along, and the retriever takes its best weights.
    """
    import ray.train
    from safetensors.torch import save_file

    from mmd.retrieval.training import trained_copies

    row = {"step": loop.state.step}
    if loop.workers.rank:
        ray.train.report(row)
        return
    with tempfile.TemporaryDirectory() as folder:
        loop.save(Path(folder))
        if finished:
            loop.take_best()
            best = Path(folder) / _BEST_FOLDER
            best.mkdir()
            save_file(trained_copies(loop.retriever), best / "weights.safetensors")
            (best / "spec.json").write_text(loop.retriever.spec.model_dump_json(), encoding="utf-8")
        ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder))


# ---------------------------------------------------------------- the artefact


def write_retriever(
    writer: ArtifactWriter, job: RetrieverJob, division: Division, state: TrainState, scratch: Path
) -> Retriever:
    """Write the best weights, what was measured, and events."""
    from safetensors.torch import load_file

    from mmd.retrieval.bases import load_bases
    from mmd.retrieval.methods import Retriever, RetrieverSpec
    from mmd.retrieval.saving import save_retriever

    best = scratch / "run" / _BEST_FOLDER
    spec = RetrieverSpec.model_validate_json((best / "spec.json").read_text(encoding="utf-8"))
    bases = load_bases(spec.towers, job.config.models)
    retriever = Retriever(spec, bases, job.config.seed)
    load_trained(retriever, load_file(best / "weights.safetensors"))
    save_retriever(writer, retriever.eval(), bases)
    record = {
        "samples": {"train": len(division.train), "validation": len(division.held_out)},
        "parameters": retriever.parameter_counts(),
        **state.to_json(),
    }
    writer.write_json(TRAINING_FILE, record)
    events = scratch / EVENTS_FILE
    write_events(events, event_rows(state))
    writer.write_bytes(f"tensorboard/{EVENTS_FILE}", events.read_bytes())
    return retriever


def event_rows(state: TrainState) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (step, scalars) for TensorBoard."""
    for row in state.history:
        yield int(row["step"]), {f"train/{name}": row[name] for name in row if name not in ("step", "epoch")}
    for found in state.validations:
        scalars = {"validation/r1": found["r1"]}
        scalars |= {f"validation/r1/{name}": value for name, value in found["by_modality"].items()}
        if found["intent_accuracy"] is not None:
            scalars["validation/intent_accuracy"] = found["intent_accuracy"]
        yield int(found["step"]), scalars


def metrics_of(plan: BatchPlan, division: Division, state: TrainState, retriever: Retriever) -> dict[str, Any]:
    """Return the numbers of the manifest."""
    best = next((v for v in state.validations if v["step"] == state.best_step), None)
    return {
        "method": retriever.spec.method,
        "samples": len(division.train),
        "held_out": len(division.held_out),
        "steps": state.step,
        "steps_planned": plan.total_steps,
        "loss": state.history[-1]["loss"],
        "best_step": state.best_step,
        "validation_r1": best and best["r1"],
        "validation_r1_by_modality": best and best["by_modality"],
        "validation_intent_accuracy": best and best["intent_accuracy"],
        "parameters": retriever.parameter_counts()["total"],
    }


def print_result(retriever: Retriever, state: TrainState) -> None:
    """Print the parts' parameters and the validations."""
    table = Table("part", "parameters", title=retriever.spec.method, title_justify="left")
    for part, count in retriever.parameter_counts().items():
        table.add_row(part, f"{count:,}")
    console.print(table)
    if not state.validations:
        return
    names = list(state.validations[0]["by_modality"])
    table = Table("step", "R@1", *names, "intent", title="validation", title_justify="left")
    for found in state.validations:
        intent = found["intent_accuracy"]
        marks = "*" if found["step"] == state.best_step else ""
        shares = [f"{found['by_modality'].get(name, 0.0):.3f}" for name in names]
        cells = [f"{found['step']}{marks}", f"{found['r1']:.3f}", *shares, "" if intent is None else f"{intent:.3f}"]
        table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main("train_retriever", __doc__, run))
