"""The vote of rules, by arithmetic on paper."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest

from mmd.intent.rules import RuleStats, measure
from mmd.intent.vote import label_weights, log_lift, tally, verdict


@dataclass(frozen=True)
class Fired:
    label: str
    stats: RuleStats


def rule(label: str, hits: int, support: int) -> Fired:
    return Fired(label, measure(support, hits, 100))


def test_a_rule_right_three_times_of_three_lifts_one_of_four_labels_by_log_of_three_and_a_quarter():
    """Smoothed precision (3 + 1/4) / 4 = 0.8125; times 4 labels: 3.25."""
    assert log_lift(measure(3, 3, 100), 4) == pytest.approx(math.log(3.25))


def test_a_rule_no_better_than_chance_says_nothing():
    assert log_lift(measure(8, 1, 100), 4) == 0.0


def test_two_weak_rules_outweigh_one_lucky_one():
    fired = [rule("lucky", 2, 2), rule("steady", 6, 8), rule("steady", 5, 7)]
    assert verdict(fired, 10).label == "steady"


def test_the_margin_is_the_lead_over_the_runner_up():
    fired = [rule("a", 9, 9), rule("b", 3, 6)]
    votes = tally(fired, 5)
    found = verdict(fired, 5)
    assert found.margin == pytest.approx(votes["a"] - votes["b"])
    assert 0 < found.confidence < 1


def test_no_rule_means_no_verdict():
    assert verdict([], 5) is None


def test_ties_go_to_the_first_label_by_name():
    assert verdict([rule("b", 2, 2), rule("a", 2, 2)], 5).label == "a"


def test_a_label_with_more_evidence_in_the_base_counts_less_a_firing():
    """Evidence 3 L against L, mean 2 L: weights (2/3)^0.75 and 2^0.75."""
    weights = label_weights([rule("a", 4, 4)] * 3 + [rule("b", 4, 4)])
    assert weights == {"a": pytest.approx((2 / 3) ** 0.75), "b": pytest.approx(2**0.75)}


def test_labels_with_equal_evidence_are_weighed_alike():
    assert label_weights([rule("a", 3, 4), rule("b", 3, 4)]) == {"a": pytest.approx(1.0), "b": pytest.approx(1.0)}


def test_no_rules_have_no_weights():
    assert label_weights([]) == {}


def test_the_weight_scales_what_a_firing_says():
    heavy = Fired("a", replace(measure(3, 3, 100), weight=2.0))
    assert tally([heavy], 4)["a"] == pytest.approx(2 * log_lift(heavy.stats, 4))
