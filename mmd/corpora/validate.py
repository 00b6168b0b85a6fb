"""From a raw record to a valid dialogue, or to a reason why not. Nothing is normalised or repaired on the way.

Checks go from cheap to dear: the record's bytes, the reader's parse, the dialogue's shape, and last its pictures.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from mmd.corpora.base import CatalogueItem, CorpusReader, ImageSource, ParsedRecord, RawRecord
from mmd.corpora.images import ImageLoader
from mmd.corpora.settings import LimitSettings
from mmd.errors import BadRecordError
from mmd.schema import Dialogue, Image, Item, Speaker, Split, Turn

Tasks = Mapping[str, Sequence[str]]
_SPEAKERS: tuple[str, ...] = get_args(Speaker)
_SPLITS: tuple[str, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class ValidatedRecord:
    """A dialogue whose turns name pictures by content hash, and those pictures in order of first mention."""

    dialogue: Dialogue
    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class ValidatedItem:
    """An item that names pictures by content hash, and those pictures in order of first mention."""

    item: Item
    images: tuple[Image, ...]


def validate_record(
    reader: CorpusReader,
    record: RawRecord,
    limits: LimitSettings,
    tasks: Tasks,
    loader: ImageLoader | None = None,
) -> ValidatedRecord:
    """Parse and check one record and load its pictures.

    Args:
        reader: what the record came from.
        record: as read.
        limits: above which the record is refused.
        tasks: task → its labels.
        loader: keeps what it has decoded between records; None makes one for this record.

    Raises:
        BadRecordError: the record goes to quarantine.
    """
    if len(record.raw) > limits.max_record_mb * 2**20:
        raise BadRecordError(
            "text_too_long",
            f"the record has {len(record.raw) / 2**20:.1f} MiB; "
            f"data.limits.max_record_mb allows {limits.max_record_mb:g}",
        )
    parsed = _parse(reader, record)
    check_dialogue(parsed.dialogue, limits, tasks)
    images = _load_images(
        (i for turn in parsed.dialogue.turns for i in turn.image_ids),
        parsed.images,
        loader or ImageLoader(reader.root, limits),
    )
    turns = tuple(_with_hashes(turn, images) for turn in parsed.dialogue.turns)
    return ValidatedRecord(replace(parsed.dialogue, turns=turns), _distinct(images))


def validate_item(entry: CatalogueItem, limits: LimitSettings, loader: ImageLoader) -> ValidatedItem:
    """Check one item of the catalogue and load its pictures.

    Raises:
        BadRecordError: the item goes to quarantine.
    """
    item = entry.item
    _check_id(item.id, "id")
    _check_text(item.title, "title", limits)
    _check_strings(item.attributes, "attributes", limits)
    images = _load_images(item.image_ids, entry.images, loader)
    hashes = tuple(images[key].id for key in item.image_ids)
    return ValidatedItem(replace(item, image_ids=hashes), _distinct(images))


def raw_item(entry: CatalogueItem) -> bytes:
    """Return an item as JSON, for quarantine: readers give items parsed, so there are no raw bytes."""
    item = entry.item
    value = {
        "id": item.id,
        "title": item.title,
        "attributes": dict(item.attributes),
        "images": {key: entry.images[key].path for key in item.image_ids if key in entry.images},
    }
    return json.dumps(value, default=repr).encode()


def _parse(reader: CorpusReader, record: RawRecord) -> ParsedRecord:
    """Parse, turning what a reader should have caught itself into the nearest reason: no record stops a job."""
    try:
        return reader.parse(record)
    except UnicodeDecodeError as err:
        raise BadRecordError("invalid_utf8", f"byte {err.start}: {err.reason}") from err
    except json.JSONDecodeError as err:
        raise BadRecordError("broken_json", str(err)) from err
    except RecursionError as err:
        raise BadRecordError("broken_json", "nested too deeply") from err
    except LookupError as err:
        raise BadRecordError("missing_field", f"the {reader.name} reader looked for {err}") from err
    except (TypeError, AttributeError, ValueError) as err:
        raise BadRecordError("wrong_type", f"the {reader.name} reader stopped at: {err}") from err


def check_dialogue(dialogue: Dialogue, limits: LimitSettings, tasks: Tasks) -> None:
    """Check a dialogue's shape: everything but its pictures.

    Raises:
        BadRecordError: naming the field and what is allowed there.
    """
    _check_id(dialogue.id, "id")
    _check_text(dialogue.source, "source", limits)
    if dialogue.split not in _SPLITS:
        raise BadRecordError("wrong_type", f"split: {dialogue.split!r} is neither of {', '.join(_SPLITS)}")
    if len(dialogue.turns) > limits.max_turns:
        raise BadRecordError(
            "too_many_turns", f"{len(dialogue.turns)} turns; data.limits.max_turns allows {limits.max_turns}"
        )
    for index, turn in enumerate(dialogue.turns):
        _check_turn(turn, f"turns[{index}]", limits)
    if not any(turn.text.strip() or turn.image_ids or turn.item_ids for turn in dialogue.turns):
        raise BadRecordError("empty_dialogue", f"{len(dialogue.turns)} turns, none with text, picture or item")
    _check_strings(dialogue.meta, "meta", limits)
    _check_labels(dialogue.labels, tasks, limits)


def _check_turn(turn: Turn, where: str, limits: LimitSettings) -> None:
    if turn.speaker not in _SPEAKERS:
        raise BadRecordError(
            "unknown_speaker", f"{where}.speaker: {turn.speaker!r:.60} is neither of {', '.join(_SPEAKERS)}"
        )
    _check_text(turn.text, f"{where}.text", limits)
    for item_id in turn.item_ids:
        _check_id(item_id, f"{where}.item_ids")


def _check_labels(labels: Mapping[str, str], tasks: Tasks, limits: LimitSettings) -> None:
    _check_strings(labels, "labels", limits)
    for task, label in labels.items():
        if task not in tasks:
            raise BadRecordError(
                "unknown_label", f"labels: no task {task!r:.60}; there are {', '.join(tasks) or 'none'}"
            )
        if label not in tasks[task]:
            close = difflib.get_close_matches(label[:100], tasks[task], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise BadRecordError(
                "unknown_label", f"labels.{task}: {label!r:.60} is none of its {len(tasks[task])} labels{hint}"
            )


def _check_strings(strings: Mapping[str, str], where: str, limits: LimitSettings) -> None:
    for key, value in strings.items():
        _check_text(key, f"{where} (a key)", limits)
        _check_text(value, f"{where}.{key}", limits)


def _check_id(value: Any, where: str) -> None:  # noqa: ANN401 (what a reader gave)
    if value == "":
        raise BadRecordError("missing_field", f"{where}: is empty")
    _check_encodable(value, where)


def _check_text(value: Any, where: str, limits: LimitSettings) -> None:  # noqa: ANN401 (what a reader gave)
    if isinstance(value, str) and len(value) > limits.max_text_chars:
        raise BadRecordError(
            "text_too_long",
            f"{where:.60}: {len(value)} characters; data.limits.max_text_chars allows {limits.max_text_chars}",
        )
    _check_encodable(value, where)


def _check_encodable(value: Any, where: str) -> None:  # noqa: ANN401 (what a reader gave)
    if not isinstance(value, str):
        raise BadRecordError("wrong_type", f"{where:.60}: a {type(value).__name__}, needs a string")
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as err:  # half of a surrogate pair, which JSON escapes can spell
        raise BadRecordError("invalid_utf8", f"{where!r:.60}: character {err.start} is half a surrogate pair") from err


def _load_images(keys: Iterable[str], sources: Mapping[str, ImageSource], loader: ImageLoader) -> dict[str, Image]:
    images: dict[str, Image] = {}
    for key in keys:
        if key in images:
            continue
        source = sources.get(key)
        if source is None:
            raise BadRecordError(
                "image_missing", f"{key!r:.80}: named in a turn, but the record brings no such picture"
            )
        _check_captions(source, loader.limits)
        try:
            images[key] = loader.load(source)
        except BadRecordError as err:
            raise BadRecordError(err.reason, f"picture {key!r:.80}: {err.detail}") from err
    return images


def _check_captions(source: ImageSource, limits: LimitSettings) -> None:
    if source.description is not None:
        _check_text(source.description, "description", limits)
    for line in source.ocr or ():
        _check_text(line.text, "ocr", limits)


def _with_hashes(turn: Turn, images: Mapping[str, Image]) -> Turn:
    if not turn.image_ids:
        return turn
    return replace(turn, image_ids=tuple(images[key].id for key in turn.image_ids))


def _distinct(images: Mapping[str, Image]) -> tuple[Image, ...]:
    """Drop pictures whose bytes another key named already."""
    first: dict[str, Image] = {}
    for image in images.values():
        first.setdefault(image.id, image)
    return tuple(first.values())
