"""Ranks of right responses, and what they add up to: recall at k and mean reciprocal rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmd.evaluation.metrics import Fraction, Interval, interval, resample_sums

CUTOFFS = (1, 5, 10)
MISS = int(np.iinfo(np.int64).max)
"""The rank of a response that was not ranked at all, because the wrong modality was searched: a miss at every k."""
TIE = 1e-12
"""Cosines closer than this are equal: sums of equal vectors differ in their last bits with their place in a matrix."""
_SCORES = 1 << 24  # scores held at a time, float64
_GATHER_COST = 64  # a cosine of gathered rows takes as long as this many of a whole matrix product (256 numbers each)

Ranks = NDArray[np.int64]
Rows = NDArray[np.int64]
Exact = NDArray[np.float64]


def rank_of_gold(scores: NDArray[np.floating], gold: int, tolerance: float = 0.0) -> int:
    """Return the 1-based rank of a candidate; ties count against it.

    Args:
        scores: shape (n_candidates,), larger is better.
        gold: its position.
        tolerance: scores lower than the gold's by no more than this are ties.

    Raises:
        ValueError: a score is not a number.
    """
    if np.isnan(scores).any():
        raise ValueError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not numbers, so nothing has a rank"
        )
    return int((scores >= scores[gold] - tolerance).sum())


def rank_all(
    queries: NDArray[np.floating], responses: NDArray[np.floating], pools: Sequence[Rows], golds: Sequence[int] | Rows
) -> Ranks:
    """Return the rank of each query's right response among its pool, by cosine; ties count against it.

    Args:
        queries: shape (n, dim), of any length; a zero vector has cosine 0 with everything.
        responses: shape (m, dim).
        pools: n arrays of rows of ``responses``, the right one's among them.
        golds: the right one's row of ``responses``, n of them.

    Returns:
        int64 of shape (n,), from 1.

    Raises:
        ValueError: shapes do not fit, a number is not finite, or a gold is not in its pool.
    """
    _check(queries, responses, pools, golds)
    rows = [np.asarray(pool, dtype=np.int64) for pool in pools]
    dense = sum(map(len, rows)) * _GATHER_COST > len(queries) * len(responses)
    scored = (_multiplied if dense else _gathered)(_unit(queries), responses, rows)
    positions = (_position(pool, int(gold), i) for i, (pool, gold) in enumerate(zip(rows, golds, strict=True)))
    ranks = [rank_of_gold(scores, gold, TIE) for scores, gold in zip(scored, positions, strict=True)]
    return np.array(ranks, dtype=np.int64)


def _gathered(units: Exact, responses: NDArray[np.floating], pools: list[Rows]) -> Iterator[Exact]:
    """Yield the cosines of each query's pool, from its rows alone: for small pools."""
    for unit, pool in zip(units, pools, strict=True):
        yield _unit(responses[pool]) @ unit


def _multiplied(units: Exact, responses: NDArray[np.floating], pools: list[Rows]) -> Iterator[Exact]:
    """Yield the same from cosines with all responses, some queries at a time: for pools of a good part of them."""
    whole = _unit(responses)
    step = max(1, _SCORES // max(1, len(whole)))
    for start in range(0, len(units), step):
        for scores, pool in zip(units[start : start + step] @ whole.T, pools[start : start + step], strict=True):
            yield scores[pool]


def _check(
    queries: NDArray[np.floating], responses: NDArray[np.floating], pools: Sequence[Rows], golds: Sequence[int] | Rows
) -> None:
    if queries.ndim != 2 or responses.ndim != 2 or queries.shape[1] != responses.shape[1]:
        raise ValueError(f"queries {queries.shape} and responses {responses.shape} must be (n, dim) and (m, dim)")
    if not len(queries) == len(pools) == len(golds):
        raise ValueError(f"{len(queries)} queries, {len(pools)} pools and {len(golds)} golds: must be as many of each")
    for name, vectors in (("queries", queries), ("responses", responses)):
        if not np.isfinite(vectors).all():
            raise ValueError(f"{name}: hold numbers that are not finite")


def _position(rows: Rows, gold: int, query: int) -> int:
    found = np.flatnonzero(rows == gold)
    if len(found) != 1:
        raise ValueError(f"pool {query}: holds the right response, row {gold}, {len(found)} times; must be once")
    return int(found[0])


def _unit(vectors: NDArray[np.floating]) -> Exact:
    """Return the vectors at length 1, float64; zero vectors stay."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    unit: Exact = exact / np.where(lengths > 0, lengths, 1.0)
    return unit


@dataclass(frozen=True, slots=True)
class RankCounts:
    """Ranks as sums that add.

    Attributes:
        n: ranks counted.
        hits: how many are at most 1, 5 and 10 (:data:`CUTOFFS`).
        reciprocal: sum of 1 / rank; a :data:`MISS` adds nothing.
    """

    n: int = 0
    hits: tuple[int, ...] = (0,) * len(CUTOFFS)
    reciprocal: float = 0.0

    @classmethod
    def of(cls, ranks: Sequence[int] | Ranks) -> RankCounts:
        """Count 1-based ranks."""
        found = np.asarray(ranks, dtype=np.int64)
        hits = tuple(int((found <= k).sum()) for k in CUTOFFS)
        return cls(len(found), hits, float((1.0 / found[found != MISS]).sum()))

    def __add__(self, other: RankCounts) -> RankCounts:
        """Pool two counts."""
        hits = tuple(a + b for a, b in zip(self.hits, other.hits, strict=True))
        return RankCounts(self.n + other.n, hits, self.reciprocal + other.reciprocal)

    def recall(self, k: int) -> Fraction:
        """Return R@k: the share of ranks at most ``k``.

        Raises:
            ValueError: ``k`` is not counted.
        """
        if k not in CUTOFFS:
            raise ValueError(f"R@{k} is not counted; {', '.join(f'R@{c}' for c in CUTOFFS)} are")
        return Fraction(self.hits[CUTOFFS.index(k)], self.n)

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank; 0 without ranks."""
        return self.reciprocal / self.n if self.n else 0.0


def recall_interval(
    ranks: Sequence[int] | Ranks, k: int, resamples: int, seed: int, groups: Sequence[str] | None = None
) -> Interval:
    """Return R@k with its bootstrap interval.

    Args:
        ranks: 1-based.
        k: at most this rank is a hit.
        resamples: draws.
        seed: of the draws; equal seeds and groups draw alike, so systems compared on them are paired.
        groups: the dialogue of each rank: dialogues are drawn whole, since their samples are alike. None: each alone.
    """
    hits = np.asarray(ranks) <= k
    if not len(hits):
        return Interval(0.0, 0.0, 0.0)
    draws = resample_sums(np.stack([hits, np.ones(len(hits))], axis=1), groups, resamples, seed)
    return interval(float(hits.mean()), draws[:, 0] / draws[:, 1])
