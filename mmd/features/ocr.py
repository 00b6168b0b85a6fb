"""Text in pictures, by RapidOCR (PP-OCRv6 small: Chinese and English) on onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from mmd.errors import ModelError
from mmd.features.pictures import decode_rgb
from mmd.schema import OcrLine

_SCORE_DIGITS = 4
_BOX_DIGITS = 1


def rapidocr_installed() -> bool:
    """Say whether RapidOCR and its runtime are there, without importing them."""
    return find_spec("rapidocr") is not None and find_spec("onnxruntime") is not None


class RapidOcr:
    """Recognises lines of text; models are loaded on first use.

    Args:
        side_px: pictures with a longer side are shrunk to it; smaller ones are taken as they are.
        threads: CPU threads of the runtime.

    Raises:
        ModelError: the packages are not installed.
    """

    def __init__(self, side_px: int = 960, threads: int = 1) -> None:
        if not rapidocr_installed():
            raise ModelError(
                "features.ocr=rapidocr: the packages rapidocr and onnxruntime are not installed; "
                "`pip install 'mmd[ocr]'`, or set features.ocr=none."
            )
        self._side_px = side_px
        self._threads = threads
        self.name = f"rapidocr-{version('rapidocr')}-{side_px}px"

    @cached_property
    def _engine(self) -> Any:  # noqa: ANN401 (RapidOCR's results are untyped unions)
        from rapidocr import RapidOCR

        params = {
            "Global.log_level": "critical",
            # Pictures from dialogues stand upright, and the orientation classifier turns some upright lines over.
            "Global.use_cls": False,
            "Global.max_side_len": self._side_px,
            # Shrink only: the default blows the shorter side up to 736 px, at three times the work for the same lines.
            "Det.limit_type": "max",
            "Det.limit_side_len": self._side_px,
            "EngineConfig.onnxruntime.intra_op_num_threads": self._threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        engine = RapidOCR(params=params)
        logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)  # else a warning for each picture without text
        return engine

    def warm(self) -> None:
        """Load the models now."""
        self._engine(np.full((64, 64, 3), 255, dtype=np.uint8))

    def recognise(self, images: Sequence[bytes]) -> list[tuple[OcrLine, ...]]:
        """Return the lines of each encoded picture in reading order, boxes in its own pixels.

        Raises:
            ValueError: a picture cannot be decoded.
        """
        return [self._lines(decode_rgb(data)) for data in images]

    def _lines(self, image: PillowImage.Image) -> tuple[OcrLine, ...]:
        shrink = min(1.0, self._side_px / max(image.size))
        width, height = (max(1, round(side * shrink)) for side in image.size)
        small = image if shrink == 1.0 else image.resize((width, height), PillowImage.Resampling.LANCZOS)
        result = self._engine(np.ascontiguousarray(np.asarray(small)[:, :, ::-1]))  # BGR, as OpenCV has it
        if result.boxes is None or not result.txts:
            return ()
        scale = np.array([image.width / width, image.height / height])
        found = zip(result.txts, result.scores, np.asarray(result.boxes) * scale, strict=True)
        return tuple(
            OcrLine(text, round(float(score), _SCORE_DIGITS), _around(corners, image.size))
            for text, score, corners in found
            if text.strip()
        )


def _around(corners: np.ndarray[Any, Any], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the upright box x0, y0, x1, y1 around a line's corners, shape (4, 2), inside a picture of ``size``."""
    low = np.clip(corners.min(axis=0), 0, size)
    high = np.clip(corners.max(axis=0), 0, size)
    x0, y0, x1, y1 = (round(float(v), _BOX_DIGITS) for v in (*low, *high))
    return x0, y0, x1, y1
