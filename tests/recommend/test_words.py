"""The word tokenizer: what is a word, how words are joined again, ids, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.artifacts import ArtifactStore
from mmd.errors import ArtifactError, CorpusError
from mmd.recommend.settings import ConversationSettings
from mmd.recommend.types import Context, LinkedTurn, ResponseSample
from mmd.recommend.vocabulary import TOKENIZER_FILE, UNKNOWN_TEXT, TokenSpace, load_tokenizer, require_same_space
from mmd.recommend.words import WordTokenizer, join_words, split_words

WORDS = (
    "i",
    "like",
    "it",
    "you",
    "don't",
    "sci-fi",
    ".",
    ",",
    "!",
    "?",
    '"',
    "'",
    "(",
    ")",
    "$",
    "3.5",
    "片",
    "子",
    "-",
)
ITEMS = ("a", "b", "c")


def tokenizer() -> WordTokenizer:
    return WordTokenizer(WORDS, ITEMS)


def sample(dialogue: str, *turns: LinkedTurn, split: str = "train") -> ResponseSample:
    return ResponseSample(f"{dialogue}#1", dialogue, split, Context(turns[:-1], (), ()), turns[-1])  # type: ignore[arg-type]


def says(speaker: str, *parts: str | int) -> LinkedTurn:
    return LinkedTurn(speaker, parts, ())  # type: ignore[arg-type]


def test_a_word_keeps_its_apostrophes_hyphens_and_decimal_points():
    assert split_words("I don’t LIKE Sci-Fi, 3.5 of 10.") == [
        "i",
        "don't",
        "like",
        "sci-fi",
        ",",
        "3.5",
        "of",
        "10",
        ".",
    ]


def test_chinese_characters_are_words_and_korean_words_are_whole():
    assert split_words("看片子,영화 ok") == ["看", "片", "子", ",", "영화", "ok"]


def test_spaces_and_capitals_are_those_of_a_person():
    tokens = ["i", "like", "it", ".", "you", "don't", "(", "$", "3.5", ")", "?", '"', "it", '"', "!"]
    assert join_words(tokens) == ['I like it. You don\'t ($3.5)? "It"!']


def test_no_space_stands_between_chinese_characters():
    assert join_words(["片", "子", ",", "片", "like", "子"]) == ["片子,片 like 子"]


def test_titles_put_in_place_of_items_give_a_text_with_its_spaces():
    found = join_words(["you", "like", 2, ",", 0, "?", 1, "it"])
    assert "".join(part if isinstance(part, str) else "Up" for part in found) == "You like Up, Up? Up it"


def test_items_alone_are_joined_by_a_space():
    assert join_words([0, 1]) == [0, " ", 1]


@given(st.lists(st.sampled_from(range(8, 8 + len(WORDS))), max_size=30))
def test_words_survive_decoding_and_encoding(tokens: list[int]):
    known = tokenizer()
    assert known.encode_text(known.decode_text(tokens)) == tokens


@given(st.text(max_size=60))
def test_any_text_is_split_the_same_way_twice(text: str):
    words = split_words(text)
    known = WordTokenizer(sorted(set(words)), ITEMS)
    again = known.decode_text(known.encode_text(text))
    assert split_words(again) == words


@given(st.lists(st.one_of(st.sampled_from(WORDS), st.integers(0, 2)), max_size=20))
def test_items_keep_their_places_among_the_words(parts: list[str | int]):
    known = tokenizer()
    tokens = known.encode_parts(parts)
    assert known.encode_parts(known.decode(tokens)) == tokens
    assert [p for p in known.decode(tokens) if isinstance(p, int)] == [p for p in parts if isinstance(p, int)]


def test_items_and_their_tokens_are_a_bijection_behind_the_words():
    space = tokenizer().space
    assert [space.token_of(item) for item in range(3)] == list(range(space.n_words, space.size))
    assert [space.item_at(space.token_of(item)) for item in range(3)] == [0, 1, 2]
    assert list(range(space.size))[space.items] == [space.token_of(item) for item in range(3)]
    with pytest.raises(ValueError, match="items 0 to 2"):
        space.token_of(3)
    with pytest.raises(ValueError, match="token 4"):
        space.item_at(4)


def test_control_tokens_say_nothing_and_text_cannot_spell_them():
    known = tokenizer()
    space = known.space
    assert known.decode([space.rec, *known.encode_text("i like it"), space.eos, space.pad]) == ["I like it"]
    assert not set(known.encode_text("pad bos [REC] <eos> unk user agent")) & known.control


def test_an_unknown_word_is_one_token_and_is_shown_as_such():
    known = tokenizer()
    assert known.encode_text("i like zorbing") == [8, 9, known.space.unk]
    assert UNKNOWN_TEXT in known.decode_text(known.encode_text("i like zorbing"))


def test_the_vocabulary_is_counted_on_training_turns_each_once():
    """'it' occurs three times in train: twice in turns seen by two samples each, once in another dialogue."""
    first, second = says("user", "it is"), says("agent", "it was")
    samples = [
        sample("a", first, second),
        sample("a", first, second, says("user", "is"), says("agent", 1)),
        sample("b", says("user", "it"), says("agent", "was", 2)),
        sample("c", says("user", "test test test"), says("agent", "test"), split="test"),
    ]
    built = WordTokenizer.build(samples, ITEMS, ConversationSettings(min_word_count=2))
    assert built.words == ("it", "is", "was")
    most = ConversationSettings(min_word_count=1, max_words=100)
    assert "test" not in WordTokenizer.build(samples, ITEMS, most).words


def test_a_tokenizer_comes_back_from_its_artefact(tmp_path: Path):
    store, known = ArtifactStore(str(tmp_path)), tokenizer()
    with store.write("student", "x", settings={}) as writer:
        known.save(writer, "tokenizer")
    back = load_tokenizer(store.open("student/x"), "tokenizer")
    assert back.space == known.space
    assert back.encode_parts(["I like", 2]) == known.encode_parts(["I like", 2])


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ({"kind": "words", "item_ids": []}, "has no list 'words'"),
        ({"kind": "words", "words": []}, "has no list 'item_ids'"),
        ({"kind": "lm"}, "has no list 'item_ids'"),
        ({"words": [], "item_ids": []}, "of unknown kind None"),
    ],
)
def test_a_tokenizer_that_lacks_something_is_named(tmp_path: Path, content: dict[str, Any], missing: str):
    store = ArtifactStore(str(tmp_path))
    with store.write("student", "x", settings={}) as writer:
        writer.write_json(f"tokenizer/{TOKENIZER_FILE}", content)
    with pytest.raises(ArtifactError, match=rf"student/x@\w+: tokenizer/tokenizer\.json (is )?{missing}"):
        load_tokenizer(store.open("student/x"), "tokenizer")


def test_models_of_other_words_or_items_cannot_teach_each_other():
    one, other = tokenizer().space, WordTokenizer(WORDS[::-1], ITEMS).space
    require_same_space(one, tokenizer().space, "teacher/x", "student")
    with pytest.raises(ArtifactError, match=r"teacher/x has 27 words and 3 items, with other words"):
        require_same_space(one, other, "teacher/x", "student")
    with pytest.raises(ArtifactError, match=r"teacher/x has 27 .* student has 27 words and 2 items"):
        require_same_space(one, dataclasses.replace(one, n_items=2), "teacher/x", "student")


def test_a_vocabulary_without_items_is_refused():
    with pytest.raises(CorpusError, match="no item to recommend"):
        TokenSpace(n_words=8, n_items=0, pad=0, bos=1, eos=2, rec=3, gen=4)
