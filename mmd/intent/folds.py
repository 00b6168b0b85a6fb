"""Validation folds: stratified by label, decided by the ids and the seed alone."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def assign_folds(ids: Sequence[str], labels: Sequence[str], k: int, seed: int) -> NDArray[np.int64]:
    """Deal examples to ``k`` folds so that every label, and the whole, is spread as evenly as counts allow.

    Within a label, ids are ordered by a hash of (seed, id) and dealt round the folds; the next label goes on
    where the last one ended. Hence the sizes of two folds differ by at most 1, in all and within each label,
    and the order in which examples are given does not matter.

    Args:
        ids: example ids, distinct.
        labels: their labels, aligned with ``ids``.
        k: number of folds, at least 2.
        seed: chooses among the possible deals.

    Returns:
        Fold of each example, int64 of shape (n,), values 0 … k-1.

    Raises:
        ValueError: lengths differ, ids repeat, or k < 2.
    """
    if len(ids) != len(labels):
        raise ValueError(f"{len(ids)} ids but {len(labels)} labels; give one label an id.")
    if len(set(ids)) != len(ids):
        raise ValueError("ids repeat; folds are decided by id, so each may come once.")
    if k < 2:
        raise ValueError(f"k={k}; validation needs at least 2 folds.")
    by_label: defaultdict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        by_label[label].append(index)
    folds = np.empty(len(ids), dtype=np.int64)
    dealt = 0
    for label in sorted(by_label):
        for index in sorted(by_label[label], key=lambda i: _order(ids[i], seed)):
            folds[index] = dealt % k
            dealt += 1
    return folds


def _order(example_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{example_id}".encode()).digest()
