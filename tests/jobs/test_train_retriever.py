"""The job against the plain call, resumed against uninterrupted, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pytest

from jobs.glue.entry import JobContext
from jobs.train_retriever import event_rows, inputs_of, learnt_modalities, read_texts, run
from mmd import schema
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import AppConfig, build_config
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError
from mmd.models.course import TrainState
from mmd.retrieval.bases import load_bases
from mmd.retrieval.facts import Facts
from mmd.retrieval.inputs import InputMaker
from mmd.retrieval.rows import KEY_COLUMNS, ROWS, FindRows, response_of, sample_of
from mmd.retrieval.samples import find_samples
from mmd.retrieval.saving import load_retriever
from mmd.retrieval.settings import TowerSettings
from mmd.retrieval.sources import build_maker, training_sources
from mmd.retrieval.training import TrainedRetriever, train_plain
from mmd.schema import Dialogue, Item, Turn, text_id
from tests.jobs.killing import steps_gone_on_after, steps_kept, training_worker, wait_for_checkpoints

ROOT = Path(__file__).resolve().parents[2]
NAME = "films"


def write_corpus(store: ArtifactStore, *, replies: bool = True) -> Artifact:
    """40 dialogues, 10 of them for tests; every second answer is a product."""
    dialogues = []
    for i in range(40):
        answer = Turn("agent", f"try film number {i % 9}", item_ids=(f"m{i % 9}",) if i % 2 else ())
        turns = (Turn("user", f"hello {i}, something like film {i % 9}?"), *([answer] if replies else []))
        dialogues.append(Dialogue(f"d{i}", "films", "test" if i % 4 == 3 else "train", turns))
    with store.write("corpus", NAME, settings={"replies": replies}) as writer:
        writer.write_json("tasks.json", {})
        rows = [schema.dialogue_to_row(d) for d in dialogues]
        writer.write_table("dialogues", pa.Table.from_pylist(rows, schema=schema.DIALOGUES), rows_per_shard=17)
        rows = [schema.item_to_row(Item(f"m{i}", f"Film {i}")) for i in range(12)]
        writer.write_table("items", pa.Table.from_pylist(rows, schema=schema.ITEMS))
    return store.open(f"corpus/{NAME}")


def make_config(store: Path, train_text: str = "full", **training: object) -> AppConfig:
    settings = {"epochs": 6, "batch": 8, "threads": 1, "patience": 0, "checkpoint_every": 4, "learning_rate": 1e-3}
    return build_config(
        {
            "store": str(store),
            "data": {"corpus": {"name": NAME}},
            "models": {"device": "cpu"},
            "retrieval": {
                "method": "sdr",
                "samples": {"validation_fraction": 0.2},
                "towers": {
                    "text": "tiny-bert",
                    "vision": "none",
                    "train_text": train_text,
                    "dim": 16,
                    "hidden": 16,
                    "dropout": 0.0,
                },
                "training": settings | training,
            },
        }
    )


def plain(config: AppConfig, corpus: Corpus) -> TrainedRetriever:
    retrieval = config.retrieval
    facts = Facts.load(corpus, None, retrieval.samples)
    samples = find_samples(corpus.dialogues("train"), facts, retrieval.samples)
    bases = load_bases(retrieval.towers, config.models)
    sources = training_sources(corpus, None, retrieval.towers, config.features, config.models)
    maker = build_maker(retrieval.towers, samples.modalities, facts, sources, bases)
    return train_plain(retrieval, samples, maker, config.seed, bases=bases, models=config.models)


def losses(artifact: Artifact) -> list[float]:
    return [row["loss"] for row in artifact.read_json("training.json")["history"]]


def test_rows_hold_a_sample_whole_and_none_of_the_test_split(tmp_path: Path):
    corpus = Corpus(write_corpus(ArtifactStore(str(tmp_path))))
    settings = make_config(tmp_path).retrieval.samples
    facts = Facts.load(corpus, None, settings)
    table = FindRows(facts, settings)(corpus.artifact.read_table("dialogues", schema.DIALOGUES))
    assert table.schema == ROWS
    expected = find_samples(corpus.dialogues("train"), facts, settings)
    assert tuple(map(sample_of, table.to_pylist())) == expected.samples
    for row in table.select(KEY_COLUMNS).to_pylist():
        assert expected.responses[sample_of(row).response_id] == response_of(row)
        assert sample_of(row).query.turns == ()


def test_features_of_another_corpus_are_not_taken(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    corpus = write_corpus(store)
    context = JobContext(make_config(tmp_path))
    assert inputs_of(context).keys() == {"corpus"}
    with store.write("features", NAME, settings={}, inputs={"corpus": corpus}):
        pass
    assert inputs_of(context).keys() == {"corpus", "features"}
    write_corpus(store, replies=False)
    assert inputs_of(context).keys() == {"corpus"}


def test_validations_are_scalars_of_their_step():
    found = {"step": 2, "epoch": 1.0, "r1": 0.5, "by_modality": {"text": 0.25}, "intent_accuracy": None}
    history = [{"step": i, "epoch": i / 2, "loss": 1.0, "rate": 0.1} for i in (1, 2)]
    rows = list(event_rows(TrainState(2, history, [found])))
    assert rows[0] == (1, {"train/loss": 1.0, "train/rate": 0.1})
    assert rows[2] == (2, {"validation/r1": 0.5, "validation/r1/text": 0.25})


def test_the_driver_knows_every_text_that_a_worker_will_ask_for(tmp_path: Path):
    corpus = Corpus(write_corpus(ArtifactStore(str(tmp_path))))
    settings = make_config(tmp_path).retrieval.samples
    facts = Facts.load(corpus, None, settings)
    samples = find_samples(corpus.dialogues("train"), facts, settings)
    asked = set()

    class Recording:
        text_dim, picture_dim, extractors = 2, 0, MappingProxyType({})

        def text_vectors(self, texts: Sequence[str]) -> np.ndarray:
            asked.update(texts)
            return np.zeros((len(texts), 2), np.float32)

    maker = InputMaker(TowerSettings(vision="none"), samples.modalities, Recording(), facts.titles, facts.pictures)
    maker.queries([sample.query for sample in samples.samples])
    right = [samples.responses[sample.response_id] for sample in samples.samples]
    maker.responses(right)
    known = read_texts(corpus, facts, right)
    assert asked <= set(known.values())
    assert all(text_id(text) == key for key, text in known.items())


def test_modalities_are_those_of_training_and_none_may_be_of_the_test_split_alone(tmp_path: Path):
    """Of the settings' three, pictures occur nowhere, which is no fault; products in tests alone would be one."""
    artifact = write_corpus(ArtifactStore(str(tmp_path)))
    config, corpus = make_config(tmp_path), Corpus(artifact)
    settings = config.retrieval.samples
    samples = find_samples(corpus.dialogues("train"), Facts.load(corpus, None, settings), settings).samples
    assert learnt_modalities(config, {"corpus": artifact}, samples) == ("text", "product")
    texts = [sample for sample in samples if sample.modality == "text"]
    with pytest.raises(CorpusError, match=r"modality product occur in test dialogues only.*modalities=\[text\]"):
        learnt_modalities(config, {"corpus": artifact}, texts)


@pytest.mark.ray
def test_a_corpus_without_answers_is_refused(tmp_path: Path, ray_local: None):
    write_corpus(ArtifactStore(str(tmp_path)), replies=False)
    with pytest.raises(CorpusError, match="no training dialogue has a response"):
        run(JobContext(make_config(tmp_path)))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("train_text", "training"),
    [("full", {"hard_negatives": 1}), ("frozen", {"workers": 2, "hard_negatives": 1, "micro_batch": 3})],
    ids=["one_worker_full", "two_workers_frozen_gradcache"],
)
def test_the_job_learns_what_the_plain_call_learns(
    tmp_path: Path, ray_local: None, train_text: str, training: dict[str, object]
):
    """Differences come from the order of sums."""
    corpus = Corpus(write_corpus(ArtifactStore(str(tmp_path))))
    config = make_config(tmp_path, train_text, **training)
    artifact = run(JobContext(config))
    expected = plain(config, corpus)
    assert losses(artifact) == pytest.approx([row["loss"] for row in expected.state.history], abs=1e-5)
    assert artifact.read_json("training.json")["best_step"] == expected.state.best_step
    loaded = load_retriever(artifact, config.models).state_dict()
    for name, weight in expected.retriever.state_dict().items():
        assert (loaded[name] - weight).abs().max() < 1e-3, name
    assert run(JobContext(config)).manifest.created_unix_s == artifact.manifest.created_unix_s  # unchanged: skipped
    assert not list((tmp_path / ".train").glob("train_retriever*/run"))  # checkpoints are gone


CHECKPOINT_EVERY = 20
JOB = "import sys; from jobs.glue.entry import main; from jobs.train_retriever import run; sys.exit(main('x', '', run))"


def start_job(store: Path, log: Path) -> subprocess.Popen[bytes]:
    config = make_config(store, epochs=60, checkpoint_every=CHECKPOINT_EVERY, validate_every=5)
    chosen = config.retrieval.model_dump(mode="json")
    sets = [f"store={store}", f"data.corpus.name={NAME}", "models.device=cpu", "retrieval.method=sdr"]
    for part in ("samples", "towers", "training"):
        sets += [f"retrieval.{part}.{key}={_yaml(value)}" for key, value in chosen[part].items()]
    with log.open("ab") as handle:
        return subprocess.Popen(
            [sys.executable, "-c", JOB, *(part for each in sets for part in ("--set", each))],
            cwd=ROOT,
            stdout=handle,
            stderr=handle,
            start_new_session=True,
        )


def _yaml(value: object) -> str:
    import json

    return json.dumps(value)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_killed_run_ends_with_the_losses_of_an_uninterrupted_one(tmp_path: Path):
    """First the training worker is killed, then the driver; the model's own dropout is on."""
    corpus = Corpus(write_corpus(ArtifactStore(str(tmp_path))))
    job = start_job(tmp_path, tmp_path / "log")
    wait_for_checkpoints(tmp_path, job, tmp_path / "log", 4 * CHECKPOINT_EVERY)
    training_worker(job).kill()
    time.sleep(1)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    kept = steps_kept(tmp_path)
    again = start_job(tmp_path, tmp_path / "log2")
    assert again.wait(900) == 0, (tmp_path / "log2").read_text()
    [went_on] = steps_gone_on_after((tmp_path / "log2").read_text())
    assert 0 < went_on <= max(kept)  # not started over
    config = make_config(tmp_path, epochs=60, checkpoint_every=CHECKPOINT_EVERY, validate_every=5)
    expected = plain(config, corpus)
    found = losses(ArtifactStore(str(tmp_path)).open(f"retriever/{NAME}"))
    assert found == pytest.approx([row["loss"] for row in expected.state.history], abs=1e-5)
