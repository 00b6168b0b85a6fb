"""Experiments: matched labels, honest folds, counts worked out by hand, and one command each."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.experiments import EXPERIMENTS, SUITE, cross_domain, domains, false_firing, figures, seesaw, systems
from jobs.experiments.cross_domain import Answered, match_labels
from jobs.experiments.fold_bases import BaseMiner, BaseUnit, FoldBase, MiningInputs, from_json, to_json
from jobs.glue.records import Suite, main
from mmd.artifacts import ArtifactStore
from mmd.errors import ConfigError, CorpusError
from mmd.intent.augment.originals import make_originals
from mmd.intent.miner import mine_task
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Predicate, Rule, measure
from mmd.intent.settings import IntentSettings, SearchSettings
from mmd.intent.types import IntentExample
from mmd.intent.vote import Verdict
from mmd.models.settings import ModelSettings
from mmd.schema import Dialogue, Turn

WORDS = {"refund": "my refund please", "season": "for summer", "size": "which size"}


def make_examples(n: int = 24) -> list[IntentExample]:
    labels = list(WORDS)
    return [
        IntentExample(f"d{i:02d}", "intent", labels[i % 3], (Turn("user", f"{WORDS[labels[i % 3]]} {i % 4}"),))
        for i in range(n)
    ]


def make_inputs() -> MiningInputs:
    settings = IntentSettings(folds=2, search=SearchSettings(rollouts=30, seeds=1, rules_per_search=5))
    return MiningInputs({"intent": make_examples()}, {"intent": {}}, settings, ModelSettings(), seed=0, outer=2)


class Points:
    """An encoder whose vectors are known: the point on the unit circle at the angle that a text names, in degrees."""

    name, dim = "points", 2

    def encode(self, texts: Any) -> NDArray[np.float32]:
        angles = np.radians([float(text.split()[-1]) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_labels_are_partners_only_if_each_is_nearest_to_the_other():
    """a_0 and x 5 choose each other; b_14 also wants x 5, which prefers a_0; c 90 and y 100 choose each other."""
    pairs = match_labels(["a_0", "b_14", "c_90"], ["x 5", "y 100"], Points(), floor=0.5)
    assert [(p.source, p.target) for p in pairs] == [("a_0", "x 5"), ("c_90", "y 100")]
    assert pairs[0].cosine == pytest.approx(np.cos(np.radians(5)), abs=1e-6)


def test_partners_below_the_floor_are_none():
    assert match_labels(["a 0"], ["x 80"], Points(), floor=0.5) == []


def test_coverage_precision_and_chance_are_counts():
    """Verdicts A A B with golds A B B: 2 of 3 right; chance (2·1 + 1·2) / 9."""
    sure, unsure = Verdict("A", 9.0), Verdict("B", 0.1)
    answered = Answered(("A", "B", "B", "C"), (sure, sure, unsure, None), frozenset("AB"), {})
    point = answered.shared().at(0.0)
    assert point == {
        "covered": 3,
        "coverage": 1.0,
        "precision": pytest.approx(2 / 3),
        "chance": pytest.approx(4 / 9),
    }
    assert answered.at(0.0)["coverage"] == 0.75
    assert answered.at(0.5)["covered"] == 2
    assert answered.at(0.95) == {"covered": 0, "coverage": 0.0, "precision": 0.0, "chance": 0.0}


def test_a_fold_base_never_sees_its_fold_and_equals_the_plain_call():
    inputs, unit = make_inputs(), BaseUnit("tiny", "intent", 1)
    mined = BaseMiner({"tiny": inputs}).mine(unit)
    held = {e.dialogue_id for e in inputs.held("intent", 1)}
    inside = [e for e in inputs.examples["intent"] if e.dialogue_id not in held]
    plain = mine_task(inside, inputs.settings, 0, names={})
    assert len(held) == 12
    assert {r.id for r in mined.base.rules} == {r.id for r in plain.rules}


def test_a_base_survives_the_trip_between_processes():
    [value] = BaseMiner({"tiny": make_inputs()})([{"domain": "tiny", "task": "intent", "fold": 0}])
    again = from_json(json.loads(json.dumps(value)))
    assert to_json(again) == value
    assert again.fired(make_examples(3)) == from_json(value).fired(make_examples(3))


def write_base(*rules: tuple[str, Predicate]) -> FoldBase:
    made = tuple(Rule(f"r{i}", "intent", label, (p,), measure(4, 4, 10)) for i, (label, p) in enumerate(rules))
    base = RuleBase(made, defaults={"intent": "refund"})
    return FoldBase(BaseUnit("tiny", "intent", 0), base, 0.0)


def test_false_firings_are_counted_with_and_without_rules_of_absence():
    """ "refund" fires on one of two dialogues; "no summer" on both, by absence."""
    base = write_base(
        ("refund", Predicate("text", "any", "refund")), ("size", Predicate("text", "any", "summer", True))
    )
    examples = [IntentExample(f"d{i}", "", None, (Turn("user", t),)) for i, t in enumerate(("refund", "hello"))]
    counted = false_firing.count(base, examples, n_labels=3)
    assert counted["all_rules"]["share"][false_firing.ANY] == 1.0
    assert counted["affirmed_rules"]["share"][false_firing.ANY] == 0.5
    assert counted["all_rules"]["right"]["0.0"] == 0.0
    assert counted["rules_fired"] == 1.5
    assert counted["kinds"] == {"text": 1.5}


def test_foreign_dialogues_end_with_the_users_turn_that_is_asked_about():
    turns = (
        Turn("user", "hi"),
        Turn("agent", "yes?"),
        Turn("user", "<http>"),
        Turn("user", "a film"),
        Turn("agent", "ok"),
    )
    dialogue = Dialogue("d", "s", "train", turns)
    assert false_firing.asked_turns(dialogue) == [0, 3]
    assert false_firing.cut(dialogue, 3).turns == turns[:4]


def test_a_corpus_without_test_dialogues_is_refused_not_scored(monkeypatch: pytest.MonkeyPatch):
    """Nothing to answer would read as a score of 0 and a latency of 0 ms."""
    monkeypatch.setattr(domains.Domain, "of_split", lambda *_: [])
    with pytest.raises(CorpusError, match="no test dialogue is labelled for intent"):
        domains.Domain(domains.open_context({}, "mine:chat=chats")).examples_of_test("intent")


def test_every_experiment_can_be_loaded_and_draws():
    for name in EXPERIMENTS:
        study = SUITE.load(name)
        assert callable(study.run)
        assert callable(getattr(study, "plot", None)), name


def test_an_unknown_experiment_is_told_with_those_there_are():
    with pytest.raises(ConfigError, match="cross_domain"):
        SUITE.load("nosuch")


def test_a_record_names_its_conditions_and_a_second_one_gets_a_number(tmp_path: Path):
    options = {"sizes": [1_000], "predicates": 10, "rollouts": 5, "repeats": 1}
    suite = Suite("bench", "jobs.bench", ("mcts",))
    record = suite.run("mcts", options)
    first, second = suite.write(record, tmp_path), suite.write(record, tmp_path)
    assert second.stem == f"{first.stem}-2"
    assert {"bench", "code", "date", "hardware", "load_average"} <= json.loads(first.read_text()).keys()
    assert record["bench"] == "mcts"


class Study:
    """A study that does something and finds 7."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work

    def run(self, _: Mapping[str, Any]) -> dict[str, Any]:
        self._work()
        return {"found": 7}


def run_study(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], out: Path) -> int:
    monkeypatch.setattr(Suite, "load", lambda *_: Study(work))
    return main(Suite("bench", "jobs.bench", ("made_up",)), None, ["made_up", "--out", str(out)])


def test_a_folder_that_cannot_be_made_is_told_before_the_study_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    ran: list[int] = []
    assert run_study(monkeypatch, lambda: ran.append(1), tmp_path / "file" / "results") == 2
    assert ran == []
    assert "name a folder of yours with --out" in capsys.readouterr().err


def test_a_record_that_cannot_be_written_any_more_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "results"

    def lose_the_folder() -> None:
        out.rmdir()
        out.write_text("")

    assert run_study(monkeypatch, lose_the_folder, out) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["found"] == 7
    assert "--out" in said.err


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_study_that_is_told_to_end_ends_what_it_began(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sent: signal.Signals,
    code: int,
):
    before, ended = signal.getsignal(signal.SIGTERM), []
    # A shell's background processes are started deaf to Ctrl-C.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)

    def wait() -> None:
        try:
            signal.raise_signal(sent)
        finally:
            ended.append(sent)

    try:
        assert run_study(monkeypatch, wait, tmp_path) == code
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert ended == [sent]
    assert "before its record was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_redrawing_a_file_that_is_no_record_is_a_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(SUITE, None, ["cross_domain", "--other", "x", "--redraw", str(tmp_path / "no.json")]) == 2
    assert "no readable record" in capsys.readouterr().err


def test_a_picture_is_drawn_from_the_record_alone(tmp_path: Path):
    answered = Answered(("A", "B"), (Verdict("A", 9.0), Verdict("A", 0.5)), frozenset("AB"), {"text": (1, 2)})
    side = cross_domain.summarise([answered, answered])
    cell = {"in_domain": side, "cross_domain": side, "partners": 2}
    record = json.loads(json.dumps({"directions": {"a to b": {"intent": cell}, "b to a": {"intent": cell}}}))
    cross_domain.plot(record, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_spread_of_repeats_is_mean_minimum_and_maximum():
    assert figures.spread_of([0.2, 0.4, 0.9]) == {"mean": pytest.approx(0.5), "low": 0.2, "high": 0.9}
    assert figures.spread_of([])["mean"] == 0.0


def test_shots_are_drawn_by_label_and_seed_and_keep_the_order():
    examples = make_examples()
    drawn = systems.draw_shots(examples, 2, seed=0)
    assert [sum(e.label == label for e in drawn) for label in WORDS] == [2, 2, 2]
    assert drawn == [e for e in examples if e in drawn]
    assert drawn == systems.draw_shots(examples[::-1], 2, seed=0)[::-1]
    assert {e.dialogue_id for e in drawn} != {e.dialogue_id for e in systems.draw_shots(examples, 2, seed=1)}


def test_more_shots_keep_the_examples_of_fewer():
    few, more = (systems.draw_shots(make_examples(), shots, seed=3) for shots in (1, 4))
    assert {e.dialogue_id for e in few} < {e.dialogue_id for e in more}
    assert len(systems.draw_shots(make_examples(), 0, seed=3)) == 24


def test_a_balanced_joint_batch_repeats_the_smaller_task_under_new_ids():
    large = make_originals(make_examples(7), {}, folds=2, seed=0)
    small = make_originals(make_examples(3), {}, folds=2, seed=0)
    flat = systems.balanced({"a": large, "b": small})
    assert len(flat) == 14
    assert [s.id for s in flat[7:]] == ["d00", "d01", "d02", "d00+1", "d01+1", "d02+1", "d00+2"]
    assert {s.parent_id for s in flat[7:]} == {"d00", "d01", "d02"}


def test_a_seesaw_gives_a_joint_model_one_and_two_times_the_steps():
    units = seesaw.plan(["a", "b"], seeds=2, steps=10, copies=0)
    assert [(u.name, u.tasks, u.steps) for u in units if u.seed == 1] == [
        (seesaw.ALONE, ("a",), 10),
        (seesaw.ALONE, ("b",), 10),
        (seesaw.JOINT, ("a", "b"), 10),
        (seesaw.JOINT_TWICE, ("a", "b"), 20),
    ]


def test_arms_without_a_multimodal_model_are_rules_and_probe():
    named = systems.arms("intent", IntentSettings(), has_mllm=False)
    assert list(named) == ["rules", "probe", "probe + rules (vote)"]
    assert named["probe"].weight == 0.0
    assert not any(gate.asks_mllm for gate in named.values())


def make_material() -> systems.Material:
    examples = make_examples()
    settings = IntentSettings(folds=2, search=SearchSettings(rollouts=30, seeds=1, rules_per_search=5))
    return systems.Material(
        {"intent": examples[:18]}, {"intent": examples[18:]}, {"intent": tuple(WORDS)}, {"intent": {}}, settings,
        ModelSettings(mllm="tiny-llama"),
    )  # fmt: skip


def test_a_unit_without_steps_answers_by_rules_and_probe_alone():
    unit = systems.Unit("few", ("intent",), seed=0, steps=0, shots=4, rules=True)
    material = make_material()
    [value] = systems.SystemTrainer(material)([asdict(unit)])
    outcome = systems.Outcome.from_json(json.loads(json.dumps(value)))
    assert outcome.unit == unit
    assert outcome.samples == 12
    assert list(outcome.answers["intent"]) == ["rules", "probe", "probe + rules (vote)"]
    assert systems.score(material, [outcome], "intent", "probe")["mean"] == 1.0  # each label has words of its own


def test_costs_of_a_training_are_not_diluted_by_units_that_trained_nothing():
    def outcome(steps: int, loss: float, seconds: float) -> systems.Outcome:
        unit = systems.Unit("4 shots", ("intent",), seed=steps, steps=steps)
        return systems.Outcome(unit, {}, loss, 12, {"finetune": seconds})

    found = systems.costs([outcome(5, 0.5, 8.0), outcome(0, 0.0, 0.0)])
    assert found["last_loss"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert found["seconds"]["finetune"]["mean"] == 8.0
    assert systems.costs([outcome(0, 0.0, 0.1)])["seconds"]["finetune"]["mean"] == 0.1


@pytest.mark.slow
def test_units_through_tune_answer_as_in_one_process(tiny_store: Path, ray_local: None):
    options = {"overrides": [f"store={tiny_store}"], "corpus": None, "mllm": "tiny-qwen2-vl"}
    store = ArtifactStore(str(tiny_store))
    pins = {"corpus": store.open("corpus/tiny"), "features": store.open("features/tiny")}
    domain = domains.Domain(replace(domains.open_context(options, None, ("models.mllm=tiny-qwen2-vl",)), pins=pins))
    material = systems.Material.of(domain)
    units = [systems.Unit("a", (task,), 0, steps=2, shots=1, rules=True) for task in material.train]
    spread = systems.run_units(domain, material, units, "test")
    plain = [systems.SystemTrainer(material).run(unit) for unit in units]
    assert [o.answers for o in spread] == [o.answers for o in plain]
    assert [o.loss for o in spread] == pytest.approx([o.loss for o in plain], abs=1e-6)
