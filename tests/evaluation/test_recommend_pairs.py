"""Differences between speakers, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmd.evaluation.metrics import Interval
from mmd.evaluation.recommend_pairs import COLUMNS, MEASURES, Comparison, Difference, mode_uncounted, response_sums
from mmd.evaluation.recommending import ItemHits, Likelihood
from mmd.recommend.replies import Emission


def reply(gold: int, *items: int) -> ItemHits:
    return ItemHits.of([gold], [Emission(item, (item,), (0.0,)) for item in items], 1)


def test_sums_of_responses_give_the_measures_of_the_field():
    """Two golds, one found; three items named, one right: ReR 1/2, PrR 1/3, F1 2/5; exp(6 / 4) a token."""
    sums = response_sums([reply(1, 1, 2), reply(3, 4)], [Likelihood(2.0, 3), Likelihood(4.0, 1)])
    assert sums.shape == (2, COLUMNS)
    total = sums.sum(axis=0)
    assert float(MEASURES["ReR@1"](total)) == pytest.approx(1 / 2)
    assert float(MEASURES["PrR@1"](total)) == pytest.approx(1 / 3)
    assert float(MEASURES["F1@1"](total)) == pytest.approx(2 / 5)
    assert float(MEASURES["PrR@1, per response"](total)) == pytest.approx(1 / 2)
    assert float(MEASURES["perplexity"](total)) == pytest.approx(math.exp(1.5))
    assert float(MEASURES["item ratio"](total)) == 1.0


def said(right: list[bool], nll: float) -> np.ndarray:
    hits = [reply(1, 1 if good else 2) for good in right]
    return response_sums(hits, [Likelihood(nll, 1)] * len(right))


def test_a_difference_is_of_means_over_seeds():
    """F1 of the seeds: 1 and 1/2 against 1/2 and 1/2, so 3/4 against 1/2, half as much again."""
    field = Comparison(
        {"new": [said([True, True], 1.0), said([True, False], 2.0)], "old": [said([True, False], 2.0)] * 2},
        groups=["a", "b"],
        resamples=50,
    )
    found = field.difference("new", "old", "F1@1")
    assert found.firsts == pytest.approx((1.0, 0.5))
    assert found.seconds == pytest.approx((0.5, 0.5))
    assert found.absolute.value == pytest.approx(0.25)
    assert found.by_seed == pytest.approx((0.5, 0.0))
    assert found.relative is None  # a draw without the one right answer has nothing to divide by
    perplexity = (math.e + math.e**2) / 2
    assert field.value("new", "perplexity").value == pytest.approx(perplexity)
    assert field.difference("new", "old", "perplexity").absolute.value == pytest.approx(perplexity - math.e**2)


def test_draws_are_paired():
    """What differs nowhere has no interval, however much conversations differ among themselves."""
    one = said([True, False, False, True], 1.0)
    found = Comparison({"a": [one], "b": [one]}, list("wxyz"), resamples=100).difference("a", "b", "F1@1")
    assert (found.absolute.low, found.absolute.value, found.absolute.high) == (0.0, 0.0, 0.0)


def test_a_value_has_its_interval():
    one = said([True, False, False, True], 1.0)
    value = Comparison({"a": [one, one]}, list("wxyz"), resamples=200).value("a", "F1@1")
    assert value.value == pytest.approx(0.5)
    assert value.low < 0.5 < value.high


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.3, "holds"), (-0.3, -0.1, "does not hold"), (-0.1, 0.1, "open")]
)
def test_a_claim_holds_when_the_whole_interval_says_so(low: float, high: float, verdict: str):
    middle = Interval((low + high) / 2, low, high)
    found = Difference("F1@1", (1 + middle.value,), (1.0,), middle, middle)
    assert found.is_more() == verdict
    opposite = {"holds": "does not hold", "does not hold": "holds", "open": "open"}
    assert found.is_no_more() == opposite[verdict]


def test_a_claim_of_at_least_a_share_looks_at_the_relative_interval():
    found = Difference("F1@1", (0.2,), (0.1,), Interval(0.1, 0.05, 0.2), Interval(1.0, 0.3, 2.0))
    assert found.is_more(0.25) == "holds"
    assert found.is_more(0.5) == "open"
    assert Difference("F1@1", (0.2,), (0.0,), Interval(0.2, 0.1, 0.3), None).is_more(0.25) == "open"


def test_a_claim_is_open_while_one_seed_says_the_opposite():
    high, low = Interval(0.1, 0.05, 0.2), Interval(-0.1, -0.2, -0.05)
    assert Difference("F1@1", (0.4, 0.1), (0.1, 0.2), high, high).is_more() == "open"
    assert Difference("F1@1", (0.4, 0.3), (0.1, 0.2), high, high).is_more() == "holds"
    assert Difference("F1@1", (0.1, 0.3), (0.4, 0.2), low, low).is_more() == "open"
    # The second seed has a fifth more: less than the quarter that is claimed.
    share = Interval(0.5, 0.3, 0.9)
    assert Difference("F1@1", (0.4, 0.24), (0.2, 0.2), high, share).is_more(0.25) == "open"
    # A perplexity of half a percent more is within a margin of one percent, whatever its sign.
    closer = Interval(0.001, -0.004, 0.006)
    assert Difference("perplexity", (10.05, 9.98), (10.0, 10.0), closer, closer).is_no_more(0.01) == "holds"


def test_an_interval_covers_what_seeds_disagree_by():
    """Every conversation is alike, so that only seeds differ: F1 of 1, 0 and 0, their draws between 0 and 1."""
    runs = [said([right] * 4, 1.0) for right in (True, False, False)]
    field = Comparison({"new": runs, "old": [said([False] * 4, 1.0)] * 3}, list("wxyz"), resamples=400)
    value, found = field.value("new", "F1@1"), field.difference("new", "old", "F1@1").absolute
    assert (value.low, value.value, value.high) == pytest.approx((0.0, 1 / 3, 1.0))
    assert (found.low, found.high) == (value.low, value.high)


def test_seeds_are_drawn_alike_for_both_sides():
    """The second system is the first with a tenth of a nat less a token, seed by seed: nothing is left to chance."""
    nlls = (1.0, 2.0, 3.0)
    runs = {name: [said([True, False], nll - less) for nll in nlls] for name, less in (("a", 0.0), ("b", 0.1))}
    found = Comparison(runs, list("xy"), resamples=50).difference("a", "b", "perplexity").relative
    assert found is not None
    assert (found.low, found.high) == pytest.approx((math.expm1(0.1), math.expm1(0.1)))


def test_systems_without_a_run_of_each_seed_are_not_compared():
    one = said([True], 1.0)
    with pytest.raises(ValueError, match="'b': 1"):
        Comparison({"a": [one, one], "b": [one]}, ["x"])


def test_a_mode_costs_its_nats_and_is_no_word():
    """Two replies of 4 and 3 tokens with their modes, 6 and 4 nats: 10 nats over 5 words."""
    rows = np.zeros((2, COLUMNS))
    rows[:, -3:] = [[6.0, 4, 1], [4.0, 3, 1]]
    counted, words = (MEASURES["perplexity"](found.sum(axis=0)) for found in (rows, mode_uncounted(rows)))
    assert counted == pytest.approx(math.exp(10 / 7))
    assert words == pytest.approx(math.exp(10 / 5))
    assert rows[0, -2] == 4
