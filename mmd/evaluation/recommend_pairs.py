"""Speakers against each other: what seeds and conversations leave of a difference between two ways of training.

Every response adds to sums (:data:`COLUMNS`), of which every measure is a ratio. A system trained with several seeds is
their mean. Each draw of the bootstrap takes conversations and seeds, both with replacement, so that an interval covers
what another run might have given, too; draws are the same for all systems, so that differences are paired. Of
three seeds each makes up one draw in 27 alone: no interval is narrower than what seeds disagree by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmd.evaluation.metrics import Interval, interval
from mmd.evaluation.recommending import HIT_COLUMNS, ItemHits, Likelihood, Sums, item_rate, ratio, resampled

_HITS = len(HIT_COLUMNS)
COLUMNS = 3 + _HITS
"""Those of :attr:`mmd.evaluation.recommending.ItemHits.sums` at k = 1, then nll (nats), tokens, responses."""
_NLL, _TOKENS, _RESPONSES = _HITS, _HITS + 1, _HITS + 2
_WITH_ITEMS = HIT_COLUMNS.index("with_items")

Verdict = Literal["holds", "does not hold", "open"]
INTERVALS = (
    "central 95 % over draws of conversations and of seeds, both with replacement and the same for all systems; a "
    "claim holds when the interval and the difference of every single seed say so"
)
"""What an interval of a record is."""


MEASURES: Mapping[str, Callable[[Sums], Sums]] = {
    "F1@1": lambda sums: item_rate("F1", sums[..., :_HITS]),
    "ReR@1": lambda sums: item_rate("ReR", sums[..., :_HITS]),
    "PrR@1": lambda sums: item_rate("PrR", sums[..., :_HITS]),
    "F1@1, per response": lambda sums: item_rate("F1", sums[..., :_HITS], "response"),
    "ReR@1, per response": lambda sums: item_rate("ReR", sums[..., :_HITS], "response"),
    "PrR@1, per response": lambda sums: item_rate("PrR", sums[..., :_HITS], "response"),
    "perplexity": lambda sums: np.exp(ratio(sums[..., _NLL], sums[..., _TOKENS])),
    "item ratio": lambda sums: ratio(sums[..., _WITH_ITEMS], sums[..., _RESPONSES]),
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


def mode_uncounted(rows: Sums) -> Sums:
    """Return sums in which the mode is no token, while what it cost stays: rows (n, COLUMNS) of replies that begin so.

    The mode follows from the words, so that the nats of both are those of the words without a mode; over as many words,
    perplexities of models with and without mode tokens are of one kind.
    """
    found = rows.copy()
    found[..., _TOKENS] -= found[..., _RESPONSES]
    return found


@dataclass(frozen=True)
class Difference:
    """How much more of a measure one system has than another.

    Attributes:
        measure: name of it.
        firsts: of each seed.
        seconds: the other's, by the same seeds.
        absolute: mean of the first minus mean of the second, with the central 95 % over draws.
        relative: ratio of the means - 1 with the same; None where the second may be 0.
    """

    measure: str
    firsts: tuple[float, ...]
    seconds: tuple[float, ...]
    absolute: Interval
    relative: Interval | None

    @property
    def by_seed(self) -> tuple[float, ...]:
        """First minus second of each seed."""
        return tuple(first - second for first, second in zip(self.firsts, self.seconds, strict=True))

    def is_more(self, at_least: float = 0.0) -> Verdict:
        """Say whether the first has more, by a share of the second's if ``at_least`` is given.

        The claim holds when the whole interval and every seed lie above, does not when all lie below, and is open
        otherwise.
        """
        found = self.absolute if at_least == 0 else self.relative
        if found is None:
            return "open"
        beyond = [a - (1 + at_least) * b for a, b in zip(self.firsts, self.seconds, strict=True)]
        if found.low > at_least and all(value > 0 for value in beyond):
            return "holds"
        return "does not hold" if found.high < at_least and all(value < 0 for value in beyond) else "open"

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
        resamples: draws of conversations and seeds.
        seed: of the draws.

    Raises:
        ValueError: systems have unequally many runs, so that seeds have no pairs.
    """

    runs: Mapping[str, Sequence[Sums]]
    groups: Sequence[str]
    resamples: int = 1_000
    seed: int = 0
    _drawn: dict[str, Sums] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check that seeds have pairs."""
        counts = {name: len(runs) for name, runs in self.runs.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"every system needs a run of each seed to be compared by seeds; runs: {counts}")

    @cached_property
    def totals(self) -> Mapping[str, Sums]:
        """System → sums of its runs, (seeds, COLUMNS)."""
        return {name: np.stack([run.sum(axis=0) for run in runs]) for name, runs in self.runs.items()}

    def value(self, system: str, measure: str) -> Interval:
        """Return the mean over seeds with the central 95 % over draws."""
        return interval(float(self.by_seed(system, measure).mean()), self._means(system, measure))

    def by_seed(self, system: str, measure: str) -> Sums:
        """Return a measure of each run."""
        return MEASURES[measure](self.totals[system])

    def difference(self, first: str, second: str, measure: str) -> Difference:
        """Compare two systems."""
        firsts, seconds = (self.by_seed(name, measure) for name in (first, second))
        draws = [self._means(name, measure) for name in (first, second)]
        means = [float(found.mean()) for found in (firsts, seconds)]
        relative = None
        if means[1] > 0 and (draws[1] > 0).all():
            relative = interval(means[0] / means[1] - 1, draws[0] / draws[1] - 1)
        absolute = interval(means[0] - means[1], draws[0] - draws[1])
        return Difference(measure, tuple(firsts.tolist()), tuple(seconds.tolist()), absolute, relative)

    def _means(self, system: str, measure: str) -> Sums:
        """Return the mean over the seeds of each draw, (resamples,)."""
        values = MEASURES[measure](self._draws(system))
        means: Sums = np.take_along_axis(values, self._seeds[: len(values)], axis=1).mean(axis=1)
        return means

    @cached_property
    def _seeds(self) -> NDArray[np.intp]:
        """Positions of the seeds of each draw, with replacement, (resamples, seeds)."""
        seeds = len(next(iter(self.runs.values())))
        # A stream of its own: conversations are drawn alike whatever the number of seeds.
        return np.random.default_rng([self.seed, 1]).integers(0, seeds, (self.resamples, seeds))

    def _draws(self, system: str) -> Sums:
        """Return sums of each draw and run, (resamples, seeds, COLUMNS)."""
        if system not in self._drawn:
            runs = [resampled(run, self.groups, self.resamples, self.seed) for run in self.runs[system]]
            self._drawn[system] = np.stack(runs, axis=1)
        return self._drawn[system]
