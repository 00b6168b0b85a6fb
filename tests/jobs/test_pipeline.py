"""The pipeline: one command from corpus to report, resumable, skipping what did not change."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import evaluate, pipeline
from jobs.glue.entry import JobContext, with_options
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import AppConfig, build_config, load_config
from mmd.corpora.store import Corpus
from mmd.errors import ConfigError, MmdError, ModelError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "data.shop.dialogues": 60,
    "data.shop.items": 12,
    "intent.search.rollouts": 20,
    "intent.folds": 2,
    "retrieval.enabled": False,
    "recommend.enabled": False,
    "assistant.enabled": False,
}


def small_config(store: Path, **changes: object) -> AppConfig:
    values: dict[str, object] = {"store": str(store)}
    for key, value in (SMALL | changes).items():
        section = values
        *parents, leaf = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})  # type: ignore[assignment]
        section[leaf] = value
    return build_config(values)


def made(store: Path) -> dict[str, str]:
    """kind → newest version of everything in the store."""
    return {a.manifest.kind: a.ref for a in ArtifactStore(str(store)).find()}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> tuple[Path, Artifact]:
    store = tmp_path_factory.mktemp("pipeline") / "store"
    return store, pipeline.run(JobContext(small_config(store)))


@pytest.mark.ray
def test_one_run_makes_every_artefact_and_a_report(first_run: tuple[Path, Artifact]):
    store, report = first_run
    assert set(made(store)) == {"corpus", "features", "rulebase", "classifier", "gate", "report"}
    html = report.read_bytes("report.html").decode()
    assert "<html" in html
    fetched = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']*|url\((?!["']?(?:data:|#))[^)]*|@import""", html)
    assert fetched == []  # self-contained


@pytest.mark.ray
def test_an_unchanged_run_is_skipped_whole(first_run: tuple[Path, Artifact]):
    store, report = first_run
    before = made(store)
    again = pipeline.run(JobContext(small_config(store)))
    assert again.manifest == report.manifest
    assert made(store) == before


@pytest.mark.ray
def test_a_changed_setting_redoes_only_what_depends_on_it(first_run: tuple[Path, Artifact]):
    store, _ = first_run
    before = made(store)
    pipeline.run(JobContext(small_config(store, **{"intent.probe.c": 3.0})))
    after = made(store)
    changed = {kind for kind in after if after[kind] != before[kind]}
    assert changed == {"classifier", "gate", "report"}


@pytest.mark.ray
def test_going_back_to_earlier_settings_goes_back_to_what_they_made(first_run: tuple[Path, Artifact]):
    """A, then B, then A again: the third run finds A's artefacts, although B's are newer."""
    store, report = first_run
    smaller = pipeline.run(JobContext(small_config(store, **{"data.shop.dialogues": 40})))
    assert smaller.manifest.inputs["corpus"] != report.manifest.inputs["corpus"]
    again = pipeline.run(JobContext(small_config(store)))
    assert again.manifest == report.manifest


@pytest.mark.ray
def test_force_computes_again_what_is_there(first_run: tuple[Path, Artifact]):
    store, report = first_run
    context = JobContext(
        small_config(store), pins={"gate": ArtifactStore(str(store)).open(_gate_of(report))}, force=True
    )
    again = evaluate.run(context)
    assert again.manifest.version == report.manifest.version
    assert again.manifest.created_unix_s > report.manifest.created_unix_s


def _gate_of(report: Artifact) -> str:
    return report.manifest.inputs["gate"].split()[0]


@pytest.mark.ray
def test_a_corpus_without_labels_has_no_intent_steps_and_one_without_answers_no_retrieval(
    tmp_path: Path, ray_local: None
):
    lines = {
        "unlabelled": '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n',
        "unanswered": '{"messages": [{"role": "user", "content": "hi"}], "labels": {"mood": "good"}}\n',
        "neither": '{"messages": [{"role": "user", "content": "hi"}]}\n',
    }
    found: dict[str, tuple[str, ...]] = {}
    for name, line in lines.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(line)
        config = small_config(
            tmp_path / "store",
            **{
                "retrieval.enabled": True,
                "data.corpus.name": name,
                "data.corpus.reader": "chat",
                "data.corpus.path": str(tmp_path / name),
            },
        )
        context = JobContext(config)
        corpus = Corpus(pipeline.run(with_options(context, until="ingest")))
        if name == "neither":
            with pytest.raises(MmdError, match="nothing to learn from"):
                pipeline.possible_steps(context, corpus, pipeline.STEPS)
        else:
            found[name] = pipeline.possible_steps(context, corpus, pipeline.STEPS)
    assert found["unlabelled"] == ("ingest", "featurize", *pipeline.RETRIEVAL_STEPS, *pipeline.ASSISTANT_STEPS)
    assert found["unanswered"] == ("ingest", "featurize", *pipeline.INTENT_STEPS)


@pytest.mark.ray
def test_until_stops_early(tmp_path: Path, ray_local: None):
    context = JobContext(small_config(tmp_path / "store"))
    last = pipeline.run(with_options(context, until="ingest"))
    assert last.manifest.kind == "corpus"
    assert set(made(tmp_path / "store")) == {"corpus"}


def mmd_pipeline(store: Path, *more: str) -> list[str]:
    changes = [f"--set={key}={value}" for key, value in SMALL.items()]
    return [sys.executable, "-m", "mmd.cli", "pipeline", f"--set=store={store}", *changes, *more]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_result(tmp_path: Path):
    """kill -9 after the first artefact; the rerun ends with what an uninterrupted run gives."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen(mmd_pipeline(killed), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while "corpus" not in made(killed) and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    for store in (killed, whole):
        done = subprocess.run(mmd_pipeline(store), cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("corpus", "features", "rulebase", "classifier", "gate"):
        a, b = (ArtifactStore(str(s)).open(f"{kind}/shop").manifest.digest for s in (killed, whole))
        assert a == b, kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "taobao=nowhere"], "nowhere"),
        (["--corpus", "tabao=nowhere"], "data.corpus.reader"),
        (["--profile", "desktop"], "unknown; "),
        (["--set", "intent.fold=3"], "Did you mean 'folds'"),
        (["--config", "nowhere.yaml"], "no such settings file"),
        (["--set", "data.shop.catalogue_csv=nowhere.csv"], "nowhere.csv"),
    ],
)
def test_a_users_mistake_ends_with_one_clear_message_and_nothing_written(
    tmp_path: Path, arguments: list[str], message: str
):
    command = [*mmd_pipeline(tmp_path / "store"), *arguments]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stdout.replace("\n", " ")
    assert "Traceback" not in done.stdout + done.stderr
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_a_large_model_retrieval_and_recommending_add_their_steps(tmp_path: Path):
    without = JobContext(small_config(tmp_path))
    assert pipeline.steps_of(without) == ("ingest", "featurize", "mine_rules", "fit_intent", "evaluate")
    named = JobContext(
        small_config(
            tmp_path,
            **{
                "models.mllm": "tiny-llama",
                "retrieval.enabled": True,
                "recommend.enabled": True,
                "assistant.enabled": True,
            },
        )
    )
    assert pipeline.steps_of(named) == pipeline.STEPS
    assert pipeline.steps_of(with_options(named, until="augment"))[-2:] == ("fit_intent", "augment")


@pytest.mark.parametrize(
    ("step", "way_out"),
    [
        ("build_index", r"retrieval\.enabled=true"),
        ("build_graph", r"recommend\.enabled=true"),
        ("fit_policy", r"assistant\.enabled=true"),
    ],
)
def test_a_step_of_what_is_switched_off_says_how_to_enable_it(tmp_path: Path, step: str, way_out: str):
    context = with_options(JobContext(small_config(tmp_path)), until=step)
    with pytest.raises(ConfigError, match=way_out):
        pipeline.steps_of(context)


def test_a_step_of_the_large_model_without_one_says_how_to_name_it(tmp_path: Path):
    context = with_options(JobContext(small_config(tmp_path)), until="finetune_mllm")
    with pytest.raises(ConfigError, match=r"models\.mllm"):
        pipeline.steps_of(context)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models.mllm": "minilm-l6-v2"}, "sentence model"),
        ({"models.mllm": "/no/such/folder"}, "models.allow_hub|no such file"),
        ({"models.mllm": "tiny-llama", "intent.finetune.held_out_folds": 3}, "only intent.folds=2"),
    ],
)
def test_a_large_model_that_cannot_be_trained_is_refused_before_anything_is_done(
    tmp_path: Path, change: dict[str, object], message: str
):
    context = JobContext(small_config(tmp_path / "store", **change))
    with pytest.raises(MmdError, match=message):
        pipeline.run(context)
    assert not made(tmp_path / "store")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"retrieval.samples.modalities": ["txt"]}, "retrieval.samples.modalities: 'txt' is unknown"),
        ({"retrieval.towers.text": "/no/such/folder"}, "retrieval.towers.text: model '/no/such/folder'"),
        ({"retrieval.towers.vision": "/no/such/folder"}, "retrieval.towers.vision: model '/no/such/folder'"),
    ],
)
def test_a_retriever_that_cannot_be_trained_is_refused_before_anything_is_done(
    tmp_path: Path, change: dict[str, object], message: str
):
    context = JobContext(small_config(tmp_path / "store", **{"retrieval.enabled": True}, **change))
    with pytest.raises(MmdError, match=re.escape(message)):
        pipeline.run(context)
    assert not made(tmp_path / "store")


def test_the_shipped_laptop_profile_is_what_make_demo_runs():
    assert load_config(ROOT / "ray_config.yaml", profile="laptop").data.corpus.reader == "shop"


@pytest.mark.parametrize(("model", "told"), [("nosuch", "nosuch"), ("tiny-qwen2-vl", "is a multimodal model")])
def test_a_backbone_that_is_not_here_is_refused_before_anything_is_made(tmp_path: Path, model: str, told: str):
    changes = {"recommend.enabled": True, "recommend.backbone.kind": "lm", "recommend.backbone.model": model}
    with pytest.raises(ModelError, match=rf"^recommend\.backbone\.model: .*{told}"):
        pipeline.run(JobContext(small_config(tmp_path, **changes)))
    assert not list(tmp_path.iterdir())
