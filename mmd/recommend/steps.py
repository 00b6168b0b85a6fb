"""Which samples each step of a training takes, and at which rate; the same for any number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ConfigError
from mmd.models.schedule import cosine_rate, passes_multiple, permutation
from mmd.recommend.settings import StepSettings

Indices = NDArray[np.int64]
_ORDER, _GROUPS = 1, 2  # streams of random numbers
_GROUP_STEPS = 32  # batches whose samples are sorted by length together


@dataclass(frozen=True)
class StepPlan:
    """Which samples each step takes, and at which rate: pure functions of the step.

    All samples are one endless stream, epoch after epoch in an order of its own, cut into batches, so that the last
    samples of an epoch share a step with the first of the next; none is dropped, no step is smaller. With lengths,
    groups of 32 consecutive batches are sorted by length, cut again and shuffled as batches: padding shrinks, while
    which samples meet still changes from epoch to epoch.

    Args:
        samples: how many there are.
        settings: batch, epochs and rates.
        seed: of the order.
        lengths: of every sample; None: order is left to chance.

    Raises:
        ConfigError: there is no sample.
    """

    samples: int
    settings: StepSettings
    seed: int
    lengths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check that there is something to learn from."""
        if not self.samples:
            raise ConfigError(
                "there is no sample to train on; the corpus needs dialogues in which the agent names items "
                "(`mmd build_graph` prints how many there are)."
            )

    @property
    def batch(self) -> int:
        """Samples of a step, over all workers; a set smaller than a batch makes the batch smaller."""
        return min(self.settings.batch, self.samples)

    @cached_property
    def total_steps(self) -> int:
        """Steps of the whole run, at least 1."""
        return max(1, self.settings.min_steps, round(self.settings.epochs * self.samples / self.batch))

    def step_samples(self, step: int) -> Indices:
        """Return the indices of a step's samples, over all workers; shape (batch,)."""
        if self.lengths is None:
            return self._stream(step * self.batch, self.batch)
        first = step - step % _GROUP_STEPS
        count = min(_GROUP_STEPS, self.total_steps - first)
        group = self._stream(first * self.batch, count * self.batch)
        ordered = group[np.argsort(np.array(self.lengths)[group], kind="stable")]
        place = int(permutation(count, self.seed, _GROUPS, first)[step - first])
        return ordered[place * self.batch : (place + 1) * self.batch]

    def own_samples(self, step: int, rank: int, world: int) -> Indices:
        """Return the indices of a worker's samples in a step; shares differ by one sample at most."""
        return self.step_samples(step)[rank::world]

    def _stream(self, start: int, count: int) -> Indices:
        parts = []
        while count:
            epoch, place = divmod(start, self.samples)
            part = permutation(self.samples, self.seed, _ORDER, epoch)[place : place + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    def epoch(self, step: int) -> float:
        """Return the epochs that are done before a step."""
        return step * self.batch / self.samples

    def rate(self, step: int) -> float:
        """Return the learning rate of a step (0-based)."""
        return cosine_rate(step, self.total_steps, self.settings.learning_rate, self.settings.warmup)

    def is_due(self, step: int) -> bool:
        """Say whether, after ``step`` steps, it is time to validate: as often as the settings say, and at the end.

        A run that ``min_steps`` makes longer is judged as often as it would be without.
        """
        stretch = self.epoch(self.total_steps) / self.settings.epochs
        every = self.settings.validate_every * max(1.0, stretch)
        return step == self.total_steps or passes_multiple(self.epoch(step - 1), self.epoch(step), every)
