"""The vote of rules, by arithmetic on paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from mmd.intent.rules import RuleStats, measure
from mmd.intent.vote import log_lift, tally, verdict


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
