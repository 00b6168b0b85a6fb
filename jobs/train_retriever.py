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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.parquet as pq

from jobs.featurize import compute_texts
from jobs.glue.cluster import quiet_data, quiet_logger, ray_cluster, worker_errors
from jobs.glue.entry import JobContext, console, main
from jobs.glue.metric_logs import EVENTS_FILE, write_events
from jobs.glue.placing import HELD_OUT, make_datasets, ordered_shards, plan_passes
from jobs.glue.progress import progress
from jobs.glue.retriever import MINED, RetrieverJob, features_of, load_best, train_worker, write_reranker
from jobs.glue.train import RunPlace, Scaling, TrainingOutput, fit, gpus_wanted, make_by_training, start_monitor, watch
from mmd.artifacts import Artifact, ArtifactWriter
from mmd.config import AppConfig
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError
from mmd.features.cache import FeatureCache
from mmd.features.extract import build_extractors
from mmd.models.course import TrainState
from mmd.retrieval.bases import FEATURES
from mmd.retrieval.batches import BatchPlan, key_of, recipe_for
from mmd.retrieval.facts import Facts, turn_words
from mmd.retrieval.rows import KEY_COLUMNS, FindRows, response_of, sample_of
from mmd.retrieval.samples import find_samples
from mmd.retrieval.training import (
    Division,
    divide,
)
from mmd.retrieval.types import Response, Sample
from mmd.schema import text_id
from mmd.tables import plain_table

if TYPE_CHECKING:
    from mmd.retrieval.methods import Retriever

TRAINING_FILE = "training.json"
_OPERATION = {"max_failures", "checkpoint_every", "threads"}  # change how, not what
_ROW_BYTES = 2_000  # of a sample in memory, words and ids


Trained = tuple[RetrieverJob, Division, TrainState]


def run(context: JobContext) -> Artifact:
    """Write retriever/NAME unless the same was trained before."""
    inputs = inputs_of(context)
    settings, seeds = training_settings(context.config), {"retriever": context.config.seed}
    return make_by_training(
        context,
        TrainingOutput("train_retriever", "retriever", settings, inputs, seeds),
        train=lambda place, scratch: train(context, inputs, place, scratch),
        write=write,
        tell=tell,
    )


def inputs_of(context: JobContext) -> dict[str, Artifact]:
    """Return the corpus and, where they were computed, its features: those asked for last, else the newest."""
    corpus = context.open("corpus")
    made = [found for found in context.store.find("features") if found.manifest.name == context.name]
    if made or "features" in context.pins:
        for features in (context.open("features"), *reversed(made)):
            if features.manifest.inputs.get("corpus", "").split(" ")[0] == corpus.ref:
                return {"corpus": corpus, "features": context.store.open(features.ref)}
    return {"corpus": corpus}


def training_settings(config: AppConfig) -> dict[str, Any]:
    """Return the settings that the weights depend on."""
    retrieval = config.retrieval.model_dump(mode="json", include={"method", "samples", "towers", "training", "pools"})
    kept = {key: value for key, value in retrieval["training"].items() if key not in _OPERATION}
    pools = {key: retrieval["pools"][key] for key in ("size", "seed")}
    if config.retrieval.rerank.enabled:
        retrieval["rerank"] = config.retrieval.rerank.model_dump(mode="json")
    return {**retrieval, "training": kept, "pools": pools, "features": config.features.model_dump(mode="json")}


# ---------------------------------------------------------------- the driver


def train(context: JobContext, inputs: Mapping[str, Artifact], place: RunPlace, scratch: Path) -> Trained:
    """Train under Ray Train, or read the run if it was finished before; its last checkpoint ends up in ``scratch``."""
    config, training = context.config, context.config.retrieval.training
    with ray_cluster(config.cluster), quiet_data(), quiet_logger("ray.train"):
        shards = sample_shards(config, inputs, place)
        keys = read_keys(shards)
        modalities = learnt_modalities(config, inputs, keys)
        division = divide(list(keys), config.retrieval.samples.validation_fraction, config.seed)
        plan = BatchPlan(tuple(map(key_of, division.train)), recipe_for(training, config.retrieval.towers), config.seed)
        job = RetrieverJob(
            config=config,
            store=context.store.absolute,
            inputs={role: artifact.ref for role, artifact in inputs.items()},
            plan=plan,
            passes=tuple(plan_passes(plan, _ROW_BYTES)),
            modalities=modalities,
            mined=training.hard_negatives > 0,
            held_out=bool(division.held_out),
            on_cpu=not gpus_wanted(config, training.workers),
        )
        checkpoint = RunPlace(place.path, "run").finished()
        if checkpoint is None:
            cache_texts(job, inputs, keys.values())
            checkpoint = fit_run(job, division, shards, place)
    RunPlace(place.path, "run").fetch(checkpoint, str(scratch / "run"))
    return job, division, TrainState.load(scratch / "run")


def sample_shards(config: AppConfig, inputs: Mapping[str, Artifact], place: RunPlace) -> list[str]:
    """Find the training samples in the corpus's shards, once a run, and return the shards of their table.

    Raises:
        CorpusError: there is none.
    """
    import ray.data

    folder = RunPlace(place.path, "samples")
    if folder.finished() is None:
        folder.remove()
        corpus, features = Corpus(inputs["corpus"]), features_of(inputs)
        facts = Facts.load(corpus, features, config.retrieval.samples)
        artifact = corpus.artifact
        local = artifact.protocol == "file"
        if not artifact.shards("dialogues"):
            raise CorpusError(f"{artifact.ref}: has no dialogues.")
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
        wanted = ", ".join(config.retrieval.samples.modalities)
        raise CorpusError(
            f"{inputs['corpus'].ref}: no training dialogue has a response of {wanted}; see retrieval.samples for what "
            "is one."
        )
    return [path if "://" not in folder.path else fs.unstrip_protocol(path) for path in shards]


def learnt_modalities(config: AppConfig, inputs: Mapping[str, Artifact], samples: Iterable[Sample]) -> tuple[str, ...]:
    """Return the modalities of training samples, in the settings' order.

    Of the test split it is only asked whether it has answers of a modality that training lacks.

    Raises:
        CorpusError: it has; hours later neither an index nor a report could rank them.
    """
    settings, occurring = config.retrieval.samples, {sample.modality for sample in samples}
    found = tuple(name for name in settings.modalities if name in occurring)
    if len(found) == len(settings.modalities):
        return found
    corpus = Corpus(inputs["corpus"])
    facts = Facts.load(corpus, features_of(inputs), settings)
    tested = find_samples(corpus.dialogues("test"), facts, settings).modalities
    if strange := [name for name in tested if name not in occurring]:
        raise CorpusError(
            f"{inputs['corpus'].ref}: answers of modality {', '.join(strange)} occur in test dialogues only, so "
            "nothing can learn them; give some of their records the split `train` (docs/data.md), or leave them out: "
            f"--set 'retrieval.samples.modalities=[{', '.join(found)}]'."
        )
    return found


def cache_texts(job: RetrieverJob, inputs: Mapping[str, Artifact], responses: Iterable[Response]) -> None:
    """Compute the sentence vectors that towers will read, where neither features nor cache have them, on all cores.

    Workers would compute them, too, but one text after the other while training waits. Frozen text models are left to
    them: they encode a batch at a time.
    """
    if job.config.retrieval.towers.text != FEATURES:
        return
    info = build_extractors(job.config.features).describe()["text"]
    if info is None:
        return  # the worker says what is missing
    corpus, features = Corpus(inputs["corpus"]), features_of(inputs)
    known = FeatureCache(job.store, "text", info.name).known()
    if features and features.extractors["text"] == info:
        known |= set(features.text_vectors)
    facts = Facts.load(corpus, features, job.config.retrieval.samples)
    missing = {key: text for key, text in read_texts(corpus, facts, responses).items() if key not in known}
    if not missing:
        return
    with progress("text", len(missing), "texts") as advance:
        for receipt in compute_texts(job.config.features, job.store, missing):
            advance(receipt["rows"], done=receipt["rows"], errors=receipt["errors"])


def read_texts(corpus: Corpus, facts: Facts, responses: Iterable[Response]) -> dict[str, str]:
    """Return text id → text of all that towers read in training: turns in words, and right responses."""
    turns = (turn for dialogue in corpus.dialogues("train") for turn in dialogue.turns)
    texts = dict.fromkeys(turn_words(turn, facts.titles, facts.pictures) for turn in turns)
    texts |= dict.fromkeys(response.text for response in responses)
    return {text_id(text): text for text in texts if text.strip()}


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
    with watch(monitor, "train_retriever", plan.total_steps):
        return fit(
            train_worker,
            {"job": job, "monitor": monitor},
            make_datasets(shards, job.passes, shared),
            ordered_shards(plan, job.passes, shared),
            RunPlace(place.path, "run"),
            Scaling(training.workers, not job.on_cpu, job.config.cluster.placement, training.max_failures),
        )


# ---------------------------------------------------------------- the artefact


def write(writer: ArtifactWriter, trained: Trained, scratch: Path) -> dict[str, Any]:
    """Fill the artefact and return the numbers of its manifest."""
    job, division, state = trained
    retriever = write_retriever(writer, job, division, state, scratch)
    return metrics_of(job.plan, division, state, retriever)


def write_retriever(
    writer: ArtifactWriter, job: RetrieverJob, division: Division, state: TrainState, scratch: Path
) -> Retriever:
    """Write the best weights, what was measured, and events."""
    from mmd.retrieval.saving import save_retriever

    retriever, bases = load_best(job, scratch / "run")
    save_retriever(writer, retriever, bases)
    if job.config.retrieval.rerank.enabled:
        write_reranker(writer, job, retriever)
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


def tell(trained: Trained, artifact: Artifact) -> None:
    """Print the parts' parameters and the validations."""
    job, _, state = trained
    table = plain_table("part", "parameters", title=job.config.retrieval.method)
    for part, count in artifact.read_json(TRAINING_FILE)["parameters"].items():
        table.add_row(part, f"{count:,}")
    console.print(table)
    if not state.validations:
        return
    names = list(state.validations[0]["by_modality"])
    table = plain_table("step", "R@1", *names, "intent", title="validation")
    for found in state.validations:
        intent = found["intent_accuracy"]
        marks = "*" if found["step"] == state.best_step else ""
        shares = [f"{found['by_modality'].get(name, 0.0):.3f}" for name in names]
        cells = [f"{found['step']}{marks}", f"{found['r1']:.3f}", *shares, "" if intent is None else f"{intent:.3f}"]
        table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main("train_retriever", __doc__, run))
