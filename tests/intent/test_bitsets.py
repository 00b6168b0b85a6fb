"""Bitsets against Python sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.intent.bitsets import conjunction, count, n_words, pack, split_by_label, unpack, wilson_lower
from mmd.intent.rules import wilson_lower as scalar_wilson

SETS = st.integers(1, 200).flatmap(
    lambda size: st.tuples(st.just(size), st.lists(st.sets(st.integers(0, size - 1)), min_size=1, max_size=5))
)


Case = tuple[int, list[set[int]]]


def members_of(sets: list[set[int]], size: int) -> np.ndarray:
    return np.array([[i in s for i in range(size)] for s in sets], dtype=np.bool_)


def test_words_round_up():
    assert [n_words(n) for n in (0, 1, 64, 65, 128)] == [0, 1, 1, 2, 2]


@given(SETS)
def test_packing_is_undone_by_unpacking(case: Case):
    size, sets = case
    members = members_of(sets, size)
    np.testing.assert_array_equal(unpack(pack(members), size), members)


@given(SETS)
def test_counts_and_conjunctions_are_those_of_sets(case: Case):
    size, sets = case
    bits = pack(members_of(sets, size))
    assert count(bits).tolist() == [len(s) for s in sets]
    assert int(count(conjunction(bits))) == len(set.intersection(*sets))


@given(SETS, st.data())
def test_splitting_by_label_counts_hits_and_misses(case: Case, data: st.DataObject):
    size, sets = case
    positive_rows = data.draw(st.sets(st.integers(0, size - 1)))
    positive = np.array([i in positive_rows for i in range(size)], dtype=np.bool_)
    bits, hit_words = split_by_label(members_of(sets, size), positive)
    assert count(bits[:, :hit_words]).tolist() == [len(s & positive_rows) for s in sets]
    assert count(bits[:, hit_words:]).tolist() == [len(s - positive_rows) for s in sets]


def test_wilson_of_three_in_three_is_the_value_worked_out_by_hand():
    """p = 1, n = 3: 1 / (1 + 1.96² / 3) = 0.4385."""
    assert wilson_lower(3, 3) == pytest.approx(0.4385, abs=1e-4)


def test_wilson_of_arrays_equals_wilson_of_numbers():
    hits, support = np.array([0, 1, 5, 0]), np.array([4, 1, 9, 0])
    expected = [scalar_wilson(h, s) for h, s in zip(hits.tolist(), support.tolist(), strict=True)]
    np.testing.assert_allclose(wilson_lower(hits, support), expected, atol=1e-4)
