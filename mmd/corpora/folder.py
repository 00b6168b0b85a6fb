"""What all corpora on disk share: a folder, its files by split, and parts that workers read independently."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmd.corpora.base import CatalogueItem, Graph, ParsedRecord, Part, RawRecord
from mmd.corpora.json_records import Plan, RecordFile, plan_file, read_part
from mmd.errors import CorpusError
from mmd.schema import Split

_RECORD_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})
_SECTION = re.compile(r"(train|test|dev|val)(?:ing|id|idation)?(?![a-z])", re.IGNORECASE)
_SECTION_ORDER = ("train", "dev", "val", "test")


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A record file: path relative to the corpus folder, its split, and the section its publisher put it in."""

    source: str
    split: Split
    section: str


class FolderReader(ABC):
    """A corpus of JSON records in a folder.

    Parts hold record numbers (line numbers in JSON Lines): at most 256 records or about 4 MiB each, so that one large
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
    found = [
        (section, path.relative_to(folder).as_posix())
        for path in [*folder.glob("*.*"), *folder.glob("*/*.*")]
        if path.suffix.lower() in _RECORD_SUFFIXES and path.is_file() and (section := _section(path, folder))
    ]
    has_test = any(section == "test" for section, _ in found)
    found.sort(key=lambda pair: (_SECTION_ORDER.index(pair[0]), pair[1]))
    return [CorpusFile(source, _split(section, has_test=has_test), section) for section, source in found]


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


def _section(path: Path, folder: Path) -> str | None:
    parents = path.relative_to(folder).parts
    if len(parents) > 1 and not _SECTION.match(parents[0]):
        return None  # an unrelated subfolder
    match = _SECTION.match(parents[0])
    return match.group(1).lower() if match else None


def _split(section: str, *, has_test: bool) -> Split:
    if section in {"dev", "val"}:
        return "train" if has_test else "test"
    return "test" if section == "test" else "train"
