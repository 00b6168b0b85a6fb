"""The parts of a Transformer (Vaswani et al. 2017), normalised before each part, with a key-value cache."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (B, heads, n, dim / heads)."""


class Attention(nn.Module):
    """Multi-head attention of some states over others.

    Args:
        dim: width of the states; a multiple of ``heads``.
        heads: of the attention.
    """

    # Without dropout of the weights: torch's fast kernel for CPUs has none, and the output's dropout does.
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def keys_values(self, states: Tensor) -> KeysValues:
        """Return keys and values of states (B, n, dim)."""
        keys, values = self.key_value(states).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(
        self, states: Tensor, keys_values: KeysValues, mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """Return (B, T, dim).

        Args:
            states: (B, T, dim), what asks.
            keys_values: what is looked at.
            mask: bool, broadcastable to (B, heads, T, n): what may be looked at; each row at least one thing.
            causal: whether the t-th state looks at the first t things alone.
        """
        found = functional.scaled_dot_product_attention(
            self._split(self.query(states)),
            *keys_values,
            attn_mask=mask,
            is_causal=causal,
        )
        return cast("Tensor", self.out(found.transpose(1, 2).flatten(2)))

    def _split(self, states: Tensor) -> Tensor:
        """(B, n, dim) → (B, heads, n, dim / heads)."""
        rows, width, dim = states.shape
        return states.view(rows, width, self.heads, dim // self.heads).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Return float32 (*positions.shape, dim) of int positions: any position has a vector. Source: §3.5 there."""
    half = (dim + 1) // 2
    rates = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10_000.0) / half))
    angles = positions[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :dim]
