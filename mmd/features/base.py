"""Feature tables: what featurize writes and everything later reads. Plain callables, no Ray.

A features artefact holds ``ocr/``, ``image_vectors/`` and ``text_vectors/`` (Parquet) and ``features.json`` with
the name and dimension of each extractor. Keys are content hashes, so equal content is computed once, ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmd.schema import OCR_LINE, OcrLine

OCR_TABLE = pa.schema([("image_id", pa.string()), ("lines", pa.list_(OCR_LINE)), ("error", pa.string())])
VECTOR_TABLE = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32())), ("error", pa.string())])
"""``id``: image id or text id (``mmd.schema.text_id``); ``error``: empty, or why the vector is null."""


class OcrEngine(Protocol):
    """Recognises text. ``name`` identifies engine, version and settings: it is part of the cache key."""

    name: str

    def recognise(self, images: Sequence[bytes]) -> list[tuple[OcrLine, ...]]:
        """Return the lines of each encoded picture; boxes in its own pixels.

        Raises:
            ValueError: a picture cannot be decoded.
        """
        ...


class ImageEncoder(Protocol):
    """Turns pictures into vectors. ``name`` is part of the cache key."""

    name: str
    dim: int

    def encode(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Return float32 of shape (n_images, dim), rows L2-normalised."""
        ...


class TextEncoder(Protocol):
    """Turns texts into vectors. ``name`` is part of the cache key."""

    name: str
    dim: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 of shape (n_texts, dim), rows L2-normalised."""
        ...
