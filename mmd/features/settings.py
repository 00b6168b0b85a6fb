"""Settings of feature extraction."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmd.base import Settings


class FeatureSettings(Settings):
    """Which extractors run; ``auto`` takes the best one whose packages are installed."""

    ocr: Literal["auto", "rapidocr", "none"] = Field(
        default="auto", description="OCR engine for pictures that come without OCR lines."
    )
    vision: Literal["auto", "efficientnet_lite0", "descriptor"] = Field(
        default="auto", description="Image features; 'descriptor' is built in and needs no weights."
    )
    text: Literal["auto", "use_multilingual", "none"] = Field(
        default="auto", description="Sentence vectors; none leaves character n-grams only."
    )
    actors_max: int = Field(default=2, ge=1, description="Actors a pool may grow to.")
    threads: int = Field(default=1, ge=1, description="CPU threads of one extractor.")
    batch_images: int = Field(
        default=16, ge=1, description="Pictures a batch; a killed run loses at most one an actor."
    )
    batch_texts: int = Field(default=64, ge=1, description="Texts a batch.")
    ocr_side_px: int = Field(default=960, ge=64, description="Longest side of a picture given to OCR.")
