"""The cache: nothing is computed twice, a killed run goes on where it stopped, broken parts do no harm."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from mmd.features.cache import CachedStage, FeatureCache
from mmd.features.extract import VectorStage


class LengthEncoder:
    """Encodes a text as (1, its length); counts what it is given."""

    name, dim = "length-1", 2

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.seen += texts
        if "bad" in texts:
            raise ValueError("cannot")
        return np.array([[1, len(t)] for t in texts], dtype=np.float32)


def run(store: Path, texts: Sequence[str], batch: int = 2) -> tuple[LengthEncoder, pa.Table]:
    """Do as the job does, in process: compute what the cache lacks, batch by batch, then read all."""
    encoder = LengthEncoder()
    cache = FeatureCache(str(store), "text", encoder.name)
    stage = CachedStage(VectorStage(encoder, "text"), cache)
    missing = sorted(set(texts) - cache.known())
    for start in range(0, len(missing), batch):
        some = missing[start : start + batch]
        stage(pa.table({"id": some, "text": some}))
    return encoder, cache.read(texts)


TEXTS = ["eeeee", "a", "dddd", "bb", "ccc"]


def test_a_second_run_computes_nothing_and_reads_the_same(tmp_path: Path):
    first, before = run(tmp_path, TEXTS)
    second, after = run(tmp_path, TEXTS)
    assert sorted(first.seen) == sorted(TEXTS)
    assert second.seen == []
    assert after.equals(before)
    assert before["id"].to_pylist() == sorted(TEXTS)
    assert before["vector"].to_pylist() == [[1, 1], [1, 2], [1, 3], [1, 4], [1, 5]]


def test_a_grown_corpus_computes_what_is_new(tmp_path: Path):
    run(tmp_path, TEXTS)
    encoder, table = run(tmp_path, [*TEXTS, "new"])
    assert encoder.seen == ["new"]
    assert table.num_rows == 6


def test_the_result_does_not_depend_on_the_batches(tmp_path: Path):
    _, one = run(tmp_path / "one", TEXTS, batch=1)
    _, many = run(tmp_path / "many", TEXTS, batch=5)
    assert one.equals(many)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_cache as t

class Dying(t.LengthEncoder):
    def encode(self, texts):
        if len(self.seen) >= 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(texts)

t.LengthEncoder = Dying
t.run(Path(sys.argv[1]), t.TEXTS)
"""


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path):
    """Two batches of two are done when the process kills itself in the third."""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed"), here], check=False, timeout=60)
    assert done.returncode == -9
    encoder, table = run(tmp_path / "killed", TEXTS)
    assert encoder.seen == ["eeeee"]
    assert table.equals(run(tmp_path / "whole", TEXTS)[1])


@pytest.mark.parametrize("damage", ["cut", "junk", "empty", "other columns"])
def test_a_damaged_part_is_computed_again(tmp_path: Path, damage: str):
    _, before = run(tmp_path, TEXTS)
    part = min((tmp_path / "cache" / "text-length-1").glob("part-*.parquet"))
    if damage == "other columns":
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"x": [1]}), part)
    else:
        data = part.read_bytes()
        part.write_bytes({"cut": data[: len(data) // 2], "junk": b"junk", "empty": b""}[damage])
    encoder, after = run(tmp_path, TEXTS)
    assert 1 <= len(encoder.seen) <= 2
    assert after.equals(before)
    assert run(tmp_path, TEXTS)[0].seen == []


def test_what_a_writer_left_half_done_is_not_read(tmp_path: Path):
    run(tmp_path, TEXTS)
    folder = tmp_path / "cache" / "text-length-1"
    (folder / "0123.abcd.tmp").write_bytes(b"half")
    assert run(tmp_path, TEXTS)[0].seen == []


def test_a_failed_row_keeps_its_reason_and_is_tried_again(tmp_path: Path):
    _, table = run(tmp_path, ["bad", "good"])
    assert table["error"].to_pylist() == ["ValueError: cannot", ""]
    assert table["vector"].to_pylist() == [None, [1, 4]]
    assert run(tmp_path, ["bad", "good"])[0].seen == ["bad"]


def test_a_later_success_goes_before_an_earlier_failure(tmp_path: Path):
    cache = FeatureCache(str(tmp_path), "text", "x")
    rows = [("a", None, "broke"), ("a", [1.0], ""), ("a", None, "broke too")]
    for row in rows:
        cache.put(pa.Table.from_pylist([dict(zip(cache.schema.names, row, strict=True))], cache.schema))
    assert cache.read(["a"]).to_pylist() == [{"id": "a", "vector": [1.0], "error": ""}]
    assert cache.known() == {"a"}


def test_a_batch_is_counted(tmp_path: Path):
    stage = CachedStage(VectorStage(LengthEncoder(), "text"), FeatureCache(str(tmp_path), "text", "x"))
    texts = ["good", "bad", "fine"]
    assert stage(pa.table({"id": texts, "text": texts})).to_pylist() == [{"rows": 3, "errors": 1}]
    empty = pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    assert stage(empty).to_pylist() == [{"rows": 0, "errors": 0}]


def test_extractors_and_roles_have_folders_of_their_own(tmp_path: Path):
    names = [("text", "a b"), ("text", "a-b"), ("text", "A-b"), ("vision", "a-b")]
    folders = {FeatureCache(str(tmp_path), role, name).folder for role, name in names}  # type: ignore[arg-type]
    assert len(folders) == 4
    assert all(Path(f).parent == tmp_path / "cache" for f in folders)


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path):
    cache = FeatureCache(str(tmp_path), "ocr", "none-yet")
    assert cache.known() == set()
    assert cache.read(["a"]).equals(cache.schema.empty_table())


def test_a_remote_store_works_alike():
    """fsspec's memory file system stands for any object store."""
    cache = FeatureCache("memory://features-test", "text", "x")
    cache.put(pa.Table.from_pylist([{"id": "a", "vector": [0.5], "error": ""}], cache.schema))
    assert cache.known() == {"a"}
    assert cache.read(["a", "b"])["vector"].to_pylist() == [[0.5]]
