"""What recommending in a conversation is worth: ranks of a module, items and words of generated replies.

**Module recall.** One sample a mention of an item by the agent; R@k is the share of samples whose item stands among
the first k of all items. Ties count against it.

**Response recall, precision, F1 (ReR@k, PrR@k, F1@k).** Only items that the reply's tokens name count. Each named item
stands for a list: itself, then the k - 1 items that were likeliest at its place. A reply that names nothing has no
list: its golds are missed, and it adds nothing to precision's denominator. Two ways of counting, always told apart:

* *micro*: ReR@k = distinct golds found in any list of their reply / golds; PrR@k = lists that hold a gold / lists;
* *per response*: ReR@k = responses in which any gold is found / responses with golds;
  PrR@k = the same / responses that name an item.

F1@k is the harmonic mean of the two. Every count is a sum over responses.

**Perplexity** = exp(total negative log-likelihood / tokens) of the right responses, teacher-forced. It can be compared
only between models of one vocabulary.

**DIST-n** = distinct n-grams / responses (the field's convention; may exceed 1), and / n-grams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmd.evaluation.metrics import Interval, interval, resample_sums
from mmd.recommend.replies import Emission
from mmd.retrieval.ranks import MISS, Ranks

CUTOFFS = (1, 10, 50)
Denominator = Literal["micro", "response"]
DENOMINATORS: tuple[Denominator, ...] = get_args(Denominator)
GRAMS = (2, 3, 4)

Sums = NDArray[np.float64]
"""Sums, shape (..., n_sums): the last axis is a kind of count."""


# ---------------------------------------------------------------- module


def ranks_of(
    scores: NDArray[np.floating], golds: Sequence[int], excluded: Sequence[Collection[int]] | None = None
) -> Ranks:
    """Return the 1-based rank of each sample's item among all items; ties count against it.

    Args:
        scores: shape (n, n_items), larger is better.
        golds: the right item of each sample.
        excluded: items that are no candidates, by sample; a gold among them is a miss at every k.

    Returns:
        int64 of shape (n,).

    Raises:
        ValueError: a score is not a number, or there are more of one argument than of another.
    """
    if strange := int(np.isnan(scores).sum()):
        raise ValueError(f"{strange} of {scores.size} scores are not numbers, so nothing has a rank")
    if len(scores) != len(golds):
        raise ValueError(f"{len(scores)} rows of scores for {len(golds)} samples")
    rows, gold = np.arange(len(golds)), np.asarray(golds, dtype=np.int64)
    above = scores >= scores[rows, gold][:, None]
    banned = excluded or [()] * len(golds)
    for row, items in zip(rows, banned, strict=True):
        above[row, list(items)] = False
    ranks: Ranks = above.sum(axis=1).astype(np.int64)
    ranks[[item in items for item, items in zip(golds, banned, strict=True)]] = MISS
    return ranks


# ---------------------------------------------------------------- items of responses

HIT_COLUMNS = ("golds", "found", "lists", "right", "with_golds", "with_items", "hit")
"""Order of the sums of :class:`ItemHits`."""


@dataclass(frozen=True, slots=True)
class ItemHits:
    """What named items were worth at one k, as sums that add.

    Attributes:
        golds: distinct items of the right responses.
        found: golds in any list of their reply.
        lists: items that replies name.
        right: lists that hold a gold.
        with_golds: responses whose right one names an item.
        with_items: responses whose generated one names an item.
        hit: responses in which any gold is found.
    """

    golds: int = 0
    found: int = 0
    lists: int = 0
    right: int = 0
    with_golds: int = 0
    with_items: int = 0
    hit: int = 0

    @classmethod
    def of(cls, golds: Collection[int], emissions: Sequence[Emission], k: int) -> ItemHits:
        """Count one response.

        Args:
            golds: items that the right response names; repeats count once.
            emissions: items that the generated one names.
            k: length of the lists.
        """
        wanted = set(golds)
        lists = [wanted.intersection(emission.first(k)) for emission in emissions]
        found = set().union(*lists)
        return cls(
            golds=len(wanted),
            found=len(found),
            lists=len(lists),
            right=sum(map(bool, lists)),
            with_golds=int(bool(wanted)),
            with_items=int(bool(lists)),
            hit=int(bool(found)),
        )

    def __add__(self, other: ItemHits) -> ItemHits:
        """Pool two counts."""
        return ItemHits(*(a + b for a, b in zip(self.sums, other.sums, strict=True)))

    @property
    def sums(self) -> tuple[int, ...]:
        """The counts in the order of the fields: one row of :data:`Sums`."""
        return tuple(int(getattr(self, name)) for name in HIT_COLUMNS)

    def recall(self, by: Denominator = "micro") -> float:
        """ReR@k."""
        return float(_recall(np.array(self.sums, dtype=np.float64), by))

    def precision(self, by: Denominator = "micro") -> float:
        """PrR@k; 0 when nothing is named."""
        return float(_precision(np.array(self.sums, dtype=np.float64), by))

    def f1(self, by: Denominator = "micro") -> float:
        """F1@k; 0 when nothing is found."""
        return float(_f1(np.array(self.sums, dtype=np.float64), by))


def _column(sums: Sums, name: str) -> Sums:
    column: Sums = sums[..., HIT_COLUMNS.index(name)]
    return column


def ratio(above: Sums, below: Sums) -> Sums:
    """Divide; what has nothing below is 0."""
    found: Sums = np.divide(above, below, out=np.zeros_like(above, dtype=np.float64), where=np.asarray(below) > 0)
    return found


def _recall(sums: Sums, by: Denominator) -> Sums:
    names = ("found", "golds") if by == "micro" else ("hit", "with_golds")
    return ratio(*(_column(sums, name) for name in names))


def _precision(sums: Sums, by: Denominator) -> Sums:
    names = ("right", "lists") if by == "micro" else ("hit", "with_items")
    return ratio(*(_column(sums, name) for name in names))


def _f1(sums: Sums, by: Denominator) -> Sums:
    recall, precision = _recall(sums, by), _precision(sums, by)
    return ratio(2 * recall * precision, recall + precision)


_RATES: Mapping[str, Callable[[Sums, Denominator], Sums]] = {"ReR": _recall, "PrR": _precision, "F1": _f1}
RATES = tuple(_RATES)


def item_rate(name: str, sums: Sums, by: Denominator = "micro") -> Sums:
    """Return ReR, PrR or F1 of sums whose last axis is that of :attr:`ItemHits.sums`; shape (...)."""
    return _RATES[name](sums, by)


def item_rates(
    hits: Sequence[ItemHits], groups: Sequence[str], resamples: int, seed: int
) -> dict[Denominator, dict[str, Interval]]:
    """Return ReR, PrR and F1 at one k, each way of counting, with bootstrap intervals over conversations.

    Args:
        hits: of each response.
        groups: the conversation of each response.
        resamples: draws of the intervals.
        seed: of the draws; equal seeds and groups draw alike.
    """
    columns = np.array([found.sums for found in hits], dtype=np.float64).reshape(-1, len(HIT_COLUMNS))
    total, draws = columns.sum(axis=0), resampled(columns, groups, resamples, seed)
    return {
        by: {name: interval(float(rate(total, by)), rate(draws, by)) for name, rate in _RATES.items()}
        for by in DENOMINATORS
    }


def resampled(columns: Sums, groups: Sequence[str], resamples: int, seed: int) -> Sums:
    """Return draws of the sums, none where there is nothing to draw from."""
    if not len(columns):
        return np.zeros((0, columns.shape[1]))
    return resample_sums(columns, groups, resamples, seed)


def share_interval(
    numerators: Sequence[float], denominators: Sequence[float], groups: Sequence[str], resamples: int, seed: int
) -> Interval:
    """Return a ratio of sums with its bootstrap interval over conversations; 0 where there is nothing below."""
    columns = np.array([numerators, denominators], dtype=np.float64).T.reshape(-1, 2)
    total, draws = columns.sum(axis=0), resampled(columns, groups, resamples, seed)
    return interval(float(ratio(total[0], total[1])), ratio(draws[:, 0], draws[:, 1]))


# ---------------------------------------------------------------- words


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Negative log-likelihood in nats and the tokens that it is of."""

    nll: float = 0.0
    tokens: int = 0


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def perplexity_interval(parts: Sequence[Likelihood], groups: Sequence[str], resamples: int, seed: int) -> Interval:
    """Return perplexity with its bootstrap interval over conversations."""
    mean = share_interval([p.nll for p in parts], [p.tokens for p in parts], groups, resamples, seed)
    return Interval(_exp(mean.value), _exp(mean.low), _exp(mean.high))


@dataclass(frozen=True)
class DistinctGrams:
    """Distinct n-grams of a set of responses."""

    grams: frozenset[tuple[str, ...]] = field(default=frozenset())
    total: int = 0
    responses: int = 0

    @classmethod
    def of(cls, responses: Sequence[Sequence[str]], n: int) -> DistinctGrams:
        """Count the n-grams of responses, each a sequence of words; a response shorter than n has none."""
        grams = [tuple(words[i : i + n]) for words in responses for i in range(len(words) - n + 1)]
        return cls(frozenset(grams), len(grams), len(responses))

    @property
    def by_responses(self) -> float:
        """Distinct n-grams / responses, the field's convention; may exceed 1."""
        return len(self.grams) / self.responses if self.responses else 0.0

    @property
    def by_grams(self) -> float:
        """Distinct n-grams / n-grams, in [0, 1]."""
        return len(self.grams) / self.total if self.total else 0.0


# ---------------------------------------------------------------- gates


@dataclass(frozen=True)
class GateTrace:
    """How much item mass a speaker saw at each token of one right response.

    Attributes:
        sample_id: of the response.
        mode: of the response.
        tokens: as words, ``@position`` of items, empty for the end.
        masses: summed item probability at each token, in [0, 1]; of the dialogue teacher it is the soft gate's λ.
        is_item: whether the right token is an item.
    """

    sample_id: str
    mode: str
    tokens: tuple[str, ...]
    masses: tuple[float, ...]
    is_item: tuple[bool, ...]


def gate_auc(masses: Sequence[float], is_item: Sequence[bool]) -> float | None:
    """Return how well item mass tells item positions from others: area under the ROC curve; .5 is chance.

    Args:
        masses: at each position.
        is_item: whether the right token is an item.

    Returns:
        None when all positions are of one kind.
    """
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 (slow to import)

    flags = np.asarray(is_item, dtype=bool)
    if flags.all() or not flags.any():
        return None
    return float(roc_auc_score(flags, np.asarray(masses, dtype=np.float64)))
