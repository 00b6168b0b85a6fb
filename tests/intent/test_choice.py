"""Choosing a gate: the grid, the caution, and that what is scored never chose its own setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmd.evaluation.metrics import Codes, Confusion
from mmd.intent.choice import (
    POOL,
    Grid,
    HeldOutTask,
    Slice,
    choose_gate,
    deal_parts,
    log_losses,
    plan_slices,
    slice_answers,
    working_point,
)
from mmd.intent.firings import HeldOutFiring
from mmd.intent.gate import NEVER, TaskGate, decide
from mmd.intent.rules import measure
from mmd.intent.settings import GateSettings
from mmd.intent.types import Probabilities

LABELS = ("a", "b", "c")
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
ROW = st.tuples(st.sampled_from(LABELS), FIRED, DISTRIBUTION, DISTRIBUTION, DISTRIBUTION)
ROWS = st.lists(ROW, min_size=4, max_size=16)
AUTO = GateSettings(arm="auto", mllm_shares=(0.0, 0.5, 1.0), vote_weights=(1.0, 3.0))
SURE = {label: Probabilities(LABELS, tuple(0.8 if x == label else 0.1 for x in LABELS)) for label in LABELS}


def firing(label: str, hits: int, support: int) -> HeldOutFiring:
    return HeldOutFiring(label, measure(support, hits, 100))


def held_out(rows: Sequence[tuple], *, mllm: bool = True, parts: int = 4) -> HeldOutTask:
    golds, fired, probes, plain, hinted = map(list, zip(*rows, strict=True))
    return HeldOutTask(
        "t",
        [str(i) for i in range(len(rows))],
        golds,
        fired,
        probes,
        np.arange(len(rows), dtype=np.int64) % parts,
        plain if mllm else None,
        hinted if mllm else None,
        default="a",
    )


def same(rows: Sequence[tuple]) -> HeldOutTask:
    """Rows of (gold, fired, probe), without an MLLM."""
    return held_out([(*row, row[2], row[2]) for row in rows], mllm=False)


# ---------------------------------------------------------------- the grid


@settings(max_examples=25)
@given(ROWS)
def test_a_slices_answers_are_the_gates_own(rows: list[tuple]):
    found = held_out(rows)
    names = sorted(found.vocabulary, key=found.vocabulary.__getitem__)
    for plan in plan_slices(found, AUTO):
        answers = slice_answers(found, plan)
        for gate, row in zip(plan.gates, answers, strict=True):
            wanted = [decide(gate, f, o).label for f, o in zip(found.fired, found.opinions, strict=True)]
            assert [names[code] for code in row] == wanted


def test_without_an_mllm_shares_are_zero_and_its_arms_are_no_candidates():
    rows = [("a", [firing("a", 8, 9)], SURE["a"], SURE["b"], SURE["c"])] * 4
    without = plan_slices(held_out(rows, mllm=False), AUTO)
    assert {s.family for s in without} == {POOL, "override", "verdict", "vote", "rules_only"}
    assert {s.mllm for s in without} == {0.0}
    assert {s.family for s in plan_slices(held_out(rows), AUTO)} >= {"prompt", "mllm_only"}
    [only] = plan_slices(held_out(rows, mllm=False), GateSettings(arm="prompt"))
    assert only.arm == "vote"


def test_a_fixed_arm_tries_only_its_own_settings():
    rows = [("a", [firing("a", 8, 9)], SURE["a"], SURE["b"], SURE["c"])] * 4
    slices = plan_slices(held_out(rows), GateSettings(arm="vote", vote_weights=(1, 2), mllm_shares=(0.0, 0.5)))
    assert [(s.arm, s.weight, s.mllm) for s in slices] == [
        ("vote", 1, 0.0),
        ("vote", 1, 0.5),
        ("vote", 2, 0.0),
        ("vote", 2, 0.5),
    ]


# ---------------------------------------------------------------- the choice


def test_chosen_tau_silences_a_bad_rule_and_hears_a_good_one():
    good, bad = firing("a", 20, 20), firing("c", 2, 5)
    rows = [("a", [good], SURE["c"])] * 6 + [("b", [bad], SURE["b"])] * 6
    chosen = choose_gate(same(rows), GateSettings(arm="override")).chosen
    assert chosen.weighted_f1 == 1.0
    assert bad.stats.wilson_lower < chosen.gate.tau <= good.stats.wilson_lower


def test_rules_that_change_nothing_are_not_heard():
    rows = [("a", [firing("a", 9, 10)], SURE["a"]), ("b", [firing("b", 9, 10)], SURE["b"])] * 3
    for arm in ("override", "verdict", "vote", "auto"):
        assert choose_gate(same(rows), GateSettings(arm=arm)).chosen.gate.tau == NEVER


def test_a_lead_within_one_standard_error_is_not_believed():
    """One of 16 put right by a rule: a lead of 1/16 with a standard error of sqrt(1/16 · 15/16 / 16) = 0.0605."""
    rows = [("a", [], SURE["a"])] * 8 + [("b", [], SURE["b"])] * 7 + [("b", [firing("b", 9, 10)], SURE["a"])]
    trusting = choose_gate(same(rows), GateSettings(arm="override", caution=0.0)).chosen
    careful = choose_gate(same(rows), GateSettings(arm="override", caution=1.1)).chosen
    assert (trusting.gate.tau, trusting.weighted_f1) == (pytest.approx(0.59), 1.0)
    assert careful.gate.tau == NEVER


def test_whether_a_vote_is_heard_is_decided_by_the_score_alone():
    """The same one of 16: a vote that puts it right is heard, however cautious the choice."""
    rows = [("a", [], SURE["a"])] * 8 + [("b", [], SURE["b"])] * 7 + [("b", [firing("b", 9, 10)], SURE["a"])]
    chosen = choose_gate(same(rows), GateSettings(arm="vote", caution=2.0)).chosen
    assert (chosen.gate.tau, chosen.gate.weight, chosen.weighted_f1) == (0.0, 3.0, 1.0)


@settings(max_examples=40)
@given(ROWS, st.sampled_from((0.0, 1.0)))
def test_a_gate_that_hears_rules_is_never_worse_than_the_pool_on_validation(rows: list[tuple], caution: float):
    choice = choose_gate(held_out(rows), GateSettings(arm="vote", caution=caution))
    pool = max(score for gate, score in choice.table if gate.tau > 1)
    if choice.chosen.gate.tau <= 1:
        assert choice.chosen.weighted_f1 >= pool - 1e-9


def test_the_share_comes_from_validation_and_the_likelier_pool_wins_ties():
    """The MLLM is always right, the probe always wrong and surer: only the MLLM alone answers rightly.

    Where both are right, so is every share; the surer one has the smaller log loss.
    """
    unsure = Probabilities(LABELS, (0.4, 0.3, 0.3))
    rows = [("a", [], SURE["b"], unsure, unsure)] * 6
    shares = GateSettings(mllm_shares=(0.0, 0.5, 1.0))
    assert choose_gate(held_out(rows), shares).chosen.gate.mllm == 1.0
    mllm_surer = [("b", [], Probabilities(LABELS, (0.3, 0.4, 0.3)), SURE["b"], SURE["b"])] * 6
    assert choose_gate(held_out(mllm_surer), shares).chosen.gate.mllm == 1.0
    probe_surer = [("a", [], SURE["a"], unsure, unsure)] * 6
    assert choose_gate(held_out(probe_surer), shares).chosen.gate.mllm == 0.0


def test_log_losses_are_the_pools():
    """Odds of a in the even pool: sqrt(.8/.1 · .1/.8) = 1 against b, sqrt(.8 · .1 / .1²) = sqrt 8 against c."""
    found = held_out([("a", [], SURE["a"], SURE["b"], SURE["b"])])
    assert log_losses(found, 0.5) == pytest.approx([-np.log(1 / (2 + 8**-0.5))])
    assert log_losses(found, 1.0) == pytest.approx([-np.log(0.1)])


def test_auto_takes_the_arm_that_wins_on_parts_it_was_not_chosen_on():
    """Told the rules, the MLLM is right where everybody else is wrong."""
    rows = [("b", [firing("c", 5, 9)], SURE["a"], SURE["a"], SURE["b"])] * 9 + [
        ("a", [], SURE["a"], SURE["a"], SURE["a"])
    ] * 9
    choice = choose_gate(held_out(rows), GateSettings(arm="auto", mllm_shares=(1.0,)))
    assert choice.chosen.gate.arm == "prompt"
    assert choice.chosen.weighted_f1 == choice.chosen.cross_fitted_f1 == 1.0
    assert choice.arms[0].gate == choice.chosen.gate


def test_scores_are_those_of_the_answers():
    """Probe right on 2 of 4, MLLM on 3 of 4."""
    rows = [
        ("a", [], SURE["a"], SURE["a"], SURE["a"]),
        ("b", [], SURE["a"], SURE["b"], SURE["b"]),
        ("b", [], SURE["b"], SURE["b"], SURE["b"]),
        ("c", [firing("c", 9, 10)], SURE["a"], SURE["a"], SURE["a"]),
    ]
    alone = choose_gate(held_out(rows), AUTO).alone
    assert alone["probe"] == pytest.approx(Confusion.of("abbc", "aaba").weighted_f1)
    assert alone["mllm"] == pytest.approx(Confusion.of("abbc", "abba").weighted_f1)
    assert alone["rules"] == pytest.approx(Confusion.of("abbc", "aaac").weighted_f1)


def test_no_examples_are_refused():
    empty = HeldOutTask("t", [], [], [], [], np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match="no held-out example"):
        choose_gate(empty, GateSettings())


# ---------------------------------------------------------------- crossing


def grid_of(found: HeldOutTask, how: GateSettings) -> Grid:
    slices = plan_slices(found, how)
    return Grid(
        gates=[g for s in slices for g in s.gates],
        families=[s.family for s in slices for _ in s.taus],
        answers=np.concatenate([slice_answers(found, s) for s in slices]),
        losses={s.mllm: log_losses(found, s.mllm) for s in slices},
        golds=found.gold_codes,
        parts=found.parts,
        size=len(found.vocabulary),
        caution=how.caution,
    )


@settings(max_examples=20)
@given(ROWS.filter(lambda rows: len(rows) >= 8), st.integers(0, 3), st.data())
def test_a_cross_fitted_answer_never_depends_on_labels_of_its_own_part(
    rows: list[tuple], part: int, data: st.DataObject
):
    """Whatever the true labels of a part are, the setting that answers it stays."""
    grid = grid_of(held_out(rows), AUTO)
    everything = np.arange(len(rows))
    inside = grid.parts == part
    golds = grid.golds.copy()
    golds[inside] = data.draw(
        st.lists(st.integers(0, grid.size - 1), min_size=int(inside.sum()), max_size=int(inside.sum()))
    )
    other = replace(grid, golds=golds, losses={share: loss + inside for share, loss in grid.losses.items()})
    before, after = (g.cross_fit(g.choose, everything) for g in (grid, other))
    np.testing.assert_array_equal(before[inside], after[inside])


def test_a_part_is_answered_by_the_setting_that_the_others_chose():
    """Setting 0 is right on part 0 only, setting 1 on the others: part 0 is answered by setting 1, wrongly."""
    golds = np.array([0, 0, 1, 1, 1, 1, 1, 1])
    answers: Codes = np.array([[0, 0, 2, 2, 2, 2, 2, 2], [2, 2, 1, 1, 1, 1, 1, 1]])
    gates = [TaskGate("t", tau=0.2), TaskGate("t", tau=0.1)]
    grid = Grid(gates, ["override"] * 2, answers, {0.0: np.zeros(8)}, golds, np.array([0, 0, 1, 1, 2, 2, 3, 3]), 3, 0.0)
    np.testing.assert_array_equal(grid.cross_fit(grid.choose, np.arange(8)), [2, 2, 1, 1, 1, 1, 1, 1])


def test_few_folds_are_parted_anew():
    ids, golds = [str(i) for i in range(12)], ["a", "b"] * 6
    many = np.arange(12, dtype=np.int64) % 4
    np.testing.assert_array_equal(deal_parts(ids, golds, many, 5, 0), many)
    assert len(np.unique(deal_parts(ids, golds, np.zeros(12, dtype=np.int64), 5, 0))) == 5


def test_curves_end_in_the_pool():
    rows = [("a", [firing("b", 9, 10)], SURE["a"], SURE["a"], SURE["a"])] * 4
    choice = choose_gate(held_out(rows), AUTO)
    assert set(choice.curves) == {"override", "verdict", "vote", "prompt"}
    assert all(curve[-1] == (NEVER, 1.0) for curve in choice.curves.values())
    assert choice.curves["override"][0] == (0.0, 0.0)


def test_working_point_keeps_the_asked_coverage():
    fired = [[firing("a", 20, 20)], [firing("a", 10, 20)], [firing("a", 6, 20)], []]
    assert working_point(fired, 3, 0.25) > working_point(fired, 3, 0.5) > 0
    assert working_point(fired, 3, 1.0) == 0.0


def test_a_slice_lists_its_gates():
    assert Slice("vote", "t", "vote", 2.0, 0.5, (0.0, NEVER)).gates == [
        TaskGate("t", "vote", 0.0, 2.0, 0.5),
        TaskGate("t", "vote", NEVER, 2.0, 0.5),
    ]
