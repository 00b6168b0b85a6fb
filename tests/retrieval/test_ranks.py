"""Ranks: worked out by hand, equal to brute force, and what they add up to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmd.retrieval import ranks
from mmd.retrieval.ranks import MISS, RankCounts, rank_all, rank_of_gold, recall_interval

Floats = NDArray[np.float64]


def cosine(a: Floats, b: Floats) -> float:
    lengths = float(np.sqrt(sum(x * x for x in a)) * np.sqrt(sum(x * x for x in b)))
    return float(sum(x * y for x, y in zip(a, b, strict=True))) / lengths if lengths else 0.0


def brute_force(query: Floats, responses: Floats, pool: list[int], gold: int) -> int:
    wanted = cosine(query, responses[gold])
    return sum(cosine(query, responses[row]) >= wanted - 1e-12 for row in pool)


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("scores", "gold", "rank"),
    [
        ([0.9, 0.5, 0.7], 0, 1),
        ([0.9, 0.5, 0.7], 1, 3),
        ([0.9, 0.5, 0.7], 2, 2),
        ([0.5, 0.5, 0.5], 1, 3),  # all tied: the last place
        ([0.9, 0.5, 0.5, 0.1], 2, 3),  # one ahead, one tied
        ([-1.0], 0, 1),
        ([-np.inf, 0.0], 1, 1),
    ],
)
def test_a_tie_counts_against_the_right_response(scores: list[float], gold: int, rank: int):
    assert rank_of_gold(np.array(scores), gold) == rank


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="2 of 3 scores are not numbers"):
        rank_of_gold(np.array([np.nan, 0.1, np.nan]), 1)


def test_ranks_of_three_vectors_in_the_plane():
    """The query points along x; responses lie at 0°, 60°, 90° and, twice, 60° again at other lengths."""
    sixty = np.array([0.5, np.sqrt(3) / 2])
    responses = np.array([[1.0, 0.0], sixty, [0.0, 1.0], 3 * sixty, 0.1 * sixty])
    pools = [np.arange(5)] * 3
    assert rank_all(np.array([[2.0, 0.0]] * 3), responses, pools, [0, 1, 2]).tolist() == [1, 4, 5]


def test_a_zero_vector_ties_with_all():
    assert rank_all(np.zeros((1, 2)), np.eye(2), [np.arange(2)], [0]).tolist() == [2]


# ---------------------------------------------------------------- brute force


def random_case(seed: int) -> tuple[Floats, Floats, list[NDArray[np.int64]], list[int]]:
    """A few queries over responses with few distinct directions, so that ties are common; pools of any size."""
    rng = np.random.default_rng(seed)
    dim, n_queries, n_responses = (int(rng.integers(1, 6)), int(rng.integers(1, 5)), int(rng.integers(2, 30)))
    grid = rng.integers(-1, 2, (n_responses, dim)) if seed % 2 else rng.normal(size=(n_responses, dim))
    responses = grid * rng.choice([0.5, 1.0, 3.0], (n_responses, 1))
    queries = rng.integers(-2, 3, (n_queries, dim)).astype(np.float64) + (0 if seed % 2 else rng.normal())
    pools = [rng.permutation(n_responses)[: rng.integers(1, n_responses + 1)] for _ in range(n_queries)]
    return queries, responses, pools, [int(rng.choice(pool)) for pool in pools]


def test_a_thousand_random_cases_equal_brute_force():
    tied = 0
    for seed in range(1000):
        queries, responses, pools, golds = random_case(seed)
        ranks = rank_all(queries, responses, pools, golds)
        wanted = [brute_force(q, responses, p.tolist(), g) for q, p, g in zip(queries, pools, golds, strict=True)]
        assert ranks.tolist() == wanted, f"seed {seed}"
        tied += any(
            sum(abs(cosine(q, responses[r]) - cosine(q, responses[g])) < 1e-12 for r in p) > 1
            for q, p, g in zip(queries, pools, golds, strict=True)
        )
    assert tied > 300  # the cases do have ties


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_lengths_do_not_matter(seed: int, of_queries: float, of_responses: float):
    queries, responses, pools, golds = random_case(seed)
    scaled = rank_all(queries * of_queries, responses * of_responses, pools, golds)
    np.testing.assert_array_equal(scaled, rank_all(queries, responses, pools, golds))


@pytest.mark.parametrize("cost", [0, 10**9])
def test_gathered_rows_and_a_whole_product_rank_alike(monkeypatch: pytest.MonkeyPatch, cost: int):
    """Everything is there twice, so each response ties with its double, wherever in a matrix the two stand."""
    monkeypatch.setattr(ranks, "_GATHER_COST", cost)
    rng = np.random.default_rng(0)
    queries, half = rng.normal(size=(40, 8)).astype(np.float32), rng.normal(size=(250, 8)).astype(np.float32)
    golds = rng.integers(0, 500, 40)
    found = rank_all(queries, np.concatenate([half, half]), [np.arange(500)] * 40, golds)
    once = rank_all(queries, half, [np.arange(250)] * 40, golds % 250)
    assert found.tolist() == (2 * once).tolist()
    wanted = [brute_force(q, half, list(range(250)), g) for q, g in zip(queries, golds % 250, strict=True)]
    assert once.tolist() == wanted


def test_a_larger_pool_never_improves_a_rank():
    rng = np.random.default_rng(1)
    queries, responses = rng.normal(size=(30, 4)), rng.normal(size=(100, 4))
    before = np.ones(30)
    for size in (1, 5, 20, 100):
        ranks = rank_all(queries, responses, [np.arange(size)] * 30, [0] * 30)
        assert (ranks >= before).all()
        before = ranks


def test_random_vectors_find_one_in_pool_size():
    rng, n, size = np.random.default_rng(2), 4000, 20
    pools = [rng.permutation(1000)[:size] for _ in range(n)]
    golds = [int(pool[0]) for pool in pools]
    counts = RankCounts.of(rank_all(rng.normal(size=(n, 16)), rng.normal(size=(1000, 16)), pools, golds))
    assert counts.recall(1).value == pytest.approx(1 / size, abs=0.014)  # four standard deviations
    assert counts.recall(10).value == pytest.approx(10 / size, abs=0.032)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("queries", "responses", "pools", "golds", "message"),
    [
        (np.ones((1, 2)), np.ones((3, 4)), [np.arange(3)], [0], r"\(1, 2\) and responses \(3, 4\)"),
        (np.ones((2, 2)), np.ones((3, 2)), [np.arange(3)], [0], "2 queries, 1 pools and 1 golds"),
        (np.full((1, 2), np.nan), np.ones((3, 2)), [np.arange(3)], [0], "queries: hold numbers that are not finite"),
        (np.ones((1, 2)), np.full((3, 2), np.inf), [np.arange(3)], [0], "responses: hold numbers"),
        (np.ones((1, 2)), np.ones((3, 2)), [np.array([1, 2])], [0], "pool 0: holds the right response, row 0, 0 times"),
        (np.ones((1, 2)), np.ones((3, 2)), [np.array([0, 0])], [0], "2 times; must be once"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    queries: Floats, responses: Floats, pools: list[NDArray[np.int64]], golds: list[int], message: str
):
    with pytest.raises(ValueError, match=message):
        rank_all(queries, responses, pools, golds)


# ---------------------------------------------------------------- sums


def test_counts_of_five_ranks():
    """Ranks 1, 2, 10, 11 and a miss: one in the first, two in the first five, three in the first ten."""
    counts = RankCounts.of([1, 2, 10, 11, MISS])
    assert (counts.n, counts.hits) == (5, (1, 2, 3))
    assert counts.recall(5).value == pytest.approx(0.4)
    assert counts.mrr == pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11) / 5)


@given(st.lists(st.integers(1, 60), max_size=30), st.lists(st.integers(1, 60), max_size=30))
def test_parts_add_up_to_the_whole(first: list[int], second: list[int]):
    both, whole = RankCounts.of(first) + RankCounts.of(second), RankCounts.of(first + second)
    assert (both.n, both.hits) == (whole.n, whole.hits)
    assert both.mrr == pytest.approx(whole.mrr)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_recall_grows_with_k(ranks: list[int]):
    counts = RankCounts.of(ranks)
    assert counts.recall(1).value <= counts.recall(5).value <= counts.recall(10).value <= 1.0
    assert counts.recall(1).value <= counts.mrr <= 1.0


def test_a_cutoff_that_is_not_counted_is_refused():
    with pytest.raises(ValueError, match="R@3 is not counted; R@1, R@5, R@10 are"):
        RankCounts().recall(3)


def test_nothing_counted_is_zero():
    assert (RankCounts().mrr, RankCounts().recall(1).value) == (0.0, 0.0)
    assert recall_interval([], 1, 10, 0).value == 0.0


# ---------------------------------------------------------------- intervals


def test_the_interval_holds_the_recall_and_narrows_with_samples():
    rng = np.random.default_rng(0)
    few, many = rng.integers(1, 21, 50), rng.integers(1, 21, 5000)
    narrow, wide = recall_interval(many, 10, 500, 0), recall_interval(few, 10, 500, 0)
    assert narrow.low < narrow.value < narrow.high
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(5000), rel=0.2)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_samples_of_one_dialogue_count_as_one_draw():
    """Ten copies of each rank say no more than one: the interval stays, where drawing samples alone would narrow it."""
    ranks = np.random.default_rng(0).integers(1, 3, 100)
    groups = [f"d{i}" for i in range(100)]
    once = recall_interval(ranks, 1, 400, 0, groups)
    copies = recall_interval(np.repeat(ranks, 10), 1, 400, 0, np.repeat(groups, 10).tolist())
    alone = recall_interval(np.repeat(ranks, 10), 1, 400, 0)
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))
    assert alone.high - alone.low < 0.5 * (once.high - once.low)


def test_equal_seeds_draw_alike():
    ranks, groups = [1, 2, 3, 1, 9], ["a", "a", "b", "c", "c"]
    assert recall_interval(ranks, 1, 50, 3, groups) == recall_interval(ranks, 1, 50, 3, groups)
    assert recall_interval(ranks, 1, 50, 3, groups) != recall_interval(ranks, 1, 50, 4, groups)
