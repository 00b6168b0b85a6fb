"""What is trained when the student learns from both teachers, or, for comparison, from none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmd.errors import ConfigError
from mmd.recommend.batches import BatchMaker, DialogueBatch
from mmd.recommend.losses import TeacherBatch, conkd_loss, nll
from mmd.recommend.settings import DistillSettings
from mmd.recommend.teachers import DialogueTask, targets_of
from mmd.recommend.types import ResponseSample

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmd.recommend.backbone import Backbone
    from mmd.recommend.cache import TeacherOutputs


@dataclass(frozen=True)
class TaughtBatch:
    """Responses, and what the teachers say of them."""

    dialogue: DialogueBatch
    teachers: TeacherBatch

    def to(self, device: torch.device | str) -> TaughtBatch:
        """Return the batch on a device."""
        return TaughtBatch(self.dialogue.to(device), self.teachers.to(device))


class StudentTask(DialogueTask):
    """Learns from the teachers' outputs (:func:`mmd.recommend.losses.conkd_loss`).

    Without distillation (``gate`` is none) it is the multi-task student: the likelihood of the words, and of the
    response's items given the context, are learnt together. Of a response's joint likelihood each word and each item is
    a factor, so their logarithms are added as they are.

    Args:
        backbone: on its device; trained in place.
        maker: makes its batches.
        held_out: responses on which it is judged.
        settings: gate, teachers, γ.
        outputs: of the teachers; None without distillation.
        batch: held-out responses that are read together.

    Raises:
        ConfigError: a gate without teachers.
    """

    def __init__(
        self,
        backbone: Backbone[Any],
        maker: BatchMaker,
        held_out: Sequence[ResponseSample],
        settings: DistillSettings,
        outputs: TeacherOutputs | None,
        batch: int = 64,
    ) -> None:
        super().__init__(backbone, maker, held_out, batch)
        if settings.gate != "none" and outputs is None:
            raise ConfigError(
                f"recommend.distill.gate={settings.gate}: needs what the teachers say; or set it to none."
            )
        self._settings, self._outputs = settings, outputs

    def batch(self, samples: Sequence[ResponseSample]) -> DialogueBatch | TaughtBatch:
        """Return tokens and entities of some responses and what the teachers say of them."""
        dialogue = self.maker(samples)
        if self._settings.gate == "none" or self._outputs is None:
            return dialogue
        return TaughtBatch(dialogue, self._outputs.batch(samples, dialogue.target_mask.sum(1).tolist()))

    def loss(self, batch: DialogueBatch | TaughtBatch) -> tuple[Tensor, int]:
        """Return the loss summed over the responses' tokens, and how many these are."""
        placed = batch.to(self.device)
        if isinstance(placed, DialogueBatch):
            return self._multi_task(placed)
        targets = targets_of(placed.dialogue)
        logits = self.model(placed.dialogue).logits
        first = self.model.space.first_item
        return conkd_loss(logits, targets, placed.teachers, first, self._settings), len(targets)

    def _multi_task(self, batch: DialogueBatch) -> tuple[Tensor, int]:
        import torch

        spoken, targets = self.model(batch, items=True), targets_of(batch)
        loss = nll(spoken.logits, targets)
        gold = [(row, item) for row, items in enumerate(batch.gold_items) for item in items]
        if gold:
            rows, items = torch.tensor(gold, device=self.device).unbind(1)
            loss = loss + nll(spoken.item_logits[rows], items)
        return loss, len(targets)
