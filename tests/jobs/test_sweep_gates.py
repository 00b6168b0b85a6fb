"""sweep_gates: Tune's result is the plain call's, lineage is checked, and the report goes on from its gate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs import evaluate, fit_intent, sweep_gates
from jobs.glue.entry import JobContext
from mmd.artifacts import Artifact
from mmd.config import build_config
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError
from mmd.evaluation.metrics import weighted_f1_codes
from mmd.features.store import Features
from mmd.intent.choice import HeldOutTask, choose_gate, plan_slices, slice_answers
from mmd.intent.examples import load_examples, with_pictures
from mmd.intent.folds import assign_folds
from mmd.intent.gate import GATE_FILE, load_gates, save_gates
from mmd.intent.mllm import HeldOutScore, MllmIndex, MllmTask, save_held_out, save_mllm_index, save_mllm_task
from mmd.intent.settings import GateSettings, PromptSettings
from mmd.models.lora import save_trained
from mmd.models.mllm import load_mllm
from mmd.models.settings import ModelSettings
from mmd.sweeps.store import SweepStore, thinned

BASE = "tiny-smolvlm"
MllmScores = dict[str, dict[str, HeldOutScore]]


@pytest.fixture
def job(tiny_store: Path, tmp_path: Path) -> JobContext:
    """The tiny store's model with a probe and a first gate fitted by the job."""
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    values = {
        "store": str(store),
        "data": {"corpus": {"name": "tiny"}},
        "intent": {"folds": 3, "gate": {"arm": "auto", "mllm_shares": [0.0, 0.5, 1.0]}},
        "evaluation": {"latency_samples": 2, "bootstrap_resamples": 20},
    }
    context = JobContext(build_config(values))
    fit_intent.run(context)
    return context


def scores_of(job: JobContext, folds: int) -> MllmScores:
    """Return made-up held-out scores of the first folds: mostly right, and quite sure of it."""
    corpus, rng = Corpus(job.open("corpus")), np.random.default_rng(0)
    found: MllmScores = {}
    for task, labels in corpus.tasks.items():
        examples = load_examples(corpus, None, task, "train")
        golds = [str(e.label) for e in examples]
        dealt = assign_folds([e.dialogue_id for e in examples], golds, 3, job.config.seed)
        found[task] = {}
        for example, gold, fold in zip(examples, golds, dealt.tolist(), strict=True):
            right = np.array([label == gold for label in labels])
            plain, hinted = (tuple((rng.normal(size=len(labels)) + 2.0 * right).tolist()) for _ in range(2))
            if fold < folds:
                found[task][example.dialogue_id] = HeldOutScore(fold=fold, plain=plain, hinted=hinted)
    return found


def write_adapter(job: JobContext, scores: MllmScores, *, weights: bool = False) -> Artifact:
    """Write an adapter made from the tiny store's artefacts; its model, if any, is an untrained tiny one."""
    corpus = Corpus(job.open("corpus"))
    inputs = {role: job.open(role) for role in ("corpus", "features", "rulebase")}
    tasks = {t: MllmTask(folder="joint", labels=labels, temperature=1.0) for t, labels in corpus.tasks.items()}
    with job.store.write("adapter", "tiny", settings={"weights": weights}, inputs=inputs) as writer:
        save_mllm_index(writer, MllmIndex(base=BASE, method="full", prompt=PromptSettings(), tasks=tasks))
        save_held_out(writer, scores)
        if not weights:
            writer.write_json("joint/config.json", {})  # never read: a gate is chosen on what was held out
        else:
            trained = Path(job.store.root) / "trained"
            save_trained(load_mllm(BASE, ModelSettings()), trained, "full")
            save_mllm_task(writer, "joint", trained)
    return job.store.open("adapter/tiny")


@pytest.mark.ray
def test_the_sweep_through_tune_chooses_what_the_plain_call_chooses(job: JobContext, ray_local: None):
    write_adapter(job, scores_of(job, 3))
    gate = sweep_gates.run(job)
    held_out, alone, _ = sweep_gates.hold_out_tasks(job, sweep_gates.lineage_of_adapter(job))
    told = gate.read_json(GATE_FILE)["validation"]
    for task, found in held_out.items():
        choices = {task: choose_gate(found, job.config.intent.gate)}
        choice = sweep_gates.settle(choices, alone, job.config.intent.gate)[task]
        assert load_gates(gate)[task] == choice.chosen.gate
        plain = json.loads(json.dumps(choice.to_json()))
        assert {key: told[task][key] for key in plain} == plain
    assert set(gate.manifest.inputs) == {"corpus", "features", "rulebase", "classifier", "adapter"}
    assert sweep_gates.run(job).manifest == gate.manifest
    assert_recorded(SweepStore(job.store), gate, held_out, job.config.intent.gate)


def assert_recorded(
    sweeps: SweepStore, gate: Artifact, held_out: Mapping[str, HeldOutTask], settings: GateSettings
) -> None:
    """The record beside the artefacts has every slice with the scores of the plain call."""
    [record] = map(sweeps.read, sweeps.ids())
    trials = sweeps.trials(record.id)
    slices = {task: plan_slices(found, settings) for task, found in held_out.items()}
    assert (record.state, record.artifact, record.settings) == ("done", gate.ref, gate.manifest.version)
    assert record.done == record.total == len(trials) == sum(map(len, slices.values()))
    for task, plans in slices.items():
        found = held_out[task]
        for plan in plans:
            setting = {"task": task, "arm": plan.family, "vote_weight": plan.weight, "mllm_share": plan.mllm}
            [trial] = [trial for trial in trials if trial.setting == setting]
            scores = [
                weighted_f1_codes(found.gold_codes, row, len(found.vocabulary)) for row in slice_answers(found, plan)
            ]
            assert trial.curve == thinned(list(zip(plan.taus, scores, strict=True)))
            assert trial.metrics["weighted_f1"] == max(scores)


def test_only_examples_that_the_mllm_had_held_out_count(job: JobContext):
    scores = scores_of(job, 1)
    write_adapter(job, scores)
    held_out, *_ = sweep_gates.hold_out_tasks(job, sweep_gates.lineage_of_adapter(job))
    for task, found in held_out.items():
        assert set(found.ids) == set(scores[task])
        assert len(np.unique(found.parts)) == 3  # one fold is parted anew


def test_what_leaves_the_mllm_out_is_chosen_on_all_examples(job: JobContext):
    write_adapter(job, scores_of(job, 1))
    held_out, alone, _ = sweep_gates.hold_out_tasks(job, sweep_gates.lineage_of_adapter(job))
    settings = job.config.intent.gate
    for shares, asked in (((0.0,), False), ((0.5,), True)):
        grid = settings.model_copy(update={"mllm_shares": shares, "arm": "vote"})
        choices = {task: choose_gate(found, grid) for task, found in held_out.items()}
        for task, choice in sweep_gates.settle(choices, alone, grid).items():
            assert choice.chosen.gate.asks_mllm is asked
            expected = choices[task] if asked else choose_gate(alone[task], grid)
            assert choice.chosen == expected.chosen


def test_a_task_that_the_adapter_lacks_goes_without_mllm(job: JobContext):
    scores = scores_of(job, 3)
    [first, *others] = scores
    write_adapter(job, {task: scores[task] for task in others})
    held_out, *_ = sweep_gates.hold_out_tasks(job, sweep_gates.lineage_of_adapter(job))
    assert held_out[first].mllm is None
    assert all(held_out[task].mllm is not None for task in others)


def test_the_probe_is_held_out_as_fit_intent_held_it_out(job: JobContext):
    """Equal settings and folds: the same held-out score as the classifier's manifest tells."""
    write_adapter(job, {})
    held_out, *_ = sweep_gates.hold_out_tasks(job, sweep_gates.lineage_of_adapter(job))
    told = job.open("classifier").manifest.metrics
    for task, found in held_out.items():
        assert choose_gate(found, job.config.intent.gate).alone["probe"] == pytest.approx(
            told[f"{task} held-out weighted F1"]
        )


def test_a_classifier_of_another_corpus_is_refused_with_the_way_out(job: JobContext):
    adapter = write_adapter(job, {})
    with job.store.write("corpus", "tiny", settings={"other": True}) as writer:
        writer.write_json("tasks.json", {})
    other = {"corpus": job.store.open("corpus/tiny"), "features": job.open("features")}
    with job.store.write("classifier", "tiny", settings={"other": True}, inputs=other) as writer:
        writer.write_json("x.json", {})
    with pytest.raises(ArtifactError, match="run `mmd fit_intent`"):
        sweep_gates.lineage_of_adapter(replace(job, pins={"adapter": adapter}))


def test_a_classifier_that_no_job_fitted_is_refused(job: JobContext):
    adapter = write_adapter(job, {})
    inputs = {role: job.open(role) for role in ("corpus", "features")}
    with job.store.write("classifier", "tiny", settings={}, inputs=inputs) as writer:
        writer.write_json("x.json", {})
    with pytest.raises(ArtifactError, match="how its probe was fitted"):
        sweep_gates.lineage_of_adapter(replace(job, pins={"adapter": adapter}))


def test_answers_survive_the_way_between_processes():
    answers = np.array([[0, 5, 70_000], [1, 1, 1]])
    np.testing.assert_array_equal(sweep_gates.unpack(sweep_gates.pack(answers), 3), answers)


def test_pictures_are_joined_to_examples_by_id(job: JobContext):
    corpus, features = Corpus(job.open("corpus")), Features(job.open("features"))
    examples = load_examples(corpus, features, "image_scene", "test")
    stored = {image.id: image.data for image in corpus.images()}
    joined = with_pictures(examples, corpus)
    assert [e.dialogue_id for e in joined] == [e.dialogue_id for e in examples]
    assert all(image.data == stored[image.image_id] for e in joined for image in e.images)
    assert all(image.data is None for e in examples for image in e.images)


@pytest.mark.slow  # an untrained model answers every test example several times
def test_the_report_tells_the_mllm_from_the_rest(job: JobContext):
    write_adapter(job, scores_of(job, 3), weights=True)
    inputs = sweep_gates.lineage_of_adapter(job)
    held_out, _, about = sweep_gates.hold_out_tasks(job, inputs)
    choices = {task: choose_gate(found, job.config.intent.gate) for task, found in held_out.items()}
    with job.store.write("gate", "tiny", settings={}, inputs=inputs) as writer:
        gates = {task: choice.chosen.gate for task, choice in choices.items()}
        save_gates(writer, gates, {task: choice.to_json() | about[task] for task, choice in choices.items()})
    report = evaluate.run(job)
    metrics = json.loads(report.read_bytes("metrics.json"))
    assert set(metrics["overall"]) == {"rules", "classifier", "mllm", "pooled", "rules+classifier"}
    assert set(metrics["gains"]) == {"classifier", "mllm", "pooled"}
    seen = metrics["pictures"]["image_scene"]
    assert seen["seen"]["denominator"] == seen["blank"]["denominator"] > 0
    assert {"matching", "classifier", "gate", "total", "mllm, plain"} <= set(metrics["latency"])
    page = report.read_bytes("report.html").decode()
    assert "Does the picture matter?" in page
    assert "How the gate was chosen" in page
