"""What every network of the dialogue teacher φ and of the student θ can do: score responses, and say them step by step.

Training and decoding use the same logits, the graph's part included. Perplexities of two backbones are comparable only
if both have the same vocabulary (:class:`~mmd.recommend.vocabulary.TokenSpace`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from mmd.recommend.batches import DialogueBatch
from mmd.recommend.settings import BackboneSettings
from mmd.recommend.vocabulary import TokenSpace


@dataclass(frozen=True)
class Spoken:
    """What a network says about a batch.

    Attributes:
        logits: float32 (n, size), one row a target that is no padding, row by row of the batch.
        item_logits: float32 (B, n_items), what the context alone recommends; None if not asked for.
    """

    logits: Tensor
    item_logits: Tensor | None


class DecoderState(ABC):
    """What a network remembers between two steps of decoding."""

    @abstractmethod
    def select(self, rows: Tensor) -> DecoderState:
        """Return the state of some rows, int64 (k,), with or without repeats: beams, or rows that go on."""


M = TypeVar("M")


class Backbone(nn.Module, ABC, Generic[M]):
    """A network that says words and items; ``M`` is what it makes of a batch's contexts once.

    Args:
        space: its vocabulary.

    Attributes:
        space: its vocabulary.
        settings: its shape.
        dtype: arithmetic of the forward pass. Weights, the states between layers and the logits handed out are
            float32; bfloat16 is for training, and for decoding where no digit counts.
    """

    settings: BackboneSettings

    def __init__(self, space: TokenSpace) -> None:
        super().__init__()
        self.space = space
        self.dtype = torch.float32

    @abstractmethod
    def states(self, batch: DialogueBatch) -> tuple[Tensor, M]:
        """Return the states (B, T, dim) from which each target is predicted, and what the contexts amount to.

        The state at t has seen the context and ``target[:t]``.
        """

    @abstractmethod
    def head(self, states: Tensor, rows: Tensor, memory: M) -> Tensor:
        """Return logits (n, size) of states (n, dim); ``rows`` (n,) are the rows of the batch that they belong to."""

    @abstractmethod
    def item_head(self, memory: M) -> Tensor:
        """Return what the contexts alone recommend, logits (B, n_items)."""

    @abstractmethod
    def memory(self, batch: DialogueBatch) -> M:
        """Return what the contexts amount to."""

    @abstractmethod
    def start(self, batch: DialogueBatch) -> DecoderState:
        """Read the contexts; ``space.bos`` is the token of the first step."""

    @abstractmethod
    def step(self, state: Any, tokens: Tensor) -> tuple[Tensor, Any]:  # noqa: ANN401 (each network's own state)
        """Go on by one token a row.

        Args:
            state: of :meth:`start` or of the step before; not to be used again afterwards.
            tokens: int64 (B,), what was said last.

        Returns:
            Logits of the next token, float32 (B, size), and the new state.
        """

    def forward(self, batch: DialogueBatch, *, items: bool = False) -> Spoken:
        """Return logits where targets are no padding and, on demand, what the contexts alone recommend."""
        with self.arithmetic():
            states, memory = self.states(batch)
            rows = batch.target_mask.nonzero()[:, 0]
            logits = self.head(states[batch.target_mask], rows, memory)
            of_context = self.item_head(memory) if items else None
        return Spoken(logits.float(), None if of_context is None else of_context.float())

    def token_logits(self, batch: DialogueBatch) -> Tensor:
        """Return logits, float32 (n, size), of the n targets that are no padding, row by row of the batch."""
        return cast("Spoken", self(batch)).logits

    def logits(self, batch: DialogueBatch) -> Tensor:
        """Return teacher-forced logits, float32 (B, T, size); position t has seen ``target[:t]``."""
        count, width = batch.target.shape
        with self.arithmetic():
            states, memory = self.states(batch)
            rows = torch.arange(count, device=states.device).repeat_interleave(width)
            flat = self.head(states.flatten(0, 1), rows, memory)
        return flat.float().view(count, width, self.space.size)

    def item_logits_of_context(self, batch: DialogueBatch) -> Tensor:
        """Return what the contexts alone recommend, float32 logits (B, n_items)."""
        with self.arithmetic():
            return self.item_head(self.memory(batch)).float()

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Return the context in which products are computed in ``dtype``."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def with_start(self, target: Tensor) -> Tensor:
        """Return what the steps are given, (B, T): the start, and all targets but the last."""
        start = target.new_full((len(target), 1), self.space.bos)
        return torch.cat([start, target[:, :-1]], dim=1) if target.shape[1] else target
