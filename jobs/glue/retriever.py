"""Training a retriever inside Ray Train's workers: what each of them opens, reads, runs and reports."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.glue.placing import HELD_OUT, Pass, placed_rows, read_rows
from jobs.glue.train import StepReporter
from mmd.artifacts import Artifact, ArtifactStore, ArtifactWriter
from mmd.config import AppConfig
from mmd.corpora.store import Corpus
from mmd.features.store import Features
from mmd.models.threads import torch_threads, worker_threads
from mmd.models.weights import put_trained, trained_copies
from mmd.retrieval.batches import BatchPlan
from mmd.retrieval.facts import Facts
from mmd.retrieval.rows import response_of, sample_of
from mmd.retrieval.samples import load_samples
from mmd.retrieval.training import (
    Division,
    RetrieverTraining,
    build_retriever,
    divide,
    make_judge,
    make_miner,
)
from mmd.retrieval.types import Response, Sample, SampleSet

if TYPE_CHECKING:
    from mmd.retrieval.bases import BaseModels
    from mmd.retrieval.inputs import InputMaker
    from mmd.retrieval.methods import Retriever

MINED = "mined"
_BEST_FOLDER, _WEIGHTS_FILE, _SPEC_FILE = "best", "weights.safetensors", "spec.json"


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


def features_of(inputs: Mapping[str, Artifact]) -> Features | None:
    """Return the features among the inputs, if there are any."""
    return Features(inputs["features"]) if "features" in inputs else None


def train_worker(config: Mapping[str, Any]) -> None:
    """Train on one worker; Ray Train calls it, on all workers alike."""
    import ray.train
    import ray.train.torch

    job: RetrieverJob = config["job"]
    rank = ray.train.get_context().get_world_rank()
    training = job.config.retrieval.training
    with torch_threads(worker_threads(training.threads, training.workers)):
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

    from mmd.models.workers import Alone, ProcessGroup
    from mmd.retrieval.steps import ChunkMaker

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
    corpus, features = Corpus(inputs["corpus"]), features_of(inputs)
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
            save_file(trained_copies(loop.retriever), best / _WEIGHTS_FILE)
            (best / _SPEC_FILE).write_text(loop.retriever.spec.model_dump_json(), encoding="utf-8")
        ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder))


def load_best(job: RetrieverJob, checkpoint: Path) -> tuple[Retriever, BaseModels]:
    """Return the retriever of a finished run, with the weights of its best validation, and what it started from."""
    from safetensors.torch import load_file

    from mmd.retrieval.bases import load_bases
    from mmd.retrieval.methods import Retriever, RetrieverSpec

    best = checkpoint / _BEST_FOLDER
    spec = RetrieverSpec.model_validate_json((best / _SPEC_FILE).read_text(encoding="utf-8"))
    bases = load_bases(spec.towers, job.config.models)
    retriever = Retriever(spec, bases, job.config.seed)
    put_trained(retriever, load_file(best / _WEIGHTS_FILE), "retriever")
    return retriever.eval(), bases


def write_reranker(writer: ArtifactWriter, job: RetrieverJob, retriever: Retriever) -> None:
    """Train a re-ranker on a trained retriever's first responses, and write it and what it was worth beside it."""
    from mmd.retrieval.rerank import fit_reranker, save_reranker

    settings, store = job.config.retrieval, ArtifactStore(job.store)
    inputs = {role: store.open(ref, verify=False) for role, ref in job.inputs.items()}
    given = load_samples(Corpus(inputs["corpus"]), features_of(inputs), settings.samples)
    parts = divide(given.samples, settings.samples.validation_fraction, job.config.seed)
    maker, _ = open_inputs(job)
    reranker, told = fit_reranker(
        retriever, maker, parts.train, parts.held_out, given, settings.rerank, job.config.seed
    )
    save_reranker(writer, reranker)
    writer.write_json("rerank/training.json", told)
