"""The vote of rules: what the rules that fire on an example say together.

The best firing rule alone (Wilson lower bound, then support) is the paper's prediction; on few-shot data it is
weak, as every rule was seen firing a few times only. In the vote each fired rule adds its log lift, the
logarithm of how much likelier its label becomes when it fires, so that many weak rules outweigh one lucky one.
Labels with many rules would outshout those with few; a firing therefore counts the less the more evidence the
base holds for its label. Form of the vote: ours, chosen by nested cross-validation
(docs/results/kdsl-rules-research.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from mmd.intent.rules import RuleStats

_EVENNESS = 0.75  # 0: every firing counts alike; 1: what counts is the share of a label's evidence that fires


class Voter(Protocol):
    """A rule as far as a vote looks at it."""

    @property
    def label(self) -> str:
        """What it speaks for."""
        ...

    @property
    def stats(self) -> RuleStats:
        """Its held-out record."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say: ``margin`` is the winner's evidence less the runner-up's, in nats."""

    label: str
    margin: float

    @property
    def confidence(self) -> float:
        """The margin on a scale from 0 to 1 (exclusive): margin / (1 + margin). An order, not a probability."""
        return self.margin / (1.0 + self.margin)


def log_lift(stats: RuleStats, n_labels: int) -> float:
    """Return log(smoothed precision · n_labels), at least 0: the evidence of one firing, in nats.

    The precision is smoothed by one example at chance level, 1 / n_labels.
    """
    chance = 1.0 / max(1, n_labels)
    return max(0.0, math.log((stats.hits + chance) / (stats.support + 1.0) / chance))


def label_weights(rules: Iterable[Voter]) -> dict[str, float]:
    """Return label → what a firing for it counts: (mean evidence of the labels / its own)^0.75.

    Args:
        rules: every rule of one task. A label's evidence is the log lift of all its rules together.
    """
    voters = list(rules)
    n_labels = len({rule.label for rule in voters})
    totals: dict[str, float] = {}
    for rule in voters:
        totals[rule.label] = totals.get(rule.label, 0.0) + log_lift(rule.stats, n_labels)
    heard = {label: total for label, total in totals.items() if total > 0.0}
    mean = sum(heard.values()) / len(heard) if heard else 1.0
    return {label: (mean / heard[label]) ** _EVENNESS if label in heard else 1.0 for label in totals}


def tally(fired: Iterable[Voter], n_labels: int) -> dict[str, float]:
    """Return label → summed evidence of the rules that fired for it: log lift (nats) times the rule's weight."""
    totals: dict[str, float] = {}
    for rule in fired:
        totals[rule.label] = totals.get(rule.label, 0.0) + rule.stats.weight * log_lift(rule.stats, n_labels)
    return totals


def verdict(fired: Iterable[Voter], n_labels: int) -> Verdict | None:
    """Return the label with the most evidence; None where nothing speaks for any. Ties go to the first by name.

    Args:
        fired: the rules that fired on one example.
        n_labels: labels that the task's rules speak for.
    """
    ranked = sorted(tally(fired, n_labels).items(), key=lambda item: (-item[1], item[0]))
    if not ranked or ranked[0][1] <= 0.0:
        return None
    runner_up = ranked[1][1] if len(ranked) > 1 else 0.0
    return Verdict(ranked[0][0], ranked[0][1] - runner_up)
