"""What a corpus reader is: cheap to plan, read in independent parts, parsed record by record.

``plan`` names parts that can be read in any order by any worker; ``read`` yields the raw records of one part;
``parse`` turns one raw record into a dialogue or raises :class:`~mmd.errors.BadRecordError`. Splitting ``read``
from ``parse`` is what lets a bad record be kept, raw, in quarantine. Readers are picklable plain objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from mmd.schema import Dialogue, Entity, Item, ItemLink, OcrLine, Split, Triple


@dataclass(frozen=True, slots=True)
class Part:
    """A unit of reading: records ``start`` … ``stop`` (exclusive; None: to the end) of ``source``."""

    source: str  # file relative to the corpus folder; a made-up name for simulated corpora
    split: Split
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record as found. ``position`` is its 0-based number (or line) in ``source``."""

    source: str
    position: int
    split: Split
    raw: bytes


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where a picture's bytes are: ``path`` inside the corpus folder, or ``data`` when they came with the record."""

    path: str | None = None
    data: bytes | None = None
    ocr: tuple[OcrLine, ...] | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class ParsedRecord:
    """A dialogue whose turns name pictures by the keys of ``images``."""

    dialogue: Dialogue
    images: Mapping[str, ImageSource] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CatalogueItem:
    """An item as a reader gives it: its ``image_ids`` are keys of ``images``."""

    item: Item
    images: Mapping[str, ImageSource] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Graph:
    """Entities, typed triples and item ↔ entity links."""

    entities: tuple[Entity, ...] = ()
    triples: tuple[Triple, ...] = ()
    links: tuple[ItemLink, ...] = ()


@runtime_checkable
class CorpusReader(Protocol):
    """Reads one corpus.

    Attributes:
        name: the reader's registered name.
        root: folder that all relative paths stay inside; None for simulated corpora.
    """

    name: str
    root: str | None

    def tasks(self) -> Mapping[str, tuple[str, ...]]:
        """Return task → its label set, in the corpus's order; labels outside are quarantined."""
        ...

    def plan(self) -> list[Part]:
        """Return the parts in a fixed order.

        Raises:
            CorpusError: folder or files are missing; the message says what layout is expected.
        """
        ...

    def read(self, part: Part) -> Iterator[RawRecord]:
        """Yield the raw records of one part, broken ones included."""
        ...

    def parse(self, record: RawRecord) -> ParsedRecord:
        """Turn a raw record into a dialogue.

        Raises:
            BadRecordError: the record cannot be used; the error names reason and detail.
        """
        ...

    def items(self) -> Iterator[CatalogueItem]:
        """Yield the item catalogue, if the corpus has one."""
        ...

    def graph(self) -> Graph:
        """Return the knowledge graph, empty if the corpus has none."""
        ...
