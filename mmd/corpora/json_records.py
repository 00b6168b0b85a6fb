"""JSON Lines and JSON arrays, cut into raw records that fail alone; and a cursor that names what is wrong in one.

A file is cut without trusting it: a malformed line is one raw record, and a malformed element of an array is one raw
record up to the next object that looks like a record of that corpus (it has one of the reader's *marks*, keys
that every record has), or, where none follows, up to the end of the file. Decoding happens later, record by record.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmd.corpora.base import Part, RawRecord
from mmd.errors import BadRecordError, CorpusError
from mmd.schema import Split

PART_RECORDS = 128
PART_BYTES = 4 * 2**20
"""Bounds of one part: whichever is reached first ends it (a single record may be larger)."""

MAX_RECORD_BYTES = 256 * 2**20
"""A longer record is kept up to here, which makes it a broken one; it bounds the memory a bad file can take."""

Layout = Literal["lines", "array"]
_WINDOW_CHARS = 2**20
_BOM = codecs.BOM_UTF8
_LINE_SUFFIXES = frozenset({".jsonl", ".ndjson"})
_SNIFFED_LINES = 20
# Lenient on purpose: cutting must not stumble over what decoding will refuse (raw control characters, huge numbers).
_CUTTER = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)
_SEPARATORS = re.compile(r"[\s,]*")
_OBJECT_START = re.compile(r'\{(?=\s*")')
_HALF = re.compile("[\ud800-\udfff]")
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place in a file where a record may start: its number (line number in JSON Lines) and byte offset."""

    position: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """A record as cut from a file: number, byte offset, bytes."""

    position: int
    offset: int
    raw: bytes


class RecordFile:
    """One JSON Lines or JSON array file of a corpus.

    Args:
        path: the file.
        marks: keys of which every record of this corpus has at least one.

    Raises:
        CorpusError: the file is unreadable or empty, or its top level is neither an array nor one object a line.
    """

    def __init__(self, path: Path, marks: Iterable[str]) -> None:
        self.path = path
        self.marks = frozenset(marks)
        try:
            self.layout: Layout = _sniff(path, self.marks)
        except OSError as err:
            raise CorpusError(f"{path}: cannot be read ({err.strerror}); check that it is a readable file.") from err

    def cuts(self, start: Checkpoint | None = None) -> Iterator[Cut]:
        """Yield the records from a checkpoint on, broken ones included."""
        place = start or Checkpoint()
        with self.path.open("rb") as file:
            yield from _cut_lines(file, place) if self.layout == "lines" else _cut_array(file, place, self.marks)

    def checkpoints(self, max_records: int, max_bytes: int) -> tuple[list[Checkpoint], int]:
        """Return where parts of bounded size start, and the number after the last record."""
        starts: list[Checkpoint] = []
        records, last = 0, -1
        for cut in self.cuts():
            if not starts or records >= max_records or cut.offset + len(cut.raw) - starts[-1].offset > max_bytes:
                starts.append(Checkpoint(cut.position, cut.offset))
                records = 0
            records += 1
            last = cut.position
        return starts, last + 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of one file and the checkpoints that let each be read without scanning what comes before."""

    parts: tuple[Part, ...]
    checkpoints: tuple[Checkpoint, ...]

    def before(self, position: int) -> Checkpoint:
        """Return the nearest checkpoint at or before a record."""
        i = bisect_right(self.checkpoints, position, key=lambda place: place.position)
        return self.checkpoints[i - 1] if i else Checkpoint()


def plan_file(
    file: RecordFile,
    source: str,
    split: Split,
    *,
    max_records: int = PART_RECORDS,
    max_bytes: int = PART_BYTES,
) -> Plan:
    """Split a file into parts of at most ``max_records`` records and about ``max_bytes`` bytes."""
    starts, stop = file.checkpoints(max_records, max_bytes)
    if not starts:
        return Plan((), ())
    stops = [place.position for place in starts[1:]] + [stop]
    parts = tuple(Part(source, split, place.position, end) for place, end in zip(starts, stops, strict=True))
    return Plan(parts, tuple(starts))


def read_part(file: RecordFile, part: Part, plan: Plan | None = None) -> Iterator[RawRecord]:
    """Yield the raw records of a part; without the plan it is found by scanning from the start of the file."""
    for cut in file.cuts(plan.before(part.start) if plan else None):
        if part.stop is not None and cut.position >= part.stop:
            return
        if cut.position >= part.start:
            yield RawRecord(part.source, cut.position, part.split, cut.raw)


def _sniff(path: Path, marks: frozenset[str]) -> Layout:
    if path.suffix.lower() in _LINE_SUFFIXES:
        with path.open("rb"):
            return "lines"
    with path.open("rb") as file:
        head = file.read(2**16).removeprefix(_BOM).lstrip()
        if head.startswith(b"["):
            return "array"
        if not head:
            raise CorpusError(f"{path}: is empty; expected a JSON array of records or one JSON object a line.")
        file.seek(0)
        keys: list[str] = []
        for cut, _ in zip(_cut_lines(file, Checkpoint()), range(_SNIFFED_LINES), strict=False):
            keys = _keys(cut.raw) or keys
            if marks & set(keys):
                return "lines"
    found = f"an object with the keys {sorted(keys)[:8]}" if keys else f"{head[:20]!r}…"
    raise CorpusError(
        f"{path}: starts with {found}; expected a JSON array of records, or one JSON object a line, "
        f"each with the key {' or '.join(repr(m) for m in sorted(marks))}."
    )


def _keys(line: bytes) -> list[str]:
    try:
        value = _CUTTER.decode(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return []
    return list(value) if isinstance(value, dict) else []


def _cut_lines(file: io.BufferedReader, start: Checkpoint) -> Iterator[Cut]:
    """Cut at line feeds; blank lines are counted but are no records."""
    file.seek(start.offset)
    position, offset = start.position, start.offset
    while line := file.readline(MAX_RECORD_BYTES):
        length = len(line) + _skip_rest_of_line(file, line)
        raw = line.removeprefix(_BOM) if offset == 0 else line
        if not raw.isspace() and raw:
            yield Cut(position, offset, raw.rstrip(b"\r\n"))
        position += 1
        offset += length


def _skip_rest_of_line(file: io.BufferedReader, line: bytes) -> int:
    skipped = 0
    while len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
        line = file.readline(MAX_RECORD_BYTES)
        skipped += len(line)
    return skipped


def _cut_array(file: io.BufferedReader, start: Checkpoint, marks: frozenset[str]) -> Iterator[Cut]:
    window = _Window(file, start.offset)
    position = start.position
    if start.offset == 0:
        window.skip_opening()
    closed = False
    while True:
        head = window.skip_separators()
        offset = window.offset
        if head == "]":  # a stray one, if anything follows
            window.take(1)
            closed = True
            continue
        if not head:
            if not closed:  # say so rather than lose what may have followed
                yield Cut(position, offset, b"")
            return
        closed = False
        end = window.value_end()
        yield Cut(position, offset, window.take(end) if end else window.take_broken(marks))
        if end is None and window.at_end:
            return  # the broken record took the closing bracket with it
        position += 1


class _Window:
    """The not yet cut text of an array file, decoded piece by piece so that any bytes survive the round trip."""

    def __init__(self, file: io.BufferedReader, offset: int) -> None:
        file.seek(offset)
        self.offset = offset  # in the file, of the next character
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._at = 0  # next character of _text
        self._eof = False

    def skip_opening(self) -> None:
        """Step over byte-order mark, white space and the opening bracket, which sniffing has seen."""
        self._grow()
        self.take(self._text.index("[") + 1)

    def skip_separators(self) -> str:
        """Step over white space and commas; return the character after them, empty at the end of the file."""
        while True:
            match = _SEPARATORS.match(self._text, self._at)
            self.take(match.end() - self._at if match else 0)
            if self._at < len(self._text) or self._eof:
                return self._text[self._at : self._at + 1]
            self._grow()

    def value_end(self) -> int | None:
        """Return the length of the JSON value that starts here, in characters; None if it is broken."""
        while True:
            try:
                end = _CUTTER.raw_decode(self._text, self._at)[1]
            except RecursionError:
                return None
            except json.JSONDecodeError as err:
                if self._complete or not _may_be_cut_short(err, len(self._text)):
                    return None
            else:
                if end < len(self._text) or self._eof:
                    return end - self._at
            self._grow()

    def take(self, chars: int) -> bytes:
        """Return and step over the next characters, as the bytes they were."""
        data = self._text[self._at : self._at + chars].encode("utf-8", "surrogateescape")
        self._at += chars
        self.offset += len(data)
        return data

    def take_broken(self, marks: frozenset[str]) -> bytes:
        """Return and step over a broken value: all up to the next object that has one of the marks."""
        while (end := self._next_record(marks)) is None:
            if self._complete:
                return self.take_rest()
            self._grow()
        raw = self.take(end - self._at)
        return raw.rstrip(b", \t\r\n")

    def take_rest(self) -> bytes:
        """Return what is left of the file, at most ``MAX_RECORD_BYTES`` of it."""
        while not self._complete:
            self._grow()
        rest = self.take(len(self._text) - self._at)
        self._eof = True
        return rest.rstrip()

    @property
    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self._eof and self._at == len(self._text)

    @property
    def _complete(self) -> bool:
        return self._eof or len(self._text) - self._at >= MAX_RECORD_BYTES

    def _next_record(self, marks: frozenset[str]) -> int | None:
        start = self._at + 1
        while match := _OBJECT_START.search(self._text, start):
            try:
                value, end = _CUTTER.raw_decode(self._text, match.start())
            except (ValueError, RecursionError):
                start = match.end()
                continue
            if not marks.isdisjoint(value):
                return match.start()
            start = end  # part of the broken record, and so is all inside it
        return None

    def _grow(self) -> None:
        """Double what is in view, so that a long record costs linear time."""
        self._text = self._text[self._at :]
        self._at = 0
        data = self._file.read(max(_WINDOW_CHARS, len(self._text)))
        self._eof = not data
        self._text += self._decoder.decode(data, final=self._eof)


def _may_be_cut_short(err: json.JSONDecodeError, length: int) -> bool:
    # Only the end of the text explains an open string, or a fault within the last literal or escape.
    return "Unterminated" in err.msg or err.pos >= length - 16


@dataclass(frozen=True, slots=True)
class JsonNode:
    """A value inside a record and the path to it, so that every complaint says where."""

    value: Any
    path: str = ""

    def field(self, key: str) -> JsonNode:
        """Return a required field.

        Raises:
            BadRecordError: ``missing_field``, or ``wrong_type`` when this is no object.
        """
        found = self.get(key)
        if found is None:
            raise BadRecordError("missing_field", f"{self._join(key)}: missing or null")
        return found

    def get(self, key: str) -> JsonNode | None:
        """Return an optional field; None when absent or null."""
        value = self.mapping().get(key)
        return None if value is None else JsonNode(value, self._join(key))

    def first(self, *keys: str) -> JsonNode | None:
        """Return the first of several spellings of an optional field that is there."""
        values = self.mapping()
        for key in keys:
            if values.get(key) is not None:
                return JsonNode(values[key], self._join(key))
        return None

    def mapping(self) -> Mapping[str, Any]:
        """Return the object as a mapping."""
        if not isinstance(self.value, dict):
            raise self.wrong_type("an object")
        return self.value

    def fields(self) -> Iterator[tuple[str, JsonNode]]:
        """Yield (key, value) of an object."""
        return ((key, JsonNode(value, self._join(key))) for key, value in self.mapping().items())

    def elements(self) -> list[JsonNode]:
        """Return the elements of a list."""
        if not isinstance(self.value, list):
            raise self.wrong_type("a list")
        return [JsonNode(value, f"{self.path}[{i}]") for i, value in enumerate(self.value)]

    def text(self) -> str:
        """Return a string."""
        if not isinstance(self.value, str):
            raise self.wrong_type("a string")
        return self.value

    def identifier(self) -> str:
        """Return a name: a non-empty string, or a whole number written as one."""
        if isinstance(self.value, bool) or not isinstance(self.value, (str, int)):
            raise self.wrong_type("a string or a whole number")
        if self.value == "":
            raise BadRecordError("missing_field", f"{self.path}: is empty")
        return str(self.value)

    def index(self, length: int) -> int:
        """Return a position in a list of the given length."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not 0 <= self.value < length:
            raise self.wrong_type(f"a whole number from 0 to {length - 1}")
        return self.value

    def scalar(self) -> str:
        """Return a string, number or truth value as text, for a dialogue's meta."""
        if isinstance(self.value, str):
            return self.value
        if isinstance(self.value, (bool, int, float)):
            return json.dumps(self.value)
        raise self.wrong_type("a string, number or truth value")

    def wrong_type(self, needed: str) -> BadRecordError:
        """Build the error for a value of the wrong type or range."""
        return BadRecordError("wrong_type", f"{self.path or 'record'}: is {_shown(self.value)}, needs {needed}")

    def _join(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def _shown(value: Any) -> str:  # noqa: ANN401 (any JSON)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def decode_record(raw: bytes) -> JsonNode:
    """Decode one raw record into a JSON object.

    Raises:
        BadRecordError: ``invalid_utf8`` (also for an escaped half of a surrogate pair, which no UTF-8 text can hold),
            ``broken_json``, or ``wrong_type`` when it is no object.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as err:
        raise BadRecordError(
            "invalid_utf8", f"byte {err.start} (0x{raw[err.start]:02x}) is not UTF-8; convert the file to UTF-8"
        ) from err
    if not text.strip():
        raise BadRecordError("broken_json", "nothing here: the array was not closed, the file may be cut off")
    try:
        value = json.loads(text)
    except RecursionError as err:
        raise BadRecordError("broken_json", "nested too deeply") from err
    except ValueError as err:
        raise BadRecordError("broken_json", str(err)) from err
    if _HALF_PAIR.search(raw):
        _refuse_half_pairs(value)
    node = JsonNode(value)
    node.mapping()
    return node


def _refuse_half_pairs(value: Any) -> None:  # noqa: ANN401 (any JSON)
    waiting = [value]
    while waiting:  # a loop, not a recursion: the record may be nested to the limit
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += [*node, *node.values()]
        elif isinstance(node, list):
            waiting += node
        elif isinstance(node, str) and (half := _HALF.search(node)):
            escape = f"\\u{ord(half.group()):04x}"
            raise BadRecordError("invalid_utf8", f"the escape {escape} is half of a surrogate pair")
