"""Metrics of recommending in conversations, each against a case worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.evaluation.recommending import (
    DistinctGrams,
    ItemHits,
    Likelihood,
    gate_auc,
    item_rates,
    perplexity_interval,
    ranks_of,
    share_interval,
)
from mmd.recommend.replies import Emission
from mmd.retrieval.ranks import MISS

GOLDS = st.lists(st.integers(0, 5), max_size=4)
EMISSIONS = st.lists(
    st.builds(
        lambda item, top: Emission(item, tuple(top), (-1.0,) * len(top)),
        st.integers(0, 5),
        st.permutations(range(6)),
    ),
    max_size=3,
)
RESPONSES = st.lists(st.tuples(GOLDS, EMISSIONS), max_size=6)


def named(item: int, *others: int) -> Emission:
    return Emission(item, (item, *others), (0.0,) * (1 + len(others)))


def total(hits: list[ItemHits]) -> ItemHits:
    return sum(hits, ItemHits())


def test_a_rank_counts_what_scores_higher_and_ties_are_against_it():
    """Scores .5 .2 .2 .1: item 0 is first; items 1 and 2 tie and both come third; item 3 is last."""
    scores = np.tile(np.array([0.5, 0.2, 0.2, 0.1]), (4, 1))
    assert ranks_of(scores, [0, 1, 2, 3]).tolist() == [1, 3, 3, 4]


def test_excluded_items_are_no_candidates_and_an_excluded_gold_is_missed():
    scores = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    assert ranks_of(scores, [2, 2, 2], [(0,), (0, 1), (2,)]).tolist() == [2, 1, MISS]


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are not numbers"):
        ranks_of(np.array([[0.1, np.nan]]), [0])
    with pytest.raises(ValueError, match="2 rows of scores for 1 samples"):
        ranks_of(np.zeros((2, 3)), [0])


HAND = [
    ([7, 8], [named(7, 3, 8)]),  # one of two golds named; the other is third in the list
    ([9], []),  # a reply without items: a gold is missed, precision does not notice
    ([], [named(1, 2, 3)]),  # an item where none belongs
    ([4], [named(5, 4), named(6, 9)]),  # the gold is second at the first place
    ([], []),  # small talk, rightly
]


def test_hits_by_hand_at_one():
    """Golds 7, 8, 9, 4; four lists; one gold is named. Recall 1/4, precision 1/4, F1 1/4.

    By response: golds in three, items named in three, one hit: 1/3 each.
    """
    hits = total([ItemHits.of(golds, lists, 1) for golds, lists in HAND])
    assert hits == ItemHits(golds=4, found=1, lists=4, right=1, with_golds=3, with_items=3, hit=1)
    assert hits.recall() == hits.precision() == hits.f1() == pytest.approx(1 / 4)
    assert hits.recall("response") == hits.precision("response") == hits.f1("response") == pytest.approx(1 / 3)


def test_hits_by_hand_at_three():
    """Lists 7 3 8 · 1 2 3 · 5 4 · 6 9: golds 7, 8 and 4 are found, two of four lists hold one.

    Recall 3/4, precision 2/4, F1 2 · (3/8) / (5/4) = 3/5. By response two of three hit: 2/3 each.
    """
    hits = total([ItemHits.of(golds, lists, 3) for golds, lists in HAND])
    assert hits == ItemHits(golds=4, found=3, lists=4, right=2, with_golds=3, with_items=3, hit=2)
    assert (hits.recall(), hits.precision()) == (3 / 4, 2 / 4)
    assert hits.f1() == pytest.approx(3 / 5)
    assert hits.f1("response") == pytest.approx(2 / 3)


def test_replies_without_items_have_no_precision_and_no_f1():
    hits = total([ItemHits.of([1], [], 10), ItemHits.of([], [], 10)])
    assert (hits.recall(), hits.precision(), hits.f1()) == (0.0, 0.0, 0.0)
    assert (hits.recall("response"), hits.precision("response"), hits.f1("response")) == (0.0, 0.0, 0.0)
    assert ItemHits().f1() == 0.0


def test_a_gold_named_twice_in_the_right_response_counts_once():
    assert ItemHits.of([3, 3], [named(3)], 1).golds == 1


def test_the_named_item_leads_its_list_whatever_was_likelier():
    """Sampling may name what is not likeliest: 5 is named, 1 and 2 are likelier."""
    emission = Emission(5, (1, 2, 5, 3), (-0.1, -1.0, -2.0, -3.0))
    assert [emission.first(k) for k in (1, 2, 4, 9)] == [(5,), (5, 1), (5, 1, 2, 3), (5, 1, 2, 3)]


@given(RESPONSES, st.integers(0, 6), st.integers(1, 6))
def test_hits_of_parts_add_to_the_whole(responses: list[tuple[list[int], list[Emission]]], cut: int, k: int):
    hits = [ItemHits.of(golds, lists, k) for golds, lists in responses]
    assert total(hits[:cut]) + total(hits[cut:]) == total(hits)


@given(RESPONSES, st.integers(1, 5))
def test_longer_lists_never_find_less(responses: list[tuple[list[int], list[Emission]]], k: int):
    short, long = (total([ItemHits.of(golds, lists, n) for golds, lists in responses]) for n in (k, k + 1))
    for by in ("micro", "response"):
        assert long.recall(by) >= short.recall(by)
        assert long.precision(by) >= short.precision(by)
        assert 0.0 <= short.f1(by) <= 1.0


def test_rates_are_the_pooled_hits_and_their_intervals_draw_conversations_whole():
    """Copying every response of a conversation changes neither value nor interval."""
    hits = [ItemHits.of(golds, lists, 1) for golds, lists in HAND]
    groups = ["a", "a", "b", "c", "c"]
    once = item_rates(hits, groups, 200, 0)
    twice = item_rates([h for h in hits for _ in range(2)], [g for g in groups for _ in range(2)], 200, 0)
    assert once == twice
    assert once["micro"]["F1"].value == total(hits).f1()
    assert once["response"]["ReR"].value == total(hits).recall("response")
    assert once["micro"]["F1"].low <= once["micro"]["F1"].value <= once["micro"]["F1"].high


def test_rates_of_nothing_are_zero():
    assert item_rates([], [], 10, 0)["micro"]["F1"].value == 0.0
    assert share_interval([], [], [], 10, 0).value == 0.0


def test_perplexity_is_exp_of_the_mean_over_tokens_not_over_responses():
    """ln 2 over one token and 3 · ln 8 over three: exp((ln 2 + 9 ln 2) / 4) = 2 ** 2.5."""
    parts = [Likelihood(math.log(2), 1), Likelihood(3 * math.log(8), 3)]
    assert perplexity_interval(parts, ["a", "b"], 50, 0).value == pytest.approx(2**2.5)
    assert perplexity_interval([Likelihood(1e6, 1)], ["a"], 5, 0).value == math.inf


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    assert perplexity_interval([Likelihood(17 * math.log(500), 17)], ["a"], 5, 0).value == pytest.approx(500)


def test_distinct_bigrams_by_hand():
    """ "i like it", "i like that", "yes": bigrams i-like (twice), like-it, like-that: 3 distinct of 4, 3 responses."""
    responses = [["i", "like", "it"], ["i", "like", "that"], ["yes"]]
    grams = DistinctGrams.of(responses, 2)
    assert (grams.by_responses, grams.by_grams) == (3 / 3, 3 / 4)
    assert DistinctGrams.of(responses, 4).by_grams == 0.0
    assert DistinctGrams().by_responses == 0.0


def test_gate_auc_by_hand():
    """Masses .9 .4 at items, .5 .1 elsewhere: of four pairs three are in order."""
    assert gate_auc([0.9, 0.4, 0.5, 0.1], [True, True, False, False]) == pytest.approx(3 / 4)
    assert gate_auc([0.3, 0.3], [True, False]) == pytest.approx(0.5)
    assert gate_auc([0.3, 0.2], [False, False]) is None
