"""augment: the samples that a corpus, its features and its rules lead to, in one process and spread by Ray Data."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import augment as job
from jobs.augment import ChunkAugmenter, chunked, families_here, families_spread, load_originals, run, write_shards
from jobs.glue.entry import JobContext
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import AppConfig, build_config
from mmd.corpora.store import Corpus
from mmd.errors import ConfigError, ModelError
from mmd.features.store import Features
from mmd.intent.augment import augment, content_key
from mmd.intent.augment.originals import with_bytes
from mmd.intent.rulebase import RuleBase
from mmd.intent.samples import ORIGINAL, Sample, Samples, sample_to_row


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


def config_of(store: Path, **settings: object) -> AppConfig:
    return build_config(
        {
            "store": str(store),
            "data": {"corpus": {"name": "tiny"}},
            "intent": {"folds": 2, "augment": {"copies": 2, **settings}},
        }
    )


def prepare(config: AppConfig) -> tuple[Corpus, RuleBase, list[Sample]]:
    store = ArtifactStore(config.store)
    corpus, rulebase = Corpus(store.open("corpus/tiny")), store.open("rulebase/tiny")
    base = RuleBase.load(rulebase)
    return corpus, base, load_originals(config, corpus, Features(store.open("features/tiny")), base, rulebase)


def make_worker(config: AppConfig) -> tuple[ChunkAugmenter, list[Sample]]:
    corpus, base, originals = prepare(config)
    known = job.known_keys(originals)
    return ChunkAugmenter(corpus, base, config.intent.augment, config.models, config.seed, known), originals


def rows_of(artifact: Artifact) -> list[dict[str, object]]:
    return [sample_to_row(sample) for sample in Samples(artifact).read()]


def test_the_job_writes_what_the_plain_call_returns(store: Path):
    config = config_of(store)
    artifact = run(JobContext(config))
    corpus, base, originals = prepare(config)
    plain = augment(with_bytes(originals, corpus), base, config.intent.augment, config.seed)
    assert rows_of(artifact) == [sample_to_row(s) for s in plain.samples]
    assert artifact.manifest.metrics["tasks"] == plain.counts.to_json()
    assert set(artifact.manifest.inputs) == {"corpus", "features", "rulebase"}


def test_equal_settings_make_nothing_anew_and_others_do(store: Path):
    first = run(JobContext(config_of(store)))
    assert run(JobContext(config_of(store))).manifest == first.manifest
    assert run(JobContext(config_of(store, copies=1))).ref != first.ref


def test_samples_come_from_the_training_split_alone(store: Path):
    samples = Samples(run(JobContext(config_of(store))))
    corpus = Corpus(ArtifactStore(str(store)).open("corpus/tiny"))
    train = {d.id for d in corpus.dialogues("train") if d.labels}
    index = samples.index().to_pylist()
    assert {row["parent_id"] for row in index} == train
    assert not {d.id for d in corpus.dialogues("test")} & {row["id"].split("#")[0] for row in index}
    label = {(task, d.id): label for d in corpus.dialogues() for task, label in d.labels.items()}
    assert all(row["label"] == label[row["task"], row["parent_id"]] for row in index)


def test_copies_lie_in_their_parents_folds(store: Path):
    index = Samples(run(JobContext(config_of(store)))).index().to_pylist()
    fold = {(row["task"], row["id"]): row["fold"] for row in index if row["made_by"] == ORIGINAL}
    assert set(fold.values()) == {0, 1}
    assert all(row["fold"] == fold[row["task"], row["parent_id"]] for row in index)


def test_no_copies_leaves_the_originals_with_their_pictures(store: Path):
    samples = list(Samples(run(JobContext(config_of(store, copies=0)))).read())
    assert {s.made_by for s in samples} == {ORIGINAL}
    assert all(image.data for s in samples for image in s.example.images)
    assert any(s.hint for s in samples)  # the tiny base was written by hand: taken at its word


def test_originals_are_repeated_by_no_copy(store: Path):
    samples = list(Samples(run(JobContext(config_of(store)))).read())
    originals = {content_key(s.example) for s in samples if s.made_by == ORIGINAL}
    assert not originals & {content_key(s.example) for s in samples if s.made_by != ORIGINAL}


@pytest.mark.ray
def test_spread_by_ray_the_families_are_those_of_one_process(
    store: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job, "ORIGINALS_PER_CHUNK", 16)
    worker, originals = make_worker(config_of(store, copies=1))
    chunks = chunked(originals)
    assert len(chunks) > 3
    here = pa.concat_tables(families_here(worker, chunks))
    assert pa.concat_tables(families_spread(worker, chunks)).equals(here)


def test_shards_are_of_equal_length_however_the_rows_come(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job, "ROWS_PER_SHARD", 10)
    worker, originals = make_worker(config_of(store, copies=1))
    table = worker(originals[:13])
    artifacts = ArtifactStore(str(store))
    written = []
    for name, cuts in (("whole", [0, table.num_rows]), ("bits", [0, 1, 5, 16, 18, table.num_rows])):
        pieces = [table.slice(a, b - a) for a, b in itertools.pairwise(cuts)]
        with artifacts.write("samples", name, settings={}) as writer:
            counts = write_shards(pieces, writer, lambda *_, **__: None)
        assert counts.originals.total() == 13
        written.append(artifacts.open(f"samples/{name}"))
    lengths = [written[0].read_table("samples", job.SAMPLES).num_rows, len(written[0].shards("samples"))]
    assert lengths == [table.num_rows, -(-table.num_rows // 10)]
    assert {f: e.sha256 for f, e in written[0].manifest.files.items()} == {
        f: e.sha256 for f, e in written[1].manifest.files.items()
    }


def test_paraphrase_without_a_model_names_the_setting(store: Path):
    with pytest.raises(ConfigError, match=r"intent\.augment\.paraphraser"):
        run(JobContext(config_of(store, methods=["paraphrase"])))


@pytest.mark.parametrize(
    ("name", "why"), [("no-such", "its weights are not here"), ("efficientnet-lite0", "vision model")]
)
def test_a_paraphraser_that_cannot_be_is_refused_before_the_work(store: Path, name: str, why: str):
    with pytest.raises(ModelError, match=why):
        run(JobContext(config_of(store, methods=["paraphrase"], paraphraser=name)))


def test_only_large_work_is_spread(store: Path):
    config = config_of(store)
    _, originals = make_worker(config)
    assert not job.is_large(originals, config.intent.augment)
    assert job.is_large(originals * 100, config.intent.augment)
