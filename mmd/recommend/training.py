"""Training ψ, φ and θ: one loop, without Ray.

What is trained is a :class:`Task`; the loop knows samples, steps, validations and checkpoints. It is the same however
many processes share a step (``jobs.glue.recommend`` runs it under Ray Train) and whoever makes the steps
(:mod:`mmd.models.engines`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ModelError
from mmd.models.ahead import ahead
from mmd.models.course import TrainState
from mmd.models.engines import Engine, PlainEngine
from mmd.models.weights import put_trained
from mmd.models.workers import Workers
from mmd.recommend.settings import StepSettings
from mmd.recommend.steps import StepPlan

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]
    Part = Callable[[], torch.Tensor]

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)
StepReport = Callable[[dict[str, Any]], None]
_TRAINED_FILE, _BEST_FILE = "trained.safetensors", "best.safetensors"
_DROPOUT = 3  # a stream of random numbers; 1 and 2 are the plan's
_BATCHES_AHEAD = 3


class Task(Protocol[S_contra]):
    """What is trained, and on what it is judged."""

    @property
    def model(self) -> torch.nn.Module:
        """The module whose weights with ``requires_grad`` are trained; on its device."""
        ...

    def batch(self, samples: Sequence[S_contra]) -> Any:  # noqa: ANN401 (the loop only hands it to ``loss``)
        """Return what :meth:`loss` reads of samples.

        Called from a thread beside the one that trains and judges, so that the next batches are ready in time.
        """
        ...

    def loss(self, batch: Any) -> tuple[torch.Tensor, int]:  # noqa: ANN401 (what ``batch`` gave)
        """Return the loss summed over the batch's units (tokens, mentions), a float32 scalar, and how many these are.

        The loop divides by the units of the whole step, over all workers. The model is in training mode.
        """
        ...

    def judge(self) -> dict[str, float]:
        """Return what validation says; ``score`` is what the best weights have most of. Nothing held out says nothing.

        The model is in evaluation mode and gradients are off. Every worker is asked; the first one's answer counts.
        """
        ...


@runtime_checkable
class Lengths(Protocol[S_contra]):
    """A task whose samples are better batched with others of their length."""

    def length(self, sample: S_contra) -> int:
        """Return what a sample's padding depends on; samples are sorted by it within a group of batches."""
        ...


class Training(Generic[S]):
    """One run's loop; every worker has one.

    Args:
        task: what is trained.
        samples: to learn from, the same in the same order on every worker.
        steps: batch, epochs, rates and validations.
        seed: of order and dropout.
        workers: who share a step of plain torch.
        engine: makes what makes the steps, once the weights are in place; None: plain torch.
        name: of what is trained, for messages.
        judge_start: whether the weights of the start are judged, too, so that none that are worse are kept.
    """

    def __init__(
        self,
        task: Task[S],
        samples: Sequence[S],
        steps: StepSettings,
        seed: int,
        *,
        workers: Workers | None = None,
        engine: Callable[[], Engine] | None = None,
        name: str = "model",
        judge_start: bool = False,
    ) -> None:
        self.task, self.samples, self.name = task, samples, name
        self._judge_start = judge_start
        lengths = tuple(map(task.length, samples)) if isinstance(task, Lengths) else None
        self.plan = StepPlan(len(samples), steps, seed, lengths)
        self._make_engine = engine or (lambda: PlainEngine(task.model, steps, workers))
        self.state = TrainState()
        self._best: Tensors | None = None

    @cached_property
    def engine(self) -> Engine:
        """What makes the steps; sharded over workers, it takes the weights as they are when it is first asked for."""
        return self._make_engine()

    # ------------------------------------------------------------ the loop

    def train(
        self,
        on_step: StepReport | None = None,
        checkpoint_every: int | None = None,
        on_checkpoint: Callable[[Training[S]], None] | None = None,
    ) -> None:
        """Make the steps that are left.

        Args:
            on_step: called with a row of the history after each step, with ``validation`` where there was one, and
                ``stopped`` where that ended the run early.
            checkpoint_every: steps between calls of ``on_checkpoint``; the end is none.
            on_checkpoint: saves what is needed to go on from here.

        Raises:
            ModelError: the loss or the gradient is no number any more; nothing of that step is kept.
        """
        if self.state.stopped:
            return
        rank, world = self.engine.rank, self.engine.world  # the engine is made here, not by the thread that loads
        if self._judge_start and not self.state.step:
            self._validate()
        with closing(ahead(self._batches(rank, world), _BATCHES_AHEAD)) as batches:
            for batch in batches:
                report = self._step(batch)
                if on_step:
                    on_step(report)
                if "stopped" in report:
                    return
                if on_checkpoint and checkpoint_every and self.state.step % checkpoint_every == 0:
                    on_checkpoint(self)

    def _batches(self, rank: int, world: int) -> Iterator[Any]:
        """Yield this worker's batches; None where a step has no sample for it."""
        for step in range(self.state.step, self.plan.total_steps):
            own = [self.samples[index] for index in self.plan.own_samples(step, rank, world)]
            yield self.task.batch(own) if own else None

    def _step(self, batch: Any) -> dict[str, Any]:  # noqa: ANN401 (the task's)
        import torch

        step = self.state.step
        rate = self.plan.rate(step)
        # Dropout then depends on the place in the run alone: a resumed run draws what the first one drew.
        draw = np.random.SeedSequence([self.plan.seed, _DROPOUT, step, self.engine.rank])
        torch.manual_seed(int(draw.generate_state(1)[0]))
        loss, norm = self.engine.step([lambda: self._share(batch)], rate)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ModelError(
                f"{self.name}: training diverged in step {step + 1} of {self.plan.total_steps} (loss {loss:g}, "
                f"gradient {norm:g}); lower its learning_rate, or set recommend.train.dtype=float32."
            )
        row = {"step": step + 1, "epoch": self.plan.epoch(step + 1), "loss": loss, "rate": rate, "norm": norm}
        self.state.add_step(row)
        report: dict[str, Any] = dict(row)
        if self.plan.is_due(step + 1) and (found := self._validate()):
            report["validation"] = found
            if self.state.stopped:
                report["stopped"] = True
        return report

    def _share(self, batch: Any) -> torch.Tensor:  # noqa: ANN401 (the task's)
        """Return this worker's part of the step's mean loss."""
        if batch is None:
            self.engine.add_up(np.zeros(1))
            return sum(p.sum() for p in self.task.model.parameters() if p.requires_grad) * 0.0  # type: ignore[return-value]
        loss, units = self.task.loss(batch)
        return loss / max(1.0, float(self.engine.add_up(np.array([float(units)]))[0]))

    def _validate(self) -> dict[str, float]:
        names: list[str] = []

        def judged() -> NDArray[np.float64]:
            found = self.task.judge()
            names.extend(found)
            return np.array(list(found.values()), dtype=np.float64)

        values = self.engine.evaluate(judged)
        # The first worker's answer counts, so that all decide alike, whatever the last digit of their own is.
        values = self.engine.add_up(values if self.engine.rank == 0 else np.zeros_like(values))
        found = dict(zip(names, values.tolist(), strict=True))
        if not found:
            return found
        if self.state.add_validation(
            self.plan.epoch(self.state.step), found, by="score", patience=self.plan.settings.patience
        ):
            self._best = self.engine.trained()
        return found

    def take_best(self) -> None:
        """Put the weights of the best validation into the model, and leave it ready to answer."""
        if self._best:
            put_trained(self.task.model, self._best, self.name)
        self.task.model.eval()

    # ------------------------------------------------------------ checkpoints

    def save(self, folder: Path) -> None:
        """Save this worker's part of a checkpoint; every worker calls it with a folder of its own or a shared one."""
        from safetensors.torch import save_file

        trained = self.engine.trained()
        folder.mkdir(parents=True, exist_ok=True)
        if self.engine.sharded or self.engine.rank == 0:
            save_file(self.engine.optimizer_state(), folder / self._optimizer_file)
        if self.engine.rank == 0:
            save_file(trained, folder / _TRAINED_FILE)
            if self._best is not None:
                save_file(self._best, folder / _BEST_FILE)
            self.state.save(folder)

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint, before the first step.

        Raises:
            ModelError: it is of another model, or was made by another number of workers that shard their state.
        """
        from safetensors.torch import load_file

        put_trained(self.task.model, load_file(folder / _TRAINED_FILE), self.name)
        path = folder / self._optimizer_file
        if not path.is_file():
            raise ModelError(
                f"{folder}: has no optimizer state of worker {self.engine.rank} of {self.engine.world}; the run was "
                "started with another number of workers. Start it with that number, or remove the run's folder."
            )
        self.state = TrainState.load(folder)
        self.engine.load_optimizer_state(load_file(path))
        if (folder / _BEST_FILE).is_file():
            self._best = load_file(folder / _BEST_FILE)

    @property
    def _optimizer_file(self) -> str:
        """Name of this worker's file; what all workers have alike is kept once, and any number of them goes on."""
        if not self.engine.sharded:
            return "optimizer.safetensors"
        return f"optimizer-{self.engine.rank}-of-{self.engine.world}.safetensors"


def put_finished(model: torch.nn.Module, folder: Path, name: str) -> None:
    """Put the weights that a finished run ends with into a model: its best, or its last where nothing was held out.

    Args:
        model: built as the run's was.
        folder: the run's last checkpoint.
        name: of what was trained, for messages.
    """
    from safetensors.torch import load_file

    best = folder / _BEST_FILE
    put_trained(model, load_file(best if best.is_file() else folder / _TRAINED_FILE), name)
    model.eval()
