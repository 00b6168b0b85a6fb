"""Sets of examples as rows of 64-bit words: a conjunction is an AND, its support a popcount."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]
"""Shape (…, n_words); bit ``i % 64`` of word ``i // 64`` says whether example ``i`` is in the set."""

WORD_BITS = 64


def n_words(size: int) -> int:
    """Return the words that ``size`` examples take."""
    return -(-size // WORD_BITS)


def pack(members: NDArray[np.bool_]) -> Bits:
    """Pack booleans of shape (…, n) into words of shape (…, n_words(n)); the spare bits are 0."""
    size = members.shape[-1]
    padded = np.zeros((*members.shape[:-1], n_words(size) * WORD_BITS), dtype=np.bool_)
    padded[..., :size] = members
    return np.packbits(padded, axis=-1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def unpack(bits: Bits, size: int) -> NDArray[np.bool_]:
    """Invert :func:`pack` for ``size`` examples."""
    as_bytes = np.ascontiguousarray(bits).astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(as_bytes, axis=-1, count=size, bitorder="little").astype(np.bool_)


def count(bits: Bits) -> NDArray[np.int64]:
    """Return how many examples each set holds, shape (…,)."""
    sizes: NDArray[np.int64] = np.bitwise_count(bits).sum(axis=-1, dtype=np.int64)
    return sizes


def conjunction(rows: Bits) -> Bits:
    """Return the intersection of the sets ``rows``, shape (n_rows ≥ 1, n_words) → (n_words,)."""
    result: Bits = np.bitwise_and.reduce(rows, axis=0)
    return result


def split_by_label(members: NDArray[np.bool_], positive: NDArray[np.bool_]) -> tuple[Bits, int]:
    """Pack with the label's examples first, so that one popcount gives hits and misses.

    Args:
        members: truth of each predicate on each example, shape (n_predicates, n_examples).
        positive: which examples have the label, shape (n_examples,).

    Returns:
        Words of shape (n_predicates, n_positive_words + n_negative_words) and ``n_positive_words``.
    """
    hits, misses = pack(members[:, positive]), pack(members[:, ~positive])
    return np.concatenate([hits, misses], axis=1), hits.shape[1]


def wilson_lower(hits: Any, support: Any, z: float = 1.96) -> Any:  # noqa: ANN401 (scalars or arrays, as given)
    """Return the lower end of Wilson's interval of ``hits / support``; 0 where support is 0.

    Source: Wilson 1927; ``z`` = 1.96 is the 95 % interval.
    """
    n = np.maximum(np.asarray(support, dtype=np.float64), 1e-12)
    p = np.asarray(hits, dtype=np.float64) / n
    centre = p + z * z / (2 * n)
    spread = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    lower = np.maximum(0.0, (centre - spread) / (1 + z * z / n))
    return np.where(np.asarray(support) > 0, lower, 0.0)[()]
