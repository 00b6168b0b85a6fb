"""What is trained when a network learns to say what people said: the dialogue teacher φ, and the student without ψ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmd.recommend.batches import BatchMaker, DialogueBatch
from mmd.recommend.cache import by_length
from mmd.recommend.losses import nll
from mmd.recommend.types import ResponseSample

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmd.recommend.backbone import Backbone


class DialogueTask:
    """Learns responses by their negative log-likelihood (:class:`mmd.recommend.training.Task`).

    Args:
        backbone: on its device; trained in place.
        maker: makes its batches.
        held_out: responses on which it is judged.
        batch: how many of them are read together.
    """

    def __init__(
        self, backbone: Backbone[Any], maker: BatchMaker, held_out: Sequence[ResponseSample], batch: int = 64
    ) -> None:
        self.model = backbone
        self.maker = maker
        self._held_out = [maker(part) for part in by_length(held_out, maker, batch)]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def length(self, sample: ResponseSample) -> int:
        """Return what a sample's padding depends on."""
        return self.maker.length(sample)

    def batch(self, samples: Sequence[ResponseSample]) -> Any:  # noqa: ANN401 (subclasses add to it)
        """Return tokens and entities of some responses."""
        return self.maker(samples)

    def loss(self, batch: Any) -> tuple[Tensor, int]:  # noqa: ANN401 (what ``batch`` gave)
        """Return the negative log-likelihood of the responses' tokens, and how many these are."""
        placed: DialogueBatch = batch.to(self.device)
        targets = targets_of(placed)
        return nll(self.model(placed).logits, targets), len(targets)

    def judge(self) -> dict[str, float]:
        """Return how likely the held-out responses are, and how often the right item is the likeliest item.

        ``score`` is the negated ``nll`` (nats a token, teacher-forced) and ``perplexity`` its exponential; ``item_r1``
        is taken at the places of items, after the words that were said before them. Numbers are comparable within a
        vocabulary only.
        """
        if not self._held_out:
            return {}
        total, tokens, right, items = 0.0, 0, 0, 0
        for held in self._held_out:
            batch = held.to(self.device)
            logits, targets = self.model(batch).logits, targets_of(batch)
            total += float(nll(logits, targets))
            tokens += len(targets)
            first = self.model.space.first_item
            at_items = targets >= first
            best = logits[at_items, first:].argmax(1) if at_items.any() else targets[:0]
            right += int((best == targets[at_items] - first).sum())
            items += int(at_items.sum())
        mean = total / tokens
        perplexity = math.exp(min(mean, 700.0))
        return {"score": -mean, "nll": mean, "perplexity": perplexity, "item_r1": right / max(1, items)}


def targets_of(batch: DialogueBatch) -> Tensor:
    """Return the tokens that are no padding, row by row; int64 (n,)."""
    return batch.target[batch.target_mask]
