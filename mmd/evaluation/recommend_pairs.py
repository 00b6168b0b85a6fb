"""Speakers against each other: what seeds and conversations leave of a difference between two ways of training.

Every response adds to sums (:data:`COLUMNS`), of which every measure is a ratio; draws of conversations are the same
for all systems that answered the same responses, so that differences are paired. A system trained with several seeds is
their mean, draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from mmd.evaluation.metrics import Interval, interval
from mmd.evaluation.recommending import ItemHits, Likelihood, Sums, item_rate, resampled

_HITS = 7  # the counts of ItemHits
COLUMNS = 3 + _HITS
"""Those of :attr:`mmd.evaluation.recommending.ItemHits.sums` at k = 1, then nll (nats), tokens, responses."""
_NLL, _TOKENS, _RESPONSES = _HITS, _HITS + 1, _HITS + 2
_WITH_ITEMS = 5

Verdict = Literal["holds", "does not hold", "open"]


def _safe(above: Sums, below: Sums) -> Sums:
    ratio: Sums = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio


MEASURES: Mapping[str, Callable[[Sums], Sums]] = {
    "F1@1": lambda sums: item_rate("F1", sums[..., :_HITS]),
    "ReR@1": lambda sums: item_rate("ReR", sums[..., :_HITS]),
    "PrR@1": lambda sums: item_rate("PrR", sums[..., :_HITS]),
    "F1@1, per response": lambda sums: item_rate("F1", sums[..., :_HITS], "response"),
    "ReR@1, per response": lambda sums: item_rate("ReR", sums[..., :_HITS], "response"),
    "PrR@1, per response": lambda sums: item_rate("PrR", sums[..., :_HITS], "response"),
    "perplexity": lambda sums: np.exp(_safe(sums[..., _NLL], sums[..., _TOKENS])),
    "item ratio": lambda sums: _safe(sums[..., _WITH_ITEMS], sums[..., _RESPONSES]),
}
"""Name → its value of sums (..., COLUMNS): micro where not said otherwise."""


def response_sums(hits: Sequence[ItemHits], likelihoods: Sequence[Likelihood]) -> Sums:
    """Return what each response adds, (n, COLUMNS).

    Args:
        hits: of the generated responses, at k = 1.
        likelihoods: of the right ones.
    """
    rows = [(*found.sums, said.nll, said.tokens, 1) for found, said in zip(hits, likelihoods, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, COLUMNS)


@dataclass(frozen=True)
class Difference:
    """How much more of a measure one system has than another.

    Attributes:
        measure: name of it.
        first: its mean over seeds.
        second: the other's.
        absolute: first minus second, with the central 95 % over draws of conversations.
        relative: first / second - 1 with the same; None where the second may be 0.
        by_seed: difference of the runs of each seed.
    """

    measure: str
    first: float
    second: float
    absolute: Interval
    relative: Interval | None
    by_seed: tuple[float, ...]

    def is_more(self, at_least: float = 0.0) -> Verdict:
        """Say whether the first has more, by a share of the second's if ``at_least`` is given.

        The claim holds when the whole interval lies above, does not when it lies below, and is open otherwise.
        """
        found = self.absolute if at_least == 0 else self.relative
        if found is None:
            return "open"
        if found.low > at_least:
            return "holds"
        return "does not hold" if found.high < at_least else "open"

    def is_no_more(self, margin: float = 0.0) -> Verdict:
        """Say whether the first has at most a share ``margin`` more than the second."""
        swapped: dict[Verdict, Verdict] = {"holds": "does not hold", "does not hold": "holds", "open": "open"}
        return swapped[self.is_more(margin)]


@dataclass(frozen=True)
class Comparison:
    """Systems that answered the same responses.

    Args:
        runs: system → its runs, one a seed: (n, COLUMNS) each.
        groups: the conversation of each response.
        resamples: draws of conversations.
        seed: of the draws.
    """

    runs: Mapping[str, Sequence[Sums]]
    groups: Sequence[str]
    resamples: int = 1_000
    seed: int = 0
    _drawn: dict[str, Sums] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def totals(self) -> Mapping[str, Sums]:
        """System → sums of its runs, (seeds, COLUMNS)."""
        return {name: np.stack([run.sum(axis=0) for run in runs]) for name, runs in self.runs.items()}

    def value(self, system: str, measure: str) -> Interval:
        """Return the mean over seeds with the central 95 % over draws of conversations."""
        means = MEASURES[measure](self._draws(system)).mean(axis=-1)
        return interval(float(self.by_seed(system, measure).mean()), means)

    def by_seed(self, system: str, measure: str) -> Sums:
        """Return a measure of each run."""
        return MEASURES[measure](self.totals[system])

    def difference(self, first: str, second: str, measure: str) -> Difference:
        """Compare two systems."""
        of = MEASURES[measure]
        values = [self.by_seed(name, measure) for name in (first, second)]
        draws = [of(self._draws(name)).mean(axis=-1) for name in (first, second)]
        means = [float(found.mean()) for found in values]
        relative = None
        if means[1] > 0 and (draws[1] > 0).all():
            relative = interval(means[0] / means[1] - 1, draws[0] / draws[1] - 1)
        paired = tuple(float(a - b) for a, b in zip(*values, strict=False))
        return Difference(
            measure, means[0], means[1], interval(means[0] - means[1], draws[0] - draws[1]), relative, paired
        )

    def _draws(self, system: str) -> Sums:
        """Return sums of each draw and run, (resamples, seeds, COLUMNS)."""
        if system not in self._drawn:
            runs = [resampled(run, self.groups, self.resamples, self.seed) for run in self.runs[system]]
            self._drawn[system] = np.stack(runs, axis=1)
        return self._drawn[system]
