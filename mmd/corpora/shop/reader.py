"""The ``shop`` corpus as a reader: records are written, and pictures drawn, on whichever worker asks for them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image as Pixels

from mmd.corpora.base import CatalogueItem, Graph, ImageSource, ParsedRecord, Part, RawRecord
from mmd.corpora.settings import ShopSettings
from mmd.corpora.shop.catalogue import Catalogue, Product, build_catalogue
from mmd.corpora.shop.chance import fraction
from mmd.corpora.shop.drawing import STUDIO, photograph, scenery
from mmd.corpora.shop.graph import build_graph
from mmd.corpora.shop.intents import possible_intents
from mmd.corpora.shop.pages import draw_page
from mmd.corpora.shop.pictures import possible_scenes
from mmd.corpora.shop.records import write_record
from mmd.corpora.shop.specs import PictureSpec
from mmd.errors import BadRecordError
from mmd.schema import Dialogue, Item, Split, Turn

PART_RECORDS = 500
"""Positions a part covers; the records of the other split among them are left to the other split's part."""
_CACHED_PICTURES = 512


class ShopReader:
    """Reads the simulated shop.

    A record's content depends only on settings, seed and its position; nothing grows with the number of dialogues.

    Args:
        settings: size, languages, catalogue and picture size.
        seed: seed of everything.
    """

    name = "shop"
    root: str | None = None

    def __init__(self, settings: ShopSettings, seed: int) -> None:
        self._settings = settings
        self._seed = seed

    @property
    def catalogue(self) -> Catalogue:
        """The products; drawn or read once a process.

        Raises:
            CorpusError: the catalogue CSV cannot be used.
        """
        return build_catalogue(self._settings, self._seed)

    def tasks(self) -> Mapping[str, tuple[str, ...]]:
        """Return the labels of both tasks, without those that the catalogue has no products for."""
        return {"dialogue_intent": possible_intents(self.catalogue), "image_scene": possible_scenes(self.catalogue)}

    def plan(self) -> list[Part]:
        """Return two parts (train, test) for each block of positions.

        Raises:
            CorpusError: the catalogue CSV cannot be used.
        """
        _ = self.catalogue  # a bad CSV stops the job here, not in the workers
        count = self._settings.dialogues
        splits: tuple[Split, ...] = ("train", "test")
        return [
            Part(split, split, start, min(start + PART_RECORDS, count))
            for start in range(0, count, PART_RECORDS)
            for split in splits
        ]

    def read(self, part: Part) -> Iterator[RawRecord]:
        """Write the records of one part."""
        stop = self._settings.dialogues if part.stop is None else part.stop
        for position in range(part.start, stop):
            if self._split(position) == part.split:
                record = write_record(self.catalogue, self._settings, self._seed, position, part.split)
                raw = json.dumps(record, ensure_ascii=False, sort_keys=True).encode()
                yield RawRecord(part.source, position, part.split, raw)

    def _split(self, position: int) -> Split:
        """Return the split of a position: test records are spread evenly, so that even a small corpus has some."""
        share = self._settings.test_fraction
        offset = fraction(self._seed, "split")
        is_test = math.floor((position + 1) * share + offset) > math.floor(position * share + offset)
        return "test" if is_test else "train"

    def parse(self, record: RawRecord) -> ParsedRecord:
        """Turn a raw record into a dialogue and draw its pictures.

        Raises:
            BadRecordError: the record is not one of this reader's, or a picture of a CSV catalogue cannot be decoded.
        """
        raw = _load(record.raw)
        try:
            turns = tuple(
                Turn(turn["speaker"], turn["text"], tuple(turn["pictures"]), tuple(turn["items"]))
                for turn in raw["turns"]
            )
            dialogue = Dialogue(raw["id"], self.name, record.split, turns, raw["labels"], raw["meta"])
            images = {key: self._picture(spec) for key, spec in raw["pictures"].items()}
        except KeyError as error:
            raise BadRecordError("missing_field", f"record {record.position}: no {error} (or no such item)") from None
        except (TypeError, AttributeError) as error:
            raise BadRecordError("wrong_type", f"record {record.position}: {error}") from None
        return ParsedRecord(dialogue, images)

    def _picture(self, spec: PictureSpec) -> ImageSource:
        data = picture_bytes(self.catalogue, self._settings.image_side_px, json.dumps(spec, sort_keys=True))
        is_studio = spec["scene"] == "product_photo" and spec["variant"] == STUDIO
        description = self.catalogue.by_id[spec["item"]].title if is_studio else None
        return ImageSource(data=data, description=description)

    def items(self) -> Iterator[CatalogueItem]:
        """Yield the products, each with its studio picture."""
        for product in self.catalogue.products:
            key = f"{product.id}.{'jpg' if product.picture else 'png'}"
            spec = PictureSpec(scene="product_photo", item=product.id, variant=STUDIO)
            attributes = dict(product.attributes)
            if product.title_zh != product.title:
                attributes["title_zh"] = product.title_zh
            yield CatalogueItem(Item(product.id, product.title, attributes, (key,)), {key: self._picture(spec)})

    def graph(self) -> Graph:
        """Return the item graph."""
        return build_graph(self.catalogue)


def _load(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except ValueError as error:
        raise BadRecordError("broken_json", str(error)) from None
    if not isinstance(record, dict):
        raise BadRecordError("wrong_type", f"a record is a JSON object, not {type(record).__name__}")
    return record


@lru_cache(maxsize=_CACHED_PICTURES)
def picture_bytes(catalogue: Catalogue, side: int, spec_json: str) -> bytes:
    """Return the encoded picture of a specification: PNG, or the CSV catalogue's own file for its plain photographs.

    Raises:
        KeyError: no such item or scene.
        BadRecordError: a CSV catalogue's picture cannot be decoded.
    """
    spec: PictureSpec = json.loads(spec_json)
    if spec["scene"] == "other":
        return _png(scenery(side, spec["variant"]))
    product = catalogue.by_id[spec["item"]]
    if spec["scene"] == "product_photo":
        return _product_photo(product, side, spec["variant"])
    if spec["scene"] == "damaged_item":
        return _png(photograph(product, side, spec["variant"], spec["focus"]))
    return _png(draw_page(spec, product, _other(catalogue, product, spec), side))


def _product_photo(product: Product, side: int, view: int) -> bytes:
    if product.picture is not None and view == STUDIO:
        return _file(product.picture)
    return _png(photograph(product, side, view))


def _file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadRecordError("image_missing", f"{Path(path).name}: {error.strerror}") from None


def _other(catalogue: Catalogue, product: Product, spec: PictureSpec) -> Product:
    """Return the second product of a page: the one compared with, else one bought together."""
    if other := spec.get("other"):
        return catalogue.by_id[other]
    return (*catalogue.bought_with(product, 1), product)[0]


def _png(picture: Pixels.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()
