"""Rules as a large model is told them."""

from __future__ import annotations

import numpy as np

from mmd.intent.hints import ToldRule, conditions, hint_text, told_rules
from mmd.intent.rules import UNMEASURED, Predicate, Prototype, Rule, measure


def told(label: str, hits: int, support: int, words: str = "it rains") -> ToldRule:
    return ToldRule(label, words, measure(support, hits, 100))


def test_a_line_has_label_record_and_conditions():
    assert hint_text([told("refund", 11, 12)], 3) == "refund (11 of 12): it rains"


def test_only_so_many_rules_are_told_and_two_of_a_label():
    rules = [told("a", 9, 9), told("a", 8, 9), told("a", 7, 9), told("b", 6, 9), told("c", 5, 9)]
    assert hint_text(rules, 3).splitlines() == ["a (9 of 9): it rains", "a (8 of 9): it rains", "b (6 of 9): it rains"]
    assert hint_text(rules, 0) == ""


def test_rules_that_are_mostly_wrong_are_not_told_and_unmeasured_ones_without_record():
    rules = [told("a", 9, 93), ToldRule("b", "it snows", UNMEASURED)]
    assert hint_text(rules, 3) == "b: it snows"


def test_nothing_fired_says_nothing():
    assert hint_text([], 3) == ""


def test_conditions_name_what_stands_at_a_prototype():
    near = Predicate("near", "last_user", "p1")
    prototypes = {"p1": Prototype("p1", "last_user", np.ones(2, np.float32), 0.5, "does it fade")}
    words = conditions([near, Predicate("ocr", "any", "care", negated=True)], prototypes)
    assert words == ("the customer's last message is like a known one and the picture does not show the text “care”")


def test_rules_of_a_base_are_told_in_the_order_they_come():
    stats = measure(4, 3, 10)
    rules = [Rule("r", "t", "a", (Predicate("text", "any", "x"),), stats), Rule("s", "t", "b", (), stats)]
    assert [(r.label, r.stats) for r in told_rules(rules, {})] == [("a", stats), ("b", stats)]
