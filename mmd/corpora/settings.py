"""Settings of corpora, ingest limits and the ``shop`` simulator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmd.base import Settings

ReaderName = Literal["shop", "taobao", "redial", "photochat", "mmdial", "mmdialog", "chat"]
Language = Literal["en", "zh"]


class CorpusSettings(Settings):
    """Which corpus a run works on."""

    name: str = Field(default="shop", pattern=r"^[a-z0-9][a-z0-9_-]*$", description="Name of the corpus artefact.")
    reader: ReaderName = Field(default="shop", description="How its files are read.")
    path: str | None = Field(default=None, description="Folder of the corpus; shop needs none.")


class LimitSettings(Settings):
    """Above these a record goes to quarantine, before its pictures are decoded."""

    max_record_mb: float = Field(
        default=32.0, gt=0, description="Bytes of one raw record, MiB; checked before parsing."
    )
    max_text_chars: int = Field(default=200_000, ge=1, description="Characters of one turn.")
    max_turns: int = Field(default=2_000, ge=1, description="Turns of one dialogue.")
    max_image_mb: float = Field(default=20.0, gt=0, description="Bytes of one picture, MiB.")
    max_image_megapixels: float = Field(
        default=50.0, gt=0, le=175, description="Width x height of one picture, 10^6 px; Pillow itself stops at 178."
    )


class ShopSettings(Settings):
    """Size and content of the simulated shop corpus."""

    dialogues: int = Field(default=600, ge=10, description="Dialogues to write, train and test together.")
    items: int = Field(default=120, ge=10, description="Products of the drawn catalogue (unused with a CSV).")
    test_fraction: float = Field(default=0.25, gt=0, lt=1, description="Share of dialogues in the test split.")
    picture_share: float = Field(
        default=0.22, ge=0, le=0.9, description="Share of records that are one picture without a word (image_scene)."
    )
    languages: tuple[Language, ...] = Field(
        default=("en", "zh"), min_length=1, description="Languages to write dialogues in, in equal shares."
    )
    catalogue_csv: str | None = Field(
        default=None, description="Catalogue CSV with an id column; null draws a catalogue."
    )
    catalogue_images: str | None = Field(
        default=None, description="Folder with ID.jpg pictures of the CSV; null: 'images' beside the CSV."
    )
    image_side_px: int = Field(default=224, ge=32, le=2048, description="Edge of drawn pictures.")


class DataSettings(Settings):
    """Corpus, limits and shards."""

    corpus: CorpusSettings = Field(default_factory=CorpusSettings)
    max_bad_fraction: float = Field(
        default=0.05, ge=0, le=1, description="Share of quarantined records above which ingest fails."
    )
    shard_rows: int = Field(default=2_000, ge=1, description="Rows of one Parquet shard.")
    limits: LimitSettings = Field(default_factory=LimitSettings)
    shop: ShopSettings = Field(default_factory=ShopSettings)
