"""Two passes give what one plain loop gives, however the corpus is cut into parts and in whatever order they run."""

import io
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmd.corpora import staging
from mmd.corpora.base import CatalogueItem, Graph, ImageSource, ParsedRecord, Part, RawRecord
from mmd.corpora.plain import ingest_plain
from mmd.corpora.settings import LimitSettings
from mmd.corpora.sources import source_fingerprint
from mmd.corpora.staging import (
    PartStager,
    StagedRow,
    copy_shard,
    merge,
    plan_shards,
    quarantined_rows,
    write_quarantine,
)
from mmd.errors import BadRecordError
from mmd.schema import Dialogue, Item, OcrLine, Turn, image_id

LIMITS = LimitSettings()


def dot(shade: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("L", (3, 3), shade).save(buffer, "PNG")
    return buffer.getvalue()


class ListReader:
    """Reads records (id, text, shade of a picture) from a list; text ``bad`` is a bad record."""

    name = "list"
    root = None

    def __init__(
        self, records: Sequence[tuple[str, str, int]], part_size: int, items: Sequence[tuple[str, int]] = ()
    ) -> None:
        self.records = records
        self.part_size = part_size
        self.catalogue = items

    def tasks(self) -> dict[str, tuple[str, ...]]:
        return {}

    def plan(self) -> list[Part]:
        stops = range(0, len(self.records), self.part_size)
        return [Part("list", "train", start, start + self.part_size) for start in stops]

    def read(self, part: Part) -> Iterator[RawRecord]:
        for position in range(part.start, min(part.stop or 0, len(self.records))):
            yield RawRecord(part.source, position, part.split, str(position).encode())

    def parse(self, record: RawRecord) -> ParsedRecord:
        identity, text, shade = self.records[int(record.raw)]
        if text == "bad":
            raise BadRecordError("broken_json", "as ordered")
        # Each mention brings its own OCR, so that it shows whose is kept.
        line = OcrLine(f"seen at {record.position}", 1.0, (0, 0, 1, 1))
        images = {"p": ImageSource(data=dot(shade), ocr=(line,))} if shade else {}
        turn = Turn("user", text, tuple(images))
        return ParsedRecord(Dialogue(identity, "list", record.split, (turn,)), images)

    def items(self) -> Iterator[CatalogueItem]:
        for identity, shade in self.catalogue:
            data = dot(shade) if shade else b"no picture"
            yield CatalogueItem(Item(identity, f"shade {shade}", {}, ("p",)), {"p": ImageSource(data=data)})

    def graph(self) -> Graph:
        return Graph()


def two_passes(reader: ListReader, folder: Path, order: random.Random, shard_rows: int = 3) -> dict[str, pa.Table]:
    parts: dict[int, Part | None] = dict(enumerate([*reader.plan(), None]))
    indices = list(parts)
    order.shuffle(indices)
    stager = PartStager(reader, reader.tasks(), LIMITS, str(folder / "staging"))
    receipts = [stager.stage(i, part) if (part := parts[i]) else stager.stage_items(i) for i in indices]
    receipts.sort(key=lambda receipt: receipt.part)
    merged = merge(receipts)
    shards = [s for table, rows in merged.kept.items() for s in plan_shards(table, rows, shard_rows)]
    order.shuffle(shards)
    for shard in shards:
        copy_shard(shard, str(folder / "staging"), str(folder))
    bad = quarantined_rows(reader, parts, receipts, merged.conflicts, str(folder / "staging"))
    write_quarantine(bad, str(folder), shard_rows)
    return {table: read(folder / table, columns) for table, columns in staging.SCHEMAS.items()}


def read(folder: Path, columns: pa.Schema) -> pa.Table:
    files = sorted(folder.glob("part-*.parquet"))
    return pa.concat_tables([columns.empty_table(), *(pq.ParquetFile(f).read() for f in files)])


RECORD = st.tuples(st.sampled_from(["a", "b", "c", "d", "e"]), st.sampled_from(["hi", "ho", "bad"]), st.integers(0, 3))
ITEM = st.tuples(st.sampled_from(["x", "y"]), st.integers(0, 5))


# Picture 2 is staged before 3, with a record that is refused later, and shown after it.
@example([("a", "hi", 1), ("a", "ho", 2), ("b", "hi", 3), ("c", "hi", 2)], [], 4, 0)
@settings(max_examples=60, deadline=None)
@given(st.lists(RECORD, max_size=14), st.lists(ITEM, max_size=4), st.integers(1, 5), st.integers(0, 99))
def test_two_passes_equal_the_plain_loop(
    records: list[tuple[str, str, int]], items: list[tuple[str, int]], part_size: int, seed: int
):
    reader = ListReader(records, part_size, items)
    with tempfile.TemporaryDirectory() as folder:
        got = two_passes(reader, Path(folder), random.Random(seed))  # noqa: S311 (an order of work)
    expected = ingest_plain(reader, LIMITS)
    for table in expected:
        assert got[table].to_pylist() == expected[table].to_pylist()


def test_the_bytes_do_not_depend_on_the_parts(tmp_path: Path):
    records = [(f"d{i % 25}", "bad" if i % 7 == 0 else f"text {i % 50}", i % 9) for i in range(100)]
    written = []
    for part_size in (1, 8, 100):
        folder = tmp_path / str(part_size)
        two_passes(ListReader(records, part_size, [("x", 4), ("y", 12)]), folder, random.Random(part_size), 10)  # noqa: S311
        written.append(
            {
                p.relative_to(folder): p.read_bytes()
                for p in sorted(folder.rglob("*.parquet"))
                if "staging" not in p.parts
            }
        )
    assert written[0] == written[1] == written[2]


def plain(records: Sequence[tuple[str, str, int]], items: Sequence[tuple[str, int]] = ()) -> dict[str, list[Any]]:
    return {name: t.to_pylist() for name, t in ingest_plain(ListReader(records, 2, items), LIMITS).items()}


def test_the_first_of_an_id_stays_equal_ones_go_different_ones_are_quarantined():
    got = plain([("a", "hi", 0), ("a", "hi", 0), ("a", "ho", 0), ("a", "hi", 0)])
    assert [row["id"] for row in got["dialogues"]] == ["a"]
    assert [(row["position"], row["reason"], row["raw"]) for row in got["quarantine"]] == [(2, "duplicate_id", b"2")]
    assert "list:0" in got["quarantine"][0]["detail"]


def test_pictures_that_only_refused_records_show_are_left_out():
    got = plain([("a", "hi", 1), ("a", "ho", 2)])
    assert [row["id"] for row in got["images"]] == [image_id(dot(1))]


def test_a_picture_keeps_the_ocr_of_its_first_mention():
    got = plain([("a", "hi", 1), ("b", "hi", 1)])
    assert [row["ocr"][0]["text"] for row in got["images"]] == ["seen at 0"]


def test_items_share_the_picture_table_and_the_quarantine():
    got = plain([("a", "hi", 1)], [("x", 1), ("y", 0), ("x", 1), ("x", 2)])
    assert [row["id"] for row in got["items"]] == ["x"]
    assert [row["id"] for row in got["images"]] == [image_id(dot(1))]
    refused = [(row["source"], row["position"], row["reason"]) for row in got["quarantine"]]
    assert refused == [("items", 1, "not_an_image"), ("items", 3, "duplicate_id")]


def test_shards_end_at_rows_or_bytes_whichever_comes_first():
    small, large = StagedRow(0, 0, 1), StagedRow(1, 0, staging.SHARD_BYTES)
    sizes = [len(s.rows) for s in plan_shards("images", [small] * 5 + [large, small, small], 3)]
    assert sizes == [3, 2, 1, 2]


def test_staged_files_are_written_in_bounded_row_groups(tmp_path: Path):
    row = {"source": "s", "position": 0, "reason": "text_too_long", "detail": "", "raw": b"a" * 3 * 2**20}
    with staging.TableFile(str(tmp_path / "q.parquet"), staging.SCHEMAS["quarantine"]) as file:
        for _ in range(7):
            file.add(row, len(row["raw"]))
    assert pq.ParquetFile(tmp_path / "q.parquet").num_row_groups == 3


def test_rows_are_copied_in_the_order_given_across_row_groups(tmp_path: Path):
    target = staging.staged_path(str(tmp_path), 0, "quarantine")
    with staging.TableFile(target, staging.SCHEMAS["quarantine"]) as file:
        for position in range(6):
            row = {"source": "s", "position": position, "reason": "text_too_long", "detail": "", "raw": b""}
            file.add(row, 4 * 2**20)
    copy_shard(staging.Shard("quarantine", 0, (0,) * 4, (4, 0, 5, 1)), str(tmp_path), str(tmp_path))
    copied = read(tmp_path / "quarantine", staging.SCHEMAS["quarantine"])
    assert copied["position"].to_pylist() == [4, 0, 5, 1]


def test_a_table_without_rows_has_no_file(tmp_path: Path):
    with staging.TableFile(str(tmp_path / "q.parquet"), staging.SCHEMAS["quarantine"]):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "train.json").write_text("[1]")
    (tmp_path / "images" / "a.jpg").write_bytes(b"picture")
    return tmp_path


def test_an_unchanged_folder_keeps_its_fingerprint(folder: Path):
    before = source_fingerprint([folder])
    (folder / "train.json").touch()  # record files count by content alone
    assert source_fingerprint([folder]) == before


def test_an_edited_record_or_replaced_picture_changes_the_fingerprint(folder: Path):
    seen = {source_fingerprint([folder])}
    (folder / "train.json").write_text("[2]")
    seen.add(source_fingerprint([folder]))
    (folder / "images" / "a.jpg").write_bytes(b"another")  # as many bytes as before
    os.utime(folder / "images" / "a.jpg", ns=(1, 1))  # the clock may not have moved
    seen.add(source_fingerprint([folder]))
    (folder / "images" / "b.jpg").symlink_to("nowhere")
    seen.add(source_fingerprint([folder]))
    assert len(seen) == 4


def test_hidden_files_and_the_store_do_not_count(folder: Path):
    before = source_fingerprint([folder], skip=folder / "artifacts")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.json").write_text("{}")
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "manifest.json").write_text("{}")
    assert source_fingerprint([folder], skip=folder / "artifacts") == before


def test_a_corpus_without_files_has_no_fingerprint():
    assert source_fingerprint([]) is None
