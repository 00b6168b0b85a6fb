"""What training dialogues mention together, as a term of the recommendation teacher's scores.

A network of a few thousand dialogues generalises over items and forgets single pairs; counts of pairs do the opposite.
Their sum is better than either (docs/results/recommender-research.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mmd.recommend.batches import padded
from mmd.recommend.popularity import SHRINK, Mentions
from mmd.recommend.rgcn import FixedSparse

_GAIN = 10.0
"""Likenesses are around .01 to .3; the logarithm of 1 + ten times that is neither flat nor ruled by single pairs."""


class CoMentions(nn.Module):
    """``log(1 + 10 Σ_j l_ij)`` over the items j mentioned before, with the likeness l of the item-kNN baseline.

    Nothing here is trained. ``l_ij = c_ij / √((n_i + 10)(n_j + 1))``: c counts the dialogues that mention both, n the
    mentions of one.

    Args:
        n_items: number of items.
        n_pairs: ordered pairs of items that a dialogue mentions together.
    """

    pairs: Tensor
    together: Tensor
    counts: Tensor

    def __init__(self, n_items: int, n_pairs: int = 0) -> None:
        super().__init__()
        self.register_buffer("pairs", torch.zeros(2, n_pairs, dtype=torch.int32))
        self.register_buffer("together", torch.zeros(n_pairs))
        self.register_buffer("counts", torch.zeros(n_items))
        self._sparse: list[FixedSparse] = []

    @classmethod
    def of(cls, mentions: Mentions) -> CoMentions:
        """Count the mentions of training dialogues."""
        found = cls(mentions.n_items)
        counted = mentions.together
        if counted:
            rows = np.repeat(np.array(list(counted), np.int32), [len(others) for others, _ in counted.values()])
            columns = np.concatenate([others for others, _ in counted.values()]).astype(np.int32)
            found.pairs = torch.from_numpy(np.stack([rows, columns]))
            found.together = torch.from_numpy(np.concatenate([counts for _, counts in counted.values()]))
        found.counts = torch.from_numpy(mentions.counts)
        return found

    @property
    def n_pairs(self) -> int:
        """Ordered pairs with a count."""
        return len(self.together)

    def forward(self, items: Tensor, mask: Tensor, own: Tensor | None = None) -> Tensor:
        """Return the term, float32 (B, n_items), at least 0.

        Args:
            items: int64 (B, k), mentioned before, without repeats.
            mask: bool (B, k), False at padding.
            own: bool (B, n_items), the items of the training dialogue that a context is of, all False where it is of
                none: that dialogue's own mentions are then left out of c, or it would be told what it says next.
        """
        weights = (self.counts + 1).rsqrt()
        said = torch.zeros(len(items), len(self.counts), device=items.device)
        said.scatter_add_(1, items, weights[items] * mask)
        total = (self._matrix().to(items.device) @ said.T).T
        if own is not None:
            known = said * own
            total = (total - own * (known.sum(1, keepdim=True) - known)).clamp(min=0)
        return (_GAIN * total * (self.counts + SHRINK).rsqrt()).log1p()

    def _matrix(self) -> FixedSparse:
        """Return the counts, items × items; made when they are first asked for, after loading."""
        if not self._sparse:
            rows, columns = self.pairs.cpu().numpy().astype(np.int64)
            size = len(self.counts)
            self._sparse.append(FixedSparse.of(rows, columns, self.together.cpu().numpy(), (size, size)))
        return self._sparse[0]


def membership(groups: Sequence[Sequence[int]], n_items: int) -> Tensor:
    """Return bool (B, n_items), True at each group's items."""
    items, mask = padded(groups, 0)
    out = torch.zeros(len(groups), n_items)
    return out.scatter_add_(1, items, mask.float()) > 0
