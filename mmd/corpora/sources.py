"""Has a corpus changed? A fingerprint of its files, part of the version of what ``ingest`` writes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmd.artifacts import fingerprint

_RECORD_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".yaml", ".yml"})


def source_fingerprint(paths: Sequence[str | Path], skip: str | Path | None = None) -> str | None:
    """Return the SHA-256 (hex) of what files and folders hold; None when there are none.

    Record files are hashed whole. Other files, pictures above all, count by name, size and time of change: hashing
    them would read a large corpus twice. A copied corpus thus gets a new version, whose content, and with it
    everything made from it, is the same.

    Args:
        paths: files and folders; hidden ones inside are left out.
        skip: a folder to leave out (an artefact store that lies inside).
    """
    left_out = None if skip is None else os.path.realpath(skip)
    entries = [
        (number, *_describe(file, Path(top)))
        for number, top in enumerate(paths)
        for file in _files(Path(top), left_out)
    ]
    return fingerprint(entries) if paths else None


def _files(top: Path, left_out: str | None) -> Iterator[Path]:
    if top.is_file():
        yield top
        return
    for folder, folders, files in os.walk(top):
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and os.path.realpath(Path(folder, f)) != left_out
        )
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _describe(file: Path, top: Path) -> tuple[str, int, str]:
    name = file.relative_to(top).as_posix() if file != top else file.name
    try:
        status = file.stat()
        if file.suffix.lower() in _RECORD_SUFFIXES and file.is_file():
            with file.open("rb") as handle:
                return name, status.st_size, hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as err:  # a dangling link; its records will say so
        return name, 0, str(err.strerror)
    return name, status.st_size, str(status.st_mtime_ns)
