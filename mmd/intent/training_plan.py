"""What a fine-tuning does before it starts: which models, on which samples, in which order, at which rates.

Everything here is a pure function of the settings, the seed and the samples' ids. The order of samples does not depend
on how many workers share a step, so one worker with twice the batch sees what two workers see; and a run that was
interrupted goes on at the very sample where it stopped, without any state of a random generator being kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ArtifactError, ConfigError
from mmd.intent.mllm import task_folder
from mmd.intent.samples import ORIGINAL
from mmd.intent.settings import FinetuneSettings
from mmd.models.schedule import cosine_rate, passes_multiple, permutation

Method = Literal["lora", "full"]
_ORDER, _HINTS = 1, 2  # streams of random numbers


@dataclass(frozen=True, slots=True)
class SampleKey:
    """What the planner knows of a sample; (task, id) is unique."""

    task: str
    id: str
    parent_id: str
    made_by: str
    label: str
    fold: int


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One model to be trained.

    Attributes:
        name: unique among the runs of a plan; fit for a folder.
        tasks: one, or all of a joint model.
        held_out_fold: the fold whose dialogues it never sees; None trains on everything.
    """

    name: str
    tasks: tuple[str, ...]
    held_out_fold: int | None

    @property
    def model(self) -> str:
        """Name of the model it makes, fit for a folder: the task's, or ``joint``."""
        return task_folder(self.tasks[0]) if len(self.tasks) == 1 else "joint"


def plan_runs(settings: FinetuneSettings, tasks: Sequence[str], folds: int) -> list[TrainingRun]:
    """Return the runs that the settings ask for: a model a task (or a joint one) x held-out folds, and refits.

    Raises:
        ConfigError: more folds shall be held out than there are, or there is no task.
    """
    if not tasks:
        raise ConfigError("no task to train: there are no samples; label dialogues and run `mmd augment` again.")
    if settings.held_out_folds > folds:
        raise ConfigError(
            f"intent.finetune.held_out_folds={settings.held_out_folds}: there are only intent.folds={folds} folds."
        )
    joint = settings.tasks == "joint" and len(tasks) > 1
    groups = [tuple(sorted(tasks))] if joint else [(task,) for task in sorted(tasks)]
    runs = []
    for group in groups:
        name = "joint" if len(group) > 1 else task_folder(group[0])
        runs += [TrainingRun(f"{name}-fold{fold}", group, fold) for fold in range(settings.held_out_folds)]
        if settings.refit or not settings.held_out_folds:
            runs.append(TrainingRun(f"{name}-all", group, None))
    return runs


def serving_runs(runs: Sequence[TrainingRun]) -> dict[str, TrainingRun]:
    """Return model name → the run whose weights answer later: the refit, else the one without fold 0."""
    chosen: dict[str, TrainingRun] = {}
    for run in runs:
        if run.model not in chosen or run.held_out_fold is None:
            chosen[run.model] = run
    return chosen


@dataclass(frozen=True)
class Division:
    """A run's samples: what it trains on (originals and copies), and the held-out originals it is judged on."""

    train: tuple[SampleKey, ...]
    held_out: tuple[SampleKey, ...]


def divide(keys: Sequence[SampleKey], run: TrainingRun) -> Division:
    """Divide the samples for one run, both parts ordered by (task, id).

    What was made of a held-out dialogue is held out, too: by its fold and by its parent's id. In a joint run a dialogue
    that is held out for one task trains no other task either.

    Raises:
        ArtifactError: nothing is left to train on.
    """
    own = sorted((key for key in keys if key.task in run.tasks), key=lambda key: (key.task, key.id))
    fold = run.held_out_fold
    parents = {key.parent_id for key in own if fold is not None and key.fold == fold}
    train = tuple(key for key in own if key.fold != fold and key.parent_id not in parents)
    held_out = tuple(key for key in own if fold is not None and key.fold == fold and key.made_by == ORIGINAL)
    if not train:
        raise ArtifactError(
            f"run {run.name}: no training sample outside fold {fold}; label more dialogues, or set "
            "intent.finetune.held_out_folds=0."
        )
    return Division(train, held_out)


@dataclass(frozen=True)
class Recipe:
    """The settings with every null decided for one base model; ``steps`` counts where ``epochs`` is None."""

    method: Method
    learning_rate: float
    warmup: float
    weight_decay: float
    clip: float
    epochs: float | None
    batch: int
    accumulate: int
    workers: int
    steps: int = 0


# What random weights need to learn shapes and words from nothing: measured on the simulated shop's pictures, 628 unseen
# ones: .64 right after 260 steps, .84 after 520, .90 after 1,040. Pretrained weights need a few passes.
_TINY_STEPS = 1100


def recipe_for(settings: FinetuneSettings, base: str) -> Recipe:
    """Decide what the settings leave open: random weights (``tiny-*``) are trained in full, pretrained ones adapted.

    Raises:
        ConfigError: the method has no training loop.
    """
    if settings.method == "frozen":
        raise ConfigError("intent.finetune.method=frozen: fits a head in one pass; there are no steps to plan.")
    tiny = base.startswith("tiny-")
    method: Method = ("full" if tiny else "lora") if settings.method == "auto" else settings.method
    return Recipe(
        method=method,
        learning_rate=_or(settings.learning_rate, 2e-4 if method == "lora" else 1e-3 if tiny else 2e-5),
        warmup=_or(settings.warmup, 0.15 if tiny else 0.05),
        weight_decay=_or(settings.weight_decay, 0.05 if tiny else 0.01),
        clip=settings.clip,
        epochs=settings.epochs if settings.epochs is not None or tiny else 4.0,
        batch=settings.batch or (32 if tiny else 8),
        accumulate=settings.accumulate,
        workers=settings.workers,
        steps=_TINY_STEPS if tiny else 0,
    )


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


@dataclass(frozen=True)
class StepPlan:
    """Which samples each optimizer step takes, and at which rate.

    Positions count samples through all epochs: position p is sample ``p mod n`` of epoch ``p div n``'s permutation. A
    step takes the next ``batch x workers x accumulate`` positions, so the last samples of an epoch share a step with
    the first of the next: no sample is dropped and no step is smaller.

    Args:
        keys: the training samples, in a fixed order.
        recipe: batch sizes, epochs and rates.
        seed: of the order and of which prompts tell hints.
        hint_share: share of positions whose prompt tells its hint.
        steps: optimizer steps; None follows from the recipe.
    """

    keys: tuple[SampleKey, ...]
    recipe: Recipe
    seed: int
    hint_share: float
    steps: int | None = None

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step, over all workers."""
        return self.recipe.batch * self.recipe.workers * self.recipe.accumulate

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run, at least 1."""
        if self.steps is not None:
            return self.steps
        if self.recipe.epochs is None:
            return self.recipe.steps
        return max(1, round(self.recipe.epochs * len(self.keys) / self.global_batch))

    @property
    def total_positions(self) -> int:
        """Samples that all steps take together, repeats counted."""
        return self.total_steps * self.global_batch

    def epoch(self, step: int) -> float:
        """Return the epochs that are done before a step."""
        return step * self.global_batch / len(self.keys)

    def sample(self, position: int) -> int:
        """Return the index into ``keys`` of the sample at a position."""
        epoch, place = divmod(position, len(self.keys))
        return int(permutation(len(self.keys), self.seed, _ORDER, epoch)[place])

    def tells_hint(self, position: int) -> bool:
        """Say whether the prompt at a position tells the sample's hint (if it has one)."""
        epoch, place = divmod(position, len(self.keys))
        return bool(_uniform(len(self.keys), self.seed, epoch)[place] < self.hint_share)

    def step_positions(self, step: int) -> range:
        """Return the positions of one step, over all workers."""
        return range(step * self.global_batch, (step + 1) * self.global_batch)

    def worker_of(self, position: int) -> int:
        """Return the worker that a position belongs to: micro-batches go round the workers."""
        return position // self.recipe.batch % self.recipe.workers

    def micro_positions(self, step: int, micro: int, worker: int) -> range:
        """Return the positions of a worker's micro-batch."""
        recipe = self.recipe
        start = step * self.global_batch + (micro * recipe.workers + worker) * recipe.batch
        return range(start, start + recipe.batch)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns of a stored sample that tell which one it is."""
        return ("task", "id")

    @property
    def samples_count(self) -> int:
        """How many samples there are."""
        return len(self.keys)

    @property
    def workers(self) -> int:
        """How many processes share a step."""
        return self.recipe.workers

    def placed_keys(self, start: int, end: int, worker: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield a worker's positions in a range of whole steps, with (task, id) of their samples."""
        for position in range(start, end):
            if self.worker_of(position) == worker:
                key = self.keys[self.sample(position)]
                yield position, (key.task, key.id)

    def batches(self, step: int, worker: int) -> Iterator[range]:
        """Yield the positions of each of a worker's micro-batches in a step."""
        for micro in range(self.recipe.accumulate):
            yield self.micro_positions(step, micro, worker)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step (0-based)."""
        return cosine_rate(step, self.total_steps, self.recipe.learning_rate, self.recipe.warmup)

    def is_due(self, step: int, every_epochs: float) -> bool:
        """Say whether, after ``step`` steps, another multiple of ``every_epochs`` is reached, or the end."""
        return step == self.total_steps or passes_multiple(self.epoch(step - 1), self.epoch(step), every_epochs)


def step_tokens(plan: StepPlan, step: int, answer_tokens: Mapping[str, int]) -> int:
    """Return the answer tokens of a whole step, over all workers.

    Args:
        plan: the plan.
        step: 0-based.
        answer_tokens: label → tokens of the answer, its end included.
    """
    return sum(answer_tokens[plan.keys[plan.sample(position)].label] for position in plan.step_positions(step))


@lru_cache(maxsize=4)
def _uniform(n: int, seed: int, epoch: int) -> NDArray[np.float64]:
    return np.random.default_rng([seed, _HINTS, epoch]).random(n)
