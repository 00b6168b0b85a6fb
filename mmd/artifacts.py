"""Artefacts: immutable, hashed results under ``<store>/<kind>/<name>/<version>/``, manifest last.

A writer puts its files under ``<version>/w-<random>/`` and, when all are there, creates
``<version>/manifest.json`` exclusively. A version without a manifest does not exist for readers; two writers
of one version never mix, since each has its own folder and the first manifest wins; what an interrupted
writer leaves behind is unreachable and removed by :meth:`ArtifactStore.gc`.

The store is a local path or any fsspec URI. Only safe formats go in: Parquet, JSON, YAML, safetensors, FAISS,
HTML and PNG; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast, get_args

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

import mmd
from mmd.errors import ArtifactError
from mmd.schema import SCHEMA_VERSION

Kind = Literal[
    "corpus",
    "features",
    "rulebase",
    "classifier",
    "gate",
    "samples",
    "adapter",
    "retriever",
    "index",
    "teacher",
    "student",
    "report",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
SAFE_SUFFIXES = frozenset(
    {".parquet", ".json", ".jsonl", ".yaml", ".safetensors", ".faiss", ".html", ".png", ".txt", ".md", ".jinja"}
    | {".tfevents"}
)  # .jinja: chat templates of language models, which transformers renders in Jinja's sandbox; .tfevents: TensorBoard
MANIFEST = "manifest.json"
_ASKED = "asked.json"
"""In a name's folder: the version that a job asked for last and found there, and when (seconds since 1970)."""
_ALIVE = ".writing"  # gone when gc took the writer for dead: what it then writes must not be committed
_CHUNK = 1 << 20
_RUNS = (".train", ".tune")  # checkpoints of unfinished work, which lie in the store until its artefact is written
_RUN_MIN_AGE_S = 86_400.0
"""A run younger than this is spared whatever the caller says: it may write hours apart, and be resumed."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class FileEntry(BaseModel):
    """Size in bytes and SHA-256 of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an artefact is and was made of; ``digest`` covers what determines its content, not when or where."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    name: str
    version: str
    schema_version: int
    root: str = Field(description="Folder under the version that holds the files.")
    settings: dict[str, Any]
    inputs: dict[str, str] = Field(description="Role → 'kind/name@version digest' of the artefacts read.")
    seeds: dict[str, int]
    metrics: dict[str, Any]
    files: dict[str, FileEntry]
    digest: str
    code: str = Field(description="mmd version and, in a git checkout, its revision.")
    created_unix_s: float

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        """Refuse names that lead out of the artefact: they are paths that are read, and copied into caches."""
        if odd := [relative for relative in files if not _is_inside(relative)]:
            raise ValueError(f"file {odd[0]!r} lies outside the artefact")
        return files


def _is_inside(relative: str) -> bool:
    path = PurePosixPath(relative)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def fingerprint(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def version_for(
    kind: str, settings: Mapping[str, Any], inputs: Mapping[str, Artifact], seeds: Mapping[str, int]
) -> str:
    """Return the version that these settings, inputs and seeds lead to: equal work, equal version."""
    return fingerprint(
        {
            "kind": kind,
            "mmd": mmd.__version__,
            "schema": SCHEMA_VERSION,
            "settings": dict(settings),
            "inputs": {role: artifact.manifest.digest for role, artifact in inputs.items()},
            "seeds": dict(seeds),
        }
    )[:12]


def code_revision() -> str:
    """Return ``mmd <version>``, with ``git <hash>`` and ``+dirty`` in a checkout."""
    here = Path(__file__).resolve().parent
    try:
        head = _git(here, "rev-parse", "--short", "HEAD")
        dirty = "+dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else ""
    except (OSError, subprocess.SubprocessError):
        return f"mmd {mmd.__version__}"
    return f"mmd {mmd.__version__} git {head}{dirty}"


def _git(cwd: Path, *args: str) -> str:
    done = subprocess.run(  # noqa: S603 (fixed arguments)
        ["git", *args],  # noqa: S607 (the user's git)
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
        timeout=10,
    )
    return done.stdout.strip()


@dataclass(frozen=True)
class Artifact:
    """A complete artefact, opened for reading."""

    fs: Any  # fsspec.AbstractFileSystem; untyped upstream
    root: str
    protocol: str
    manifest: Manifest

    @property
    def ref(self) -> str:
        """``kind/name@version``."""
        return f"{self.manifest.kind}/{self.manifest.name}@{self.manifest.version}"

    def of_kind(self, kind: Kind, way_out: str) -> Artifact:
        """Return the artefact itself if it is of a kind.

        Args:
            kind: that the caller can read.
            way_out: what to open instead, for the message.

        Raises:
            ArtifactError: it is of another kind.
        """
        if self.manifest.kind != kind:
            raise ArtifactError(f"{self.ref}: is no artefact of kind {kind}; {way_out}")
        return self

    def has(self, relative: str) -> bool:
        """Say whether a file, or a folder of files, is part of the artefact."""
        return any(f == relative or f.startswith(relative.rstrip("/") + "/") for f in self.manifest.files)

    def path(self, relative: str = "") -> str:
        """Return the path of a file or folder inside, with the store's protocol unless it is local."""
        inside = f"{self.root}/{relative}".rstrip("/")
        return inside if self.protocol == "file" else f"{self.protocol}://{inside}"

    def read_bytes(self, relative: str) -> bytes:
        """Read one file.

        Raises:
            ArtifactError: the artefact has no such file.
        """
        if relative not in self.manifest.files:
            have = ", ".join(sorted(self.manifest.files)[:8])
            raise ArtifactError(f"{self.ref}: has no file {relative!r}; it has {have}.")
        with self.fs.open(f"{self.root}/{relative}", "rb") as handle:
            return cast("bytes", handle.read())

    def read_json(self, relative: str) -> Any:  # noqa: ANN401 (JSON)
        """Read one JSON file."""
        return json.loads(self.read_bytes(relative))

    def shards(self, folder: str) -> list[str]:
        """Return the Parquet files of a table folder, relative and sorted."""
        prefix = folder.rstrip("/") + "/"
        return sorted(f for f in self.manifest.files if f.startswith(prefix) and f.endswith(".parquet"))

    def read_table(self, folder: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """Read a table folder; a table without shards is an empty table of ``schema``."""
        wanted = schema if columns is None else pa.schema([schema.field(c) for c in columns])
        tables = []
        for shard in self.shards(folder):
            with self.fs.open(f"{self.root}/{shard}", "rb") as handle:
                tables.append(pq.read_table(handle, columns=columns).cast(wanted))
        return pa.concat_tables(tables) if tables else wanted.empty_table()

    def verify(self) -> None:
        """Check size and hash of every file.

        Raises:
            ArtifactError: naming the first file that is missing or differs.
        """
        for relative, entry in self.manifest.files.items():
            where = f"{self.root}/{relative}"
            way_out = "Remove this version (`mmd artifacts gc --broken`) and run the job that made it again."
            if not self.fs.exists(where):
                raise ArtifactError(f"{self.ref}: file {relative} is missing. {way_out}")
            size, digest = _hash_file(self.fs, where)
            if (size, digest) != (entry.bytes, entry.sha256):
                raise ArtifactError(f"{self.ref}: file {relative} differs from its manifest. {way_out}")


class ArtifactWriter:
    """Collects the files of one artefact; used through :meth:`ArtifactStore.write`."""

    def __init__(self, fs: Any, root: str, protocol: str) -> None:  # noqa: ANN401 (fsspec is untyped)
        self._fs = fs
        self.root = root
        self._protocol = protocol
        self.metrics: dict[str, Any] = {}

    def path(self, relative: str = "") -> str:
        """Return a path to write to, for code that opens files itself (Ray Data workers, say)."""
        inside = f"{self.root}/{relative}".rstrip("/")
        return inside if self._protocol == "file" else f"{self._protocol}://{inside}"

    @contextmanager
    def open(self, relative: str) -> Iterator[IO[bytes]]:
        """Open a new file for writing bytes.

        Raises:
            ArtifactError: of an unsafe format, or outside the artefact.
        """
        if not _is_inside(relative):
            raise ArtifactError(f"{relative}: lies outside the artefact; name tasks and files without '..'.")
        suffix = Path(relative).suffix
        if suffix not in SAFE_SUFFIXES:
            raise ArtifactError(f"{relative}: artefacts hold only {', '.join(sorted(SAFE_SUFFIXES))} files.")
        where = f"{self.root}/{relative}"
        self._fs.makedirs(where.rsplit("/", 1)[0], exist_ok=True)
        with self._fs.open(where, "wb") as handle:
            yield handle

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write one file."""
        with self.open(relative) as handle:
            handle.write(data)

    def write_json(self, relative: str, value: object) -> None:
        """Write a JSON file, keys in the given order."""
        self.write_bytes(relative, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def remove(self, folder: str) -> None:
        """Remove a folder of intermediate files, so that it does not become part of the artefact."""
        if self._fs.exists(f"{self.root}/{folder}"):
            self._fs.rm(f"{self.root}/{folder}", recursive=True)

    def write_table(self, folder: str, table: pa.Table, rows_per_shard: int = 10_000) -> None:
        """Write a table as ``part-00000.parquet`` … of at most ``rows_per_shard`` rows; equal tables, equal bytes."""
        for index, start in enumerate(range(0, table.num_rows, rows_per_shard)):
            with self.open(f"{folder}/part-{index:05d}.parquet") as handle:
                pq.write_table(table.slice(start, rows_per_shard), handle, compression="zstd")


@dataclass(frozen=True)
class Leftover:
    """Something gc may remove, and why."""

    path: str
    reason: str
    bytes: int


class ArtifactStore:
    """A folder of artefacts, local or remote.

    Args:
        uri: local path or fsspec URI such as ``s3://bucket/prefix``.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self.fs, root = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as err:
            raise ArtifactError(f"store {uri!r}: {err}; use a local path or install the URI's fsspec driver.") from err
        self.root = str(root).rstrip("/")
        protocol = self.fs.protocol
        self.protocol = protocol if isinstance(protocol, str) else protocol[0]
        if self.protocol == "local":
            self.protocol = "file"

    def _dir(self, kind: str, name: str, version: str) -> str:
        return f"{self.root}/{kind}/{name}/{version}"

    def exists(self, kind: Kind, name: str, version: str) -> bool:
        """Say whether this version is complete."""
        return bool(self.fs.exists(f"{self._dir(kind, name, version)}/{MANIFEST}"))

    @contextmanager
    def write(
        self,
        kind: Kind,
        name: str,
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Artifact] | None = None,
        seeds: Mapping[str, int] | None = None,
        version: str | None = None,
        replace: bool = False,
    ) -> Iterator[ArtifactWriter]:
        """Write one artefact: fill the writer inside the ``with``; leaving it without an error commits.

        The version defaults to :func:`version_for`. When another writer committed the same version first,
        this writer's files are discarded and the earlier artefact stands, unless ``replace`` is on: then the manifest
        is exchanged in one step, and gc removes the earlier files later.

        Raises:
            ArtifactError: a file of an unsafe format, or gc took this writer for dead and removed its files.
        """
        if not _NAME.fullmatch(name):
            raise ArtifactError(f"artefact name {name!r}: use lower-case letters, digits, - and _.")
        inputs, seeds = inputs or {}, seeds or {}
        version = version or version_for(kind, settings, inputs, seeds)
        folder = self._dir(kind, name, version)
        writer_dir = f"w-{uuid.uuid4().hex[:8]}"
        writer = ArtifactWriter(self.fs, f"{folder}/{writer_dir}", self.protocol)
        try:
            self.fs.makedirs(writer.root, exist_ok=True)
            self.fs.touch(f"{writer.root}/{_ALIVE}")
        except OSError as err:
            raise ArtifactError(
                f"store {self.uri}: cannot be written ({err.strerror or err}); set `store` to a folder of yours."
            ) from err
        try:
            yield writer
            self._end_writing(writer, f"{kind}/{name}@{version}")
            files = self._hash_tree(writer.root)
            input_refs = {role: f"{a.ref} {a.manifest.digest}" for role, a in inputs.items()}
            manifest = Manifest(
                kind=kind,
                name=name,
                version=version,
                schema_version=SCHEMA_VERSION,
                root=writer_dir,
                settings=dict(settings),
                inputs=input_refs,
                seeds=dict(seeds),
                metrics=writer.metrics,
                files=files,
                digest=fingerprint({f: e.sha256 for f, e in sorted(files.items())}),
                code=code_revision(),
                created_unix_s=round(time.time(), 6),
            )
            data = manifest.model_dump_json(indent=2).encode() + b"\n"
            committed = self._create(f"{folder}/{MANIFEST}", data, replace=replace)
        except BaseException:
            self._remove(writer.root)
            raise
        if not committed:
            self._remove(writer.root)

    def _end_writing(self, writer: ArtifactWriter, ref: str) -> None:
        if not self.fs.exists(f"{writer.root}/{_ALIVE}"):
            raise ArtifactError(
                f"{ref}: `mmd artifacts gc` removed this run's files while it was writing; run the job again, and give "
                "gc a longer --older-than-s."
            )
        self.fs.rm(f"{writer.root}/{_ALIVE}")

    def _remove(self, path: str) -> None:
        """Remove a folder, and its parent when that leaves it empty; object stores have no empty folders."""
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)
        parent = path.rsplit("/", 1)[0]
        if self.fs.isdir(parent) and not self.fs.ls(parent):
            self.fs.rm(parent, recursive=True)

    def _create(self, path: str, data: bytes, *, replace: bool) -> bool:
        """Create a file only if it is not there (False if it was), or exchange it.

        Local files appear whole: they are written aside and renamed or hard-linked, which is atomic, and exclusive too.
        """
        if self.protocol == "file":
            aside = Path(f"{path}.{uuid.uuid4().hex[:8]}.tmp")
            aside.write_bytes(data)
            if replace:
                aside.replace(path)
                return True
            try:
                Path(path).hardlink_to(aside)
            except FileExistsError:
                return False
            finally:
                aside.unlink()
            return True
        if self.fs.exists(path) and not replace:
            return False
        try:
            with self.fs.open(
                path, "wb" if replace else "xb"
            ) as handle:  # object stores create whole objects, conditionally
                handle.write(data)
        except FileExistsError:
            return False
        except (ValueError, NotImplementedError):  # a driver without exclusive creation
            with self.fs.open(path, "wb") as handle:
                handle.write(data)
        return True

    def _hash_tree(self, root: str) -> dict[str, FileEntry]:
        files = {}
        for where in sorted(self.fs.find(root)):
            relative = str(where)[len(root) :].lstrip("/")
            if Path(relative).suffix not in SAFE_SUFFIXES:
                raise ArtifactError(f"{relative}: artefacts hold only {', '.join(sorted(SAFE_SUFFIXES))} files.")
            size, digest = _hash_file(self.fs, where)
            files[relative] = FileEntry(bytes=size, sha256=digest)
        return files

    def open(self, ref: str, *, verify: bool = True) -> Artifact:
        """Open ``kind/name`` (the complete version made or asked for last) or ``kind/name@version``.

        Args:
            ref: what to open.
            verify: check the hash of every file; workers that open what a driver verified may skip it.

        Raises:
            ArtifactError: unknown kind, nothing there, incomplete, corrupt, or another schema version.
        """
        path, _, version = ref.partition("@")
        kind, _, name = path.partition("/")
        if kind not in KINDS or not name:
            raise ArtifactError(f"{ref!r}: not an artefact; write kind/name[@version], kind one of {', '.join(KINDS)}.")
        found = [a for a in self._scan(kind, name) if not version or a.manifest.version == version]
        if not found:
            have = sorted({f"{kind}/{a.manifest.name}" for a in self.find(kind)})
            raise ArtifactError(
                f"{ref}: no complete artefact in store {self.uri}; of this kind there are {', '.join(have) or 'none'}. "
                "Run the job that makes it, or `mmd pipeline`."
            )
        asked = self._asked(kind, name)
        artifact = max(found, key=lambda a: max(a.manifest.created_unix_s, asked.get(a.manifest.version, 0.0)))
        if artifact.manifest.schema_version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{artifact.ref}: schema version {artifact.manifest.schema_version}, this mmd reads "
                f"{SCHEMA_VERSION}; run the job that made it again with this version."
            )
        if verify:
            artifact.verify()
        return artifact

    def ask_for(self, artifact: Artifact) -> None:
        """Note that a job found this artefact made already: until another is made or found, its name opens it.

        Going back to earlier settings makes nothing new, yet what follows must work with what was asked for. A store
        that cannot be written keeps its order.
        """
        manifest = artifact.manifest
        where = f"{self.root}/{manifest.kind}/{manifest.name}/{_ASKED}"
        content = json.dumps({"version": manifest.version, "unix_s": time.time()})
        with suppress(OSError):
            self.fs.pipe_file(where, content.encode())

    def _asked(self, kind: str, name: str) -> dict[str, float]:
        """Return version → when it was asked for; empty where nothing, or nothing legible, is noted."""
        where = f"{self.root}/{kind}/{name}/{_ASKED}"
        try:
            noted = json.loads(self.fs.cat_file(where))
            return {str(noted["version"]): float(noted["unix_s"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def find(self, kind: str | None = None) -> list[Artifact]:
        """Return every complete artefact, by kind, name and time."""
        found = [a for k in KINDS if kind in (None, k) for a in self._scan(k)]
        return sorted(found, key=lambda a: (a.manifest.kind, a.manifest.name, a.manifest.created_unix_s))

    def _scan(self, kind: str, name: str | None = None) -> Iterator[Artifact]:
        for version_dir in self._version_dirs(kind, name):
            where = f"{version_dir}/{MANIFEST}"
            if not self.fs.exists(where):
                continue
            with self.fs.open(where, "rb") as handle:
                data = handle.read()
            try:
                manifest = Manifest.model_validate_json(data)
            except ValidationError as err:
                raise ArtifactError(
                    f"{where}: not a manifest of this mmd ({err.error_count()} faults); remove that version's folder."
                ) from err
            yield Artifact(self.fs, f"{version_dir}/{manifest.root}", self.protocol, manifest)

    def _version_dirs(self, kind: str, name: str | None = None) -> Iterator[str]:
        names = [f"{self.root}/{kind}/{name}"] if name else self._subdirs(f"{self.root}/{kind}")
        for name_dir in names:
            yield from self._subdirs(name_dir)

    def _subdirs(self, path: str) -> list[str]:
        if not self.fs.isdir(path):
            return []
        entries = self.fs.ls(path, detail=True)
        return sorted(str(e["name"]) for e in entries if e["type"] == "directory")

    def leftovers(self, *, min_age_s: float, broken: bool = False) -> Iterator[Leftover]:
        """Yield what interrupted or beaten writers left, untouched for ``min_age_s`` seconds (runs: a day at least).

        Args:
            min_age_s: spare younger files, which a live writer may still be filling.
            broken: also yield complete versions whose files fail their hashes.
        """
        now = time.time()
        for kind in KINDS:
            for version_dir in self._version_dirs(kind):
                live = self._live_root(version_dir)
                for writer_dir in self._subdirs(version_dir):
                    if writer_dir == live:
                        continue
                    size, newest = self._size_and_mtime(writer_dir)
                    if now - newest >= min_age_s:
                        yield Leftover(writer_dir, "no manifest names it", size)
        yield from self._abandoned_runs(now - max(min_age_s, _RUN_MIN_AGE_S))
        if broken:
            for artifact in self.find():
                try:
                    artifact.verify()
                except ArtifactError as err:
                    folder = artifact.root.rsplit("/", 1)[0]
                    yield Leftover(folder, str(err).split(". ")[0], self._size_and_mtime(folder)[0])

    def _abandoned_runs(self, before: float) -> Iterator[Leftover]:
        """Yield the runs of which nothing was written since ``before``, in seconds since 1970."""
        for path in (path for folder in _RUNS for path in self._subdirs(f"{self.root}/{folder}")):
            size, newest = self._size_and_mtime(path)
            if newest <= before:
                yield Leftover(path, "a run that nobody went on with", size)

    def _live_root(self, version_dir: str) -> str | None:
        where = f"{version_dir}/{MANIFEST}"
        if not self.fs.exists(where):
            return None
        with self.fs.open(where, "rb") as handle:
            data = handle.read()
        try:
            return f"{version_dir}/{Manifest.model_validate_json(data).root}"
        except ValidationError:
            return None  # half a manifest, by a store without atomic creation: nothing here can be opened

    def _size_and_mtime(self, path: str) -> tuple[int, float]:
        entries: Iterable[Mapping[str, Any]] = self.fs.find(path, detail=True).values()
        size, newest = 0, 0.0
        for entry in entries:
            size += int(entry["size"] or 0)
            stamp = entry.get("mtime") or entry.get("LastModified") or 0.0
            newest = max(newest, stamp if isinstance(stamp, (int, float)) else stamp.timestamp())
        if newest == 0.0 and self.protocol == "file":
            newest = Path(path).stat().st_mtime
        return size, newest

    def gc(
        self,
        *,
        min_age_s: float = 3600.0,
        broken: bool = False,
        dry_run: bool = False,
        on_remove: Callable[[Leftover], None] | None = None,
    ) -> list[Leftover]:
        """Remove leftovers (see :meth:`leftovers`) and return them; ``dry_run`` only lists."""
        found = list(self.leftovers(min_age_s=min_age_s, broken=broken))
        for leftover in found:
            if not dry_run:
                self._remove(leftover.path)
            if on_remove:
                on_remove(leftover)
        return found


def _hash_file(fs: Any, path: str) -> tuple[int, str]:  # noqa: ANN401 (fsspec is untyped)
    digest, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def diff_manifests(a: Manifest, b: Manifest) -> list[tuple[str, str, str]]:
    """Return (field, value in a, value in b) for everything that differs, settings and metrics by key path."""
    left, right = dict(_flatten(a.model_dump())), dict(_flatten(b.model_dump()))
    skip = {"created_unix_s", "root"}
    keys = [k for k in [*left, *(k for k in right if k not in left)] if k not in skip]
    missing = "–"
    return [(k, left.get(k, missing), right.get(k, missing)) for k in keys if left.get(k) != right.get(k)]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 (JSON)
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(value, ensure_ascii=False)
