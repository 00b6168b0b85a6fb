"""The tree search: METHODS section 1, tests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmd.intent.search import RuleSearch, SearchProblem, reward_bounds
from mmd.intent.settings import SearchSettings


def make_problem(n: int = 90, m: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray, SearchProblem]:
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.3
    members = rng.random((m, n)) < np.where(positive, 0.6, rng.uniform(0.1, 0.5, (m, 1)))
    return members, positive, SearchProblem.build(members, positive, np.arange(m, 0, -1.0))


def test_the_root_counts_every_rollout():
    search = RuleSearch(make_problem()[2], SearchSettings(patience=10_000))
    result = search.run(123)
    assert search.root.visits == result.rollouts == 123


def test_every_mean_stays_inside_the_bounds_of_the_reward():
    settings = SearchSettings(patience=10_000)
    search = RuleSearch(make_problem()[2], settings)
    search.run(300)
    low, high = reward_bounds(settings)
    assert len(search.nodes) > 20
    assert all(low <= node.q <= high for node in search.nodes.values())
    assert all(low <= found.reward <= high for found in search.run(0).found)


def test_hits_support_and_reward_equal_brute_force():
    members, positive, problem = make_problem()
    settings = SearchSettings(patience=10_000)
    search = RuleSearch(problem, settings)
    for found in search.run(300).found:
        fires = members[sorted(found.state)].all(axis=0)
        assert (found.hits, found.support) == (int((fires & positive).sum()), int(fires.sum()))
        precision = (found.hits + positive.mean()) / (found.support + 1)
        breadth = np.log1p(found.hits) / np.log1p(positive.sum())
        expected = precision * breadth - settings.length_penalty * len(found.state)
        assert found.reward == pytest.approx(expected)


def test_a_long_search_finds_the_best_conjunction_there_is():
    members, positive, problem = make_problem(m=6)
    settings = SearchSettings(rollouts=3_000, patience=10_000, max_length=3, lookahead=0.0)
    search = RuleSearch(problem, settings)
    result = search.run()
    states = [s for k in (1, 2, 3) for s in itertools.combinations(range(6), k)]
    fires = [members[list(s)].all(axis=0) for s in states]
    rewards = [
        float(search.reward(np.array([(f & positive).sum()]), np.array([f.sum()]), len(s))[0])
        for s, f in zip(states, fires, strict=True)
    ]
    assert result.best_reward == pytest.approx(max(rewards))


def test_without_exploration_the_best_mean_is_taken_and_untried_children_come_first():
    settings = SearchSettings(c_puct=0.0, widening=2.0, widening_alpha=0.0, patience=10_000)
    search = RuleSearch(make_problem()[2], settings)
    search.run(2)
    assert [child.visits for child in search.root.children] == [1, 1]  # two may be open: both tried before either again
    for _ in range(30):
        before = [(child.q, child.visits) for child in search.root.children]
        search.rollout()
        after = [child.visits for child in search.root.children]
        moved = [i for i, (visits, (_, old)) in enumerate(zip(after, before, strict=True)) if visits != old]
        assert before[moved[0]][0] == max(q for q, _ in before)


def test_paths_that_meet_share_one_node():
    search = RuleSearch(make_problem()[2], SearchSettings(patience=10_000, widening=8))
    search.run(400)
    parents: dict[int, int] = {}
    for node in search.nodes.values():
        for child in node.children:
            parents[id(child)] = parents.get(id(child), 0) + 1
            assert search.nodes[child.state] is child
            assert node.state < child.state
    assert max(parents.values()) > 1


def test_the_order_of_predicates_changes_neither_nodes_nor_rewards():
    members, positive, problem = make_problem()
    order = np.random.default_rng(1).permutation(len(members))
    settings = SearchSettings(patience=10_000, widening=100, max_length=2)
    prior = np.arange(len(members), 0, -1.0)
    straight = RuleSearch(problem, settings).run(500)
    shuffled = RuleSearch(SearchProblem.build(members[order], positive, prior[order]), settings).run(500)
    names = {frozenset(order[list(f.state)].tolist()): f.reward for f in shuffled.found}
    assert names == {f.state: pytest.approx(f.reward) for f in straight.found}


def test_evaluations_count_distinct_conjunctions():
    result = RuleSearch(make_problem()[2], SearchSettings(patience=10_000)).run(200)
    assert result.evaluations == len({f.state for f in result.found}) == len(result.found)


def test_a_search_stops_when_nothing_better_comes():
    search = RuleSearch(make_problem()[2], SearchSettings(rollouts=100_000, patience=50))
    assert search.run().rollouts < 5_000


def test_a_label_that_nothing_tells_apart_has_no_rules():
    members = np.ones((3, 10), np.bool_)
    positive = np.arange(10) < 4
    result = RuleSearch(SearchProblem.build(members, positive, np.ones(3)), SearchSettings()).run(20)
    assert result.found == []


def test_two_searches_of_one_problem_are_equal():
    first, second = (RuleSearch(make_problem()[2], SearchSettings()).run() for _ in range(2))
    assert first == second
