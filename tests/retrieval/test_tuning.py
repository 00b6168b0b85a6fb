"""Tuning: the least effort that finds enough, on questions whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from mmd.retrieval.structures import Slots, Vectors, describe_kind
from mmd.retrieval.tuning import Truth, build_index, tune

QUERIES = 100
VECTORS = np.eye(20, dtype=np.float32)
TRUTH = Truth.of(np.tile(np.linspace(1, 0, 20, dtype=np.float32), (QUERIES, 1)), VECTORS)
"""The right ten are rows 0 to 9 for every query."""


def found(right: int) -> Slots:
    """Return ten rows a query, ``right`` of them right, the others not there."""
    return np.tile(np.array([*range(right), *[-1] * (10 - right)]), (QUERIES, 1))


@pytest.mark.parametrize(
    ("finds", "effort", "recall"),
    [
        ({1: 5, 2: 9, 4: 10, 8: 10}, 4, 1.0),
        ({1: 10, 2: 10, 4: 10, 8: 10}, 1, 1.0),
        ({1: 5, 2: 8, 4: 8, 8: 8}, 2, 0.8),  # coarse codes: more effort finds no more
        ({1: 5, 2: 6, 4: 7, 8: 8}, 8, 0.8),
    ],
)
def test_the_least_effort_that_finds_enough_or_all_that_can_be_found(finds: dict[int, int], effort: int, recall: float):
    tuned = tune(lambda tried: found(finds[tried]), TRUTH, list(finds), 0.95)
    assert (tuned.effort, tuned.recall, tuned.queries) == (effort, pytest.approx(recall), QUERIES)


def test_recall_must_be_above_the_wanted_by_a_standard_error():
    """96 queries find all and 4 none: 0.96 with a standard error of 0.0196 is not surely above 0.95."""
    lucky = np.vstack([found(10)[:96], found(0)[:4]])
    tuned = tune(lambda effort: lucky if effort == 1 else found(10), TRUTH, [1, 2], 0.95)
    assert tuned.effort == 2


def unit(n: int, seed: int) -> Vectors:
    drawn = np.random.default_rng(seed).standard_normal((n, 8), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_vectors_held_out_for_tuning_are_in_the_index_in_the_end():
    ids, vectors = [str(i) for i in range(600)], unit(600, 0)
    index = build_index(ids, vectors, describe_kind("hnsw", 600, 8), recall=0.9, threads=1)
    assert sorted(index.ids()) == sorted(ids)
    assert index.tuned.queries == 60
    assert [row[0] for row in index.search(vectors, 1).ids] == ids


def test_queries_of_ones_own_are_tuned_with():
    index = build_index(
        [str(i) for i in range(600)],
        unit(600, 0),
        describe_kind("ivf_flat", 600, 8),
        recall=0.9,
        queries=unit(33, 1),
        threads=1,
    )
    assert index.tuned.queries == 33


@pytest.mark.parametrize("n", [0, 3, 9, 12])
def test_few_vectors_are_found_whatever_the_structure(n: int):
    index = build_index([str(i) for i in range(n)], unit(n, 0), describe_kind("hnsw", n, 8), recall=0.9, threads=1)
    assert [row[0] for row in index.search(unit(n, 0), 1).ids] == [str(i) for i in range(n)]
