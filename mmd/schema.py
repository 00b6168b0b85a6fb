"""Records and their Arrow schema (version 1): dialogues, images, items, graph, quarantine.

A corpus artefact holds one folder of Parquet shards a table; every table is readable with plain pyarrow.
Images are addressed by the SHA-256 of their bytes, which live once, in the image table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, cast

import pyarrow as pa

SCHEMA_VERSION = 1

Speaker = Literal["user", "agent"]
Split = Literal["train", "test"]
NO_STRINGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance: text, pictures and items in the order they were sent."""

    speaker: Speaker
    text: str
    image_ids: tuple[str, ...] = ()
    item_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation with its labels; ``labels`` maps task → label and speaks of the last user turn.

    In a parsed but not yet ingested dialogue the turns' ``image_ids`` are the reader's own keys
    (file names, say); ``ingest`` replaces them by content hashes.
    """

    id: str
    source: str
    split: Split
    turns: tuple[Turn, ...]
    labels: Mapping[str, str] = field(default_factory=lambda: NO_STRINGS)
    meta: Mapping[str, str] = field(default_factory=lambda: NO_STRINGS)


@dataclass(frozen=True, slots=True)
class OcrLine:
    """One line of recognised text; ``box`` is x0, y0, x1, y1 in pixels, ``score`` in [0, 1]."""

    text: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Image:
    """A stored picture. ``ocr`` is None when no OCR was given with the corpus (featurize then runs it)."""

    id: str
    format: str
    width: int
    height: int
    data: bytes
    ocr: tuple[OcrLine, ...] | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A product of the catalogue (or a film, …)."""

    id: str
    title: str
    attributes: Mapping[str, str] = field(default_factory=lambda: NO_STRINGS)
    image_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entity:
    """A node of the knowledge graph; items are entities too, joined by :class:`ItemLink`."""

    id: str
    label: str
    kind: str


@dataclass(frozen=True, slots=True)
class Triple:
    """A typed edge head → tail."""

    head: str
    relation: str
    tail: str


@dataclass(frozen=True, slots=True)
class ItemLink:
    """Says which entity stands for which item."""

    item_id: str
    entity_id: str


_STRING_MAP = pa.map_(pa.string(), pa.string())
OCR_LINE = pa.struct(
    [("text", pa.string()), ("score", pa.float32()), ("box", pa.list_(pa.float32(), 4))],
)
_TURN = pa.struct(
    [
        ("speaker", pa.string()),
        ("text", pa.string()),
        ("image_ids", pa.list_(pa.string())),
        ("item_ids", pa.list_(pa.string())),
    ],
)


def _table(*fields: tuple[str, pa.DataType] | pa.Field) -> pa.Schema:
    return pa.schema(list(fields), metadata={"mmd.schema_version": str(SCHEMA_VERSION)})


DIALOGUES = _table(
    ("id", pa.string()),
    ("source", pa.string()),
    ("split", pa.string()),
    ("turns", pa.list_(_TURN)),
    ("labels", _STRING_MAP),
    ("meta", _STRING_MAP),
)
IMAGES = _table(
    ("id", pa.string()),
    ("format", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("data", pa.binary()),
    ("ocr", pa.list_(OCR_LINE)),
    ("description", pa.string()),
)
ITEMS = _table(
    ("id", pa.string()),
    ("title", pa.string()),
    ("attributes", _STRING_MAP),
    ("image_ids", pa.list_(pa.string())),
)
ENTITIES = _table(("id", pa.string()), ("label", pa.string()), ("kind", pa.string()))
TRIPLES = _table(("head", pa.string()), ("relation", pa.string()), ("tail", pa.string()))
ITEM_LINKS = _table(("item_id", pa.string()), ("entity_id", pa.string()))
QUARANTINE = _table(
    ("source", pa.string()),
    ("position", pa.int64()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("raw", pa.large_binary()),
)
"""``source``: file inside the corpus; ``position``: 0-based record (or line) number in it; ``raw``: its bytes."""


def image_id(data: bytes) -> str:
    """Return the content address of a picture: the SHA-256 of its bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def text_id(text: str) -> str:
    """Return the content address of a text: the SHA-256 of its UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def ocr_to_row(lines: tuple[OcrLine, ...]) -> list[dict[str, Any]]:
    """Convert OCR lines to what the ``OCR_LINE`` Arrow type takes."""
    return [{"text": line.text, "score": line.score, "box": list(line.box)} for line in lines]


def ocr_from_row(rows: list[dict[str, Any]]) -> tuple[OcrLine, ...]:
    """Invert :func:`ocr_to_row`."""
    return tuple(
        OcrLine(r["text"], float(r["score"]), cast("tuple[float, float, float, float]", tuple(r["box"]))) for r in rows
    )


def dialogue_to_row(dialogue: Dialogue) -> dict[str, Any]:
    """Convert a dialogue to a row of :data:`DIALOGUES`; maps are sorted, so equal dialogues give equal bytes."""
    return {
        "id": dialogue.id,
        "source": dialogue.source,
        "split": dialogue.split,
        "turns": [
            {
                "speaker": t.speaker,
                "text": t.text,
                "image_ids": list(t.image_ids),
                "item_ids": list(t.item_ids),
            }
            for t in dialogue.turns
        ],
        "labels": sorted(dialogue.labels.items()),
        "meta": sorted(dialogue.meta.items()),
    }


def dialogue_from_row(row: Mapping[str, Any]) -> Dialogue:
    """Invert :func:`dialogue_to_row`."""
    return Dialogue(
        id=row["id"],
        source=row["source"],
        split=row["split"],
        turns=tuple(Turn(t["speaker"], t["text"], tuple(t["image_ids"]), tuple(t["item_ids"])) for t in row["turns"]),
        labels=dict(row["labels"]),
        meta=dict(row["meta"]),
    )


def image_to_row(image: Image) -> dict[str, Any]:
    """Convert an image to a row of :data:`IMAGES`."""
    return {
        "id": image.id,
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "data": image.data,
        "ocr": None if image.ocr is None else ocr_to_row(image.ocr),
        "description": image.description,
    }


def image_from_row(row: Mapping[str, Any]) -> Image:
    """Invert :func:`image_to_row`."""
    return Image(
        id=row["id"],
        format=row["format"],
        width=row["width"],
        height=row["height"],
        data=row["data"],
        ocr=None if row["ocr"] is None else ocr_from_row(row["ocr"]),
        description=row["description"],
    )


def item_to_row(item: Item) -> dict[str, Any]:
    """Convert an item to a row of :data:`ITEMS`."""
    return {
        "id": item.id,
        "title": item.title,
        "attributes": sorted(item.attributes.items()),
        "image_ids": list(item.image_ids),
    }


def item_from_row(row: Mapping[str, Any]) -> Item:
    """Invert :func:`item_to_row`."""
    return Item(row["id"], row["title"], dict(row["attributes"]), tuple(row["image_ids"]))
