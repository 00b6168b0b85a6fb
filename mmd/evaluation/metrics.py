"""Metrics that merge: each keeps counts that add, so parts evaluated apart give the same as the whole.

Weighted F1 is scikit-learn's ``f1_score(average="weighted")`` on label strings: per-class F1 weighted by the number of
true examples; an answer that is no label of the task is simply never right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

_BINS = 10


@dataclass(frozen=True, slots=True)
class Fraction:
    """A share that adds: ``numerator`` of ``denominator``; its value is 0 where there is nothing to count."""

    numerator: int = 0
    denominator: int = 0

    def __add__(self, other: Fraction) -> Fraction:
        """Pool two shares."""
        return Fraction(self.numerator + other.numerator, self.denominator + other.denominator)

    @property
    def value(self) -> float:
        """Numerator / denominator."""
        return self.numerator / self.denominator if self.denominator else 0.0


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Precision, recall and F1 of one label; ``support`` is how often it is true."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Confusion:
    """How often each true label got each answer; answers may be any string."""

    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, golds: Iterable[str], answers: Iterable[str]) -> Confusion:
        """Count pairs of true label and answer.

        Raises:
            ValueError: there are more of one than of the other.
        """
        return cls(dict(Counter(zip(golds, answers, strict=True))))

    def __add__(self, other: Confusion) -> Confusion:
        """Pool two counts."""
        return Confusion(dict(Counter(self.counts) + Counter(other.counts)))

    @property
    def total(self) -> int:
        """Examples counted."""
        return sum(self.counts.values())

    @property
    def accuracy(self) -> Fraction:
        """Share of examples answered with the true label."""
        return Fraction(sum(n for (gold, answer), n in self.counts.items() if gold == answer), self.total)

    @property
    def labels(self) -> list[str]:
        """The labels that are true at least once, sorted."""
        return sorted({gold for gold, _ in self.counts})

    def score(self, label: str) -> ClassScore:
        """Return one label's scores; what is undefined is 0."""
        hits = self.counts.get((label, label), 0)
        support = sum(n for (gold, _), n in self.counts.items() if gold == label)
        answered = sum(n for (_, answer), n in self.counts.items() if answer == label)
        return ClassScore(
            label,
            precision=hits / answered if answered else 0.0,
            recall=hits / support if support else 0.0,
            f1=2 * hits / (support + answered) if support + answered else 0.0,
            support=support,
        )

    @property
    def per_class(self) -> list[ClassScore]:
        """Scores of every label that is true at least once."""
        return [self.score(label) for label in self.labels]

    @property
    def weighted_f1(self) -> float:
        """Mean F1 over labels, weighted by support; 0 without examples."""
        if not self.total:
            return 0.0
        return sum(s.f1 * s.support for s in self.per_class) / self.total

    @property
    def macro_f1(self) -> float:
        """Plain mean F1 over the labels that are true at least once."""
        scores = self.per_class
        return sum(s.f1 for s in scores) / len(scores) if scores else 0.0


def overall(by_task: Mapping[str, Confusion]) -> float:
    """Return the mean of the tasks' weighted F1; 0 without tasks."""
    return sum(c.weighted_f1 for c in by_task.values()) / len(by_task) if by_task else 0.0


# ---------------------------------------------------------------- rules


@dataclass(frozen=True)
class RuleRecord:
    """What the rules' verdict was worth, example by example: its confidence and whether it was right.

    Args:
        fired: (confidence, right?) of each example on which the rules had a verdict.
        examples: examples looked at, silent ones included.
    """

    fired: tuple[tuple[float, bool], ...] = ()
    examples: int = 0

    def __add__(self, other: RuleRecord) -> RuleRecord:
        """Pool two records."""
        return RuleRecord(self.fired + other.fired, self.examples + other.examples)

    def precision(self, tau: float = 0.0) -> Fraction:
        """Share of right answers among the examples whose verdict reaches ``tau``."""
        reached = [right for strength, right in self.fired if strength >= tau]
        return Fraction(sum(reached), len(reached))

    def coverage(self, tau: float = 0.0) -> Fraction:
        """Share of examples whose verdict reaches ``tau``."""
        return Fraction(self.precision(tau).denominator, self.examples)

    def curve(self) -> list[tuple[float, float, float]]:
        """Return (τ, coverage, precision) for every strength there is, ascending in τ."""
        taus = sorted({strength for strength, _ in self.fired})
        return [(tau, self.coverage(tau).value, self.precision(tau).value) for tau in taus]


# ---------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in ten equal bins of confidence: counts, summed confidence, right answers."""

    counts: tuple[int, ...] = (0,) * _BINS
    confidence: tuple[float, ...] = (0.0,) * _BINS
    right: tuple[int, ...] = (0,) * _BINS

    @classmethod
    def of(cls, confidences: Sequence[float], right: Sequence[bool]) -> Calibration:
        """Sort predictions into bins; a confidence of 1 belongs to the last."""
        values = np.asarray(confidences, dtype=np.float64)
        bins = np.minimum((values * _BINS).astype(np.int64), _BINS - 1)
        return cls(
            tuple(np.bincount(bins, minlength=_BINS).tolist()),
            tuple(np.bincount(bins, weights=values, minlength=_BINS).tolist()),
            tuple(np.bincount(bins[np.asarray(right, dtype=bool)], minlength=_BINS).tolist()),
        )

    def __add__(self, other: Calibration) -> Calibration:
        """Pool two."""
        return Calibration(
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            tuple(a + b for a, b in zip(self.confidence, other.confidence, strict=True)),
            tuple(a + b for a, b in zip(self.right, other.right, strict=True)),
        )

    @property
    def bins(self) -> list[tuple[float, float, int]]:
        """(mean confidence, accuracy, count) of each bin that has predictions."""
        rows = zip(self.counts, self.confidence, self.right, strict=True)
        return [(total / n, right / n, n) for n, total, right in rows if n]

    @property
    def error(self) -> float:
        """Expected calibration error: mean gap between confidence and accuracy (Guo et al. 2017)."""
        total = sum(self.counts)
        return sum(abs(mean - accuracy) * n for mean, accuracy, n in self.bins) / total if total else 0.0


# ---------------------------------------------------------------- uncertainty


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the 2.5 and 97.5 percentiles of its bootstrap distribution."""

    value: float
    low: float
    high: float


Codes = NDArray[np.int64]


def encode(golds: Sequence[str], *answers: Sequence[str]) -> tuple[Codes, list[Codes], int]:
    """Return golds and answers as numbers of one vocabulary, and its size."""
    place = {label: i for i, label in enumerate(sorted({*golds}.union(*answers)))}
    codes = [np.array([place[label] for label in labels], dtype=np.int64) for labels in (golds, *answers)]
    return codes[0], codes[1:], len(place)


def weighted_f1_codes(golds: Codes, answers: Codes, size: int) -> float:
    """Return weighted F1 of coded labels: :attr:`Confusion.weighted_f1`, fast enough to resample."""
    support = np.bincount(golds, minlength=size)
    answered = np.bincount(answers, minlength=size)
    hits = np.bincount(golds[golds == answers], minlength=size)
    f1 = 2 * hits / np.maximum(support + answered, 1)
    return float((f1 * support).sum() / max(len(golds), 1))


@dataclass(frozen=True, slots=True)
class Answers:
    """One task's true labels and the answers of several systems, by system name, all aligned."""

    golds: Sequence[str]
    systems: Mapping[str, Sequence[str]]


def bootstrap(tasks: Mapping[str, Answers], *, resamples: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Resample the examples of each task with replacement and score every system on the same draws.

    Returns:
        System → overall score (mean weighted F1 over tasks) of each draw, float64 of shape (resamples,).
    """
    rng = np.random.default_rng(seed)
    names = list(next(iter(tasks.values())).systems) if tasks else []
    scores = {name: np.zeros(resamples) for name in names}
    for _, task in sorted(tasks.items()):
        golds, answers, size = encode(task.golds, *(task.systems[name] for name in names))
        for draw in range(resamples):
            rows = rng.integers(0, len(golds), len(golds))
            for name, codes in zip(names, answers, strict=True):
                scores[name][draw] += weighted_f1_codes(golds[rows], codes[rows], size) / len(tasks)
    return scores


def interval(value: float, draws: NDArray[np.float64]) -> Interval:
    """Return a value with the central 95 % of its draws."""
    low, high = np.percentile(draws, [2.5, 97.5]) if draws.size else (value, value)
    return Interval(value, float(low), float(high))


def resample_sums(
    columns: NDArray[np.float64], groups: Sequence[str] | None, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Sum what was counted over groups drawn whole with replacement: the draws of any ratio of sums.

    Args:
        columns: what each sample adds to each sum, shape (n, n_sums).
        groups: the dialogue of each sample: dialogues are drawn whole, since their samples are alike. None: each alone.
        resamples: draws.
        seed: of the draws; equal seeds and groups draw alike, so systems compared on them are paired.

    Returns:
        float64 of shape (resamples, n_sums).
    """
    sums = columns
    if groups is not None:
        _, codes = np.unique(np.asarray(groups), return_inverse=True)
        sums = np.stack([np.bincount(codes, weights=column) for column in columns.T], axis=1)
    rng, n = np.random.default_rng(seed), len(sums)
    drawn = np.empty((resamples, columns.shape[1]))
    for i in range(resamples):
        drawn[i] = sums[rng.integers(0, n, n)].sum(axis=0)
    return drawn


@dataclass(frozen=True, slots=True)
class McNemar:
    """Examples that only one of two systems got right, and the exact two-sided p of such a split by chance."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(golds: Sequence[str], first: Sequence[str], second: Sequence[str]) -> McNemar:
    """Compare two systems on the same examples (McNemar 1947, exact binomial form)."""
    pairs = [(a == gold, b == gold) for gold, a, b in zip(golds, first, second, strict=True)]
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p_value)


def percentiles(samples_ms: Sequence[float]) -> dict[str, float]:
    """Return p50, p90 and p99 of timings in ms; empty without samples."""
    if not samples_ms:
        return {}
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    return {"p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99)}
