"""Linking: marks, titles and names in text; mentions exactly as stated; nothing lost of what was said."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.corpora.base import Graph
from mmd.recommend.graph import ItemGraph, build_item_graph
from mmd.recommend.linking import Linker, link_dialogue, link_measured
from mmd.recommend.names import NameTable, fold, name_length, names_of, whole_words
from mmd.recommend.settings import GraphSettings
from mmd.recommend.types import LinkedTurn
from mmd.schema import Dialogue, Entity, Item, ItemLink, Turn

TITLES = {
    "11": "Toy Story (1995)",
    "12": "Toy Story 2 (1999)",
    "1": "It (2017)",
    "13": "Up",
    "14": "Time",
    "15": "Wonder Woman",
    "16": "",
    "17": "红色马克杯",
    "18": "Straße nach Rom",
    "110": "Ocean's Eleven",
    "19": "Romance (1999)",
}
LABELS = {
    "g1": "Comedy",
    "g2": "Comedy (album)",
    "p1": "Tom Hanks",
    "p2": "Anna Lee (actress)",
    "p3": "Anna Lee (singer)",
    "d1": "The Who",
    "c1": "陶瓷",
    "g3": "Romance",
    "m15": "Wonder Woman (film)",
}


@pytest.fixture(scope="module")
def graph() -> ItemGraph:
    entities = tuple(Entity(entity_id, label, "thing") for entity_id, label in LABELS.items())
    items = {item_id: Item(item_id, title) for item_id, title in TITLES.items()}
    return build_item_graph(Graph(entities, (), (ItemLink("15", "m15"),)), items, GraphSettings())


@pytest.fixture(scope="module")
def linker(graph: ItemGraph) -> Linker:
    return Linker(graph, GraphSettings())


@pytest.fixture(scope="module")
def by_title(graph: ItemGraph) -> Linker:
    return Linker(graph, GraphSettings(), titles=True)


def says(text: str, *item_ids: str) -> Turn:
    return Turn("agent", text, item_ids=item_ids)


def readable(graph: ItemGraph, turn: LinkedTurn) -> list[str]:
    """Parts with item ids in angle brackets."""
    return [part if isinstance(part, str) else f"<{graph.item_ids[part]}>" for part in turn.parts]


def labels(graph: ItemGraph, turn: LinkedTurn) -> list[str]:
    return [graph.entity_labels[entity] for entity in turn.entities]


# ---------------------------------------------------------------- marks


@pytest.mark.parametrize(
    ("text", "item_ids", "parts"),
    [
        ("Try @11, or @12!", ("11", "12"), ["Try ", "<11>", ", or ", "<12>", "!"]),
        ("@11", ("11",), ["<11>"]),
        ("see@11now", ("11",), ["see", "<11>", "now"]),  # glued to letters
        ("@11@12", ("11", "12"), ["<11>", "<12>"]),
        ("@110 not @11", ("110", "11"), ["<110>", " not ", "<11>"]),  # an id inside a longer one
        ("@1 and @11 and @110", ("1", "11", "110"), ["<1>", " and ", "<11>", " and ", "<110>"]),
        ("@11 and @11 again", ("11", "11"), ["<11>", " and ", "<11>", " again"]),  # twice in one turn
        ("mail me @11", (), ["mail me @11"]),  # not stated: words
        ("see @999", ("999",), ["see @999"]),  # stated, but not in the catalogue
    ],
)
def test_marks_of_stated_items_become_items_where_they_stand(
    graph: ItemGraph, linker: Linker, text: str, item_ids: tuple[str, ...], parts: list[str]
):
    assert readable(graph, linker.turn(says(text, *item_ids))) == parts


def test_a_title_beside_its_mark_is_no_second_mention(graph: ItemGraph, linker: Linker):
    turn = linker.turn(says("@15 is good, I love Wonder Woman", "15"))
    assert readable(graph, turn) == ["<15>", " is good, I love Wonder Woman"]
    assert labels(graph, turn) == ["Wonder Woman (film)"]


# ---------------------------------------------------------------- stated items without marks


@pytest.mark.parametrize(
    ("text", "item_ids", "parts"),
    [
        ("Take Toy Story 2 tonight", ("12",), ["Take ", "<12>", " tonight"]),
        ("take TOY STORY 2 (1999)", ("12",), ["take ", "<12>"]),
        ("Toy Story 2 after Toy Story", ("11", "12"), ["<12>", " after ", "<11>"]),  # a title inside a longer one
        ("Is it Up? Up!", ("13",), ["Is it ", "<13>", "? Up!"]),  # stated once, mentioned once
        ("Is it It?", ("1",), ["Is ", "<1>", " It?"]),  # a word like any other: the first stands for the item
        ("Enjoy.", ("13", "11"), ["Enjoy.", "<13>", "<11>"]),  # not shown by the words: they come last
        ("", ("13",), ["<13>"]),
        ("One more", ("16",), ["One more", "<16>"]),  # an item without a title
        ("这个红色马克杯很好", ("17",), ["这个", "<17>", "很好"]),  # no word boundaries
        ("Uptown", ("13",), ["Uptown", "<13>"]),  # inside a word
        ("See Ocean’s Eleven", ("110",), ["See ", "<110>"]),  # another apostrophe
        (
            "Auf der STRASSE NACH ROM",
            ("18",),
            ["Auf der STRASSE NACH ROM", "<18>"],
        ),  # ß has no capital of one character
        ("Die Straße nach Rom?", ("18",), ["Die ", "<18>", "?"]),
    ],
)
def test_stated_items_are_found_by_title_or_come_last(
    graph: ItemGraph, linker: Linker, text: str, item_ids: tuple[str, ...], parts: list[str]
):
    assert readable(graph, linker.turn(says(text, *item_ids))) == parts


def test_where_the_corpus_states_items_a_title_alone_lends_its_entity_only(graph: ItemGraph, linker: Linker):
    turn = linker.turn(says("I liked Toy Story 2"))
    assert turn.items == ()
    assert labels(graph, turn) == ["Toy Story 2 (1999)"]


def test_where_it_states_none_a_title_is_a_mention(graph: ItemGraph, by_title: Linker):
    turn = by_title.turn(says("I liked toy story 2 and Toy Story."))
    assert readable(graph, turn) == ["I liked ", "<12>", " and ", "<11>", "."]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a comedy with Tom Hanks", ["Comedy", "Tom Hanks"]),
        ("TOM HANKS' best, or Tom Hanks's", ["Tom Hanks"]),
        ("tom hanksy comedyish", []),
        ("a tom hanks-like tragi-comedy", []),
        ("Anna Lee", ["Anna Lee (actress)", "Anna Lee (singer)"]),  # entities that share a name
        ("the who", []),  # stop words alone
        ("it is up to you", []),
        ("what time is it?", []),  # a title of one word, in lower case
        ("I saw Time.", ["Time"]),
        ("a romance", ["Romance"]),  # the genre alone, not the film
        ("Romance", ["Romance (1999)", "Romance"]),
        ("wonder woman", ["Wonder Woman (film)"]),
        ("陶瓷杯", ["陶瓷"]),
        ("我要红色马克杯，陶瓷的", ["红色马克杯", "陶瓷"]),
        ("", []),
    ],
)
def test_names_are_found_as_whole_words(graph: ItemGraph, linker: Linker, text: str, found: list[str]):
    assert labels(graph, linker.turn(says(text))) == found


def test_a_written_out_name_goes_before_one_that_is_shortened(graph: ItemGraph):
    """``Comedy`` is the entity of that label, although ``Comedy (album)`` without brackets is called the same."""
    spans = NameTable(graph, GraphSettings()).find("comedy")
    assert [graph.entity_labels[entity] for span in spans for entity in span.entities] == ["Comedy"]


def test_a_name_that_too_many_entities_share_is_not_linked(graph: ItemGraph):
    assert NameTable(graph, GraphSettings(max_name_entities=1)).find("Anna Lee") == []


def test_short_names_are_not_linked_and_a_chinese_character_counts_twice(graph: ItemGraph):
    assert name_length("Up") == 2
    assert name_length("陶瓷") == 4
    assert NameTable(graph, GraphSettings(min_name_chars=5)).find("陶瓷") == []


def test_names_can_be_switched_off(graph: ItemGraph):
    turn = Linker(graph, GraphSettings(link_text=False)).turn(says("a comedy, @11", "11"))
    assert labels(graph, turn) == ["Toy Story (1995)"]


def test_entities_follow_the_text_without_repeats(graph: ItemGraph, linker: Linker):
    turn = linker.turn(says("Tom Hanks in @11, a comedy with tom hanks", "11", "13"))
    assert labels(graph, turn) == ["Tom Hanks", "Toy Story (1995)", "Comedy", "Up"]


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("Heat (1995)", ["heat (1995)", "heat"]),
        ("Vivien Leigh  1", ["vivien leigh  1", "vivien leigh"]),
        ("Rambo (2012 film)  2", ["rambo (2012 film)  2", "rambo (2012 film)", "rambo"]),
        ("Apollo 13", ["apollo 13"]),
        ("(2007)", []),
        ("  ", []),
    ],
)
def test_a_label_is_also_a_name_without_what_brackets_add(label: str, names: list[str]):
    assert names_of(label) == names


@pytest.mark.parametrize(
    ("text", "word", "whole"),
    [
        ("haven't", "haven", False),
        ("tom's", "tom", True),
        ("spider-man", "man", False),
        ("'heat'", "heat", True),
        ("heat2", "heat", False),
        ("看heat吧", "heat", True),
    ],
)
def test_a_word_ends_where_a_reader_says_it_does(text: str, word: str, whole: bool):  # noqa: FBT001 (a table's column)
    start = text.index(word)
    assert whole_words(text, start, start + len(word)) is whole


# ---------------------------------------------------------------- dialogues and coverage


def test_a_dialogue_keeps_its_turns_and_says_what_was_found(graph: ItemGraph, linker: Linker):
    turns = (Turn("user", "a comedy?"), says("@11, @999, and one more", "11", "999", "13"), Turn("user", "no idea"))
    linked, coverage = link_measured(Dialogue("d", "test", "train", turns), linker)
    assert [turn.speaker for turn in linked.turns] == ["user", "agent", "user"]
    assert coverage.counts == Counter(
        turns=3, turns_with_entities=2, items_stated=3, items_unknown=1, items_behind_text=1, items_by_title=0, names=1
    )
    assert coverage.names == Counter({"comedy": 1})
    assert coverage.unknown == Counter({"999": 1})


def test_a_dialogue_without_entities_is_linked_to_nothing(linker: Linker):
    linked = link_dialogue(Dialogue("d", "test", "train", (Turn("user", "hello there"),)), linker)
    assert linked.turns == (LinkedTurn("user", ("hello there",), ()),)


WORDS = st.sampled_from(
    [
        *TITLES.values(),
        *LABELS.values(),
        *(f"@{i}" for i in TITLES),
        " ",
        "\n",
        "'s",
        "-",
        "ß",
        "İ",
        "a",
        "看",
        "@",
        "(",
        ")",
    ]
)
TEXTS = st.one_of(st.lists(WORDS, max_size=12).map("".join), st.lists(WORDS, max_size=8).map(" ".join), st.text())
MODES = st.sampled_from(["stated", "titles"])
STATED = st.lists(st.sampled_from([*TITLES, "999"]), max_size=4)


@given(TEXTS, STATED, MODES)
def test_parts_join_back_to_the_text_and_spans_do_not_overlap(
    graph: ItemGraph, linker: Linker, by_title: Linker, text: str, stated: Sequence[str], mode: str
):
    link = by_title if mode == "titles" else linker
    known = [graph.item_at[item_id] for item_id in stated if item_id in graph.item_at]
    spans = link.spans(text, known)
    assert all(before.stop <= after.start for before, after in itertools.pairwise(spans))
    turn = link.turn(says(text, *stated))
    shown = iter(span for span in spans if span.item is not None)
    said = [part if isinstance(part, str) else _said(text, next(shown, None)) for part in turn.parts]
    assert "".join(said) == text
    if mode == "stated" and "@" not in text:
        assert Counter(turn.items) == Counter(known)
    assert not Counter(known) - Counter(turn.items)
    assert {int(graph.item_entities[item]) for item in turn.items} <= set(turn.entities)


def _said(text: str, span: object) -> str:
    """Return the piece of text that a part stands for; items behind the text stand for none."""
    return "" if span is None else text[span.start : span.stop]  # type: ignore[attr-defined]


@given(st.text())
def test_folding_keeps_every_character_in_its_place(text: str):
    assert len(fold(text)) == len(text)
    assert fold(fold(text)) == fold(text)
