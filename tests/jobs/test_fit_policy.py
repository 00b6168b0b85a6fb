"""Fitting and measuring the assistant on a tiny store: a retriever without training, and a gate; no Ray."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import build_index, evaluate_assistant, fit_policy
from jobs.glue.assistant import Stand, open_roles
from jobs.glue.entry import JobContext, with_options
from mmd.artifacts import Artifact, ArtifactStore
from mmd.assistant.loading import load_assistant, load_policy
from mmd.config import AppConfig, build_config
from mmd.errors import ArtifactError


def config(store: Path) -> AppConfig:
    return build_config(
        {
            "store": str(store),
            "data": {"corpus": {"name": "tiny"}},
            "features": {"ocr": "none", "vision": "descriptor", "text": "none"},
            "assistant": {"sweep": {"step": 0.5, "temperatures": [0.05]}},
            "retrieval": {"pools": {"size": 4}},
            "evaluation": {"bootstrap_resamples": 20},
        }
    )


@pytest.fixture(scope="module")
def fitted(
    tiny_store: Path, make_tiny_retriever: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory
) -> tuple[JobContext, Artifact]:
    folder = tmp_path_factory.mktemp("assistant") / "store"
    shutil.copytree(tiny_store, folder)
    make_tiny_retriever(ArtifactStore(str(folder)))
    context = JobContext(config(folder))
    build_index.run(context)
    return context, fit_policy.run(context)


@pytest.mark.slow
def test_a_policy_is_made_of_the_parts_that_there_are(fitted: tuple[JobContext, Artifact]):
    context, policy = fitted
    assert set(policy.manifest.inputs) == {"corpus", "gate", "index"}
    loaded = load_policy(policy)
    assert loaded.fits.answers > 0
    assert sum(loaded.plan.votes.values()) == pytest.approx(1.0)
    assert fit_policy.run(context).manifest == policy.manifest  # unchanged: not fitted again


@pytest.mark.slow
def test_counts_and_choices_are_of_different_dialogues_and_of_no_test_one(fitted: tuple[JobContext, Artifact]):
    context, _ = fitted
    stand = Stand(context, open_roles(context))
    parts = {part: {turn.dialogue_id for turn in stand.turns(part)} for part in ("train", "validation", "test")}  # type: ignore[arg-type]
    splits = {dialogue.id: dialogue.split for dialogue in stand.corpus.dialogues()}
    assert not parts["train"] & parts["validation"]
    assert {splits[one] for one in parts["train"] | parts["validation"]} == {"train"}
    assert {splits[one] for one in parts["test"]} == {"test"}


@pytest.mark.slow
def test_the_report_has_every_system_and_the_served_reply(fitted: tuple[JobContext, Artifact]):
    context, policy = fitted
    report = evaluate_assistant.run(context)
    assert report.manifest.name == "tiny-assistant"
    assert report.input_ref("policy") == policy.ref
    found = report.read_json("metrics.json")
    assert list(found["systems"]) == ["assistant", "intent alone", "retrieval alone"]
    assert "retrieval alone" in report.read_bytes("report.html").decode()
    stand = Stand(context, {role: context.store.open(report.input_ref(role)) for role in report.manifest.inputs})
    rows = report.read_table("replies", evaluate_assistant.REPLIES).to_pylist()
    assistant = load_assistant(context.store, "tiny", settings=context.config.assistant)
    for turn, row in list(zip(stand.turns("test"), rows, strict=False))[:5]:
        reply = assistant.answer(turn.query)
        assert reply.choice.modality == row["modality"]
        assert [part.response_id for part in reply.parts if part.response_id] == row["response_ids"]


@pytest.mark.slow
def test_validation_has_a_report_of_its_own(fitted: tuple[JobContext, Artifact]):
    context, _ = fitted
    report = evaluate_assistant.run(with_options(context, split="validation"))
    assert report.manifest.name == "tiny-assistant-validation"
    assert report.read_json("metrics.json")["intent weighted F1"] == {}  # the gate has learnt from these


def test_without_any_part_there_is_nothing_to_fit(tmp_path: Path, tiny_store: Path):
    for kind in ("corpus", "features"):
        shutil.copytree(tiny_store / kind, tmp_path / kind)
    with pytest.raises(ArtifactError, match="no part of an assistant"):
        fit_policy.run(JobContext(config(tmp_path)))
