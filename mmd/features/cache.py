"""Extracted features by content hash, under ``<store>/cache/<role>-<extractor>/``; equal content is computed once.

Each batch is written as it completes, aside and then renamed: a killed run leaves whole parts, and the next run
computes only what no part holds. A part that cannot be read is as good as absent. Rows with an error are kept for
the record, but count as not computed, so that the next run tries them again.
"""

from __future__ import annotations

import hashlib
import io
import re
import uuid
from collections.abc import Iterable, Iterator

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from mmd.features.extract import SCHEMAS, Role, Stage

log = structlog.get_logger()


class FeatureCache:
    """The cached rows of one extractor.

    Args:
        store: URI of the artefact store.
        role: which table.
        name: the extractor's name, which carries version and settings.
    """

    def __init__(self, store: str, role: Role, name: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(store)
        self.folder = f"{str(root).rstrip('/')}/cache/{role}-{_slug(name)}"
        self.schema = SCHEMAS[role]
        self._key = self.schema.names[0]

    def put(self, table: pa.Table) -> None:
        """Store rows; the part appears whole or not at all. Equal rows give the same part."""
        if not table.num_rows:
            return
        sink = io.BytesIO()
        pq.write_table(table.cast(self.schema), sink, compression="zstd", write_page_checksum=True)
        data = sink.getvalue()
        digest = hashlib.sha256(data).hexdigest()[:24]
        aside = f"{self.folder}/{digest}.{uuid.uuid4().hex[:8]}.tmp"
        self._fs.makedirs(self.folder, exist_ok=True)
        with self._fs.open(aside, "wb") as handle:
            handle.write(data)
        self._fs.mv(aside, f"{self.folder}/part-{digest}.parquet")

    def known(self) -> set[str]:
        """Return the ids that need no computing."""
        found: set[str] = set()
        for part in self._parts([self._key, "error"]):
            found.update(part.filter(pc.equal(part["error"], ""))[self._key].to_pylist())
        return found

    def read(self, ids: Iterable[str]) -> pa.Table:
        """Return the rows of these ids, sorted by id; ids that the cache lacks are left out."""
        wanted = pa.array(sorted(set(ids)), pa.string())
        return self._joined([part.filter(pc.is_in(part[self._key], wanted)) for part in self._parts()])

    def read_all(self) -> pa.Table:
        """Return all rows, sorted by id; each id once."""
        return self._joined(list(self._parts()))

    def _joined(self, parts: list[pa.Table]) -> pa.Table:
        if not parts:
            return self.schema.empty_table()
        table = pa.concat_tables(parts)
        rows: dict[str, int] = {}
        keys, errors = table[self._key].to_pylist(), table["error"].to_pylist()
        for row, (key, error) in enumerate(zip(keys, errors, strict=True)):
            if not error or key not in rows:  # a later success goes before an earlier failure
                rows[key] = row
        return table.take(pa.array([rows[key] for key in sorted(rows)], pa.int64())).combine_chunks()

    def _parts(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        wanted = self.schema if columns is None else pa.schema([self.schema.field(c) for c in columns])
        for path in sorted(self._fs.glob(f"{self.folder}/part-*.parquet")):
            try:
                with self._fs.open(path, "rb") as handle:
                    yield pq.read_table(handle, columns=columns, page_checksum_verification=True).cast(wanted)
            except (OSError, pa.ArrowException, ValueError) as err:
                log.warning("cache_part_unreadable", path=path, error=str(err), effect="its rows are computed again")


class CachedStage:
    """A stage whose results go into the cache; it returns how many rows it did, and how many of them failed."""

    def __init__(self, stage: Stage, cache: FeatureCache) -> None:
        self._stage = stage
        self._cache = cache

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Extract and store a batch; return one row with the counts ``rows`` and ``errors``."""
        errors = 0
        if batch.num_rows:
            table = self._stage(batch)
            self._cache.put(table)
            errors = pc.sum(pc.not_equal(table["error"], "")).as_py()
        return pa.table({"rows": pa.array([batch.num_rows], pa.int64()), "errors": pa.array([errors], pa.int64())})


def _slug(name: str) -> str:
    """Return a name as part of a file path; names that differ stay different."""
    slug = re.sub(r"[^a-z0-9._-]", "-", name)
    return slug if slug == name else f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
