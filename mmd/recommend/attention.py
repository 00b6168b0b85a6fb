"""The parts of a Transformer (Vaswani et al. 2017), normalised before each part, with a key-value cache.

Written for speed on CPUs, where three things of torch cost more than the products: the backward pass of its fused
attention in bfloat16 (2.7 times that of plain products at 110 tokens), drawing a random number for every number that
may be dropped, and casting the same states once a product.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (B, heads, n, dim / heads)."""
_NEVER = -1e9
"""Bias of what may not be looked at; finite, since a row may have nothing at all."""


class Attention(nn.Module):
    """Multi-head attention of some states over others.

    Args:
        dim: width of the states; a multiple of ``heads``.
        heads: of the attention.
    """

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

    def forward(self, states: Tensor, keys_values: KeysValues, bias: Tensor) -> Tensor:
        """Return (B, T, dim).

        Args:
            states: (B, T, dim), what asks.
            keys_values: of what is looked at.
            bias: of :func:`bias_of`, broadcastable to (B, 1, T, n).
        """
        queries, (keys, values) = self._split(self.query(states)), keys_values
        bias = bias.to(queries.dtype)
        if queries.device.type == "cpu" and queries.requires_grad:
            found = _plain_attention(queries, keys, values, bias)
        else:
            found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return cast("Tensor", self.out(found.transpose(1, 2).flatten(2)))

    def _split(self, states: Tensor) -> Tensor:
        """(B, n, dim) → (B, heads, n, dim / heads)."""
        rows, width, dim = states.shape
        return states.view(rows, width, self.heads, dim // self.heads).transpose(1, 2)


def _plain_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Return what ``scaled_dot_product_attention`` does."""
    rows, heads, width, dim = queries.shape
    bias = bias.expand(rows, heads, -1, -1).flatten(0, 1)
    flat = [part.flatten(0, 1) for part in (queries, keys, values)]
    scores = torch.baddbmm(bias, flat[0], flat[1].transpose(1, 2), alpha=dim**-0.5)
    return torch.bmm(scores.softmax(dim=-1).to(values.dtype), flat[2]).view(rows, heads, width, dim)


def bias_of(mask: Tensor) -> Tensor:
    """Return float32, 0 where a bool mask lets look and a very low number elsewhere."""
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, _NEVER)


def causal_bias(width: int, device: torch.device) -> Tensor:
    """Return (1, 1, width, width): each state looks at itself and what came before."""
    return bias_of(torch.ones(width, width, dtype=torch.bool, device=device).tril())[None, None]


class Norm(nn.LayerNorm):
    """Layer normalisation that hands out the arithmetic of the products, so that each of them need not cast."""

    def forward(self, states: Tensor) -> Tensor:
        """Return the states normalised."""
        normed = super().forward(states)
        kind = states.device.type
        return normed.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else normed


class Dropout(nn.Module):
    """Drops the same numbers of all of a row's states. Source: Gal & Ghahramani 2016 (arXiv 1512.05287), §3.

    Args:
        rate: share of the numbers that are dropped in training.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, states: Tensor) -> Tensor:
        """Return (B, n, dim)."""
        if not self.training or not self.rate:
            return states
        mask = states.new_empty((len(states), 1, states.shape[-1])).bernoulli_(1 - self.rate)
        return states * mask.div_(1 - self.rate)


class FeedForward(nn.Sequential):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class Pooling(nn.Module):
    """Attention that makes one vector of several: softmax(tanh(hA)b)·h. Source: KBRD (Chen et al. 2019), §3.2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 1, bias=False))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return float32 (B, dim) of (B, n, dim), bool (B, n); zero where there is nothing to pool."""
        scores = self.score(states).squeeze(-1).float() + bias_of(mask)
        weights = scores.softmax(dim=-1) * mask
        return cast("Tensor", (weights[..., None] * states).sum(dim=1))


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Return float32 (*positions.shape, dim) of int positions: any position has a vector. Source: §3.5 there."""
    half = (dim + 1) // 2
    rates = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10_000.0) / half))
    angles = positions[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :dim]
