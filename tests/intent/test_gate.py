"""The gate: its pure ends, its order, and how τ is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.artifacts import Artifact, ArtifactStore
from mmd.errors import ArtifactError
from mmd.intent.firings import HeldOutFiring, HeldOutRule, held_out_firings, load_firings, save_firings
from mmd.intent.gate import (
    GATE_FILE,
    NEVER,
    THRESHOLD_ARMS,
    Arm,
    Gate,
    Opinions,
    TaskGate,
    decide,
    evidence,
    load_gates,
    pool,
    save_gates,
    vote,
)
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import UNMEASURED, Predicate, Rule, measure
from mmd.intent.types import IntentExample, Probabilities
from mmd.schema import Turn

LABELS = ("a", "b", "c")
Fired = list[HeldOutFiring]
FIRING = st.builds(
    lambda label, hits, misses: HeldOutFiring(label, measure(hits + misses, hits, 100)),
    st.sampled_from(LABELS),
    st.integers(0, 20),
    st.integers(0, 20),
)
FIRED = st.lists(FIRING, max_size=4).map(lambda f: sorted(f, key=lambda x: -x.stats.wilson_lower))
DISTRIBUTION = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(
    lambda values: Probabilities(LABELS, tuple(v / sum(values) for v in values))
)


def firing(label: str, hits: int, support: int) -> HeldOutFiring:
    return HeldOutFiring(label, measure(support, hits, 100))


SHARE = st.sampled_from((0.0, 0.25, 0.5, 1.0))


@given(st.sampled_from(THRESHOLD_ARMS), FIRED, DISTRIBUTION, DISTRIBUTION, SHARE, st.floats(0, 2))
def test_above_one_tau_gives_exactly_the_pooled_classifiers_answer(
    arm: Arm, fired: Fired, probe: Probabilities, mllm: Probabilities, share: float, weight: float
):
    choice = decide(TaskGate("t", arm, NEVER, weight, share), fired, Opinions(probe, mllm, hinted=probe))
    assert (choice.label, choice.confidence) == pool(probe, mllm, share).best
    assert choice.arm == "classifier"


@given(st.sampled_from(THRESHOLD_ARMS), DISTRIBUTION, st.floats(0, 1), st.floats(0, 2))
def test_without_firing_rules_the_classifier_answers(arm: Arm, distribution: Probabilities, tau: float, weight: float):
    assert decide(TaskGate("t", arm, tau, weight), (), distribution).label == distribution.best[0]


@given(FIRED.filter(bool), DISTRIBUTION)
def test_tau_zero_lets_every_firing_rule_override(fired: Fired, distribution: Probabilities):
    choice = decide(TaskGate("t", "override", 0.0), fired, distribution)
    assert (choice.label, choice.arm) == (fired[0].label, "rules")


@given(FIRED, DISTRIBUTION)
def test_weight_zero_leaves_the_classifier_alone(fired: Fired, distribution: Probabilities):
    assert decide(TaskGate("t", "vote", 0.0, 0.0), fired, distribution).label == distribution.best[0]


def test_an_unmeasured_rule_overrides_only_at_tau_zero():
    rule = Rule("r", "t", "b", (Predicate("text", "user", "x"),), UNMEASURED)
    sure = Probabilities(LABELS, (1.0, 0.0, 0.0))
    assert decide(TaskGate("t", "override", 0.0), [rule], sure).label == "b"
    assert decide(TaskGate("t", "override", 0.01), [rule], sure).label == "a"


def test_vote_multiplies_by_the_exponential_of_evidence():
    """p = (.6, .4), evidence ln 3 for b, weight 1: .6 against .4 x 3 = 1.2, so b has 2/3."""
    joined = vote(Probabilities(("a", "b"), (0.6, 0.4)), {"b": 1.0986123}, 1.0)
    assert joined.best == ("b", pytest.approx(2 / 3))


# ---------------------------------------------------------------- the MLLM's part


def test_the_pool_is_the_weighted_geometric_mean_of_both():
    """p = (.8, .2) and (.2, .8) at share 1/4: odds 4^(3/4) · (1/4)^(1/4) = 2, so 2/3 and 1/3."""
    probe, mllm = Probabilities(("a", "b"), (0.8, 0.2)), Probabilities(("a", "b"), (0.2, 0.8))
    assert pool(probe, mllm, 0.25).values == pytest.approx((2 / 3, 1 / 3))


def test_the_pool_goes_by_label_not_by_place():
    probe, mllm = Probabilities(("a", "b"), (0.5, 0.5)), Probabilities(("b", "a"), (0.9, 0.1))
    assert pool(probe, mllm, 0.5).best == ("b", pytest.approx(0.75))  # odds sqrt(9) = 3


@given(DISTRIBUTION, DISTRIBUTION)
def test_the_pools_ends_are_exact(probe: Probabilities, mllm: Probabilities):
    assert pool(probe, mllm, 0.0) is probe
    assert pool(probe, mllm, 1.0) is mllm


PROBE, MLLM, HINTED = (Probabilities(LABELS, v) for v in ((0.6, 0.3, 0.1), (0.3, 0.6, 0.1), (0.1, 0.1, 0.8)))
SAID = Opinions(PROBE, MLLM, HINTED, default="b")
STRONG = firing("a", 18, 20)  # Wilson bound .699, confidence (18 + 1) / (20 + 2)


@pytest.mark.parametrize(
    ("gate", "fired", "wanted"),
    [
        (TaskGate("t", "override", 0.5, 0.0, 1.0), [STRONG], ("a", 19 / 22, "rules")),
        (TaskGate("t", "override", 0.5, 0.0, 1.0), [], ("b", 0.6, "classifier")),
        (TaskGate("t", "prompt", 0.5, 0.0, 1.0), [STRONG], ("c", 0.8, "prompt")),
        (TaskGate("t", "prompt", 0.7, 0.0, 1.0), [STRONG], ("b", 0.6, "classifier")),
        (TaskGate("t", "prompt", 0.5, 0.0, 0.0), [STRONG], ("a", 0.6, "classifier")),
        (TaskGate("t", "mllm_only", NEVER, 0.0, 1.0), [STRONG], ("b", 0.6, "mllm")),
        (TaskGate("t", "rules_only", 0.0), [], ("b", 0.0, "default")),
        # even pool sqrt(.18) : sqrt(.18) : .1, and exp(ln 2) times as much for a: .4243 · 2 / (.4243 · 3 + .1)
        (TaskGate("t", "vote", 0.0, 0.6931472, 0.5), [STRONG], ("a", 0.848528 / 1.372792, "vote")),
    ],
)
def test_arms_answer_as_worked_out_by_hand(gate: TaskGate, fired: Fired, wanted: tuple[str, float, str]):
    choice = decide(gate, fired, SAID)
    assert (choice.label, choice.confidence, choice.arm) == (wanted[0], pytest.approx(wanted[1], rel=1e-4), wanted[2])


def test_rules_only_gives_the_verdict():
    choice = decide(TaskGate("t", "rules_only", NEVER), [STRONG, firing("b", 5, 9)], SAID)
    assert (choice.label, choice.arm) == ("a", "rules")


@pytest.mark.parametrize("arm", ["override", "vote", "prompt", "mllm_only"])
def test_without_an_mllm_its_share_counts_as_zero(arm: Arm):
    choice = decide(TaskGate("t", arm, 0.9, 1.0, 1.0), [STRONG], Opinions(PROBE))
    assert (choice.label, choice.arm) == ("a", "classifier")


def test_evidence_is_a_share_of_what_all_rules_say():
    """Log lifts at two labels: (8 + .5) / (9 + .5) / .5 twice for a and once for b; a rule below chance is silent."""
    found = evidence([firing("a", 8, 9), firing("a", 8, 9), firing("b", 8, 9), firing("b", 1, 10)], n_labels=2)
    assert found == {"a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3)}
    assert evidence([firing("b", 1, 10)], n_labels=2) == {}


# ---------------------------------------------------------------- held-out firings


def test_a_firing_is_judged_on_other_folds_only():
    """The rule fires on row 0 (fold 0) and, found again, on rows 1 and 2 (fold 1): row 0 sees the record of 1, 2."""
    predicates = (Predicate("text", "user", "x"),)
    found = [HeldOutRule(0, "a", predicates, (0,)), HeldOutRule(1, "a", predicates, (1, 2))]
    rows = held_out_firings(["a", "a", "b", "b"], found, min_precision=0.0, min_support=1)
    assert [(f.label, f.stats.hits, f.stats.support) for f in rows[0]] == [("a", 1, 2)]
    assert [(f.label, f.stats.hits, f.stats.support) for f in rows[1]] == [("a", 1, 1)]
    assert rows[3] == ()


def test_an_examples_own_label_changes_nothing_of_its_firings():
    predicates = (Predicate("text", "user", "x"),)
    found = [HeldOutRule(0, "a", predicates, (0,)), HeldOutRule(1, "a", predicates, (1, 2))]
    as_a = held_out_firings(["a", "a", "b"], found, min_precision=0.0, min_support=1)
    as_b = held_out_firings(["b", "a", "b"], found, min_precision=0.0, min_support=1)
    assert as_a[0] == as_b[0]


def test_weak_rules_are_left_out_as_in_the_base():
    predicates = (Predicate("text", "user", "x"),)
    found = [HeldOutRule(0, "a", predicates, (0,)), HeldOutRule(1, "a", predicates, (1, 2))]
    assert held_out_firings(["a", "a", "b"], found, min_precision=0.6, min_support=1)[0] == ()
    assert held_out_firings(["a", "a", "b"], found, min_precision=0.0, min_support=3)[0] == ()


def test_firings_survive_the_disk(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    rows = {"d1": (firing("a", 3, 4), firing("b", 1, 4)), "d2": ()}
    with store.write("rulebase", "tiny", settings={}) as writer:
        save_firings(writer, {"t": rows}, {"t": 100})
    artifact = store.open("rulebase/tiny")
    assert load_firings(artifact, "t") == rows
    assert load_firings(artifact, "other") is None


# ---------------------------------------------------------------- the whole model


class Fixed:
    task = "t"
    labels = LABELS

    def predict(self, examples: Sequence[IntentExample]) -> list[Probabilities]:
        return [Probabilities(LABELS, (0.5, 0.3, 0.2)) for _ in examples]


def example(text: str, task: str = "t") -> IntentExample:
    return IntentExample(text, task, None, (Turn("user", text),))


def base(**defaults: str) -> RuleBase:
    rule = Rule("r1", "t", "b", (Predicate("text", "user", "rust"),), measure(20, 19, 100))
    return RuleBase((rule,), {}, defaults)


def test_predictions_say_who_answered_and_why():
    gate = Gate(base(), {"t": Fixed()}, {"t": TaskGate("t", "override", 0.5)})
    fired, silent = gate.predict([example("will it rust"), example("hello")])
    assert (fired.label, fired.arm) == ("b", "rules")
    assert "rust" in fired.fired[0].words
    assert fired.confidence == pytest.approx(20 / 22)
    assert [label for label, _ in fired.alternatives] == ["a", "c"]
    assert (silent.label, silent.arm, silent.fired) == ("a", "classifier", ())


def test_an_empty_base_gives_exactly_the_classifiers_answers():
    gate = Gate(RuleBase(()), {"t": Fixed()}, {"t": TaskGate("t", "override", 0.0)})
    assert [p.label for p in gate.predict([example("will it rust")])] == ["a"]


def test_a_task_without_classifier_falls_back_on_the_default():
    gate = Gate(base(t="c"), {}, {"t": TaskGate("t", "override", 0.0)})
    fired, silent = gate.predict([example("will it rust"), example("hello")])
    assert (fired.label, silent.label, silent.arm) == ("b", "c", "default")


def test_an_unknown_task_is_refused_with_what_there_is():
    with pytest.raises(ArtifactError, match="there are t"):
        Gate(base(t="c"), {}, {}).predict([example("hi", task="u")])


class Asked:
    """An MLLM that remembers what it was asked."""

    task = "t"
    labels = LABELS
    needs_pictures = False

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []

    def predict(self, examples: Sequence[IntentExample]) -> list[Probabilities]:
        return self.predict_hinted(examples, [""] * len(examples))

    def predict_hinted(self, examples: Sequence[IntentExample], hints: Sequence[str]) -> list[Probabilities]:
        self.calls.append([(e.dialogue_id, hint) for e, hint in zip(examples, hints, strict=True)])
        return [HINTED if hint else MLLM for hint in hints]


@pytest.mark.parametrize(
    ("arm", "share", "asked"),
    [
        ("override", 0.5, ["hello"]),  # where the rule answers, the MLLM's answer cannot matter
        ("vote", 0.5, ["it will rust", "hello"]),
        ("prompt", 0.5, ["it will rust", "hello"]),
        ("rules_only", 1.0, []),
        ("mllm_only", 0.0, ["it will rust", "hello"]),
        ("vote", 0.0, []),
    ],
)
def test_the_mllm_is_asked_once_and_only_where_it_matters(arm: Arm, share: float, asked: list[str]):
    mllm = Asked()
    gate = Gate(base(t="c"), {"t": Fixed()}, {"t": TaskGate("t", arm, 0.5, 1.0, share)}, mllms={"t": mllm})
    gate.predict([example("it will rust"), example("hello")])
    assert [[key for key, _ in call] for call in mllm.calls] == ([asked] if asked else [])


def test_the_prompt_arm_tells_the_rule_where_it_is_strong_enough():
    mllm = Asked()
    gate = Gate(base(), {"t": Fixed()}, {"t": TaskGate("t", "prompt", 0.5, 0.0, 1.0)}, mllms={"t": mllm})
    told, plain = gate.predict([example("it will rust"), example("hello")])
    [[(_, hint), (_, none)]] = mllm.calls
    assert hint.startswith("b (19 of 20)")
    assert "rust" in hint
    assert none == ""
    assert (told.label, told.arm) == ("c", "prompt")
    assert (plain.label, plain.arm) == ("b", "classifier")


def test_a_task_with_an_mllm_and_no_probe_goes_by_the_mllm():
    [found] = Gate(RuleBase(()), {}, {"t": TaskGate("t")}, mllms={"t": Asked()}).predict([example("hello")])
    assert (found.label, found.arm) == ("b", "classifier")


def test_gates_survive_the_disk(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    gates = {"t": TaskGate("t", "prompt", 0.25, 0.5, 0.75), "u": TaskGate("u")}
    with store.write("gate", "tiny", settings={}) as writer:
        save_gates(writer, gates, {})
    assert load_gates(store.open("gate/tiny")) == gates


def stored(tmp_path: Path, content: dict) -> Artifact:
    store = ArtifactStore(str(tmp_path))
    with store.write("gate", "tiny", settings={}) as writer:
        writer.write_json(GATE_FILE, content)
    return store.open("gate/tiny")


def test_gates_from_before_there_were_mllms_are_read(tmp_path: Path):
    old = {"task": "t", "arm": "vote", "tau": 0.0, "weight": 3.0}
    found = load_gates(stored(tmp_path, {"format_version": 1, "tasks": {"t": old}, "validation": {}}))
    assert found == {"t": TaskGate("t", "vote", 0.0, 3.0, 0.0)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format_version": 9, "tasks": {}}, "has format 9, this mmd reads 1 and 2; run fit_intent"),
        ({"format_version": 2, "tasks": {"t": {"task": "t", "arm": "guess"}}}, "unknown arm 'guess'"),
        ({"format_version": 2, "tasks": {"t": {"task": "t", "arm": "vote", "x": 1}}}, "unknown field 'x'"),
    ],
)
def test_gates_of_another_kind_are_refused_with_the_way_out(tmp_path: Path, content: dict, message: str):
    with pytest.raises(ArtifactError, match=message):
        load_gates(stored(tmp_path, content))
