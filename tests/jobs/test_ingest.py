"""ingest on Ray: every kind of bad record in one corpus of files; conserved, deterministic, resumable."""

import io
import json
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from jobs import ingest
from jobs.glue.entry import JobContext, main
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import AppConfig, build_config
from mmd.corpora.plain import ingest_plain
from mmd.corpora.registry import build_reader
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError

pytestmark = pytest.mark.ray
GOOD = 60


def picture(shade: int, side: int = 16) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (side, side), (shade, 90, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG header that claims 60,000 x 60,000 pixels."""
    size = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", 13), size, struct.pack(">I", zlib.crc32(size)), b"\x00\x00\x00\x00IDAT"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def record(number: int, **changes: Any) -> dict[str, Any]:
    shown = {"type": "image_url", "image_url": {"url": f"images/{number % 7}.jpg"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": f"Where is parcel {number}?"}, shown]},
        {"role": "assistant", "content": "On its way."},
    ]
    return {"id": f"c{number}", "messages": messages, "labels": {"intent": "parcel"}} | changes


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def shows(path: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": path}}]}]


BAD: dict[str, dict[str, Any] | bytes] = {
    "broken_json": b'{"id": "b1", "messages": [',
    "missing_field": {"id": "b2", "messages": [{"role": "user"}]},
    "wrong_type": record(0, id="b3", messages="hello"),
    "unknown_speaker": record(0, id="b4", messages=[{"role": "wizard", "content": "hi"}]),
    "unknown_label": record(0, id="b5", labels={"intent": "weather"}),
    "image_missing": record(0, id="b6", messages=shows("images/none.jpg")),
    "image_truncated": record(0, id="b7", messages=shows("images/truncated.jpg")),
    "not_an_image": record(0, id="b8", messages=shows("images/page.jpg")),
    "image_bomb": record(0, id="b9", messages=shows("images/bomb.png")),
    "image_empty": record(0, id="b10", messages=shows("images/empty.jpg")),
    "image_too_large": record(0, id="b11", messages=shows("images/large.jpg")),
    "path_escape": record(0, id="b12", messages=shows("../secret.jpg")),
    "duplicate_id": record(0, messages=says("other words under the first id")),
    "empty_dialogue": record(0, id="b14", messages=[]),
    "invalid_utf8": b'{"id": "b15", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "text_too_long": record(0, id="b16", messages=says("a" * 50 * 2**20)),
    "too_many_turns": record(0, id="b17", messages=says("hi") * 2_001),
    "remote_image": record(0, id="b18", messages=shows("https://example.org/a.jpg")),
}


def write_corpus(root: Path, bad: dict[str, dict[str, Any] | bytes]) -> Path:
    """60 good records in two files, one of them twice, with the bad ones in between."""
    images = root / "images"
    images.mkdir(parents=True)
    for shade in range(6):
        (images / f"{shade}.jpg").write_bytes(picture(shade * 40))
    (images / "6.jpg").write_bytes(picture(0))  # the bytes of 0.jpg under another name
    (images / "truncated.jpg").write_bytes(picture(9, 200)[:-300])
    (images / "page.jpg").write_text("<html>")
    (images / "bomb.png").write_bytes(bomb())
    (images / "empty.jpg").touch()
    (images / "large.jpg").write_bytes(picture(0) + bytes(3 * 2**20))
    (root.parent / "secret.jpg").write_bytes(picture(0))
    lines = [json.dumps(record(n)).encode() for n in range(GOOD)]
    lines += [json.dumps(record(0)).encode()]  # an exact duplicate
    lines += [entry if isinstance(entry, bytes) else json.dumps(entry).encode() for entry in bad.values()]
    (root / "train.jsonl").write_bytes(b"\n".join(lines[:30] + lines[GOOD:]) + b"\n")
    (root / "test.jsonl").write_bytes(b"\n".join(lines[30:GOOD]) + b"\n")
    (root / "tasks.json").write_text(json.dumps({"intent": ["parcel", "refund"]}))
    return root


def config_for(root: Path, store: Path, **data: Any) -> AppConfig:
    limits = {"max_image_mb": 2.0}
    corpus = {"name": "mine", "reader": "chat", "path": str(root)}
    return build_config({"store": str(store), "data": {"corpus": corpus, "limits": limits, "shard_rows": 8} | data})


def ingested(config: AppConfig, workers: int = 2) -> Artifact:
    return ingest.run(JobContext(config, options={"workers": workers}))


@pytest.fixture(scope="module")
def bad_corpus(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> tuple[AppConfig, Artifact]:
    base = tmp_path_factory.mktemp("bad")
    config = config_for(write_corpus(base / "corpus", BAD), base / "store", max_bad_fraction=0.5)
    return config, ingested(config)


def test_each_kind_of_bad_record_is_quarantined_with_its_reason(bad_corpus: tuple[AppConfig, Artifact]):
    _, artifact = bad_corpus
    rows = Corpus(artifact).quarantine().to_pylist()
    by_id = {entry if isinstance(entry, bytes) else json.dumps(entry).encode(): reason for reason, entry in BAD.items()}
    assert {row["reason"] for row in rows} == set(BAD)
    for row in rows:
        assert by_id[row["raw"]] == row["reason"], row["detail"]
        assert row["source"] == "train.jsonl"
    assert [row["position"] for row in rows] == list(range(31, 31 + len(BAD)))  # after 30 good ones and a duplicate


def test_nothing_is_lost(bad_corpus: tuple[AppConfig, Artifact]):
    _, artifact = bad_corpus
    summary = Corpus(artifact).summary
    expected = {"read": GOOD + 1 + len(BAD), "written": GOOD, "quarantined": len(BAD), "duplicates": 1}
    assert summary["dialogues"] == expected
    assert summary["quarantine_reasons"] == dict.fromkeys(sorted(BAD), 1)
    assert artifact.manifest.metrics["dialogues_read"] == GOOD + 1 + len(BAD)


def test_equal_pictures_are_stored_once(bad_corpus: tuple[AppConfig, Artifact]):
    _, artifact = bad_corpus
    corpus = Corpus(artifact)
    named = Counter(i for d in corpus.dialogues() for t in d.turns for i in t.image_ids)
    stored = [image.id for image in corpus.images()]
    assert len(stored) == len(set(stored)) == 6
    assert set(named) == set(stored)
    assert sum(named.values()) == GOOD


def test_the_job_equals_the_plain_call(bad_corpus: tuple[AppConfig, Artifact]):
    config, artifact = bad_corpus
    plain = ingest_plain(build_reader(config.data, config.seed), config.data.limits)
    for table, expected in plain.items():
        assert artifact.read_table(table, expected.schema).to_pylist() == expected.to_pylist()


def test_an_interrupted_run_is_invisible_and_another_number_of_workers_gives_the_same_bytes(
    bad_corpus: tuple[AppConfig, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, artifact = bad_corpus
    config = config.model_copy(update={"store": str(tmp_path / "other")})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ingest.Ingest, "_copy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ingested(config)
    assert ArtifactStore(config.store).find() == []
    again = ingested(config, workers=1)
    assert again.manifest.files == artifact.manifest.files
    assert again.manifest.digest == artifact.manifest.digest
    assert "dialogues/part-00000.parquet" in again.manifest.files
    assert not any(name.startswith("staging") for name in again.manifest.files)


def test_an_unchanged_corpus_is_skipped_even_when_moved_and_a_mended_one_taken_in(
    bad_corpus: tuple[AppConfig, Artifact], tmp_path: Path
):
    config, first = bad_corpus
    root = Path(shutil.copytree(config.data.corpus.path or "", tmp_path / "corpus"))
    (tmp_path / "secret.jpg").write_bytes(picture(0))
    moved = config_for(root, Path(config.store), max_bad_fraction=0.5)
    assert ingested(moved).manifest == first.manifest
    (root / "images" / "none.jpg").write_bytes(picture(77))
    mended = ingested(moved)
    assert mended.manifest.version != first.manifest.version
    assert mended.manifest.metrics["dialogues_written"] == GOOD + 1
    assert set(Corpus(mended).summary["quarantine_reasons"]) == set(BAD) - {"image_missing"}


def test_too_many_bad_records_name_the_reasons_and_leave_nothing(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    some = {reason: BAD[reason] for reason in ("broken_json", "unknown_label", "image_missing", "path_escape")}
    root = write_corpus(tmp_path / "corpus", some)
    (tmp_path / "ray_config.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    code = main("ingest", ingest.__doc__, ingest.run, argv=["--corpus", f"mine:chat={root}", "--set", "store=s"])
    assert code == 2
    said = capsys.readouterr().out
    assert "4 of 65 dialogues are bad (6.2%" in said
    assert "1 x unknown_label" in said
    assert "train.jsonl:32: labels.intent: 'weather' is none of its 2 labels" in said
    assert "Traceback" not in said
    assert ArtifactStore("s").find() == []
    assert list((tmp_path / "s").rglob("*.parquet")) == []


def test_a_corpus_without_records_is_an_error(tmp_path: Path, ray_local: None):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").touch()
    with pytest.raises(CorpusError, match="no records"):
        ingested(config_for(tmp_path / "corpus", tmp_path / "store"))


def test_a_corpus_that_vanishes_under_way_is_a_plain_error(tmp_path: Path, ray_local: None):
    """What a worker cannot read is told like any other mistake, not as a trace out of Ray."""
    root = write_corpus(tmp_path / "corpus", {})
    config = config_for(root, tmp_path / "store")
    reader = build_reader(config.data, 0)
    parts = reader.plan()
    shutil.move(root / "train.jsonl", root / "gone")
    store = ArtifactStore(config.store)
    with (
        pytest.raises(CorpusError, match=r"train\.jsonl: cannot be read"),
        store.write("corpus", "mine", settings={}) as writer,
    ):
        ingest.Ingest(reader, parts, config.data, writer, workers=1).run()
    assert list((tmp_path / "store" / "corpus" / "mine").iterdir()) == []
