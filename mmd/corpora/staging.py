"""Ingest in two passes over bounded pieces, whatever runs them: stage every part, then merge.

Pass 1 (:class:`PartStager`) validates one part of a corpus and writes what it found to staged Parquet files; it
returns a :class:`Receipt` of ids, hashes and sizes, no text and no pixels. :func:`merge` decides from the receipts
alone, in reading order, what is kept. Pass 2 (:func:`copy_shard`) copies kept rows from the staged files to the final
shards.

So no process ever holds more than one part or one shard, and the result depends on the reading order only: not on how
many processes worked, nor on which finished first.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Self, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from mmd import schema
from mmd.corpora.base import CorpusReader, Part
from mmd.corpora.images import ImageLoader
from mmd.corpora.settings import LimitSettings
from mmd.corpora.validate import Tasks, raw_item, validate_item, validate_record
from mmd.errors import BadRecordError
from mmd.schema import Image

SCHEMAS: Mapping[str, pa.Schema] = {
    "dialogues": schema.DIALOGUES,
    "images": schema.IMAGES,
    "items": schema.ITEMS,
    "quarantine": schema.QUARANTINE,
}
ITEMS_SOURCE = "items"
SHARD_BYTES = 64 * 2**20
"""A shard ends at ``data.shard_rows`` rows or about this many bytes, whichever comes first."""

_GROUP_BYTES = 8 * 2**20
_IMAGE_GROUP_ROWS = 64
_DETAIL_CHARS = 300
_HASHES = pa.list_(pa.binary(32))
_NUMBERS = pa.list_(pa.int64())
_STRINGS = pa.list_(pa.string())


@dataclass(frozen=True)
class Receipt:
    """What staging one part found; lists run parallel within their group.

    ``seq`` is a record's number within the part, in reading order.
    """

    part: int
    table: str  # dialogues or items
    source: str
    read: int = 0
    decoded: int = 0
    # valid records: staged row i of dialogues (or items)
    ids: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    images: list[list[int]] = field(default_factory=list)  # rows of the part's staged images
    # staged row i of images: the part's distinct pictures, in order of first mention
    image_ids: list[bytes] = field(default_factory=list)
    image_sizes: list[int] = field(default_factory=list)
    # staged row i of quarantine
    bad_seqs: list[int] = field(default_factory=list)
    bad_positions: list[int] = field(default_factory=list)
    bad_reasons: list[str] = field(default_factory=list)
    bad_details: list[str] = field(default_factory=list)

    def to_table(self) -> pa.Table:
        """Return the receipt as one Arrow row, to travel between processes."""
        return pa.Table.from_pylist([asdict(self)], RECEIPT)


RECEIPT = pa.schema(
    [
        ("part", pa.int64()),
        ("table", pa.string()),
        ("source", pa.string()),
        ("read", pa.int64()),
        ("decoded", pa.int64()),
        ("ids", _STRINGS),
        ("digests", _HASHES),
        ("seqs", _NUMBERS),
        ("positions", _NUMBERS),
        ("sizes", _NUMBERS),
        ("images", pa.list_(_NUMBERS)),
        ("image_ids", _HASHES),
        ("image_sizes", _NUMBERS),
        ("bad_seqs", _NUMBERS),
        ("bad_positions", _NUMBERS),
        ("bad_reasons", _STRINGS),
        ("bad_details", _STRINGS),
    ]
)


def content_digest(row: Mapping[str, Any]) -> bytes:
    """Return the SHA-256 of a dialogue's or item's row; ``source`` tells where it came from and is left out."""
    content = {key: value for key, value in row.items() if key != "source"}
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).digest()


class TableFile:
    """One Parquet file written in row groups of bounded size; without rows there is no file.

    Args:
        path: local path or fsspec URI.
        columns: its Arrow schema.
        group_rows: rows of a row group at most; None bounds groups by bytes alone.
    """

    def __init__(self, path: str, columns: pa.Schema, group_rows: int | None = None) -> None:
        self._path = path
        self._schema = columns
        self._group_rows = group_rows
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._handle: Any = None
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is left and close."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._handle.close()

    def add(self, row: dict[str, Any], size: int) -> None:
        """Append a row of about ``size`` bytes."""
        self._rows.append(row)
        self._bytes += size
        if self._bytes >= _GROUP_BYTES:
            self._flush()

    def add_table(self, table: pa.Table) -> None:
        """Append rows that are already Arrow, as row groups of ``group_rows``."""
        self._flush()
        step = self._group_rows or max(1, table.num_rows)
        for start in range(0, table.num_rows, step):
            # One chunk a column: page borders would otherwise follow the chunks, that is, the parts.
            self._open().write_table(table.slice(start, step).combine_chunks())

    def _flush(self) -> None:
        if self._rows:
            self._open().write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._bytes = [], 0

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            fs, path = fsspec.core.url_to_fs(self._path)
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self._handle = pa.OSFile(path, "wb") if _is_local(fs) else fs.open(path, "wb")
            self._writer = pq.ParquetWriter(self._handle, self._schema, **_parquet_options(self._schema))
        return self._writer


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Say whether Arrow can open the files itself, which spares a copy of every byte through Python."""
    return isinstance(fs, LocalFileSystem)


def _open_staged(path: str) -> Any:  # noqa: ANN401 (Arrow's or fsspec's file)
    fs, inside = fsspec.core.url_to_fs(path)
    return pa.memory_map(inside) if _is_local(fs) else fs.open(inside, "rb")


def _parquet_options(columns: pa.Schema) -> dict[str, Any]:
    """Return fixed settings, so that equal rows give equal bytes; pictures are compressed already."""
    if columns.equals(schema.IMAGES):
        return {"compression": "none", "use_dictionary": False, "write_statistics": ["id"]}
    return {"compression": "zstd", "compression_level": 3}


class PartStager:
    """Pass 1: validates parts of one corpus into staged files.

    Args:
        reader: of the corpus; it has planned already.
        tasks: task → its labels.
        limits: above which records are refused.
        folder: of the staged files, reachable by every worker.
    """

    def __init__(self, reader: CorpusReader, tasks: Tasks, limits: LimitSettings, folder: str) -> None:
        self._reader = reader
        self._tasks = tasks
        self._limits = limits
        self._folder = folder
        self._loader = ImageLoader(reader.root, limits)

    def stage(self, index: int, part: Part) -> Receipt:
        """Validate one part's records; every one ends in the staged dialogues or the staged quarantine."""
        with _Stage(self._folder, index, part.source, "dialogues") as stage:
            before = self._loader.decoded
            for record in self._reader.read(part):
                try:
                    valid = validate_record(self._reader, record, self._limits, self._tasks, self._loader)
                except BadRecordError as err:
                    stage.refuse(record.position, record.raw, err)
                else:
                    row = schema.dialogue_to_row(valid.dialogue)
                    stage.keep(record.position, row, len(record.raw), valid.images)
            return stage.receipt(self._loader.decoded - before)

    def stage_items(self, index: int) -> Receipt:
        """Validate the item catalogue as one more part."""
        with _Stage(self._folder, index, ITEMS_SOURCE, "items") as stage:
            before = self._loader.decoded
            for position, entry in enumerate(self._reader.items()):
                try:
                    valid = validate_item(entry, self._limits, self._loader)
                except BadRecordError as err:
                    stage.refuse(position, raw_item(entry), err)
                else:
                    row = schema.item_to_row(valid.item)
                    stage.keep(position, row, len(str(row)), valid.images)
            return stage.receipt(self._loader.decoded - before)


class _Stage:
    """The staged files of one part, and the receipt that grows with them."""

    def __init__(self, folder: str, index: int, source: str, table: str) -> None:
        self._receipt: dict[str, Any] = asdict(Receipt(index, table, source))
        self._image_rows: dict[str, int] = {}
        self._seq = 0
        self._records, self._images, self._bad = (
            TableFile(staged_path(folder, index, name), SCHEMAS[name]) for name in (table, "images", "quarantine")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._records, self._images, self._bad):
            file.__exit__(*error)

    def keep(self, position: int, row: dict[str, Any], size: int, images: Sequence[Image]) -> None:
        self._records.add(row, size)
        self._append(
            ids=row["id"],
            digests=content_digest(row),
            seqs=self._seq,
            positions=position,
            sizes=size,
            images=[self._image_row(image) for image in images],
        )
        self._seq += 1

    def refuse(self, position: int, raw: bytes, err: BadRecordError) -> None:
        self._bad.add(quarantine_row(self._receipt["source"], position, err, raw), len(raw))
        self._append(
            bad_seqs=self._seq,
            bad_positions=position,
            bad_reasons=err.reason,
            bad_details=_encodable(err.detail)[:_DETAIL_CHARS],
        )
        self._seq += 1

    def receipt(self, decoded: int) -> Receipt:
        return Receipt(**{**self._receipt, "read": self._seq, "decoded": decoded})

    def _image_row(self, image: Image) -> int:
        known = self._image_rows.get(image.id)
        if known is not None:
            return known
        size = len(image.data)
        self._images.add(schema.image_to_row(image), size)
        self._append(image_ids=bytes.fromhex(image.id), image_sizes=size)
        return self._image_rows.setdefault(image.id, len(self._image_rows))

    def _append(self, **values: object) -> None:
        for name, value in values.items():
            self._receipt[name].append(value)


def staged_path(folder: str, part: int, table: str) -> str:
    """Return where a part's rows of one table are staged."""
    return f"{folder}/{part:06d}-{table}.parquet"


def quarantine_row(source: str, position: int, err: BadRecordError, raw: bytes) -> dict[str, Any]:
    """Return a row of the quarantine table."""
    return {
        "source": source,
        "position": position,
        "reason": err.reason,
        "detail": _encodable(err.detail),
        "raw": raw,
    }


def _encodable(text: str) -> str:
    """Spell out half surrogate pairs, which no UTF-8 column can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class StagedRow:
    """Where a kept row is staged, and its size in bytes."""

    part: int
    row: int
    size: int


@dataclass
class Merge:
    """What the receipts come to, in reading order."""

    kept: dict[str, list[StagedRow]] = field(default_factory=lambda: {"dialogues": [], "images": [], "items": []})
    duplicates: dict[str, int] = field(default_factory=lambda: {"dialogues": 0, "items": 0})
    conflicts: dict[int, dict[int, str]] = field(default_factory=dict)
    """part → seq → detail, for records that reuse an id with different content."""


def merge(receipts: Iterable[Receipt]) -> Merge:
    """Decide which staged records and pictures are kept.

    The first record of an id, in reading order, is kept. A later one with the same content is an exact duplicate; with
    different content it is quarantined. A picture's row (its OCR and description, where corpora give them) is that of
    the first valid record that shows it; pictures that no kept record shows are left out.

    Args:
        receipts: of all parts, in reading order.
    """
    merged = Merge()
    first: dict[tuple[str, str], tuple[bytes, str]] = {}
    owners: dict[bytes, StagedRow] = {}
    shown: dict[bytes, None] = {}
    for receipt in receipts:
        for row, (image, size) in enumerate(zip(receipt.image_ids, receipt.image_sizes, strict=True)):
            owners.setdefault(image, StagedRow(receipt.part, row, size))
        for row, (identity, digest) in enumerate(zip(receipt.ids, receipt.digests, strict=True)):
            before = first.get((receipt.table, identity))
            if before is None:
                first[receipt.table, identity] = (digest, f"{receipt.source}:{receipt.positions[row]}")
                merged.kept[receipt.table].append(StagedRow(receipt.part, row, receipt.sizes[row]))
                shown.update(dict.fromkeys(receipt.image_ids[i] for i in receipt.images[row]))
            elif before[0] == digest:
                merged.duplicates[receipt.table] += 1
            else:
                detail = f"id {identity!r:.80} is that of {before[1]}, whose content differs; give each its own id"
                merged.conflicts.setdefault(receipt.part, {})[receipt.seqs[row]] = detail
    merged.kept["images"] = [owners[image] for image in shown]
    return merged


@dataclass(frozen=True, slots=True)
class Shard:
    """A final shard: the staged rows that it is copied from, in order."""

    table: str
    index: int
    parts: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def path(self) -> str:
        """Path inside the artefact."""
        return f"{self.table}/part-{self.index:05d}.parquet"


def plan_shards(table: str, rows: Iterable[StagedRow], shard_rows: int) -> list[Shard]:
    """Cut kept rows into shards of at most ``shard_rows`` rows and about :data:`SHARD_BYTES` bytes."""
    shards: list[list[StagedRow]] = []
    size = 0
    for row in rows:
        if not shards or len(shards[-1]) >= shard_rows or size + row.size > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += row.size
    return [
        Shard(table, index, tuple(r.part for r in shard), tuple(r.row for r in shard))
        for index, shard in enumerate(shards)
    ]


def copy_shard(shard: Shard, staging: str, target: str) -> int:
    """Pass 2: write one final shard from staged rows; return its number of rows."""
    columns = SCHEMAS[shard.table]
    tables = []
    for part, pairs in groupby(zip(shard.parts, shard.rows, strict=True), key=lambda pair: pair[0]):
        tables += _take(staged_path(staging, part, shard.table), [row for _, row in pairs])
    table = pa.concat_tables(tables)
    group_rows = _IMAGE_GROUP_ROWS if shard.table == "images" else None
    with TableFile(f"{target}/{shard.path}", columns, group_rows) as file:
        file.add_table(table)
    return cast("int", table.num_rows)


def _take(path: str, rows: Sequence[int]) -> list[pa.Table]:
    """Read rows of a staged file in the order given, leaving out row groups that hold none of them."""
    ascending = sorted(rows)
    tables = []
    with _open_staged(path) as handle:
        file = pq.ParquetFile(handle)
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            inside = [row - start for row in ascending[bisect_left(ascending, start) : bisect_left(ascending, stop)]]
            if inside:
                table = file.read_row_group(group)
                tables.append(table if len(inside) == table.num_rows else table.take(inside))
            start = stop
    if list(rows) == ascending:
        return tables
    # A picture whose first mention was refused is staged before those that earlier kept records show.
    places = {row: place for place, row in enumerate(ascending)}
    return [pa.concat_tables(tables).take([places[row] for row in rows])]


def quarantined_rows(
    reader: CorpusReader,
    parts: Mapping[int, Part | None],
    receipts: Iterable[Receipt],
    conflicts: Mapping[int, Mapping[int, str]],
    staging: str,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the quarantine table in reading order.

    The raw bytes of records whose id was taken are read from the source again: staging all raw records for the few
    that need them would double what is written.

    Args:
        reader: of the corpus.
        parts: number → part; None stands for the item catalogue.
        receipts: of all parts, in reading order.
        conflicts: see :class:`Merge`.
        staging: folder of the staged files.
    """
    for receipt in receipts:
        taken = conflicts.get(receipt.part, {})
        reread = _read_again(reader, parts[receipt.part], taken)
        staged = _staged_quarantine(staging, receipt)
        queue = sorted([(seq, False) for seq in receipt.bad_seqs] + [(seq, True) for seq in taken])
        for seq, is_conflict in queue:
            if not is_conflict:
                yield next(staged)
                continue
            got, position, raw = next(reread)
            if got != seq:
                raise RuntimeError(f"{receipt.source}: record {seq} of part {receipt.part} was not read again")
            yield quarantine_row(receipt.source, position, BadRecordError("duplicate_id", taken[seq]), raw)


def _read_again(reader: CorpusReader, part: Part | None, wanted: Mapping[int, str]) -> Iterator[tuple[int, int, bytes]]:
    """Yield (seq, position, raw) of the wanted records of a part."""
    if not wanted:
        return
    if part is None:
        yield from ((i, i, raw_item(entry)) for i, entry in enumerate(reader.items()) if i in wanted)
    else:
        yield from ((i, r.position, r.raw) for i, r in enumerate(reader.read(part)) if i in wanted)


def _staged_quarantine(staging: str, receipt: Receipt) -> Iterator[dict[str, Any]]:
    if not receipt.bad_seqs:
        return
    with _open_staged(staged_path(staging, receipt.part, "quarantine")) as handle:
        file = pq.ParquetFile(handle)
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()


def write_quarantine(rows: Iterable[dict[str, Any]], target: str, shard_rows: int) -> int:
    """Write the quarantine table in shards cut like those of :func:`plan_shards`; return its number of rows."""
    written = 0
    for index, shard in enumerate(_cut(rows, shard_rows)):
        with TableFile(f"{target}/quarantine/part-{index:05d}.parquet", schema.QUARANTINE) as file:
            file.add_table(pa.Table.from_pylist(shard, schema.QUARANTINE))
        written += len(shard)
    return written


def _cut(rows: Iterable[dict[str, Any]], shard_rows: int) -> Iterator[list[dict[str, Any]]]:
    shard: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        if shard and (len(shard) >= shard_rows or size + len(row["raw"]) > SHARD_BYTES):
            yield shard
            shard, size = [], 0
        shard.append(row)
        size += len(row["raw"])
    if shard:
        yield shard
