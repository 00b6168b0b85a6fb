"""evaluate_recommend on a tiny corpus: what it stores can be counted again, and test can stay closed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs import build_graph, evaluate_recommend
from jobs.evaluate_recommend import RANKS, REPLIES, TRACES
from jobs.glue.entry import JobContext, with_options
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import build_config
from mmd.errors import ArtifactError, CorpusError
from mmd.recommend.conversations import Conversations
from mmd.recommend.runs import Ground, dialogue_task, new_talker, recommender_task, student_talker
from mmd.recommend.saving import DIALOGUE, STUDENT, save_talker
from mmd.recommend.training import Training

SHAPE = {"dim": 16, "hidden": 32, "layers": 1}
STEPS = {"epochs": 1.0, "min_steps": 20, "batch": 32}


def context(
    store: ArtifactStore, show: str = "auto", gate: str = "soft", start: str = "teacher", seed: int = 0
) -> JobContext:
    values = {
        "store": store.uri,
        "seed": seed,
        "data": {"corpus": {"name": "tiny"}},
        "recommend": {
            "backbone": SHAPE,
            "dialogue": STEPS,
            "recommender": {"dim": 8, "bases": 2, "steps": STEPS},
            "conversations": {"validation_fraction": 0.3, "min_word_count": 1},
            "distill": {"gate": gate, "start": start},
        },
        "evaluation": {"bootstrap_resamples": 10, "show_dialogues": show, "latency_samples": 2, "examples": 4},
    }
    return JobContext(build_config(values))


def ground_of(job: JobContext, graph: Artifact) -> Ground:
    config = job.config
    return Ground(Conversations(graph), config.recommend, config.seed, config.models, part_seed=0)


def write_teacher(job: JobContext) -> Artifact:
    """Write teachers after one pass over the training responses."""
    from mmd.recommend.recommender import save_recommender  # loads torch

    graph = job.open("graph")
    ground = ground_of(job, graph)
    ranker, talker = recommender_task(ground), new_talker(ground)
    Training(dialogue_task(ground, talker), ground.responses.train, ground.settings.dialogue, 0).train()
    with job.store.write("teacher", "tiny", settings={}, inputs={"graph": graph}, seeds={"teacher": 0}) as writer:
        save_recommender(writer, ranker.model)
        save_talker(writer, DIALOGUE, talker, ground.graph)
    return job.store.open("teacher/tiny")


def write_student(job: JobContext) -> Artifact:
    """Write a student that is its teacher's twin."""
    inputs = job.lineage("teacher")
    ground = ground_of(job, inputs["graph"])
    settings = {"distill": job.config.recommend.distill.model_dump(mode="json")}
    seeds = {"student": job.config.seed}
    with job.store.write("student", "tiny", settings=settings, inputs=inputs, seeds=seeds) as writer:
        save_talker(writer, STUDENT, student_talker(ground, inputs["teacher"]), ground.graph)
    return job.store.open("student/tiny")


@pytest.fixture(scope="module")
def trained(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store with item graph, teachers and a student."""
    folder = tmp_path_factory.mktemp("trained") / "store"
    shutil.copytree(tiny_store, folder)
    job = context(ArtifactStore(str(folder)))
    build_graph.run(job)
    write_teacher(job)
    write_student(job)
    return folder


@pytest.fixture(scope="module")
def report(trained: Path) -> Artifact:
    return evaluate_recommend.run(context(ArtifactStore(str(trained))))


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> ArtifactStore:
    shutil.copytree(trained, tmp_path / "store")
    return ArtifactStore(str(tmp_path / "store"))


def test_a_report_holds_page_and_numbers(report: Artifact):
    assert report.ref.startswith("report/tiny-recommend@")
    metrics = json.loads(report.read_bytes("metrics.json"))
    assert metrics["split"] == "test"
    assert metrics["made_from"]["student"].startswith("student/tiny@")
    assert {row["system"] for row in metrics["modules"]} == {
        "recommendation teacher",
        "popularity",
        "echo",
        "item-kNN",
        "student, at once",
        "student, in place",
        "dialogue teacher, in place",
    }
    assert [row["system"] for row in metrics["speakers"]] == [
        "student",
        "student, right mode given",
        "dialogue teacher",
        "right responses",
    ]
    assert metrics["parameters"]["student"] == metrics["parameters"]["dialogue teacher"] > 0
    page = report.read_bytes("report.html").decode()
    assert "soft gate" in page
    assert "Conversations" in page


def test_recall_can_be_counted_again_from_the_stored_ranks(report: Artifact):
    table = report.read_table("ranks", RANKS).to_pylist()
    for row in json.loads(report.read_bytes("metrics.json"))["modules"]:
        kept = [r for r in table if r["system"] == row["system"] and (row["subset"] == "all" or r["novel"])]
        ranks = np.array([r["open_rank" if row["subset"] == "novel, open" else "rank"] for r in kept])
        assert len(ranks) == row["n"]
        for k in (1, 10, 50):
            assert row[f"R@{k}"]["value"] == pytest.approx((ranks <= k).mean() if len(ranks) else 0.0)


def test_replies_and_perplexity_can_be_counted_again_from_the_tables(report: Artifact):
    metrics = json.loads(report.read_bytes("metrics.json"))
    replies = report.read_table("replies", REPLIES).to_pylist()
    traces = report.read_table("traces", TRACES).to_pylist()
    for row in metrics["speakers"][:3]:
        said = [r for r in replies if r["system"] == row["system"]]
        golds = sum(len(set(r["right_item_ids"])) for r in said)
        found = sum(len(set(r["right_item_ids"]) & set(r["item_ids"])) for r in said)
        assert row["items"]["micro"]["ReR@1"]["value"] == pytest.approx(found / golds)
        assert row["item_ratio"]["value"] == pytest.approx(np.mean([bool(r["item_ids"]) for r in said]))
        if row["perplexity"]:
            read = [t for t in traces if t["system"] == row["system"]]
            mean = sum(t["nll"] for t in read) / sum(t["tokens"] for t in read)
            assert row["perplexity"]["value"] == pytest.approx(np.exp(mean))


def test_every_response_of_the_split_is_answered_and_every_mention_ranked(report: Artifact, trained: Path):
    summary = ArtifactStore(str(trained)).open("graph/tiny").read_json("summary.json")["denominators"]["test"]
    replies = report.read_table("replies", REPLIES).to_pylist()
    ranks = report.read_table("ranks", RANKS).to_pylist()
    assert len({r["sample_id"] for r in replies}) == summary["responses"]
    assert len({r["mention_id"] for r in ranks}) == summary["agent_mentions"]


def test_the_twin_of_the_teacher_says_what_the_teacher_says(report: Artifact):
    """The student's weights are the dialogue teacher's, so both must have the same numbers."""
    student, _, teacher, _ = json.loads(report.read_bytes("metrics.json"))["speakers"]
    for key in ("items", "perplexity", "DIST-2", "item_ratio", "gate_auc"):
        assert student[key] == teacher[key]


def test_words_stay_out_when_told_so(store: ArtifactStore):
    report = evaluate_recommend.run(context(store, show="never"))
    assert "evaluation.show_dialogues" in report.read_bytes("report.html").decode()
    assert all(row["text"] is None for row in report.read_table("replies", REPLIES).to_pylist())


def test_validation_opens_no_test_dialogue(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch):
    opened: list[str | None] = []
    plain = Conversations.dialogues

    def noted(self: Conversations, split: str | None = None) -> object:
        opened.append(split)
        return plain(self, split)  # type: ignore[arg-type]

    monkeypatch.setattr(Conversations, "dialogues", noted)
    report = evaluate_recommend.run(with_options(context(store), split="validation"))
    assert set(opened) == {"train"}
    assert report.ref.startswith("report/tiny-recommend-validation@")
    assert "not the test" in report.read_bytes("report.html").decode()


def test_the_validation_part_is_what_the_teachers_held_out_whatever_the_students_seed(store: ArtifactStore):
    first = evaluate_recommend.run(with_options(context(store), split="validation"))
    write_student(context(store, start="scratch", seed=5))
    second = evaluate_recommend.run(with_options(context(store), split="validation"))
    assert second.manifest.inputs["student"] != first.manifest.inputs["student"]
    ids = [{r["sample_id"] for r in a.read_table("replies", REPLIES).to_pylist()} for a in (first, second)]
    assert ids[0] == ids[1]


def test_a_student_without_distillation_is_ranked_by_its_item_head_too(store: ArtifactStore):
    write_student(context(store, gate="none", start="scratch"))
    report = evaluate_recommend.run(context(store))
    metrics = json.loads(report.read_bytes("metrics.json"))
    assert "student, by its item head" in {row["system"] for row in metrics["modules"]}
    assert "multi-task without distillation" in report.read_bytes("report.html").decode()


def test_an_earlier_student_can_be_asked_for_and_the_same_is_not_measured_twice(store: ArtifactStore):
    first = store.open("student/tiny")
    write_student(context(store, gate="hard"))
    asked = with_options(context(store), student=first.ref)
    report = evaluate_recommend.run(asked)
    assert report.manifest.inputs["student"].startswith(first.ref)
    assert evaluate_recommend.run(asked).manifest == report.manifest
    with pytest.raises(ArtifactError, match="no artefact of kind student"):
        evaluate_recommend.run(with_options(context(store), student="corpus/tiny"))


def test_a_corpus_without_test_responses_cannot_be_reported(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Conversations, "dialogues", lambda *_: [])
    with pytest.raises(CorpusError, match="no response to evaluate"):
        evaluate_recommend.run(replace(context(store), force=True))
