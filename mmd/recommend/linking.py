"""Finding items and entities in what is said: marks, titles, and names of entities.

Three things are found in a turn, in this order of precedence:

1. **marks**: ``@ID`` for an item that the corpus states for the turn, as ReDial writes its films;
2. **titles of the turn's stated items**, so that a sentence of the agent shows where its item stands; stated items
   that the words do not show come last. An item without marks is mentioned exactly as often as the corpus states it;
3. **names** of entities anywhere in the text. Of names that overlap the longest is taken. A name of an item is a
   mention of it where the corpus states no items (``titles``), else it only lends its entity.

Names match whole words, whatever the case; between Chinese characters there are no word boundaries to respect. Names
that are too short, that consist of stop words, or that too many entities share are not linked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from mmd.recommend.graph import ItemGraph
from mmd.recommend.names import NameTable, Span, fold, item_names, whole_words
from mmd.recommend.settings import GraphSettings
from mmd.recommend.types import LinkedDialogue, LinkedTurn, Part
from mmd.schema import Dialogue, Turn


@dataclass
class Coverage:
    """What was found in turns; adds up.

    Attributes:
        counts: ``turns``, ``turns_with_entities``; of the items that the corpus states ``items_stated`` and, of these,
            ``items_behind_text`` (not shown by the words) and ``items_unknown`` (not in the catalogue);
            ``items_by_title``: mentions that only the text tells; ``names``: names of entities found in the text.
        names: how often each name was found.
        unknown: how often each item was stated that the catalogue lacks, by its id.
    """

    counts: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    def add(self, other: Coverage) -> None:
        """Add what was found elsewhere."""
        self.counts.update(other.counts)
        self.names.update(other.names)
        self.unknown.update(other.unknown)


class Linker:
    """Links turns to an item graph.

    Args:
        graph: whose items and entities are found.
        settings: which names are linked.
        titles: whether an item's name in the text is a mention of it; else it only lends its entity.
    """

    def __init__(self, graph: ItemGraph, settings: GraphSettings, *, titles: bool = False) -> None:
        self.graph = graph
        self._titles = titles
        self._names = NameTable(graph, settings) if settings.link_text or titles else None

    def turn(self, turn: Turn) -> LinkedTurn:
        """Return a turn in parts, with the entities that it names."""
        return self.measured(turn)[0]

    def measured(self, turn: Turn) -> tuple[LinkedTurn, Coverage]:
        """Return a linked turn, and what was found in it."""
        stated = [self.graph.item_at[item_id] for item_id in turn.item_ids if item_id in self.graph.item_at]
        spans = self.spans(turn.text, stated)
        mentions = Counter(span.item for span in spans if span.item is not None)
        behind = list((Counter(stated) - mentions).elements())
        entities = [entity for span in spans for entity in span.entities] + [self._entity(item) for item in behind]
        linked = LinkedTurn(turn.speaker, (*_parts(turn.text, spans), *behind), tuple(dict.fromkeys(entities)))
        counts = Counter(
            turns=1,
            turns_with_entities=int(bool(entities)),
            items_stated=len(turn.item_ids),
            items_unknown=len(turn.item_ids) - len(stated),
            items_behind_text=len(behind),
            items_by_title=(mentions - Counter(stated)).total(),
            names=sum(span.item is None for span in spans),
        )
        names = Counter(span.name for span in spans if span.item is None)
        return linked, Coverage(counts, names, Counter(i for i in turn.item_ids if i not in self.graph.item_at))

    def spans(self, text: str, stated: Sequence[int] = ()) -> list[Span]:
        """Return what a text names, in order, without overlaps.

        Args:
            text: of a turn.
            stated: items that the corpus states for the turn.
        """
        taken = self._stated(fold(text), stated) if stated else []
        if self._names is not None:
            found = self._names.find(text)
            _take(taken, found if self._titles else [replace(span, items=()) for span in found])
        return sorted(taken, key=lambda span: span.start)

    def _stated(self, folded: str, stated: Sequence[int]) -> list[Span]:
        """Find stated items by all their marks, and by titles as often as they are stated beyond these."""
        taken = _take([], self._marks(folded, stated))
        left = Counter(stated)
        left.subtract(span.items[0] for span in taken)
        titles = self._stated_titles(folded, [item for item in dict.fromkeys(stated) if left[item] > 0])
        for span in sorted(_take(list(taken), titles), key=lambda span: span.start):
            item = span.items[0]
            taken.append(span if left[item] > 0 else replace(span, items=()))  # said again, mentioned once
            left[item] -= 1
        return taken

    def _marks(self, folded: str, stated: Sequence[int]) -> list[Span]:
        """Find ``@ID`` of the stated items; letters around it do not matter, a further digit makes it another id."""
        found = []
        for item in dict.fromkeys(stated):
            mark = fold(f"@{self.graph.item_ids[item]}")
            places = (match.start() for match in re.finditer(re.escape(mark) + r"(?!\d)", folded))
            found += [self._span(start, start + len(mark), item) for start in places]
        return found

    def _stated_titles(self, folded: str, stated: Sequence[int]) -> list[Span]:
        found = []
        for item in stated:
            for name in item_names(self.graph, item):
                places = (match.start() for match in re.finditer(re.escape(name), folded))
                whole = (start for start in places if whole_words(folded, start, start + len(name)))
                found += [self._span(start, start + len(name), item) for start in whole]
        return found

    def _span(self, start: int, stop: int, item: int) -> Span:
        return Span(start, stop, (item,), (self._entity(item),))

    def _entity(self, item: int) -> int:
        return int(self.graph.item_entities[item])


def link_dialogue(dialogue: Dialogue, linker: Linker) -> LinkedDialogue:
    """Return a dialogue with linked turns."""
    return link_measured(dialogue, linker)[0]


def link_measured(dialogue: Dialogue, linker: Linker) -> tuple[LinkedDialogue, Coverage]:
    """Return a dialogue with linked turns, and what was found in them."""
    coverage, turns = Coverage(), []
    for turn in dialogue.turns:
        linked, found = linker.measured(turn)
        turns.append(linked)
        coverage.add(found)
    return LinkedDialogue(dialogue.id, dialogue.split, tuple(turns)), coverage


def _take(taken: list[Span], found: Iterable[Span]) -> list[Span]:
    """Add the spans that overlap none, the longest first, of equal ones the first; return what was added."""
    found = sorted(found, key=lambda span: (span.start - span.stop, span.start))
    free = bytearray(b"\1") * max((span.stop for span in (*taken, *found)), default=0)
    added = []
    for span in (*taken, *found):
        if 0 not in free[span.start : span.stop]:
            added.append(span)
            free[span.start : span.stop] = bytes(span.stop - span.start)
    added = added[len(taken) :]
    taken.extend(added)
    return added


def _parts(text: str, spans: Iterable[Span]) -> Iterator[Part]:
    """Yield words and mentioned items as they follow each other; words stay as they are."""
    at = 0
    for span in spans:
        if span.item is None:
            continue
        if span.start > at:
            yield text[at : span.start]
        yield span.item
        at = span.stop
    if at < len(text):
        yield text[at:]
