"""Which samples each training step takes, and at which rate: pure functions of the samples' keys, settings and seed.

The samples of a step do not depend on how many workers share it, so one worker sees what two see; and an interrupted
run goes on at the very sample where it stopped, without any state of a random generator being kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ConfigError
from mmd.models.schedule import cosine_rate, passes_multiple, permutation
from mmd.retrieval.bases import trains_text, trains_vision
from mmd.retrieval.settings import TowerSettings, TrainingSettings
from mmd.retrieval.types import Sample

Indices = NDArray[np.int64]
TEXT = "text"
_ORDER, _TEXT_ORDER, _PLACES = 1, 2, 3  # streams of random numbers
_HEAD_RATE, _MODEL_RATE = 1e-3, 5e-5


@dataclass(frozen=True, slots=True)
class SampleKey:
    """What the plan and the loss know of a sample without its words."""

    id: str
    modality: str
    response_id: str
    also: tuple[str, ...] = ()


def key_of(sample: Sample) -> SampleKey:
    """Return a sample's key."""
    return SampleKey(sample.id, sample.modality, sample.response_id, sample.also)


@dataclass(frozen=True)
class BatchRecipe:
    """The settings that steps depend on, with every null decided."""

    epochs: float
    batch: int
    workers: int
    learning_rate: float
    warmup: float
    text_fraction: float | None = None


def recipe_for(training: TrainingSettings, towers: TowerSettings) -> BatchRecipe:
    """Decide what the settings leave open: heads over frozen features learn fast, pretrained models slowly."""
    return BatchRecipe(
        epochs=training.epochs,
        batch=training.batch,
        workers=training.workers,
        learning_rate=training.learning_rate
        or (_MODEL_RATE if trains_text(towers) or trains_vision(towers) else _HEAD_RATE),
        warmup=training.warmup,
        text_fraction=training.text_fraction,
    )


@dataclass(frozen=True)
class BatchPlan:
    """The steps of a run.

    Without a text fraction, all samples are one stream: epoch after epoch in an order of its own, cut into batches, so
    that the last samples of an epoch share a step with the first of the next; none is dropped, no step is smaller.
    With one, texts and the rest are a stream each, and a batch takes its share of both; the stream that ends first
    begins again. Either way an epoch is as many samples as there are.

    A set smaller than a batch makes the batch smaller: a sample twice in a step would teach nothing.

    Args:
        keys: the training samples, in a fixed order.
        recipe: batch, epochs and rates.
        seed: of the order.

    Raises:
        ConfigError: there is no sample, fewer than workers, or none of a kind that the text fraction asks for.
    """

    keys: tuple[SampleKey, ...]
    recipe: BatchRecipe
    seed: int

    def __post_init__(self) -> None:
        """Check that every step can be filled."""
        if self.batch < max(2, self.recipe.workers):
            raise ConfigError(
                f"{len(self.keys)} training samples for {self.recipe.workers} workers: a step needs one a worker, and "
                "two in all, since responses are each other's negatives; take a larger corpus, fewer workers "
                "(retrieval.training.workers), a larger retrieval.training.batch or other "
                "retrieval.samples.modalities."
            )
        for name, stream, count in zip(("text", "other"), self._streams, self._counts, strict=True):
            if count and not stream.size:
                raise ConfigError(
                    f"retrieval.training.text_fraction={self.recipe.text_fraction}: asks for {count} {name} samples a "
                    f"batch, and there are none; set it to null, or see retrieval.samples.modalities."
                )

    @property
    def batch(self) -> int:
        """Samples of a step, over all workers."""
        return min(self.recipe.batch, len(self.keys))

    @cached_property
    def total_steps(self) -> int:
        """Steps of the whole run, at least 1."""
        return max(1, round(self.recipe.epochs * len(self.keys) / self.batch))

    @property
    def total_positions(self) -> int:
        """Samples that all steps take together, repeats counted."""
        return self.total_steps * self.batch

    @cached_property
    def _streams(self) -> tuple[Indices, Indices]:
        """Indices of text samples and of all others; without a text fraction, all are others."""
        mixed = self.recipe.text_fraction is not None
        is_text = np.array([mixed and key.modality == TEXT for key in self.keys], dtype=bool)
        return np.flatnonzero(is_text), np.flatnonzero(~is_text)

    @cached_property
    def _counts(self) -> tuple[int, int]:
        """Samples of a batch from each stream."""
        texts = round((self.recipe.text_fraction or 0.0) * self.batch)
        return texts, self.batch - texts

    @cached_property
    def mean_counts(self) -> dict[str, float]:
        """Modality → samples of it in a batch, on average; a text fraction makes them others than those there are."""
        counts: dict[str, float] = {}
        for stream, count in zip(self._streams, self._counts, strict=True):
            kinds = Counter(self.keys[index].modality for index in stream.tolist())
            for modality, there in kinds.items():
                counts[modality] = counts.get(modality, 0.0) + count * there / len(stream)
        return counts

    def samples(self, step: int) -> Indices:
        """Return indices into ``keys`` of a step's samples, over all workers; shape (batch,)."""
        drawn = [
            self._draw(stream, step * count, count, purpose)
            for stream, count, purpose in zip(self._streams, self._counts, (_TEXT_ORDER, _ORDER), strict=True)
        ]
        joined = np.concatenate(drawn)
        if self.recipe.text_fraction is None:
            return joined
        return joined[permutation(self.batch, self.seed, _PLACES, step)]  # else one worker would get all texts

    def _draw(self, stream: Indices, start: int, count: int, purpose: int) -> Indices:
        """Return ``count`` members of an endlessly repeated, each time shuffled stream, from a position on."""
        out = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            epoch, place = divmod(start + done, len(stream))
            part = stream[permutation(len(stream), self.seed, purpose, epoch)[place : place + count - done]]
            out[done : done + len(part)] = part
            done += len(part)
        return out

    def share(self, worker: int) -> range:
        """Return a worker's places in every batch; shares differ by one sample at most."""
        batch, workers = self.batch, self.recipe.workers
        return range(worker * batch // workers, (worker + 1) * batch // workers)

    @property
    def shares(self) -> tuple[int, ...]:
        """How many samples of a batch each worker has."""
        return tuple(len(self.share(worker)) for worker in range(self.recipe.workers))

    def own_samples(self, step: int, worker: int) -> Indices:
        """Return indices of a worker's samples in a step."""
        places = self.share(worker)
        return self.samples(step)[places.start : places.stop]

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns of a stored sample that tell which one it is."""
        return ("id",)

    @property
    def samples_count(self) -> int:
        """How many samples there are."""
        return len(self.keys)

    @property
    def workers(self) -> int:
        """How many processes share a step."""
        return self.recipe.workers

    @property
    def global_batch(self) -> int:
        """Samples of a step, over all workers."""
        return self.batch

    def placed_keys(self, start: int, end: int, worker: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield a worker's positions in a range of whole steps, with the ids of their samples.

        Position p is place ``p mod batch`` of step ``p div batch``.
        """
        for step in range(start // self.batch, end // self.batch):
            (positions,) = self.batches(step, worker)
            for position, index in zip(positions, self.own_samples(step, worker).tolist(), strict=True):
                yield position, (self.keys[index].id,)

    def batches(self, step: int, worker: int) -> Iterator[range]:
        """Yield the positions of a worker's share of a step."""
        places = self.share(worker)
        yield range(step * self.batch + places.start, step * self.batch + places.stop)

    def epoch(self, step: int) -> float:
        """Return the epochs that are done before a step."""
        return step * self.batch / len(self.keys)

    def begins_epoch(self, step: int) -> bool:
        """Say whether a step (0-based) is the first that begins in its epoch."""
        return step == 0 or passes_multiple(self.epoch(step - 1), self.epoch(step), 1.0)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step (0-based)."""
        return cosine_rate(step, self.total_steps, self.recipe.learning_rate, self.recipe.warmup)

    def is_due(self, step: int, every_epochs: float) -> bool:
        """Say whether, after ``step`` steps, another multiple of ``every_epochs`` is reached, or the end."""
        return step == self.total_steps or passes_multiple(self.epoch(step - 1), self.epoch(step), every_epochs)
