"""Ingest as one plain loop in memory: what the distributed job must equal, and handy for a small corpus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from mmd import schema
from mmd.corpora.base import CorpusReader
from mmd.corpora.images import ImageLoader
from mmd.corpora.settings import LimitSettings
from mmd.corpora.staging import ITEMS_SOURCE, SCHEMAS, content_digest, quarantine_row
from mmd.corpora.validate import raw_item, validate_item, validate_record
from mmd.errors import BadRecordError
from mmd.schema import Image


def ingest_plain(reader: CorpusReader, limits: LimitSettings) -> dict[str, pa.Table]:
    """Return the tables ``dialogues``, ``images``, ``items`` and ``quarantine`` of a corpus.

    Args:
        reader: of the corpus.
        limits: above which records are refused.
    """
    tasks, loader = reader.tasks(), ImageLoader(reader.root, limits)
    dialogues, items = _Unique(), _Unique()
    bad: list[dict[str, Any]] = []
    for record in (record for part in reader.plan() for record in reader.read(part)):
        try:
            valid = validate_record(reader, record, limits, tasks, loader)
            place = f"{record.source}:{record.position}"
            dialogues.add(schema.dialogue_to_row(valid.dialogue), place, valid.images)
        except BadRecordError as err:
            bad.append(quarantine_row(record.source, record.position, err, record.raw))
    for position, entry in enumerate(reader.items()):
        try:
            item = validate_item(entry, limits, loader)
            items.add(schema.item_to_row(item.item), f"{ITEMS_SOURCE}:{position}", item.images)
        except BadRecordError as err:
            bad.append(quarantine_row(ITEMS_SOURCE, position, err, raw_item(entry)))
    seen = dialogues.seen | {key: image for key, image in items.seen.items() if key not in dialogues.seen}
    images = [schema.image_to_row(seen[key]) for key in dialogues.shown | items.shown]
    rows: Mapping[str, list[dict[str, Any]]] = {
        "dialogues": dialogues.rows,
        "images": images,
        "items": items.rows,
        "quarantine": bad,
    }
    return {table: pa.Table.from_pylist(rows[table], SCHEMAS[table]) for table in rows}


class _Unique:
    """Rows by id: the first stands, an equal one is dropped, a different one is refused."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.seen: dict[str, Image] = {}
        self.shown: dict[str, None] = {}
        self._first: dict[str, tuple[bytes, str]] = {}

    def add(self, row: dict[str, Any], place: str, images: tuple[Image, ...]) -> None:
        for image in images:
            self.seen.setdefault(image.id, image)
        digest = content_digest(row)
        before, where = self._first.setdefault(row["id"], (digest, place))
        if before != digest:
            raise BadRecordError(
                "duplicate_id",
                f"id {row['id']!r:.80} is that of {where}, whose content differs; give each its own id",
            )
        if where == place:
            self.rows.append(row)
            self.shown.update(dict.fromkeys(image.id for image in images))
