"""Training and judging the recommendation teacher ψ."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch.nn import functional

from mmd.evaluation.recommending import CUTOFFS, ranks_of
from mmd.recommend.contexts import ContextBatch
from mmd.recommend.recommender import UNCALIBRATED, item_log_probs
from mmd.recommend.rgcn import Block

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mmd.recommend.recommender import Recommender
    from mmd.recommend.settings import RecommenderSettings
    from mmd.recommend.types import Context, MentionSample

_CALIBRATED = 4096  # mentions that three numbers are fitted on, at most
_CALIBRATED_AT_ONCE = 512
_CALIBRATION_STEPS = 50


@dataclass(frozen=True)
class MentionBatch:
    """Contexts, the items that follow them, and the part of the graph that they need."""

    contexts: ContextBatch
    items: Tensor
    block: Block


class RecommenderTask:
    """Learns mentions by the cross-entropy of the mentioned item (:class:`mmd.recommend.training.Task`).

    Args:
        model: on its device; trained in place.
        train: mentions to learn from; decides which entities need a state in training.
        held_out: mentions on which it is judged; the agent's count.
        settings: neighbours and smoothing.
        seed: of the neighbours that are drawn.
    """

    def __init__(
        self,
        model: Recommender,
        train: Sequence[MentionSample],
        held_out: Sequence[MentionSample],
        settings: RecommenderSettings,
        seed: int,
    ) -> None:
        self.model, self.maker = model, model.spec.maker()
        self._settings, self._seed = settings, seed
        self._held_out = [sample for sample in held_out if sample.speaker == "agent"]
        known = sorted({entity for sample in train for entity in sample.context.entities})
        self._whole = None if settings.neighbours else model.block(known).to(model.device)

    def batch(self, samples: Sequence[MentionSample]) -> MentionBatch:
        """Return contexts and items; neighbours are drawn anew for every batch, the same for the same samples."""
        import torch

        contexts = self.maker([sample.context for sample in samples])
        items = torch.tensor([sample.item for sample in samples])
        return MentionBatch(contexts, items, self._whole or self._drawn(samples))

    def _drawn(self, samples: Sequence[MentionSample]) -> Block:
        entities = sorted({entity for sample in samples for entity in sample.context.entities})
        ids = zlib.crc32("\n".join(sample.id for sample in samples).encode())
        return self.model.block(entities, self._settings.neighbours, np.random.default_rng([self._seed, ids]))

    def loss(self, batch: MentionBatch) -> tuple[Tensor, int]:
        """Return the summed cross-entropy of the mentioned items, and how many these are."""
        device = self.model.device
        logits = self.model(batch.contexts.to(device), self.model.node_states(batch.block.to(device)))
        total = functional.cross_entropy(
            logits, batch.items.to(device), reduction="sum", label_smoothing=self._settings.label_smoothing
        )
        return total, len(batch.items)

    def judge(self) -> dict[str, float]:
        """Return recalls of the held-out mentions by the agent.

        ``all_r1`` … over all mentions and items; ``novel_open_r1`` … over novel mentions, among the items that were
        not mentioned before ("novel, open" in reports). ``score`` is the mean of all six.
        """
        if not self._held_out:
            return {}
        scores = self.scores([sample.context for sample in self._held_out])
        novel = np.array([sample.novel for sample in self._held_out])
        golds = [sample.item for sample in self._held_out]
        ranks = {
            "all": ranks_of(scores, golds),
            "novel_open": ranks_of(scores, golds, [sample.context.items for sample in self._held_out])[novel],
        }
        found = {f"{name}_r{k}": float(np.mean(of <= k)) for name, of in ranks.items() for k in CUTOFFS if len(of)}
        return {"score": float(np.mean(list(found.values()))), **found}

    def finish(self) -> dict[str, float]:
        """Make a trained network ready for use: calibrated, in evaluation mode; return what it is then worth.

        That is :meth:`judge` on the mentions which the three numbers of the calibration are fitted on, a little better
        than elsewhere.
        """
        import torch

        self.calibrate()
        with torch.no_grad():
            return self.judge()

    def calibrate(self) -> None:
        """Fit the three numbers of the calibration on the held-out mentions; call it once, after training.

        What training mentions taught is too sure of itself elsewhere: its scores are flattened by a factor; repeats,
        which training cannot overrate in this way, are weighed against it; and so are the counts of what was mentioned
        together, which say nothing true of the dialogues that were counted. Minimises the cross-entropy with a
        standard normal prior around no change, which only counts where mentions are few.
        Source: Guo et al. 2017 (arXiv 1706.04599), §4.2, with two numbers beside the temperature.
        """
        import torch

        model = self.model.eval()
        if not self._held_out:
            return
        with torch.no_grad():
            nodes = model.node_states()
            parts = []
            for start in range(0, len(self._held_out[:_CALIBRATED]), _CALIBRATED_AT_ONCE):
                samples = self._held_out[start : start + _CALIBRATED_AT_ONCE]
                batch = self.maker([sample.context for sample in samples]).to(model.device)
                items = torch.tensor([sample.item for sample in samples], device=model.device)
                together = model.co_mentions(batch.items, batch.item_mask)
                parts.append((batch, items, *model.terms(batch, nodes), together))
        model.calibration = _least(model, parts)

    def scores(self, contexts: Sequence[Context]) -> NDArray[np.float32]:
        """Return log P_ψ of all items given each context, (n, n_items); the model is in evaluation mode."""
        return item_log_probs(self.model, self.maker, contexts)


def _least(model: Recommender, parts: Sequence[tuple[ContextBatch, Tensor, Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the calibration of the least cross-entropy.

    Args:
        model: whose terms the parts are.
        parts: contexts, the items that follow them, what :meth:`Recommender.terms` gave, and the co-mentions.
    """
    import torch

    start = model.calibration
    found = torch.tensor(UNCALIBRATED, device=start.device, requires_grad=True)
    no_change = found.detach().clone()
    total = sum(len(part[1]) for part in parts)
    optimizer = torch.optim.LBFGS([found], lr=0.5, max_iter=_CALIBRATION_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        model.calibration = found
        loss = 0.5 * (found - no_change).square().sum() / total
        for batch, items, scores, repeats, together in parts:
            logits = model.combine(scores, repeats, batch, together)
            loss = loss + functional.cross_entropy(logits, items, reduction="sum") / total
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    try:
        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
    finally:
        model.calibration = start
    return found.detach()
