"""Optimizer steps of the multimodal model (:mod:`mmd.models.engines`).

The loss of a step is the mean over all its answer tokens, on whichever worker and in whichever micro-batch they are:
each micro-batch's mean loss is weighted by its share of these tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from mmd.intent.settings import DeepSpeedSettings
from mmd.intent.training_plan import Recipe
from mmd.models import engines
from mmd.models.mllm import Mllm, answer_loss

if TYPE_CHECKING:
    import torch

    from mmd.models.engines import Part

    Batch = Mapping[str, torch.Tensor]


def parts_of(mllm: Mllm, micro_batches: Iterable[tuple[Batch, float]]) -> Iterator[Part]:
    """Yield what an engine's step calls.

    Args:
        mllm: in training.
        micro_batches: this worker's, each with its share of the step's answer tokens (all shares sum to 1).
    """
    for batch, share in micro_batches:
        placed = mllm.to_device(batch)
        yield lambda placed=placed, share=share: answer_loss(mllm, placed) * share  # type: ignore[misc]  # bound early


def recompute_activations(mllm: Mllm) -> None:
    """Drop activations in the forward pass and compute them again in the backward one: less memory, more time."""
    core = mllm.core
    core.config.use_cache = False
    core.activation_checkpointing_enable({"use_reentrant": False})
    core.enable_input_require_grads()


class PlainEngine(engines.PlainEngine):
    """Plain torch in one process.

    Args:
        mllm: trained in place.
        recipe: rate, decay and clipping.
    """

    def __init__(self, mllm: Mllm, recipe: Recipe) -> None:
        super().__init__(mllm.model, recipe)


class DeepSpeedEngine(engines.DeepSpeedEngine):
    """DeepSpeed over the process group that is already set up.

    Args:
        mllm: with adapters in place and weights restored.
        recipe: batch sizes, rate, decay and clipping.
        settings: ZeRO stage and offloading.
    """

    def __init__(self, mllm: Mllm, recipe: Recipe, settings: DeepSpeedSettings) -> None:
        super().__init__(mllm.model, recipe, settings, recipe.batch, recipe.accumulate)
