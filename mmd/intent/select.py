"""Selection of the rule base by held-out statistics, and what the rules predict by themselves.

A rule's evidence are the examples that it fired on while they were held out from its discovery: from proposing
its predicates, from making its prototypes and from searching. Found in several folds, a rule pools their
held-out parts; an example counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmd.intent.bitsets import wilson_lower
from mmd.intent.rules import Predicate

RuleKey = tuple[str, tuple[Predicate, ...]]
"""Label and predicates, sorted: the same conjunction found by different searches has the same key."""


@dataclass(frozen=True, slots=True)
class FoldRule:
    """A rule as one search found it, with the held-out examples (their row numbers) that it fired on."""

    label: str
    predicates: tuple[Predicate, ...]
    reward: float
    hits: int  # on the examples that it was found on
    support: int
    fired: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """A rule's pooled held-out evidence. ``fired`` marks the examples, shape (n_examples,)."""

    key: RuleKey
    fired: NDArray[np.bool_]
    support: int
    hits: int
    searches: int  # that found it

    @property
    def precision(self) -> float:
        """Hits a firing; 0 without any."""
        return self.hits / self.support if self.support else 0.0

    @property
    def wilson(self) -> float:
        """Lower end of the 95 % Wilson interval of the precision."""
        return float(wilson_lower(self.hits, self.support))


def pool(found: Iterable[FoldRule], labels: Sequence[str]) -> list[Evidence]:
    """Pool the held-out firings of equal rules; the result is ordered by rule, whatever the order of ``found``."""
    truth = np.array(labels)
    fired: defaultdict[RuleKey, NDArray[np.bool_]] = defaultdict(lambda: np.zeros(len(labels), np.bool_))
    searches: defaultdict[RuleKey, int] = defaultdict(int)
    for rule in found:
        key = (rule.label, tuple(sorted(rule.predicates)))
        fired[key][list(rule.fired)] = True
        searches[key] += 1
    return [
        Evidence(key, rows, int(rows.sum()), int((rows & (truth == key[0])).sum()), searches[key])
        for key, rows in sorted(fired.items(), key=lambda item: item[0])
    ]


def prune_supersets(evidence: Sequence[Evidence]) -> list[Evidence]:
    """Drop every rule that has a subset of its predicates, for the same label, scoring at least as well.

    Score: Wilson lower bound, then support.
    """
    by_label: defaultdict[str, list[tuple[frozenset[Predicate], Evidence]]] = defaultdict(list)
    kept = []
    for item in sorted(evidence, key=lambda e: (len(e.key[1]), e.key)):
        predicates = frozenset(item.key[1])
        score = (item.wilson, item.support)
        shorter = by_label[item.key[0]]
        if not any(subset <= predicates and (e.wilson, e.support) >= score for subset, e in shorter):
            shorter.append((predicates, item))
            kept.append(item)
    return kept


def prune_alike(evidence: Sequence[Evidence], max_overlap: float) -> list[Evidence]:
    """Drop rules that fire on nearly the same held-out examples as a better rule for the same label.

    Args:
        evidence: rules that fired at least once.
        max_overlap: Jaccard similarity of two rules' firings from which the weaker one goes, (0, 1]; above 1 none.

    Returns:
        The rest, best first (Wilson lower bound, support, fewer predicates).
    """
    chosen: defaultdict[str, list[NDArray[np.bool_]]] = defaultdict(list)
    kept = []
    for item in sorted(evidence, key=lambda e: (-e.wilson, -e.support, len(e.key[1]), e.key)):
        others = chosen[item.key[0]]
        if others:
            rows = np.stack(others)
            both = (rows & item.fired).sum(axis=1)
            if (both / (rows.sum(axis=1) + item.support - both)).max() >= max_overlap:
                continue
        others.append(item.fired)
        kept.append(item)
    return kept


def keep_rules(
    evidence: Iterable[Evidence], *, min_support: int, min_precision: float, min_searches: float, max_overlap: float
) -> list[Evidence]:
    """Keep rules that affirm something, with enough held-out support, hits and precision, that enough searches found.

    A rule of negations alone speaks wherever its corpus's words are missing, so in every other corpus on nearly
    everything; at home nothing is lost without them (docs/results/kdsl-experiments.md, `false_firing`).
    Of the others, supersets that are no better (:func:`prune_supersets`) and rules too alike (:func:`prune_alike`) go.
    """
    good = [
        e
        for e in evidence
        if e.support >= min_support
        and e.hits > 0
        and e.precision >= min_precision
        and e.searches >= min_searches
        and not all(predicate.negated for predicate in e.key[1])
    ]
    return prune_alike(prune_supersets(good), max_overlap)
