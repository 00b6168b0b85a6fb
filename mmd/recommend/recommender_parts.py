"""Parts of the recommendation teacher: what pools entities and words, and what repeats are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mmd.recommend.contexts import ContextBatch

START_STD = 0.1
"""Of vectors at the start of training."""
_MAX_COUNTED = 8  # more items mentioned before are as good as 8


@dataclass(frozen=True)
class NodeStates:
    """States of some entities.

    Attributes:
        states: (n_rows, dim).
        place: int64 (n_entities,), row of each entity; 0 for those that have none.
    """

    states: Tensor
    place: Tensor

    def of(self, entities: Tensor) -> Tensor:
        """Return the states of entities, shape (..., dim)."""
        return self.states[self.place[entities]]


class AttentionPool(nn.Module):
    """``softmax(b · tanh(A h + C q)) · h`` over what is no padding; zero where all is."""

    def __init__(self, dim: int, *, steered: bool = False) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim)
        self.query = nn.Linear(dim, dim, bias=False) if steered else None
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, states: Tensor, mask: Tensor, query: Tensor | None = None) -> Tensor:
        """Return (B, dim) of states (B, n, dim) with mask (B, n) and, where steered, a query (B, dim)."""
        hidden = self.hidden(states)
        if self.query is not None and query is not None:
            hidden = hidden + self.query(query).unsqueeze(1)
        scores = self.score(torch.tanh(hidden)).squeeze(-1)
        lowest = torch.finfo(scores.dtype).min
        weights = torch.softmax(scores.masked_fill(~mask, lowest), dim=1) * mask if mask.shape[1] else scores
        return (weights.unsqueeze(1) @ states).squeeze(1)


class WordReader(nn.Module):
    """Adds what the words of a context say to the user vector."""

    def __init__(self, n_words: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.vectors = nn.Embedding(n_words + 1, dim, padding_idx=0)
        nn.init.normal_(self.vectors.weight, std=START_STD)
        self.pool = AttentionPool(dim, steered=True)
        self.join = nn.Linear(2 * dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():  # starts as the sum of both
            self.vectors.weight[0] = 0
            self.join.weight.copy_(torch.eye(dim).repeat(1, 2))

    def forward(self, user: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Return (B, dim) of the users (B, dim) and their words (B, m)."""
        said = self.pool(self.dropout(self.vectors(words)), mask, user)
        return cast("Tensor", self.join(torch.cat([user, said], dim=1)))


class RepeatTerm(nn.Module):
    """What is added to the score of an item that was mentioned before: to be named again, or rather not."""

    # Numbers that stand alone move by about a learning rate a step, hence the gain: without it, a training of a
    # hundred steps would end where it began.
    _GAIN = 10.0

    def __init__(self, dim: int, n_marks: int) -> None:
        super().__init__()
        self.by_mark = nn.Parameter(torch.zeros(n_marks))
        self.by_count = nn.Parameter(torch.zeros(_MAX_COUNTED + 1))
        self.by_user = nn.Linear(dim, 1)
        nn.init.zeros_(self.by_user.weight)
        nn.init.zeros_(self.by_user.bias)

    def forward(self, user: Tensor, batch: ContextBatch) -> Tensor:
        """Return (B, k), 0 at padding."""
        count = batch.item_mask.sum(1).clamp(max=_MAX_COUNTED)
        alone = self._GAIN * (self.by_mark[batch.item_marks] + self.by_count[count].unsqueeze(1))
        return cast("Tensor", (alone + self.by_user(user)) * batch.item_mask)

    @torch.no_grad()
    def start_from(self, batch: ContextBatch, items: Tensor, log_shares: Tensor) -> None:
        """Set the marks' terms so that, on average, repeats are as likely as they are in training.

        Args:
            batch: training contexts.
            items: int64 (B,), what follows them.
            log_shares: (n_items,), logarithms of the items' shares of all mentions.
        """
        marks = batch.item_marks[batch.item_mask]
        repeated = (batch.items == items.unsqueeze(1))[batch.item_mask].float()
        shown = torch.bincount(marks, minlength=len(self.by_mark)) + 1.0
        rates = (torch.bincount(marks, repeated, len(self.by_mark)) + 0.5) / shown
        usual = torch.bincount(marks, log_shares[batch.items[batch.item_mask]], len(self.by_mark)) / shown
        self.by_mark.copy_(torch.where(shown > 1, rates.log() - usual, 0) / self._GAIN)
