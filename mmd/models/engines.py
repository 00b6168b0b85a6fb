"""One optimizer step, two ways: plain torch, alone or with gradients summed over processes, or DeepSpeed.

A step's loss is a sum of parts, one for each micro-batch of each worker; whoever makes the parts divides by what the
whole step counts (tokens, samples), so the number of workers changes neither loss nor gradient (a mean of means would).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from mmd.models.optimizer import adamw, optimized, restore_state, set_rate, state_tensors
from mmd.models.weights import trained, trained_copies
from mmd.models.workers import Alone, Workers

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]
    Part = Callable[[], torch.Tensor]

Floats = NDArray[np.float64]


class Optimization(Protocol):
    """What engines need of a training's settings."""

    @property
    def learning_rate(self) -> float:
        """Peak rate."""
        ...

    @property
    def weight_decay(self) -> float:
        """AdamW's, of matrices."""
        ...

    @property
    def clip(self) -> float:
        """Largest norm of a step's gradient."""
        ...


class Engine(Protocol):
    """What a training loop needs of a way to train; every method is called by all workers together.

    Attributes:
        rank: of this worker.
        world: how many there are.
        every_rank_evaluates: whether the model runs only on all workers at once, each making the same calls.
        sharded: whether each worker has an optimizer state of its own.
    """

    rank: int
    world: int
    every_rank_evaluates: bool
    sharded: bool

    def step(self, parts: Iterable[Part], rate: float) -> tuple[float, float]:
        """Make one optimizer step.

        Args:
            parts: this worker's; each computes a micro-batch's part of the loss when it is called.
            rate: learning rate.

        Returns:
            The loss, summed over all parts of all workers, and the gradient's norm before clipping.
        """
        ...

    def evaluate(self, work: Callable[[], Floats]) -> Floats:
        """Call ``work`` with the model in evaluation mode, without gradients."""
        ...

    def add_up(self, values: Floats) -> Floats:
        """Return the sum of all workers' arrays, all of one shape."""
        ...

    def trained(self) -> Tensors:
        """Return the trained weights by name, whole, on the CPU; on workers but the first it may be empty."""
        ...

    def optimizer_state(self) -> Tensors:
        """Return this worker's part of the optimizer's state."""
        ...

    def load_optimizer_state(self, tensors: Tensors) -> None:
        """Take what :meth:`optimizer_state` of the same worker gave."""
        ...


class PlainEngine:
    """Plain torch: the reference that the others must agree with.

    Args:
        module: on its device; trained in place.
        optimization: rate, decay and clipping.
        workers: who share a step; each holds the whole module.
    """

    every_rank_evaluates, sharded = False, False

    def __init__(self, module: torch.nn.Module, optimization: Optimization, workers: Workers | None = None) -> None:
        self._workers = workers or Alone()
        self.rank, self.world = self._workers.rank, self._workers.world
        self._module, self._clip = module, optimization.clip
        own = trained(module).values()
        self._optimizer = adamw(own, optimization.learning_rate, optimization.weight_decay, fused=True)

    def step(self, parts: Iterable[Part], rate: float) -> tuple[float, float]:
        """Make one optimizer step; see :class:`Engine`."""
        import torch

        self._module.train()
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in parts:
            loss = part()
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        weights = optimized(self._optimizer)
        self._workers.sum_gradients(weights)
        norm = torch.nn.utils.clip_grad_norm_(weights, self._clip)
        set_rate(self._optimizer, rate)
        self._optimizer.step()
        return float(self.add_up(np.array([total]))[0]), float(norm)

    def evaluate(self, work: Callable[[], Floats]) -> Floats:
        """Call ``work`` in evaluation mode."""
        import torch

        self._module.eval()
        with torch.inference_mode():
            return work()

    def add_up(self, values: Floats) -> Floats:
        """Return the sum over the workers."""
        return self._workers.add_up(values)

    def trained(self) -> Tensors:
        """Return copies of the trained weights."""
        return trained_copies(self._module)

    def optimizer_state(self) -> Tensors:
        """Return the moments and step counts."""
        return state_tensors(self._optimizer, optimized(self._optimizer))

    def load_optimizer_state(self, tensors: Tensors) -> None:
        """Restore moments and step counts."""
        restore_state(self._optimizer, optimized(self._optimizer), tensors)
