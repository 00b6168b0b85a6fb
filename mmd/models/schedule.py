"""When training does what: learning rates, due dates and orders as pure functions of the step."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def cosine_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Return the learning rate of a step (0-based): a linear rise, then half a cosine down to 0.

    Args:
        step: steps done before.
        total: steps of the run.
        peak: largest rate.
        warmup: share of the steps over which the rate rises.

    Source: Loshchilov & Hutter 2017, §3, without restarts.
    """
    rise = math.ceil(warmup * total)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / (total - rise)))


def passes_multiple(before: float, now: float, every: float) -> bool:
    """Say whether another multiple of ``every`` lies in (before, now]; a rounding error is no miss."""
    return math.floor(now / every + 1e-9) > math.floor(before / every + 1e-9)


@lru_cache(maxsize=8)
def permutation(n: int, *stream: int) -> NDArray[np.int64]:
    """Return an order of ``n`` things; equal streams (seed, purpose, epoch …) give equal orders."""
    return np.random.default_rng(stream).permutation(n)
