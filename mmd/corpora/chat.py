"""``chat``: bring your own conversations, one JSON object a line (or a JSON list of them).

Two shapes: OpenAI-style ``{"messages": [{"role", "content"}]}``, where content is a string or a list of parts
``{"type": "text", "text"}`` and ``{"type": "image_url", "image_url": {"url"}}``; and ShareGPT
``{"conversations": [{"from", "value"}]}``. A record may add ``labels`` {task: label}, ``id``, ``split``
(``train`` or ``test``), ``meta`` {key: scalar}, and ``images`` (or ``image``), a list of addresses that take the places
of ``<image>`` markers in the texts.

An address is a data URL or a path relative to the file's folder; addresses on the network are refused. An ``ocr.jsonl``
at the top of the folder gives recognised text by the pictures' paths, see :mod:`mmd.corpora.ocr_lines`.

A ``products.csv`` at the top of the folder is the catalogue (:mod:`mmd.corpora.product_csv`), with pictures in
``images/ID.jpg`` where there are any; a message names its products by ``items``, a list of ids. What products have in
common is the item graph.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes

from mmd.corpora.base import CatalogueItem, Graph, ImageSource, ParsedRecord, RawRecord
from mmd.corpora.drafts import Draft, content_id, place_images
from mmd.corpora.folder import RECORD_SUFFIXES, CorpusFile, FolderReader, files_by_section
from mmd.corpora.json_records import JsonNode, decode_record
from mmd.corpora.ocr_lines import OCR_FILE, read_ocr
from mmd.corpora.product_csv import attribute_graph, read_products
from mmd.errors import BadRecordError, CorpusError
from mmd.schema import Dialogue, Item, OcrLine, Speaker, Split, image_id

TASKS_FILE = "tasks.json"
CATALOGUE_FILE = "products.csv"
_NO_RECORD_FILES = frozenset({TASKS_FILE, OCR_FILE})
_SPEAKERS: Mapping[str, Speaker] = {
    "user": "user",
    "human": "user",
    "assistant": "agent",
    "agent": "agent",
    "gpt": "agent",
    "chatgpt": "agent",
    "model": "agent",
}
_INSTRUCTIONS = frozenset({"system", "developer"})
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class ChatReader(FolderReader):
    """Reads every JSON Lines file (and JSON list) of a folder."""

    name = "chat"
    layout = (
        'JSON Lines files with "messages" or "conversations" a record (test….jsonl is the test split, all else train '
        "unless a record says so), pictures anywhere beside them, and optionally tasks.json {task: [label, …]} and "
        "products.csv with its pictures in images/ID.jpg"
    )
    marks = frozenset({"messages", "conversations"})

    def files(self) -> list[CorpusFile]:
        """Return the record files: those of the folder itself and of subfolders named after a section."""
        named = {file.source: file for file in files_by_section(self._folder)}
        for path in self._folder.glob("*.*"):
            if path.suffix.lower() in RECORD_SUFFIXES and path.is_file() and path.name not in _NO_RECORD_FILES:
                named.setdefault(path.name, CorpusFile(path.name, "train", "train"))
        return [named[source] for source in sorted(named)]

    def tasks(self) -> Mapping[str, tuple[str, ...]]:
        """Return the label sets of ``tasks.json``; without it, the labels of the training records as they first appear.

        Raises:
            CorpusError: ``tasks.json`` is no mapping of task to a list of distinct labels.
        """
        path = self._folder / TASKS_FILE
        if path.is_file():
            return _read_tasks(path.read_bytes(), str(path))
        labels: dict[str, dict[str, None]] = {}
        for given in self._training_labels():
            for task, label in given.items():
                labels.setdefault(task, {})[label] = None
        return {task: tuple(labels[task]) for task in sorted(labels)}

    def parse(self, record: RawRecord) -> ParsedRecord:
        """Turn a conversation into a dialogue; system messages go to meta ``system``."""
        node = decode_record(record.raw)
        split = _split(node, record.split)
        meta = {key: value.scalar() for key, value in extra.fields()} if (extra := node.get("meta")) else {}
        pictures = _Pictures(PurePosixPath(record.source).parent, self._ocr)
        drafts: list[Draft] = []
        system: list[str] = []
        for message in _messages(node):
            role, text, image_ids = _read_message(message, pictures)
            if role in _INSTRUCTIONS:
                system.append(text)
            else:
                drafts.append(Draft(_speaker(message, role), text, image_ids, _item_ids(message)))
        if system:
            meta["system"] = "\n".join(system)
        if listed := node.first("images", "image"):
            entries = listed.elements() if isinstance(listed.value, list) else [listed]
            meta |= place_images(drafts, [pictures.add(entry) for entry in entries])
        given = node.get("id")
        dialogue = Dialogue(
            id=given.identifier() if given else f"{split}-{content_id(record.raw)}",
            source=self.name,
            split=split,
            turns=tuple(draft.turn() for draft in drafts),
            labels=_labels(node),
            meta=meta,
        )
        return ParsedRecord(dialogue, pictures.sources)

    def items(self) -> Iterator[CatalogueItem]:
        """Yield the products of ``products.csv``, each with its picture where there is one.

        Raises:
            CorpusError: the file is no catalogue.
        """
        for item in self._products:
            pictures = {key: ImageSource(path=key, ocr=self._ocr.get(key)) for key in item.image_ids}
            yield CatalogueItem(item, pictures)

    def graph(self) -> Graph:
        """Return what the products have in common; empty without ``products.csv``."""
        return attribute_graph(self._products)

    @cached_property
    def _products(self) -> tuple[Item, ...]:
        path = self._folder / CATALOGUE_FILE
        if not path.is_file():
            return ()
        table = read_products(path, "docs/data.md")
        return tuple(
            Item(
                row[table.id_column],
                row[table.title_column],
                table.attributes(row),
                self._picture(row[table.id_column]),
            )
            for row in table.rows
        )

    def _picture(self, item_id: str) -> tuple[str, ...]:
        """Return the path of a product's picture, if there is one."""
        name = f"images/{item_id}.jpg"
        return (name,) if (self._folder / name).is_file() else ()

    @cached_property
    def _ocr(self) -> Mapping[str, tuple[OcrLine, ...]]:
        return read_ocr(self._folder / OCR_FILE)

    def _training_labels(self) -> Iterator[dict[str, str]]:
        for file in self.existing_files():
            for cut in self._open(file.source).cuts():
                if b'"labels"' not in cut.raw:
                    continue
                try:
                    node = decode_record(cut.raw)
                    if _split(node, file.split) == "train":
                        yield _labels(node)
                except BadRecordError:
                    continue  # ingest reports it


class _Pictures:
    """Collects the pictures of one record under keys: the path, or the hash of bytes that came along."""

    def __init__(self, folder: PurePosixPath, ocr: Mapping[str, tuple[OcrLine, ...]]) -> None:
        self.sources: dict[str, ImageSource] = {}
        self._folder = folder
        self._ocr = ocr

    def add(self, address: JsonNode) -> str:
        url = address.identifier()
        if url[:5].lower() == "data:":
            data = _data_url(address.path, url)
            key, source = image_id(data), ImageSource(data=data)
        elif _SCHEME.match(url):
            raise BadRecordError(
                "remote_image", f"{address.path}: {url[:80]!r} is not fetched; save the picture beside the file"
            )
        else:
            key = str(self._folder / url)
            source = ImageSource(path=key, ocr=self._ocr.get(key))
        self.sources[key] = source
        return key


def _data_url(where: str, url: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma:
        raise BadRecordError("not_an_image", f"{where}: a data URL without a comma; needs data:image/…;base64,DATA")
    if not header.lower().endswith(";base64"):
        return unquote_to_bytes(payload)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as err:
        raise BadRecordError("not_an_image", f"{where}: invalid base64 in a data URL ({err})") from err


def _messages(node: JsonNode) -> list[JsonNode]:
    messages = node.first("messages", "conversations")
    if messages is None:
        raise BadRecordError("missing_field", "messages: missing, and so is conversations")
    return messages.elements()


def _read_message(message: JsonNode, pictures: _Pictures) -> tuple[str, str, list[str]]:
    """Return role, text and picture keys of a message of either shape."""
    role = message.first("role", "from")
    if role is None:
        raise BadRecordError("missing_field", f"{message.path}.role: missing, and so is from")
    content = message.first("content", "value")
    if content is None:
        if "content" in message.mapping():  # null: an assistant that only called tools
            return role.text(), "", []
        raise BadRecordError("missing_field", f"{message.path}.content: missing, and so is value")
    if isinstance(content.value, str):
        return role.text(), content.value.strip(), []
    texts: list[str] = []
    image_ids: list[str] = []
    for part in content.elements():
        kind = part.field("type")
        if kind.value == "text":
            texts.append(part.field("text").text().strip())
        elif kind.value == "image_url":
            address = part.field("image_url")
            image_ids.append(pictures.add(address if isinstance(address.value, str) else address.field("url")))
        else:
            raise kind.wrong_type("'text' or 'image_url'")
    return role.text(), "\n".join(text for text in texts if text), image_ids


def _speaker(message: JsonNode, role: str) -> Speaker:
    speaker = _SPEAKERS.get(role)
    if speaker is None:
        known = ", ".join([*_SPEAKERS, *sorted(_INSTRUCTIONS)])
        raise BadRecordError("unknown_speaker", f"{message.path}: role {role[:40]!r} is none of {known}")
    return speaker


def _item_ids(message: JsonNode) -> list[str]:
    """Return the products that a message names."""
    return [one.identifier() for one in listed.elements()] if (listed := message.get("items")) else []


def _split(node: JsonNode, default: Split) -> Split:
    given = node.get("split")
    if given is None:
        return default
    if given.value == "train":
        return "train"
    if given.value == "test":
        return "test"
    raise given.wrong_type("'train' or 'test'")


def _labels(node: JsonNode) -> dict[str, str]:
    labels = node.get("labels")
    return {task: label.text() for task, label in labels.fields()} if labels else {}


def _read_tasks(raw: bytes, where: str) -> dict[str, tuple[str, ...]]:
    try:
        tasks = {task: tuple(e.text() for e in labels.elements()) for task, labels in decode_record(raw).fields()}
    except BadRecordError as err:
        raise CorpusError(f"{where}: {err}. Expected {json.dumps({'task': ['label', 'label']})}.") from err
    for task, labels in tasks.items():
        if not labels or len(set(labels)) < len(labels):
            raise CorpusError(f"{where}: task {task!r} has no labels, or one twice; list each label once.")
    return tasks
