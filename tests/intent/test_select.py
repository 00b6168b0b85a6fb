"""Pooling of held-out evidence and selection."""

from __future__ import annotations

from mmd.intent.rules import Predicate
from mmd.intent.select import FoldRule, keep_rules, pool, prune_alike, prune_supersets

A, B = Predicate("text", "user", "a"), Predicate("text", "user", "b")
LABELS = ["x", "x", "x", "y", "y", "y"]


def found(predicates: tuple[Predicate, ...], fired: tuple[int, ...], label: str = "x") -> FoldRule:
    return FoldRule(label, predicates, 0.5, 2, 2, fired)


def test_evidence_of_equal_rules_is_pooled_and_an_example_counts_once():
    [evidence] = pool([found((A, B), (0, 3)), found((B, A), (0, 1))], LABELS)
    assert (evidence.support, evidence.hits, evidence.searches) == (3, 2, 2)
    assert evidence.precision == 2 / 3


def test_the_order_of_results_does_not_matter():
    rules = [found((A,), (0, 1)), found((B,), (2, 3)), found((A, B), (0,), "y")]
    assert [e.key for e in pool(rules, LABELS)] == [e.key for e in pool(rules[::-1], LABELS)]


def test_a_superset_that_is_no_better_is_dropped():
    evidence = pool([found((A,), (0, 1, 2)), found((A, B), (0, 1))], LABELS)
    assert [e.key[1] for e in prune_supersets(evidence)] == [(A,)]


def test_a_superset_that_is_better_stays():
    evidence = pool([found((A,), (0, 1, 3, 4, 5)), found((A, B), (0, 1))], LABELS)
    assert {e.key[1] for e in prune_supersets(evidence)} == {(A,), (A, B)}


def test_only_supported_precise_rules_that_enough_searches_found_are_kept():
    rules = [
        *[found((A,), (0, 1))] * 2,
        *[found((B,), (0, 3, 4, 5))] * 2,  # precision .25
        found((A, B), (0, 1, 2)),  # found once
        *[found((Predicate("text", "user", "c"),), (0,))] * 2,  # fired once
    ]
    kept = keep_rules(pool(rules, LABELS), min_support=2, min_precision=0.5, min_searches=2, max_overlap=2.0)
    assert [e.key[1] for e in kept] == [(A,)]


def test_a_rule_of_negations_alone_is_not_kept():
    no_a, no_b = (Predicate("text", "user", value, negated=True) for value in "ab")
    evidence = pool([found((no_a, no_b), (0, 1, 2)), found((B, no_a), (0, 1))], LABELS)
    kept = keep_rules(evidence, min_support=1, min_precision=0.5, min_searches=1, max_overlap=2.0)
    assert [set(e.key[1]) for e in kept] == [{B, no_a}]


def test_of_two_rules_that_fire_on_the_same_examples_the_better_one_stays():
    rules = [found((A,), (0, 1, 2)), found((B,), (0, 1, 2, 3)), found((Predicate("text", "user", "c"),), (1, 2, 3, 4))]
    kept = prune_alike(pool(rules, LABELS), max_overlap=0.7)
    assert [e.key[1][0].value for e in kept] == ["a", "c"]  # a: 3 of 3; b overlaps it by 3/4, c by 2/5


def test_rules_of_different_labels_may_fire_on_the_same_examples():
    assert len(prune_alike(pool([found((A,), (0, 3)), found((B,), (0, 3), "y")], LABELS), 0.5)) == 2
