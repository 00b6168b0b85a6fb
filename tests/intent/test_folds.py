"""Folds depend on ids, labels and seed alone, and spread every label evenly."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.intent.folds import assign_folds

LABELS = st.lists(st.sampled_from("abc"), min_size=2, max_size=60)


@given(LABELS, st.integers(2, 7), st.integers(0, 5))
def test_sizes_differ_by_at_most_one_in_all_and_within_each_label(labels: list[str], k: int, seed: int):
    folds = assign_folds([str(i) for i in range(len(labels))], labels, k, seed)
    for wanted in ({"a", "b", "c"}, {"a"}, {"b"}, {"c"}):
        sizes = [sum(f == fold and y in wanted for f, y in zip(folds, labels, strict=True)) for fold in range(k)]
        assert max(sizes) - min(sizes) <= 1


@given(LABELS, st.randoms())
def test_the_order_of_examples_does_not_matter(labels: list[str], random: Random):
    ids = [f"d{i}" for i in range(len(labels))]
    order = list(range(len(labels)))
    random.shuffle(order)
    straight = assign_folds(ids, labels, 3, seed=1)
    shuffled = assign_folds([ids[i] for i in order], [labels[i] for i in order], 3, seed=1)
    np.testing.assert_array_equal(straight[order], shuffled)


def test_another_seed_deals_otherwise():
    ids, labels = [f"d{i}" for i in range(40)], ["a", "b"] * 20
    assert not np.array_equal(assign_folds(ids, labels, 4, 0), assign_folds(ids, labels, 4, 1))
    assert Counter(assign_folds(ids, labels, 4, 0).tolist()) == dict.fromkeys(range(4), 10)


@pytest.mark.parametrize(
    ("ids", "labels", "k", "message"),
    [(["a"], [], 2, "one label an id"), (["a", "a"], ["x", "y"], 2, "ids repeat"), (["a"], ["x"], 1, "at least 2")],
)
def test_impossible_requests_are_refused(ids: list[str], labels: list[str], k: int, message: str):
    with pytest.raises(ValueError, match=message):
        assign_folds(ids, labels, k, 0)
