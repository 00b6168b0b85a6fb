"""Removing what interrupted or beaten writers left in a store (``mmd artifacts gc``)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mmd.artifacts.manifest import KINDS, MANIFEST, Manifest
from mmd.artifacts.store import ArtifactStore
from mmd.errors import ArtifactError
from mmd.sweeps.store import MAX_RECORDS, SweepStore

_RUNS = (".train", ".tune")  # checkpoints of unfinished work, which lie in the store until its artefact is written
_RUN_MIN_AGE_S = 86_400.0
"""A run younger than this is spared whatever the caller says: it may write hours apart, and be resumed."""


@dataclass(frozen=True)
class Leftover:
    """Something gc may remove, and why."""

    path: str
    reason: str
    bytes: int


def leftovers(store: ArtifactStore, *, min_age_s: float, broken: bool = False) -> Iterator[Leftover]:
    """Yield what interrupted or beaten writers left, untouched for ``min_age_s`` seconds (runs: a day at least).

    Args:
        store: the store to look through.
        min_age_s: spare younger files, which a live writer may still be filling.
        broken: also yield complete versions whose files fail their hashes.
    """
    now = time.time()
    for kind in KINDS:
        for version_dir in store.version_dirs(kind):
            live = _live_root(store, version_dir)
            for writer_dir in store.subdirs(version_dir):
                if writer_dir == live:
                    continue
                size, newest = _size_and_mtime(store, writer_dir)
                if now - newest >= min_age_s:
                    yield Leftover(writer_dir, "no manifest names it", size)
    yield from _abandoned_runs(store, now - max(min_age_s, _RUN_MIN_AGE_S))
    yield from _old_sweeps(store, now - min_age_s)
    if broken:
        for artifact in store.find():
            try:
                artifact.verify()
            except ArtifactError as err:
                folder = artifact.root.rsplit("/", 1)[0]
                yield Leftover(folder, str(err).split(". ")[0], _size_and_mtime(store, folder)[0])


def _abandoned_runs(store: ArtifactStore, before: float) -> Iterator[Leftover]:
    """Yield the runs of which nothing was written since ``before``, in seconds since 1970."""
    for path in (path for folder in _RUNS for path in store.subdirs(f"{store.root}/{folder}")):
        size, newest = _size_and_mtime(store, path)
        if newest <= before:
            yield Leftover(path, "a run that nobody went on with", size)


def _old_sweeps(store: ArtifactStore, before: float) -> Iterator[Leftover]:
    """Yield records of sweeps beyond those that are kept, and folders from ``before`` that never got a record."""
    sweeps = SweepStore(store)
    for sweep_id in sweeps.beyond(MAX_RECORDS):
        path = sweeps.folder(sweep_id)
        yield Leftover(path, f"the record of a sweep before the newest {MAX_RECORDS}", _size_and_mtime(store, path)[0])
    for sweep_id in sweeps.ids()[:MAX_RECORDS]:
        size, newest = _size_and_mtime(store, sweeps.folder(sweep_id))
        if newest <= before and not sweeps.exists(sweep_id):
            yield Leftover(sweeps.folder(sweep_id), "a sweep without a record", size)


def _live_root(store: ArtifactStore, version_dir: str) -> str | None:
    where = f"{version_dir}/{MANIFEST}"
    if not store.fs.exists(where):
        return None
    with store.fs.open(where, "rb") as handle:
        data = handle.read()
    try:
        return f"{version_dir}/{Manifest.model_validate_json(data).root}"
    except ValidationError:
        return None  # half a manifest, by a store without atomic creation: nothing here can be opened


def _size_and_mtime(store: ArtifactStore, path: str) -> tuple[int, float]:
    entries: Iterable[Mapping[str, Any]] = store.fs.find(path, detail=True).values()
    size, newest = 0, 0.0
    for entry in entries:
        size += int(entry["size"] or 0)
        stamp = entry.get("mtime") or entry.get("LastModified") or 0.0
        newest = max(newest, stamp if isinstance(stamp, (int, float)) else stamp.timestamp())
    if newest == 0.0 and store.protocol == "file":
        newest = Path(path).stat().st_mtime
    return size, newest


def gc(
    store: ArtifactStore, *, min_age_s: float = 3600.0, broken: bool = False, dry_run: bool = False
) -> list[Leftover]:
    """Remove leftovers (see :func:`leftovers`) and return them; ``dry_run`` only lists."""
    found = list(leftovers(store, min_age_s=min_age_s, broken=broken))
    if not dry_run:
        for leftover in found:
            store.remove(leftover.path)
    return found
