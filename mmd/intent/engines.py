"""One optimizer step, two ways: plain torch in one process, or DeepSpeed over many workers.

Both make the same step of the same samples. The loss of a step is the mean over all its answer tokens, on whichever
worker and in whichever micro-batch they are: each micro-batch's mean loss is weighted by its share of these tokens, so
the number of workers changes neither loss nor gradient (a mean of means would).

State that must survive a restart is kept in safetensors: trained weights once, optimizer state by worker, as DeepSpeed
shards it. DeepSpeed's own checkpoints would be pickles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ModelError
from mmd.intent.settings import DeepSpeedSettings
from mmd.intent.training_plan import Recipe
from mmd.models.mllm import Mllm, answer_loss
from mmd.models.optimizer import adamw, optimized, restore_state, set_rate, state_tensors

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]
    Batch = Mapping[str, torch.Tensor]

Floats = NDArray[np.float64]


class Engine(Protocol):
    """What the training loop needs of a way to train; every method is called by all workers together."""

    rank: int
    world: int
    every_rank_evaluates: bool

    def step(self, micro_batches: Iterable[tuple[Batch, float]], rate: float) -> tuple[float, float]:
        """Make one optimizer step.

        Args:
            micro_batches: this worker's, each with its share of the step's answer tokens (all shares sum to 1).
            rate: learning rate.

        Returns:
            Mean loss over the step's answer tokens, and the gradient's norm before clipping.
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


def trained_parameters(mllm: Mllm) -> dict[str, Any]:
    """Return name → parameter of everything that is trained, in the model's order; tied weights come once."""
    return {name: p for name, p in mllm.model.named_parameters() if p.requires_grad}


def load_trained_tensors(mllm: Mllm, tensors: Tensors) -> None:
    """Put trained weights back into a model, before an engine is made of it.

    Raises:
        ModelError: the tensors belong to another model.
    """
    import torch

    own = trained_parameters(mllm)
    if own.keys() != tensors.keys():
        odd = min(own.keys() ^ tensors.keys())
        raise ModelError(f"model {mllm.name!r}: a checkpoint with other weights ({odd}); remove the run's folder.")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def make_optimizer(mllm: Mllm, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW over the trained weights."""
    return adamw(trained_parameters(mllm).values(), recipe.learning_rate, recipe.weight_decay)


def recompute_activations(mllm: Mllm) -> None:
    """Drop activations in the forward pass and compute them again in the backward one: less memory, more time."""
    core = mllm.core
    core.config.use_cache = False
    core.activation_checkpointing_enable({"use_reentrant": False})
    core.enable_input_require_grads()


class PlainEngine:
    """Plain torch in one process: the reference that the others must agree with."""

    rank, world, every_rank_evaluates = 0, 1, False

    def __init__(self, mllm: Mllm, recipe: Recipe) -> None:
        self._mllm = mllm
        self._clip = recipe.clip
        self._optimizer = make_optimizer(mllm, recipe)

    def step(self, micro_batches: Iterable[tuple[Batch, float]], rate: float) -> tuple[float, float]:
        """Make one optimizer step; see :class:`Engine`."""
        import torch

        self._mllm.model.train()
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch, share in micro_batches:
            loss = answer_loss(self._mllm, self._mllm.to_device(batch)) * share
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        weights = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(weights, self._clip)
        set_rate(self._optimizer, rate)
        self._optimizer.step()
        return total, float(norm)

    def evaluate(self, work: Callable[[], Floats]) -> Floats:
        """Call ``work`` in evaluation mode."""
        import torch

        self._mllm.model.eval()
        with torch.inference_mode():
            return work()

    def add_up(self, values: Floats) -> Floats:
        """Return the values: there is one worker."""
        return values

    def trained(self) -> Tensors:
        """Return copies of the trained weights."""
        return {name: p.detach().cpu().clone() for name, p in trained_parameters(self._mllm).items()}

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
        mllm: with adapters in place and weights restored.
        recipe: batch sizes, decay and clipping.
        settings: ZeRO stage and offloading.
    """

    def __init__(self, mllm: Mllm, recipe: Recipe, settings: DeepSpeedSettings) -> None:
        import torch
        from torch import distributed

        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        # A sharded model runs only on all workers at once, each making the same calls.
        self.every_rank_evaluates = settings.stage == 3
        self._mllm, self._stage = mllm, settings.stage
        self._accumulate = recipe.accumulate
        self._sharded = settings.stage > 0 or mllm.dtype != torch.float32
        self._engine = _initialize(mllm, recipe, settings)

    def step(self, micro_batches: Iterable[tuple[Batch, float]], rate: float) -> tuple[float, float]:
        """Make one optimizer step; see :class:`Engine`."""
        engine = self._engine
        engine.train()
        set_rate(engine.optimizer, rate)
        total, norm = 0.0, None
        for batch, share in micro_batches:
            placed = self._mllm.to_device(batch)
            loss = engine(lambda placed=placed: answer_loss(self._mllm, placed)) * share
            total += float(loss.detach())
            # DeepSpeed averages over workers and micro-batches; the shares make a sum of it.
            engine.backward(loss * (self.world * self._accumulate))
            norm = None if self._sharded else self._own_norm()
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

        tensor = torch.from_numpy(values).clone().to(self._mllm.device)
        distributed.all_reduce(tensor)
        out: Floats = tensor.cpu().numpy()
        return out

    def trained(self) -> Tensors:
        """Return the trained weights; with sharded weights only the first worker gets them."""
        own = trained_parameters(self._mllm)
        out: Tensors = {}
        for name, parameter in own.items():
            with self._gathered(parameter):
                if self.rank == 0 or self._stage < 3:
                    out[name] = parameter.detach().cpu().clone()
        return out

    def optimizer_state(self) -> Tensors:
        """Return this worker's shard of moments and full-precision weights."""
        return state_tensors(self._engine.basic_optimizer, self._masters(), masters=self._sharded)

    def load_optimizer_state(self, tensors: Tensors) -> None:
        """Restore this worker's shard."""
        restore_state(self._engine.basic_optimizer, self._masters(), tensors, masters=self._sharded)

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


def _initialize(mllm: Mllm, recipe: Recipe, settings: DeepSpeedSettings) -> Any:  # noqa: ANN401 (DeepSpeed has no types)
    import torch

    on_cpu = mllm.device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
    import deepspeed

    if on_cpu:
        # Its shared-memory collective is compiled at the first start, for a minute; gloo does the same without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulate,
        "gradient_clipping": recipe.clip,
        "steps_per_print": 10**9,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(settings),
        "bf16": {"enabled": mllm.dtype == torch.bfloat16},
    }
    engine, *_ = deepspeed.initialize(
        model=_root(mllm), optimizer=make_optimizer(mllm, recipe), config=config, dist_init_required=False
    )
    return engine


def _zero(settings: DeepSpeedSettings) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if settings.offload_weights:
        zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    return zero


def _root(mllm: Mllm) -> torch.nn.Module:
    """Return the module that DeepSpeed wraps: it calls what it is given, inside the engine's forward pass."""
    from torch import nn

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = mllm.model

        def forward(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
            return work()

    return Root()
