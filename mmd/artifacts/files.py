"""Reading and writing the files of one artefact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mmd.artifacts.manifest import SAFE_SUFFIXES, Kind, Manifest, command_for, hash_file, is_inside
from mmd.errors import ArtifactError


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

    def input_ref(self, role: str) -> str:
        """Return the reference of what the artefact was made from.

        Raises:
            ArtifactError: it names no such input.
        """
        try:
            return self.manifest.inputs[role].split(" ")[0]  # inputs are "kind/name@version digest"
        except KeyError:
            raise ArtifactError(f"{self.ref}: does not say which {role} it was made from; make it again.") from None

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

    def copy_folder(self, folder: str, target: Path) -> Path:
        """Copy the files of a folder into a local one, for libraries that read paths; return ``target``."""
        target.mkdir(parents=True, exist_ok=True)
        inside = folder.rstrip("/") + "/"
        for relative in sorted(f for f in self.manifest.files if f.startswith(inside)):
            where = target / relative.removeprefix(inside)
            where.parent.mkdir(parents=True, exist_ok=True)
            where.write_bytes(self.read_bytes(relative))
        return target

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
        command = command_for(self.manifest.kind, self.manifest.name)
        way_out = f"Remove this version (`mmd artifacts gc --broken`) and make it again with `{command}`."
        for relative, entry in self.manifest.files.items():
            where = f"{self.root}/{relative}"
            if not self.fs.exists(where):
                raise ArtifactError(f"{self.ref}: file {relative} is missing. {way_out}")
            size, digest = hash_file(self.fs, where)
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
        if not is_inside(relative):
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
