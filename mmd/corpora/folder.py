"""What all corpora on disk share: a folder, its files by split, and parts that workers read independently."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from mmd.corpora.base import CatalogueItem, Graph, ParsedRecord, Part, RawRecord
from mmd.corpora.json_records import Plan, RecordFile, plan_file, read_part
from mmd.errors import CorpusError
from mmd.schema import Split

RECORD_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})
_SECTION = re.compile(r"(train|test|dev|val)(?:ing|elopment|id|idation)?(?![a-z])", re.IGNORECASE)
_SECTION_ORDER = ("train", "dev", "val", "test")


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A record file: path relative to the corpus folder, its split, and the section its publisher put it in."""

    source: str
    split: Split
    section: str


class FolderReader(ABC):
    """A corpus of JSON records in a folder.

    Parts hold record numbers (line numbers in JSON Lines): at most 128 records or about 4 MiB each, so that one large
    file is read by many workers. ``plan`` also notes at which byte each part starts; the notes travel with the
    pickled reader. A copy that has not planned reads the same records, by scanning from the start of the file.

    Attributes:
        name: the reader's registered name.
        layout: the files it expects, for error messages.
        marks: keys of which every record has at least one.
    """

    name: str
    layout: str
    marks: frozenset[str]

    def __init__(self, root: str | Path) -> None:
        self.root: str | None = str(root)
        self._folder = Path(root)
        self._plans: dict[str, Plan] = {}

    @abstractmethod
    def files(self) -> list[CorpusFile]:
        """Return the record files in reading order; empty when the folder holds none."""

    @abstractmethod
    def parse(self, record: RawRecord) -> ParsedRecord:
        """Turn a raw record into a dialogue; see :class:`~mmd.corpora.base.CorpusReader`."""

    def tasks(self) -> Mapping[str, tuple[str, ...]]:
        """Return no tasks: the corpus has no labels."""
        return {}

    def plan(self) -> list[Part]:
        """Return the parts in a fixed order.

        Raises:
            CorpusError: the folder or its files are missing or are no record files.
        """
        files = self.existing_files()
        self._plans = {f.source: plan_file(self._open(f.source), f.source, f.split) for f in files}
        return [part for plan in self._plans.values() for part in plan.parts]

    def existing_files(self) -> list[CorpusFile]:
        """Return :meth:`files`, of which there is at least one.

        Raises:
            CorpusError: the folder or its files are missing.
        """
        if not self._folder.is_dir():
            state = "is a file, not a folder" if self._folder.exists() else "does not exist"
            raise CorpusError(f"{self.root}: {state}. The {self.name} reader expects {self.layout}.")
        files = self.files()
        if not files:
            raise CorpusError(f"{self.root}: holds no {self.name} records. Expected: {self.layout}.")
        return files

    def read(self, part: Part) -> Iterator[RawRecord]:
        """Yield the raw records of one part, broken ones included."""
        return read_part(self._open(part.source), part, self._plans.get(part.source))

    def items(self) -> Iterator[CatalogueItem]:
        """Yield nothing: the corpus has no catalogue."""
        return iter(())

    def graph(self) -> Graph:
        """Return the empty graph."""
        return Graph()

    def __getstate__(self) -> dict[str, Any]:
        """Leave cached tables out: each worker reads them once instead of getting them with every task."""
        kind = type(self)
        return {key: v for key, v in self.__dict__.items() if not isinstance(getattr(kind, key, None), cached_property)}

    def _open(self, source: str) -> RecordFile:
        return RecordFile(self._folder / source, self.marks)

    def _named(self, names: Mapping[str, Split]) -> list[CorpusFile]:
        """Return those of the named files that exist, in the order given."""
        return [
            CorpusFile(name, split, PurePosixPath(name).stem)
            for name, split in names.items()
            if (self._folder / name).is_file()
        ]


def files_by_section(folder: Path) -> list[CorpusFile]:
    """Find record files named after a section (``train…``, ``dev…``, ``val…``, ``test…``) or in a folder so named.

    mmd knows two splits. ``train`` and ``test`` are what they say; a development section is ``test`` where no test
    section is there, else ``train`` (validation folds are drawn from the training split anyway).
    """
    named = [path for path in folder.iterdir() if _SECTION.match(path.name)]
    paths = [path for top in named for path in (top.iterdir() if top.is_dir() else (top,))]
    sources = [p.relative_to(folder).as_posix() for p in paths if p.suffix.lower() in RECORD_SUFFIXES and p.is_file()]
    sections = {source: section_of(source) for source in sources}
    has_test = "test" in sections.values()
    ordered = sorted(sources, key=lambda source: (_SECTION_ORDER.index(sections[source]), source))
    return [CorpusFile(source, _split(sections[source], has_test=has_test), sections[source]) for source in ordered]


def section_of(source: str) -> str:
    """Return the section that a file's folder or name tells, ``train`` where neither does."""
    for name in PurePosixPath(source).parts:
        if match := _SECTION.match(name):
            return match.group(1).lower()
    return "train"


def image_folder(root: Path, source: str) -> str | None:
    """Return the ``images`` folder for a record file, relative to the corpus: beside the file, else at the top."""
    for parent in (PurePosixPath(source).parent, PurePosixPath()):
        if (root / parent / "images").is_dir():
            return (parent / "images").as_posix()
    return None


def _split(section: str, *, has_test: bool) -> Split:
    if section in {"dev", "val"}:
        return "train" if has_test else "test"
    return "test" if section == "test" else "train"
