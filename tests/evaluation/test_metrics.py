"""Metrics against scikit-learn, against arithmetic on paper, and merged against whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from mmd.evaluation.metrics import (
    Answers,
    Calibration,
    Confusion,
    Fraction,
    RuleRecord,
    bootstrap,
    encode,
    interval,
    mcnemar,
    overall,
    percentiles,
    weighted_f1_codes,
)

LABEL = st.sampled_from(["退款", "换货", "other"])
ANSWER = st.sampled_from(["退款", "换货", "other", "no label at all", ""])
PAIRS = st.lists(st.tuples(LABEL, ANSWER), min_size=1, max_size=40)
FIRED = st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans()), max_size=10)


@given(PAIRS)
def test_weighted_f1_is_scikit_learns_and_unknown_strings_are_wrong(pairs: list[tuple[str, str]]):
    golds, answers = map(list, zip(*pairs, strict=True))
    expected = f1_score(golds, answers, average="weighted", zero_division=0)
    assert Confusion.of(golds, answers).weighted_f1 == pytest.approx(expected)
    coded, [codes], size = encode(golds, answers)
    assert weighted_f1_codes(coded, codes, size) == pytest.approx(expected)


@given(PAIRS, st.integers(0, 40))
def test_confusions_of_parts_add_to_the_whole(pairs: list[tuple[str, str]], cut: int):
    def count(rows: list[tuple[str, str]]) -> Confusion:
        return Confusion.of([g for g, _ in rows], [a for _, a in rows])

    assert count(pairs[:cut]) + count(pairs[cut:]) == count(pairs)


def test_weighted_f1_by_hand():
    """a: P 1/2, R 1/1, F1 2/3, support 1; b: P 1/1, R 1/2, F1 2/3, support 2; so 2/3."""
    confusion = Confusion.of(["a", "b", "b"], ["a", "a", "b"])
    assert confusion.weighted_f1 == pytest.approx(2 / 3)
    assert confusion.accuracy == Fraction(2, 3)
    assert [(s.precision, s.recall, s.support) for s in confusion.per_class] == [(0.5, 1.0, 1), (1.0, 0.5, 2)]


def test_overall_is_the_mean_over_tasks():
    by_task = {"x": Confusion.of(["a"], ["a"]), "y": Confusion.of(["a", "a"], ["b", "b"])}
    assert overall(by_task) == pytest.approx(0.5)
    assert overall({}) == 0.0
    assert Confusion().weighted_f1 == 0.0


@given(FIRED, FIRED, st.floats(0, 1))
def test_rule_records_of_parts_add_to_the_whole(one, two, tau: float):  # noqa: ANN001 (drawn)
    parts = RuleRecord(tuple(one), 10) + RuleRecord(tuple(two), 12)
    whole = RuleRecord((*one, *two), 22)
    assert (parts.precision(tau), parts.coverage(tau)) == (whole.precision(tau), whole.coverage(tau))


def test_a_rule_record_by_hand():
    record = RuleRecord(((0.9, True), (0.5, True), (0.5, False)), 6)
    assert (record.precision(), record.coverage()) == (Fraction(2, 3), Fraction(3, 6))
    assert record.curve() == [(0.5, 0.5, pytest.approx(2 / 3)), (0.9, pytest.approx(1 / 6), 1.0)]


def test_coverage_never_grows_with_tau():
    record = RuleRecord(tuple((s, True) for s in (0.1, 0.4, 0.4, 0.8)), 9)
    coverages = [coverage for _, coverage, _ in record.curve()]
    assert coverages == sorted(coverages, reverse=True)


def test_calibration_error_by_hand():
    """Bin .9-1: confidence .95, accuracy .5, two of three; bin .2-.3: .2 against 0: (2*.45 + .2) / 3."""
    calibration = Calibration.of([0.95, 0.95, 0.2], [True, False, False])
    assert calibration.error == pytest.approx((2 * 0.45 + 0.2) / 3)
    assert Calibration.of([1.0], [True]).error == 0.0
    parts = Calibration.of([0.95], [True]) + Calibration.of([0.95, 0.2], [False, False])
    assert parts.error == pytest.approx(calibration.error)


def test_bootstrap_is_seeded_and_pairs_systems():
    golds = ["a", "b"] * 20
    tasks = {"t": Answers(golds, {"same": golds, "again": golds, "bad": ["a"] * 40})}
    draws = bootstrap(tasks, resamples=50, seed=3)
    np.testing.assert_array_equal(draws["same"], np.ones(50))
    np.testing.assert_array_equal(draws["same"], draws["again"])
    np.testing.assert_array_equal(draws["bad"], bootstrap(tasks, resamples=50, seed=3)["bad"])
    found = interval(1 / 3, draws["bad"])
    assert found.low < found.value < found.high


def test_mcnemar_by_hand():
    """Three examples only the first gets right, none only the second: p = 2 / 2**3."""
    found = mcnemar(["a"] * 4, ["a"] * 4, ["b", "b", "b", "a"])
    assert (found.only_first, found.only_second) == (3, 0)
    assert found.p_value == pytest.approx(0.25)
    assert mcnemar(["a"], ["a"], ["a"]).p_value == 1.0


def test_percentiles_of_nothing_are_nothing():
    assert percentiles([]) == {}
    assert percentiles([1.0, 3.0])["p50_ms"] == 2.0
