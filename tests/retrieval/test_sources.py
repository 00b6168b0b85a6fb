"""Where vectors come from: stored, cached, or computed and then cached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmd.features.extract import ExtractorInfo
from mmd.retrieval.sources import StoredSources


class LengthEncoder:
    """Encodes a text as its length and number of vowels; remembers what it was asked."""

    name = "lengths-1"
    dim = 2

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.seen += texts
        return np.array([[len(t), sum(c in "aeiou" for c in t)] for t in texts], np.float32)


class TextOnly:
    """Encoders with no picture encoder."""

    vision = None

    def __init__(self) -> None:
        self.text = LengthEncoder()

    def describe(self) -> dict[str, ExtractorInfo | None]:
        return {"text": ExtractorInfo("lengths-1", 2), "vision": None}


def sources(encoders: Any, store: Path | None) -> StoredSources:
    return StoredSources(None, None, encoders, None if store is None else str(store))


def test_a_computed_text_is_kept_for_later_runs(tmp_path: Path):
    encoders = TextOnly()
    first = sources(encoders, tmp_path).text_vectors(["a red bag", "", "a red bag"])
    again = sources(encoders, tmp_path).text_vectors(["a red bag", "new"])
    np.testing.assert_array_equal(first, [[9, 3], [0, 0], [9, 3]])
    np.testing.assert_array_equal(again, [[9, 3], [3, 1]])
    assert encoders.text.seen == ["a red bag", "new"]


def test_without_a_store_nothing_is_kept(tmp_path: Path):
    encoders = TextOnly()
    for _ in range(2):
        sources(encoders, None).text_vectors(["a red bag"])
    assert encoders.text.seen == ["a red bag", "a red bag"]
    assert not list(tmp_path.iterdir())
