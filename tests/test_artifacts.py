"""Artefacts: complete or invisible, hashed, safe formats only, never mixed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mmd.artifacts import KINDS, ArtifactStore, command_for, diff_manifests, fingerprint, version_for
from mmd.artifacts.cleaning import gc
from mmd.cli import JOBS
from mmd.errors import ArtifactError
from mmd.sweeps.store import SweepStore

TABLE_SCHEMA = pa.schema([("n", pa.int64())])


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def write(store: ArtifactStore, text: str = "{}", **settings: object) -> None:
    with store.write("report", "demo", settings=settings) as writer:
        writer.write_bytes("metrics.json", text.encode())
        writer.metrics["rows"] = 3


def test_an_artefact_comes_back_with_its_settings_metrics_and_bytes(store: ArtifactStore):
    write(store, '{"a": 1}', k=1)
    artifact = store.open("report/demo")
    assert artifact.read_json("metrics.json") == {"a": 1}
    assert artifact.manifest.settings == {"k": 1}
    assert artifact.manifest.metrics == {"rows": 3}


def test_a_failed_write_leaves_nothing(store: ArtifactStore, tmp_path: Path):
    with pytest.raises(RuntimeError), store.write("report", "demo", settings={}) as writer:
        writer.write_json("metrics.json", {})
        raise RuntimeError
    assert store.find() == []
    assert [p for p in (tmp_path / "store").rglob("*") if p.is_file()] == []


def test_a_killed_writer_is_invisible_and_gc_reclaims_it(store: ArtifactStore):
    killed = (
        "import os, sys; from mmd.artifacts import ArtifactStore\n"
        "with ArtifactStore(sys.argv[1]).write('report', 'demo', settings={}) as writer:\n"
        "    writer.write_json('metrics.json', {})\n"
        "    os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", killed, store.uri], check=False).returncode == 9
    with pytest.raises(ArtifactError, match="no complete artefact"):
        store.open("report/demo")
    assert gc(store) == []  # young: may be a live writer's
    assert len(gc(store, min_age_s=0, dry_run=True)) == 1
    assert len(gc(store, min_age_s=0)) == 1
    assert gc(store, min_age_s=0) == []


@pytest.mark.parametrize(
    ("ref", "command"),
    [
        ("student/demo", "`mmd distill`"),
        ("teacher/demo@0123456789ab", "`mmd train_teachers`"),
        ("report/demo-recommend", "`mmd evaluate_recommend`"),
        ("report/demo", "`mmd evaluate`"),
        ("gate/demo-conkd", "`mmd sweep_gates --method conkd`"),
    ],
)
def test_what_is_missing_names_the_command_that_makes_it(store: ArtifactStore, ref: str, command: str):
    with pytest.raises(ArtifactError, match=f"no complete artefact .* {command} makes it"):
        store.open(ref)


def test_every_kind_is_made_by_a_command_that_is_there():
    for kind in KINDS:
        assert command_for(kind, "demo").split()[1] in JOBS


def test_a_live_writer_that_gc_took_for_dead_does_not_commit_what_is_left(store: ArtifactStore):
    with pytest.raises(ArtifactError, match="gc` removed"), store.write("report", "demo", settings={}) as writer:
        writer.write_json("first.json", {})
        assert len(gc(store, min_age_s=0)) == 1
        writer.write_json("later.json", {})
    assert store.find() == []


def test_a_forced_write_replaces_what_was_there_and_gc_removes_the_rest(store: ArtifactStore):
    write(store, '{"run": 1}')
    with store.write("report", "demo", settings={}, replace=True) as writer:
        writer.write_json("metrics.json", {"run": 2})
    assert store.open("report/demo").read_json("metrics.json") == {"run": 2}
    assert len(store.find()) == 1
    assert len(gc(store, min_age_s=0)) == 1
    assert store.open("report/demo").read_json("metrics.json") == {"run": 2}


@pytest.mark.parametrize("folder", [".train", ".tune"])
def test_gc_removes_a_run_only_when_nobody_touched_it_for_a_day(store: ArtifactStore, folder: str):
    for name, age_s in (("old", 100_000), ("young", 50_000)):
        path = Path(store.root) / folder / name / "checkpoint_1" / "state.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (time.time() - age_s,) * 2)
    assert [Path(found.path).name for found in gc(store, min_age_s=0)] == ["old"]
    assert [path.name for path in (Path(store.root) / folder).iterdir()] == ["young"]
    assert gc(store, min_age_s=0) == []


def test_half_a_manifest_stops_no_gc(store: ArtifactStore, tmp_path: Path):
    write(store)
    next((tmp_path / "store").rglob("manifest.json")).write_text('{"kind": "rep')
    assert [leftover.reason for leftover in gc(store, min_age_s=0, dry_run=True)] == ["no manifest names it"]


def test_gc_spares_complete_artefacts(store: ArtifactStore):
    write(store)
    assert gc(store, min_age_s=0, broken=True) == []
    assert store.open("report/demo").read_json("metrics.json") == {}


def test_two_writers_of_one_version_never_mix_and_the_first_stands(store: ArtifactStore):
    first = store.write("report", "demo", settings={})
    second = store.write("report", "demo", settings={})
    a, b = first.__enter__(), second.__enter__()
    a.write_bytes("only_a.json", b'"a"')
    b.write_bytes("only_b.json", b'"b"')
    second.__exit__(None, None, None)
    first.__exit__(None, None, None)
    artifact = store.open("report/demo")
    assert set(artifact.manifest.files) == {"only_b.json"}
    assert gc(store, min_age_s=0, dry_run=True) == []


def test_concurrent_commits_leave_exactly_one_artefact(store: ArtifactStore):
    gate = threading.Barrier(8)

    def race(number: int) -> None:
        with store.write("report", "demo", settings={}) as writer:
            writer.write_json("n.json", number)
            gate.wait()

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.find()) == 1
    assert store.open("report/demo").read_json("n.json") in range(8)


@pytest.mark.parametrize(("damage", "message"), [("change", "differs from its manifest"), ("remove", "is missing")])
def test_damage_is_found_on_load_and_the_way_out_is_named(store: ArtifactStore, damage: str, message: str):
    write(store)
    file = Path(store.open("report/demo").path("metrics.json"))
    file.write_text("[]") if damage == "change" else file.unlink()
    with pytest.raises(ArtifactError, match=message) as caught:
        store.open("report/demo")
    assert "mmd artifacts gc --broken" in str(caught.value)
    assert len(gc(store, broken=True)) == 1
    assert store.find() == []


def test_another_schema_version_is_refused(store: ArtifactStore, tmp_path: Path):
    write(store)
    manifest = next((tmp_path / "store").rglob("manifest.json"))
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(ArtifactError, match=r"schema version 99.*make it again with `mmd evaluate`"):
        store.open("report/demo")


def test_unsafe_formats_are_refused(store: ArtifactStore):
    with pytest.raises(ArtifactError, match="hold only"), store.write("report", "demo", settings={}) as writer:
        writer.write_bytes("model.pkl", b"")
    with pytest.raises(ArtifactError, match="hold only"), store.write("report", "demo", settings={}) as writer:
        Path(writer.path("sneaked.bin")).write_bytes(b"")


def test_equal_work_has_an_equal_version_and_any_change_another(store: ArtifactStore):
    write(store, k=1)
    made = store.open("report/demo")
    same = version_for("report", {"k": 1}, {}, {})
    assert same == made.manifest.version
    others = [
        version_for("report", {"k": 2}, {}, {}),
        version_for("corpus", {"k": 1}, {}, {}),
        version_for("report", {"k": 1}, {"corpus": made}, {}),
        version_for("report", {"k": 1}, {}, {"seed": 1}),
    ]
    assert len({same, *others}) == 5


def test_fingerprint_ignores_key_order():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})


def test_the_newest_version_opens_by_default_and_diff_names_what_changed(store: ArtifactStore):
    write(store, k=1)
    write(store, k=2)
    versions = store.find("report")
    assert store.open("report/demo").manifest.settings == {"k": 2}
    changed = {field for field, _, _ in diff_manifests(versions[0].manifest, versions[1].manifest)}
    assert changed == {"version", "settings.k"}


def test_a_name_opens_what_was_made_or_asked_for_last(store: ArtifactStore):
    write(store, k=1)
    first = store.open("report/demo")
    write(store, k=2)
    store.ask_for(first)
    assert store.open("report/demo").ref == first.ref
    write(store, k=3)
    assert store.open("report/demo").manifest.settings == {"k": 3}


def test_an_illegible_note_of_what_was_asked_for_changes_nothing(store: ArtifactStore):
    write(store, k=1)
    write(store, k=2)
    store.fs.pipe_file(f"{store.root}/report/demo/asked.json", b"{")
    assert store.open("report/demo").manifest.settings == {"k": 2}


def test_tables_round_trip_in_shards_and_an_absent_table_is_empty(store: ArtifactStore):
    table = pa.table({"n": list(range(25))}, schema=TABLE_SCHEMA)
    with store.write("corpus", "demo", settings={}) as writer:
        writer.write_table("numbers", table, rows_per_shard=10)
    artifact = store.open("corpus/demo")
    assert artifact.shards("numbers") == [f"numbers/part-0000{i}.parquet" for i in range(3)]
    assert artifact.read_table("numbers", TABLE_SCHEMA).equals(table)
    assert artifact.read_table("nothing", TABLE_SCHEMA).num_rows == 0


def test_a_remote_store_works_like_a_local_one():
    store = ArtifactStore("memory://bucket/prefix")
    write(store, k=1)
    write(store, k=1)  # the second writer of a version is discarded
    assert len(store.find()) == 1
    artifact = store.open("report/demo")
    assert artifact.path("metrics.json").startswith("memory://")
    assert artifact.read_json("metrics.json") == {}


class ListingFileSystem(MemoryFileSystem):
    """Keeps listings until it is told otherwise, as that of S3 does."""

    protocol = "listing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("listing://")))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:  # noqa: FBT001, FBT002 (fsspec's)
        path = self._strip_protocol(path)
        found = self._ls_from_cache(path)
        if found is None:
            found = self.dircache[path] = super().ls(path, detail=True)
        return found if detail else [entry["name"] for entry in found]


class StrictFileSystem(MemoryFileSystem):
    """Hands every option to its client, which knows none, as that of SFTP does."""

    protocol = "strict"

    def __init__(self, **options: Any) -> None:
        if options:
            raise TypeError(f"connect() got unexpected {sorted(options)}")
        super().__init__()


def test_what_another_process_writes_to_a_remote_store_is_seen():
    fsspec.register_implementation("listing", ListingFileSystem, clobber=True)
    reading, writing = ArtifactStore("listing://bucket/mmd"), ArtifactStore("listing://bucket/mmd")
    writing.fs = ListingFileSystem(skip_instance_cache=True)
    for k in (1, 2):
        write(writing, k=k)
        assert reading.open("report/demo").manifest.settings == {"k": k}
    for n in (1, 2):
        writing.put(f"{writing.root}/.sweeps/20260131-235959-conkd-0000000{n}/sweep.json", b"{}")
        assert len(SweepStore(reading).ids()) == n


def test_a_store_is_named_so_that_other_processes_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert ArtifactStore("some/store").absolute == f"{tmp_path}/some/store"
    assert ArtifactStore(f"file://{tmp_path}/store").absolute == f"{tmp_path}/store"
    assert ArtifactStore("memory://a/store/").absolute == "memory://a/store"


def test_the_host_of_a_store_is_part_of_its_name(monkeypatch: pytest.MonkeyPatch):
    """The driver keeps it outside the path, as that of sftp does."""
    monkeypatch.setattr(MemoryFileSystem, "_strip_protocol", classmethod(lambda _, path: "/" + path.split("/", 3)[3]))
    assert ArtifactStore("memory://host/store").absolute == "memory://host/store"


def test_a_driver_that_takes_no_options_is_a_store_too():
    fsspec.register_implementation("strict", StrictFileSystem, clobber=True)
    store = ArtifactStore("strict://bucket/strict")
    assert isinstance(store.fs, StrictFileSystem)


@pytest.mark.parametrize("ref", ["nonsense", "cake/demo", "report/"])
def test_a_malformed_reference_says_how_to_write_one(store: ArtifactStore, ref: str):
    with pytest.raises(ArtifactError, match=r"kind/name\[@version\]"):
        store.open(ref)


@pytest.mark.parametrize("name", ["../escaped", "Bad Name", "", "a/b"])
def test_a_name_that_is_no_plain_word_is_refused(store: ArtifactStore, name: str):
    with pytest.raises(ArtifactError, match="use lower-case letters"), store.write("report", name, settings={}):
        pass


@pytest.mark.parametrize("name", ["../escaped.json", "/escaped.json", "a/../../escaped.json", ""])
def test_no_file_leaves_its_artefact(store: ArtifactStore, name: str):
    """Names may come from data, a task's say."""
    with (
        pytest.raises(ArtifactError, match="outside the artefact"),
        store.write("report", "demo", settings={}) as writer,
    ):
        writer.write_bytes(name, b"{}")


def test_a_manifest_whose_files_lie_elsewhere_is_refused(store: ArtifactStore):
    with store.write("report", "demo", settings={}) as writer:
        writer.write_json("metrics.json", {})
    [manifest] = Path(store.root).glob("report/demo/*/manifest.json")
    manifest.write_text(manifest.read_text().replace("metrics.json", "../../metrics.json"))
    with pytest.raises(ArtifactError, match="not a manifest of this mmd"):
        store.open("report/demo")


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    store = ArtifactStore(str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match="cannot be written"), store.write("report", "demo", settings={}):
        pass
