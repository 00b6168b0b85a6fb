"""One optimizer step, two ways: plain torch, alone or with gradients summed over processes, or DeepSpeed.

A step's loss is a sum of parts, one for each micro-batch of each worker; whoever makes the parts divides by what the
whole step counts (tokens, samples), so the number of workers changes neither loss nor gradient (a mean of means would).

State that must survive a restart is kept in safetensors: trained weights once, optimizer state by worker if DeepSpeed
shards it. DeepSpeed's own checkpoints would be pickles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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


class Zero(Protocol):
    """How DeepSpeed spreads a training's state: :class:`mmd.intent.settings.DeepSpeedSettings`."""

    @property
    def stage(self) -> int:
        """ZeRO stage: 0, 1, 2 or 3."""
        ...

    @property
    def offload_optimizer(self) -> bool:
        """Whether the optimizer's state is kept on the CPU."""
        ...

    @property
    def offload_weights(self) -> bool:
        """Whether weights are kept on the CPU (stage 3)."""
        ...


@dataclass(frozen=True)
class ZeroStage:
    """A ZeRO stage with everything kept where it is computed."""

    stage: int
    offload_optimizer: bool = False
    offload_weights: bool = False


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


class DeepSpeedEngine:
    """DeepSpeed's engine around a model: ZeRO stage 0, 2 or 3, over the process group that is already set up.

    The model is loaded whole by every worker and sharded afterwards, so a worker's memory must hold it once.

    Args:
        module: with adapters in place and weights restored; on its device.
        optimization: rate, decay and clipping.
        zero: ZeRO stage and offloading.
        batch: samples of a worker's micro-batch.
        accumulate: micro-batches of a worker in a step.
    """

    sharded = True

    def __init__(
        self, module: torch.nn.Module, optimization: Optimization, zero: Zero, batch: int, accumulate: int = 1
    ) -> None:
        import torch
        from torch import distributed

        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        # A sharded model runs only on all workers at once, each making the same calls.
        self.every_rank_evaluates = zero.stage == 3
        self._module, self._stage, self._accumulate = module, zero.stage, accumulate
        first = next(module.parameters())
        self._device = first.device
        self._masters_apart = zero.stage > 0 or first.dtype != torch.float32
        self._engine = _initialize(module, optimization, zero, batch, accumulate)

    def step(self, parts: Iterable[Part], rate: float) -> tuple[float, float]:
        """Make one optimizer step; see :class:`Engine`."""
        engine = self._engine
        engine.train()
        set_rate(engine.optimizer, rate)
        total, norm = 0.0, None
        for part in parts:
            loss = engine(part)
            total += float(loss.detach())
            # DeepSpeed averages over workers and micro-batches; the parts are those of a sum.
            engine.backward(loss * (self.world * self._accumulate))
            norm = None if self._masters_apart else self._own_norm()
            engine.step()
        norm = engine.get_global_grad_norm() if norm is None else norm
        return float(self.add_up(np.array([total]))[0]), float(norm or 0.0)

    def evaluate(self, work: Callable[[], Floats]) -> Floats:
        """Call ``work`` inside the engine's forward pass, where sharded weights are gathered layer by layer."""
        import torch

        self._engine.eval()
        with torch.no_grad():
            out: torch.Tensor = self._engine(lambda: torch.from_numpy(work()))
        return out.numpy()

    def add_up(self, values: Floats) -> Floats:
        """Return the sum over the workers."""
        import torch
        from torch import distributed

        tensor = torch.from_numpy(values).to(self._device, copy=True)
        distributed.all_reduce(tensor)
        out: Floats = tensor.cpu().numpy()
        return out

    def trained(self) -> Tensors:
        """Return the trained weights; with sharded weights only the first worker gets them."""
        own = trained(self._module)
        out: Tensors = {}
        for name, parameter in own.items():
            with self._gathered(parameter):
                if self.rank == 0 or self._stage < 3:
                    out[name] = parameter.detach().cpu().clone()
        return out

    def optimizer_state(self) -> Tensors:
        """Return this worker's shard of moments and full-precision weights."""
        return state_tensors(self._engine.basic_optimizer, self._masters(), masters=self._masters_apart)

    def load_optimizer_state(self, tensors: Tensors) -> None:
        """Restore this worker's shard."""
        restore_state(self._engine.basic_optimizer, self._masters(), tensors, masters=self._masters_apart)

    def _own_norm(self) -> float:
        """Return the norm of gradients that lie on the weights themselves: DeepSpeed clips these without telling it."""
        import torch

        grads = [p.grad for p in optimized(self._engine.basic_optimizer) if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def _masters(self) -> list[Any]:
        """Return the tensors that the optimizer updates: flat shards where ZeRO is on, the weights themselves else."""
        if self._stage == 3:
            # Stage 3 lends its groups to the optimizer during a step only.
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return optimized(self._engine.basic_optimizer)

    def _gathered(self, parameter: Any) -> Any:  # noqa: ANN401 (a context manager of DeepSpeed, which has no types)
        if self._stage < 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter], modifier_rank=None)


def _initialize(module: torch.nn.Module, optimization: Optimization, zero: Zero, batch: int, accumulate: int) -> Any:  # noqa: ANN401 (DeepSpeed has no types)
    import torch

    first = next(module.parameters())
    on_cpu = first.device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
    import deepspeed

    if on_cpu:
        # Its shared-memory collective is compiled at the first start, for a minute; gloo does the same without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": optimization.clip,
        "steps_per_print": 10**9,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(zero),
        "bf16": {"enabled": first.dtype == torch.bfloat16},
    }
    optimizer = adamw(trained(module).values(), optimization.learning_rate, optimization.weight_decay)
    engine, *_ = deepspeed.initialize(model=_root(module), optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def _zero(settings: Zero) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if settings.offload_weights:
        zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    return zero


def _root(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module that DeepSpeed wraps: it calls what it is given, inside the engine's forward pass."""
    from torch import nn

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
            return work()

    return Root()
