"""Holding out by hash: what is decided depends on nothing but the seed and the key."""

from __future__ import annotations

import hashlib


def held_out(key: str, fraction: float, seed: int) -> bool:
    """Say whether a key belongs to the held-out share.

    Args:
        key: what is held out as one, a dialogue's id for instance.
        fraction: share held out, in [0, 1); 0.1 holds out about one key in ten.
        seed: of the choice; with the same seed a larger share contains a smaller one.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
