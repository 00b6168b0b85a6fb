"""The store: artefacts written whole or not at all, and found again by kind, name and version."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from pydantic import ValidationError

from mmd.artifacts.files import Artifact, ArtifactWriter
from mmd.artifacts.manifest import (
    KINDS,
    MANIFEST,
    SAFE_SUFFIXES,
    FileEntry,
    Kind,
    Manifest,
    code_revision,
    command_for,
    fingerprint,
    hash_file,
    version_for,
)
from mmd.errors import ArtifactError
from mmd.schema import SCHEMA_VERSION

_ASKED = "asked.json"
"""In a name's folder: the version that a job asked for last and found there, and when (seconds since 1970)."""
_ALIVE = ".writing"  # gone when gc took the writer for dead: what it then writes must not be committed
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def _filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URI and the path there; it keeps no listings, which others write to meanwhile."""
    try:
        return fsspec.core.url_to_fs(uri, use_listings_cache=False)  # type: ignore[no-any-return]
    except TypeError:  # sftp's hands what it does not know to its client; it keeps no listings anyway
        return fsspec.core.url_to_fs(uri)  # type: ignore[no-any-return]


class ArtifactStore:
    """A folder of artefacts, local or remote.

    Args:
        uri: local path or fsspec URI such as ``s3://bucket/prefix``.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self.fs, root = _filesystem(uri)
        except (ImportError, ValueError) as err:
            raise ArtifactError(f"store {uri!r}: {err}; use a local path or install the URI's fsspec driver.") from err
        self.root = str(root).rstrip("/")
        protocol = self.fs.protocol
        self.protocol = protocol if isinstance(protocol, str) else protocol[0]
        if self.protocol == "local":
            self.protocol = "file"

    @property
    def absolute(self) -> str:
        """The store as processes in other folders find it: an absolute path, or a URI."""
        return self.root if self.protocol == "file" else self.uri.rstrip("/")

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
            self.remove(writer.root)
            raise
        if not committed:
            self.remove(writer.root)

    def _end_writing(self, writer: ArtifactWriter, ref: str) -> None:
        if not self.fs.exists(f"{writer.root}/{_ALIVE}"):
            raise ArtifactError(
                f"{ref}: `mmd artifacts gc` removed this run's files while it was writing; run the job again, and give "
                "gc a longer --older-than-s."
            )
        self.fs.rm(f"{writer.root}/{_ALIVE}")

    def remove(self, path: str) -> None:
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

    def put(self, path: str, data: bytes) -> None:
        """Write a file that is no artefact's beside them, or exchange it, whole (see :meth:`_create`)."""
        self._create(path, data, replace=True)

    def _hash_tree(self, root: str) -> dict[str, FileEntry]:
        files = {}
        for where in sorted(self.fs.find(root)):
            relative = str(where)[len(root) :].lstrip("/")
            if Path(relative).suffix not in SAFE_SUFFIXES:
                raise ArtifactError(f"{relative}: artefacts hold only {', '.join(sorted(SAFE_SUFFIXES))} files.")
            size, digest = hash_file(self.fs, where)
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
                f"`{command_for(kind, name)}` makes it, or `mmd pipeline` all of them."
            )
        asked = self._asked(kind, name)
        artifact = max(found, key=lambda a: max(a.manifest.created_unix_s, asked.get(a.manifest.version, 0.0)))
        if artifact.manifest.schema_version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{artifact.ref}: schema version {artifact.manifest.schema_version}, this mmd reads "
                f"{SCHEMA_VERSION}; make it again with `{command_for(kind, name)}`."
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
        for version_dir in self.version_dirs(kind, name):
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

    def version_dirs(self, kind: str, name: str | None = None) -> Iterator[str]:
        """Yield the folders of all versions of a kind, or of one name, complete or not."""
        names = [f"{self.root}/{kind}/{name}"] if name else self.subdirs(f"{self.root}/{kind}")
        for name_dir in names:
            yield from self.subdirs(name_dir)

    def subdirs(self, path: str) -> list[str]:
        """Return the folders in a folder, sorted; none where there is no such folder."""
        if not self.fs.isdir(path):
            return []
        entries = self.fs.ls(path, detail=True)
        return sorted(str(e["name"]) for e in entries if e["type"] == "directory")
