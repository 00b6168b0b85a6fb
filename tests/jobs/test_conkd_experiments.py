"""Experiments and sweep of ConKD on the tiny store: units are kept, trials resume, records are drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import build_graph, sweep_conkd, train_teachers
from jobs.experiments import (
    conkd_table,
    gate_by_turn,
    graph_edges,
    mode_tokens,
    retrievers,
    student_trainer,
    students,
    teacher_targets,
)
from jobs.experiments.student_trainer import SUMS, StudentTrainer, Unit, read_outcome
from jobs.experiments.students import ARMS, NO_KD
from jobs.glue.entry import JobContext
from jobs.glue.outputs import OutputsPlan, write_outputs
from jobs.glue.recommend import RecommendJob, trained_settings
from jobs.glue.student_trial import StudentTrial, TrialPlan
from jobs.glue.train import RunPlace
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import AppConfig, build_config, change_settings
from mmd.errors import ArtifactError, ConfigError
from mmd.evaluation.recommend_pairs import MEASURES
from mmd.evaluation.recommending import GateTrace
from mmd.recommend.conversations import Conversations
from mmd.recommend.runs import Ground, dialogue_task, new_talker, recommender_task, speaker_of
from mmd.recommend.saving import DIALOGUE, save_talker
from mmd.recommend.training import Training
from mmd.sweeps.store import SweepStore

STEPS = {"epochs": 2.0, "batch": 16, "min_steps": 0}


def config_of(store: str) -> AppConfig:
    values = {
        "store": store,
        "data": {"corpus": {"name": "tiny", "reader": "shop"}},
        "models": {"device": "cpu"},
        "recommend": {
            "backbone": {"dim": 16, "hidden": 32, "layers": 1},
            "dialogue": {**STEPS, "epochs": 6.0},
            "student": STEPS,
            "recommender": {"dim": 8, "bases": 2, "steps": STEPS},
            "conversations": {"validation_fraction": 0.3, "min_word_count": 1},
            "sweep": {"etas": [0.1], "gammas": [0.5], "temperatures": [1.0], "perplexity_margin": 1.0},
        },
        "evaluation": {"bootstrap_resamples": 20},
    }
    return build_config(values)


@pytest.fixture(scope="module")
def job(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> JobContext:
    """The tiny store with item graph and teachers, trained without Ray."""
    from mmd.recommend.recommender import save_recommender  # loads torch

    folder = tmp_path_factory.mktemp("conkd") / "store"
    shutil.copytree(tiny_store, folder)
    context = JobContext(config_of(str(folder)))
    config, graph = context.config, build_graph.run(context)
    ground = Ground(Conversations(graph), config.recommend, config.seed, config.models, config.seed)
    ranker, talker = recommender_task(ground), new_talker(ground)
    training = Training(dialogue_task(ground, talker), ground.responses.train, ground.settings.dialogue, 0)
    training.train()
    settings = trained_settings(config, *train_teachers.PARTS)
    with context.store.write(
        "teacher", "tiny", settings=settings, inputs={"graph": graph}, seeds={"teacher": 0}
    ) as writer:
        save_recommender(writer, ranker.model)
        save_talker(writer, DIALOGUE, talker, ground.graph)
        best = training.state.best or {}
        writer.metrics = {"dialogue_perplexity": best["perplexity"], "dialogue_step": best["step"]}
    return context


@pytest.fixture(scope="module")
def outputs(job: JobContext) -> str:
    """What the teachers say of the training responses."""
    plan = student_job(job)
    place = RunPlace(job.scratch(".train"), "outputs-of-test")
    ground = plan.ground()
    write_outputs(OutputsPlan(plan, place.path), place, ground, speaker_of(ground, plan.open("teacher"))[1])
    return place.path


def student_job(job: JobContext) -> RecommendJob:
    refs = {role: job.open(role).ref for role in ("graph", "teacher")}  # type: ignore[arg-type]
    return RecommendJob("student", job.config, job.config.store, refs)


def trainer_of(job: JobContext) -> StudentTrainer:
    return StudentTrainer(job.config.model_dump(mode="json"), job.open("graph").ref, "test")


@pytest.fixture(scope="module")
def outcomes(job: JobContext, outputs: str) -> dict[str, dict[str, Any]]:
    """A student without distillation, one of the soft gate, and a recommendation teacher."""
    trainer, teacher = trainer_of(job), job.open("teacher").ref
    units = [
        Unit(NO_KD, 0, ARMS[NO_KD], teacher=teacher),
        Unit("soft", 0, ARMS["soft"], teacher=teacher, outputs=outputs),
        Unit("typed", 0, {}, what="recommender"),
    ]
    return {unit.name: json.loads(json.dumps(trainer.run(unit))) for unit in units}


# ---------------------------------------------------------------- units


def test_sums_of_responses_are_the_measures_of_the_speaker(outcomes: Mapping[str, dict[str, Any]]):
    for name in (NO_KD, "soft"):
        told = outcomes[name]
        total = np.array(told[SUMS]["rows"]).sum(axis=0)
        assert len(told[SUMS]["rows"]) == len(told[SUMS]["dialogues"]) == told["responses"]
        assert float(MEASURES["F1@1"](total)) == pytest.approx(told["speaker"]["items"]["micro"]["F1@1"]["value"])
        assert float(MEASURES["perplexity"](total)) == pytest.approx(told["speaker"]["perplexity"]["value"], rel=1e-4)
        assert float(MEASURES["item ratio"](total)) == pytest.approx(told["speaker"]["item_ratio"]["value"])


def test_all_rank_the_agents_mentions_of_the_split(job: JobContext, outcomes: Mapping[str, dict[str, Any]]):
    counted = job.open("graph").manifest.metrics
    assert {told["mentions"] for told in outcomes.values()} == {counted["test.agent_mentions"]}
    assert outcomes[NO_KD]["responses"] == counted["test.responses"]
    assert set(outcomes[NO_KD]["recall"]) == {"first named", "at its place", "item head"}
    assert set(outcomes["soft"]["recall"]) == {"first named", "at its place"}
    assert set(outcomes["typed"]["recall"]) == {"recommender"}


def test_a_unit_that_was_done_is_not_done_again(job: JobContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer, teacher = trainer_of(job), job.open("teacher").ref
    unit = Unit(NO_KD, 1, {**ARMS[NO_KD], "student.epochs": 0.5}, teacher=teacher, kept=str(tmp_path / "u" / "o.json"))
    [line] = trainer([vars(unit)])
    kept = read_outcome(unit.kept)
    assert kept is not None
    assert line["perplexity"] == kept["speaker"]["perplexity"]["value"]
    monkeypatch.setattr(StudentTrainer, "_student", None)
    assert trainer.run(replace(unit, name="another name")) == {**kept, "name": "another name"}


def test_an_outcome_is_kept_under_what_it_depends_on(job: JobContext):
    refs = {"graph": job.open("graph").ref, "teacher": job.open("teacher").ref}
    unit = Unit("soft", 0, ARMS["soft"])

    def place(context: JobContext, unit: Unit) -> str:
        return students.outcome_place(context, unit, refs, "test", any_code=False)

    same = place(job, unit)
    assert place(job, replace(unit, name="renamed")) == same
    threads = replace(job, config=change_settings(job.config, {"recommend.train.threads": 7}))
    assert place(threads, unit) == same
    hotter = replace(job, config=change_settings(job.config, {"recommend.distill.gamma": 0.1}))
    others = [place(hotter, unit), place(job, replace(unit, seed=1)), place(job, replace(unit, part_seed=1))]
    assert len({same, *others}) == 4
    assert students.outcome_place(job, unit, refs, "validation", any_code=False) != same


def test_outcomes_of_other_code_are_taken_on_demand_only(job: JobContext):
    refs = {"graph": job.open("graph").ref}
    unit = Unit("typed", 99, {}, what="recommender")
    own = Path(students.outcome_place(job, unit, refs, "test", any_code=False))
    other = own.with_name("0123456789ab.json")
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    assert Path(students.outcome_place(job, unit, refs, "test", any_code=True)) == other
    assert Path(students.outcome_place(job, unit, refs, "test", any_code=False)) == own


def test_a_student_tells_where_it_started(job: JobContext, outcomes: Mapping[str, dict[str, Any]]):
    before = job.open("teacher").manifest.metrics["dialogue_step"]
    assert before > 0
    assert students.training_of([outcomes["soft"]])["soft"] == {
        "start": "teacher",
        "steps_before": before,
        "steps": students.figures.spread_of([outcomes["soft"]["steps"]]),
        "kept_step": students.figures.spread_of([outcomes["soft"]["best_step"]]),
    }
    scratch = change_settings(job.config, {"recommend.distill.start": "scratch"})
    ground = Ground(Conversations(job.open("graph")), scratch.recommend, 0, scratch.models, 0)
    told = student_trainer.started_from(ground, job.open("teacher"))
    assert told == {"start": "scratch", "steps_before": 0}


def test_what_trains_and_judges_counts_as_code():
    files = {path.name for path in students.code_files()}
    assert {"student_trainer.py", "outputs.py", "distill.py", "recommending.py", "ranks.py", "metrics.py"} <= files
    used = {getattr(value, "__module__", "") for value in vars(student_trainer).values()}
    judging = {f"{name.rpartition('.')[2]}.py" for name in used if name.startswith("mmd.evaluation.")}
    assert judging
    assert judging <= files


def test_a_unit_that_left_no_outcome_is_named(tmp_path: Path):
    with pytest.raises(ArtifactError, match="soft, seed 3"):
        students.outcome_of(Unit("soft", 3, {}, kept=str(tmp_path / "none.json")))


def test_settings_of_an_arm_are_known():
    for settings in ARMS.values():
        change_settings(AppConfig(), Unit("arm", 0, settings).changes)
    with pytest.raises(ConfigError, match="no_such"):
        change_settings(AppConfig(), Unit("arm", 0, {"distill.no_such": 1}).changes)


def test_teachers_of_every_seed_need_responses_that_all_are_judged_on():
    with pytest.raises(ConfigError, match="--judge test"):
        students.run_units({"own_teachers": True}, [], "validation", "students")


# ---------------------------------------------------------------- records


def trace(mode: str, masses: Sequence[float], items: Sequence[bool], dialogue: str = "d") -> GateTrace:
    return GateTrace(f"{dialogue}#{len(masses)}", mode, ("w",) * len(masses), tuple(masses), tuple(items))


def test_item_mass_is_told_by_place():
    """Items at .9 and .4, words beside them at .1, talk at .2: one pair of four is in the wrong order."""
    traces = [
        trace("rec", [0.1, 0.9], [False, True]),
        trace("rec", [0.4], [True]),
        trace("gen", [0.2, 0.5, 0.1], [False] * 3),
    ]
    found = gate_by_turn.aucs(traces)
    assert found["items"] == pytest.approx(7 / 8)
    assert found["items in their turns"] == 1.0
    assert found["turns"] == pytest.approx(0.5)
    shares = {row["eta"]: row for row in gate_by_turn.hard_gate(traces)}
    assert shares[0.3] == {"eta": 0.3, "items": 1.0, "words beside items": 0.0, "talk": pytest.approx(1 / 3, abs=1e-4)}
    assert gate_by_turn.aucs([trace("gen", [0.5], [False])])["items"] is None


def test_words_of_conversations_are_told_on_demand_only():
    traces = [trace("rec", [0.9], [True]), trace("gen", [0.1, 0.1], [False] * 2), trace("gen", [0.3], [False], "other")]
    [told] = gate_by_turn.conversations(traces, 1, words=False)
    assert [turn["mode"] for turn in told["turns"]] == ["rec", "gen"]
    assert "tokens" not in json.dumps(told)
    [told] = gate_by_turn.conversations(traces, 1, words=True)
    assert told["turns"][0]["tokens"] == ["w"]


def test_pictures_are_drawn_from_records(
    job: JobContext, outcomes: Mapping[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def answer(_: Any, units: Sequence[Unit], *__: Any) -> list[dict[str, Any]]:
        return [
            {
                **outcomes["typed" if unit.what == "recommender" else NO_KD if unit.name == NO_KD else "soft"],
                "name": unit.name,
            }
            for unit in units
        ]

    monkeypatch.setattr(students, "run_units", answer)
    monkeypatch.setattr(retrievers, "judged_on", lambda _: "test")
    options: dict[str, Any] = {"seeds": 2, "corpus": "tiny:shop", "judge": "auto", "backbones": ["kgsf", "lm"]}
    options |= {"arms": list(ARMS), "gates": ["hard", "soft"], "gate": "soft", "teachers_only": False}
    config = tmp_path / "config.json"
    config.write_text(job.config.model_dump_json())
    options |= {"config": config}
    for study in (conkd_table, teacher_targets, graph_edges, mode_tokens):
        record = json.loads(json.dumps(study.run(options)))
        study.plot(record, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        assert SUMS not in json.dumps(record["outcomes"])


def test_tuned_arms_have_what_the_sweep_chose_for_each_gate(job: JobContext, tmp_path: Path):
    points = {gate: {"gate": gate, "eta": 0.2, "gamma": 0.9, "temperature": 2.0} for gate in ("hard", "soft")}
    context = JobContext(job.config.model_copy(update={"store": str(tmp_path)}))
    with pytest.raises(ArtifactError, match="gate/tiny-conkd"):
        conkd_table.tuned_arms(context, ["hard"])
    with context.store.write("gate", "tiny-conkd", settings={}) as writer:
        writer.write_json(
            sweep_conkd.SWEEP_FILE, {"by_gate": {gate: {"point": point} for gate, point in points.items()}}
        )
    assert list(conkd_table.tuned_arms(context, ["static", "hard", "soft"])) == ["tuned hard", "tuned soft"]
    assert conkd_table.tuned_arms(context, ["hard"]) == {
        "tuned hard": {
            "distill.gate": "hard",
            "distill.eta": 0.2,
            "distill.gamma": 0.9,
            "distill.temperature": 2.0,
        }
    }


def test_the_dialogue_teacher_is_read_without_training(job: JobContext, tmp_path: Path):
    config = tmp_path / "config.json"
    config.write_text(job.config.model_dump_json())
    options = {"corpus": "tiny:shop", "judge": "auto", "config": config}
    record = json.loads(json.dumps(gate_by_turn.run(options)))
    gate_by_turn.plot(record, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert record["samples"]["responses"] == job.open("graph").manifest.metrics["test.responses"]
    shares = np.array([told["histogram"] for told in record["item_mass"].values()])
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-3)


# ---------------------------------------------------------------- sweep


def plan_of(job: JobContext, outputs: str) -> TrialPlan:
    points = [{"gate": "soft", "eta": 0.3, "gamma": 0.5, "temperature": 1.0}]
    return TrialPlan(student_job(job), points, [outputs], limit=1e9)


def test_a_resumed_trial_ends_as_an_uninterrupted_one(job: JobContext, outputs: str, tmp_path: Path):
    class StoppedError(Exception):
        """Ends the first part."""

    def stop(trial: StudentTrial) -> None:
        trial.save(tmp_path)
        raise StoppedError

    plan = plan_of(job, outputs)
    with pytest.raises(StoppedError):
        StudentTrial(plan, 0).train(stop)
    resumed, whole = StudentTrial(plan, 0), StudentTrial(plan, 0)
    resumed.resume(tmp_path)
    resumed.train(lambda _: None)
    whole.train(lambda _: None)
    assert len(whole.rows) > 1
    assert resumed.outcome == whole.outcome


def test_a_teacher_without_validation_cannot_be_swept(job: JobContext):
    store: ArtifactStore = job.store
    with store.write("teacher", "unjudged", settings={}, inputs={}) as writer:
        writer.write_json("x.json", {})
    with pytest.raises(ArtifactError, match="validation_fraction"):
        sweep_conkd.perplexity_limit(store.open("teacher/unjudged"), 0.1)


def test_a_forced_sweep_asks_the_teachers_and_trains_anew(job: JobContext, monkeypatch: pytest.MonkeyPatch):
    forced: list[bool] = []
    monkeypatch.setattr(sweep_conkd, "ray_cluster", lambda _: nullcontext())
    monkeypatch.setattr(sweep_conkd, "ask_teachers", lambda context, *_: forced.append(context.force) or "outputs")
    monkeypatch.setattr(sweep_conkd, "run_trials", lambda *_, force, **__: forced.append(force) or [])
    assert len(job.config.recommend.sweep.temperatures) == 1
    for force in (False, True):
        context = replace(job.pinned(job.open("teacher")), force=force)
        assert sweep_conkd.sweep(context, context.lineage("teacher"), 1.0, "run") == []
    assert forced == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_sweep_tells_what_its_trials_tell_plainly(job: JobContext, ray_local: None):
    gate = sweep_conkd.run(job)
    told = gate.read_json(sweep_conkd.SWEEP_FILE)
    assert gate.ref.startswith("gate/tiny-conkd@")
    assert [trial["point"]["gate"] for trial in told["trials"]] == ["hard", "soft"]
    refs = dict(student_job(job).inputs)
    points = [trial["point"] for trial in told["trials"]]
    context = job.pinned(job.open("teacher"))
    folder = sweep_conkd.ask(context, student_job(job), student_job(job).ground(), points[0]["temperature"])
    plan = TrialPlan(RecommendJob("student", job.config, job.config.store, refs), points, [folder] * 2, 1e9)
    for index, trial in enumerate(told["trials"]):
        plain = StudentTrial(plan, index)
        plain.train(lambda _: None)
        found = {key: [row[key] for row in trial["rows"]] for key in ("perplexity", "f1")}
        expected = {key: [row[key] for row in plain.rows[: len(trial["rows"])]] for key in found}
        assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-4)
        assert found["f1"] == pytest.approx(expected["f1"], abs=1e-6)
    assert told["chosen"] in points
    assert sweep_conkd.run(job).manifest == gate.manifest
    assert_recorded(SweepStore(job.store), gate, told)


def assert_recorded(sweeps: SweepStore, gate: Artifact, told: Mapping[str, Any]) -> None:
    """The record beside the artefacts has the trials that the artefact has."""
    [record] = [sweeps.read(sweep_id) for sweep_id in sweeps.ids() if "-conkd-" in sweep_id]
    assert (record.state, record.artifact, record.settings) == ("done", gate.ref, gate.manifest.version)
    assert record.done == record.total == len(told["trials"])
    recorded = {str(trial.setting["gate"]): trial for trial in sweeps.trials(record.id)}
    for trial in told["trials"]:
        found = recorded[trial["point"]["gate"]]
        assert ("eta" in found.setting) == (trial["point"]["gate"] == "hard")
        assert found.metrics["score"] == pytest.approx(trial["score"])
        assert [place for place, _ in found.curve] == [row["validation"] for row in trial["rows"]]
    assert record.best == pytest.approx(max(trial["score"] for trial in told["trials"]))
