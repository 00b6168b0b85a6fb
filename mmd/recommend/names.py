"""Names of entities, and where text contains them."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache

from mmd.recommend.graph import ItemGraph
from mmd.recommend.settings import GraphSettings

_QUALIFIER = re.compile(r"\s*\([^()]*\)$|\s{2,}\d+$")
"""What a catalogue adds to a name: ``Heat (1995)``, ``Twins (group)``, ``Vivien Leigh  1``."""
_WORDS = re.compile(r"[^\W_]+")
_LETTER = re.compile(r"[^\W_]")
_IS_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]")
_GENITIVE = re.compile(r"'s(?![^\W_])")
_PLAIN = str.maketrans({"’": "'", "‘": "'", "`": "'", "\u00a0": " ", "\n": " ", "\r": " ", "\t": " "})


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text that names something.

    Attributes:
        start: first character.
        stop: behind the last character.
        items: that it may mention; one of them is a mention, several are none.
        entities: that it names.
        name: the name that was found, folded; empty for marks.
    """

    start: int
    stop: int
    items: tuple[int, ...]
    entities: tuple[int, ...]
    name: str = ""

    @property
    def item(self) -> int | None:
        """The item that it mentions."""
        return self.items[0] if len(self.items) == 1 else None


def fold(text: str) -> str:
    """Return text as names are compared: case folded, typographic quotes and blanks made plain; of the same length."""
    folded = text.casefold()
    if len(folded) != len(text):  # "ß" and the like grow: fold only what keeps its place
        folded = "".join(c if len(c.casefold()) > 1 else c.casefold() for c in text)
    return folded.translate(_PLAIN)


def name_length(name: str) -> int:
    """Return the number of letters and digits of a name; a Chinese character counts as two."""
    return len(_LETTER.findall(name)) + len(_IS_CJK.findall(name))


def whole_words(text: str, start: int, stop: int) -> bool:
    """Say whether a piece of folded text neither begins nor ends inside a word; Chinese has no such boundaries.

    A hyphen or an apostrophe between letters does not end a word ("haven't", "spider-man"), but a genitive does.
    """
    return not (_glued(text, start) or (_glued(text, stop) and not _GENITIVE.match(text, stop)))


def _glued(text: str, at: int) -> bool:
    """Say whether a word goes on over the boundary before character ``at``."""
    behind = re.match(r"[-']?(.)", text[at : at + 2])
    before = re.search(r"(.)[-']?$", text[max(0, at - 2) : at])
    letters = [match.group(1) for match in (before, behind) if match]
    return len(letters) == 2 and all(_LETTER.match(c) and not _IS_CJK.match(c) for c in letters)


def names_of(label: str) -> list[str]:
    """Return a label, folded, and behind it the label without what is added in brackets; brackets alone are no name."""
    names = [fold(label).strip()]
    while (shorter := _QUALIFIER.sub("", names[-1]).strip()) != names[-1]:
        names.append(shorter)
    return names if names[-1] else []


def item_names(graph: ItemGraph, item: int) -> list[str]:
    """Return the names of an item, folded: its title, its entity's label and further titles; see names_of."""
    titles = (
        graph.item_titles[item],
        graph.entity_labels[graph.item_entities[item]],
        *(graph.item_aliases[item] if graph.item_aliases else ()),
    )
    return list(dict.fromkeys(name for title in titles for name in names_of(title)))


@dataclass
class _Named:
    """What shares a name: ``items``, ``entities``, theirs among them, and the ``others`` that stand for no item."""

    items: dict[int, None] = field(default_factory=dict)
    entities: dict[int, None] = field(default_factory=dict)
    others: dict[int, None] = field(default_factory=dict)


def _names(graph: ItemGraph, *, labels: bool) -> dict[str, _Named]:
    """Return folded name → what it names; ``labels``: names of all entities, not of items alone."""
    exact: defaultdict[str, _Named] = defaultdict(_Named)
    shortened: defaultdict[str, _Named] = defaultdict(_Named)
    for item, entity in enumerate(graph.item_entities.tolist()):
        for name in item_names(graph, item):
            exact[name].items[item] = None
            exact[name].entities[entity] = None
    stands_for = graph.item_of_entity.tolist()
    for entity, label in enumerate(graph.entity_labels if labels else ()):
        if stands_for[entity] < 0:
            for number, name in enumerate(names_of(label)):
                (shortened if number else exact)[name].others[entity] = None
    for name, named in shortened.items():
        if not exact[name].others:
            exact[name].others |= named.others
    for named in exact.values():
        named.entities |= named.others
    return exact


class NameTable:
    """The names that are linked, found by one automaton (Aho and Corasick 1975) whatever their number.

    A name as the catalogue or the graph writes it goes before the same name without brackets: ``Comedy`` is the entity
    of that label, not ``Comedy (album)``; a title without its year is as good as the title. A title of one word
    ("Time", "Home", "2012") names the item only where the text has a capital letter.

    Args:
        graph: whose names.
        settings: which names are linked; without ``link_text`` those of items alone.
    """

    def __init__(self, graph: ItemGraph, settings: GraphSettings) -> None:
        import ahocorasick_rs

        self._named = {
            name: named
            for name, named in _names(graph, labels=settings.link_text).items()
            if len(named.entities) <= settings.max_name_entities and is_telling(name, settings.min_name_chars)
        }
        self._names = tuple(self._named)
        self._find = ahocorasick_rs.AhoCorasick(self._names).find_matches_as_indexes

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._names)

    def find(self, text: str) -> list[Span]:
        """Return every whole-word occurrence of a name, overlapping ones included."""
        folded = fold(text)
        spans = (
            self._span(text, start, stop, self._names[index])
            for index, start, stop in self._find(folded, overlapping=True)
            if whole_words(folded, start, stop)
        )
        return [span for span in spans if span.entities]

    def _span(self, text: str, start: int, stop: int, name: str) -> Span:
        named = self._named[name]
        if named.items and _is_one_word(name) and not any(map(str.isupper, text[start:stop])):
            return Span(start, stop, (), tuple(named.others), name)
        return Span(start, stop, tuple(named.items), tuple(named.entities), name)


def _is_one_word(name: str) -> bool:
    """Say whether a name is a single word of a script that has words."""
    return len(_WORDS.findall(name)) == 1 and not _IS_CJK.search(name)


def is_telling(name: str, min_chars: int) -> bool:
    """Say whether a folded name tells something where it stands: long enough, not of stop words alone."""
    return name_length(name) >= min_chars and not set(_WORDS.findall(name)) <= _stop_words()


@lru_cache(maxsize=1)
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)
