"""Random streams addressed by name, equal on every machine, process and hash seed.

A stream depends only on the seed and its key, so any dialogue, item or picture can be made alone, in any order.
"""

from __future__ import annotations

import hashlib
import random


def _digest(parts: tuple[object, ...]) -> int:
    key = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def stream(seed: int, *key: object) -> random.Random:
    """Return the random stream that belongs to ``key`` (strings and integers) under ``seed``."""
    return random.Random(_digest((seed, *key)))  # noqa: S311 - simulation, not cryptography


def fraction(seed: int, *key: object) -> float:
    """Return a number in [0, 1) that belongs to ``key`` under ``seed``."""
    return _digest((seed, *key)) / 2**64


def pick(seed: int, count: int, *key: object) -> int:
    """Return a number in 0 … ``count`` - 1 that belongs to ``key`` under ``seed``."""
    return _digest((seed, *key)) % count
