"""Samples: which turns are responses, of which modality, and what is known before them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmd.artifacts import ArtifactStore
from mmd.corpora.redial import RedialReader
from mmd.corpora.store import Corpus
from mmd.errors import ConfigError
from mmd.features.base import OCR_TABLE
from mmd.features.store import Features
from mmd.retrieval.facts import Facts, with_titles
from mmd.retrieval.rows import row_of, sample_of
from mmd.retrieval.samples import (
    context_text,
    find_samples,
    has_samples,
    load_samples,
    part_of,
    response_id,
    turn_words,
)
from mmd.retrieval.settings import SampleSettings
from mmd.retrieval.types import Query, SampleSet
from mmd.schema import Dialogue, Item, OcrLine, Split, Turn, ocr_to_row, text_id

ITEMS = {
    "1": Item("1", "Red mug", {"colour": "red", "empty": ""}, ("a" * 64, "b" * 64)),
    "2": Item("2", "Blue bowl"),
    "3": Item("3", ""),  # nothing is known of it
    "4": Item("4", "", {}, ("c" * 64,)),
}


def facts_of(*, stated: bool = False, **settings: Any) -> Facts:
    return Facts(SampleSettings(**settings), ITEMS, {"p1": "a red mug"}, {"p1": "350 ml", "p2": "SALE"}, stated)


def found(*turns: Turn, meta: dict[str, str] | None = None, stated: bool = False, **settings: Any) -> SampleSet:
    facts = facts_of(stated=stated, **settings)
    return find_samples([Dialogue("d", "test", "train", turns, meta=meta or {})], facts, facts.settings)


def user(text: str = "", images: tuple[str, ...] = (), items: tuple[str, ...] = ()) -> Turn:
    return Turn("user", text, images, items)


def agent(text: str = "", images: tuple[str, ...] = (), items: tuple[str, ...] = ()) -> Turn:
    return Turn("agent", text, images, items)


# ---------------------------------------------------------------- which turns


def test_every_answer_of_the_agent_is_found_from_the_turns_before_it():
    given = found(user("hi"), agent("hello"), user("a mug?"), agent("this one"))
    assert [(s.id, s.response_id) for s in given.samples] == [
        ("d#1", response_id("text", "hello")),
        ("d#3", response_id("text", "this one")),
    ]
    assert given.samples[1].query.turns == (user("hi"), agent("hello"), user("a mug?"))
    assert given.modalities == ("text",)
    assert given.responses[response_id("text", "hello")].text == "hello"


@pytest.mark.parametrize("opening", [user(), user("<http>"), user("…")])
def test_a_context_that_says_nothing_gives_no_sample(opening: Turn):
    assert found(opening, agent("hello")).samples == ()


def test_a_context_of_one_picture_is_enough():
    assert len(found(user(images=("p1",)), agent("hello")).samples) == 1


def test_the_first_turn_is_never_a_response():
    assert found(agent("welcome")).samples == ()


def test_an_answer_of_a_link_alone_is_none():
    assert found(user("hi"), agent("<http>")).samples == ()


@pytest.mark.parametrize(
    ("turn", "modality"),
    [
        (agent("look", ("p1",), ("1",)), "product"),
        (agent("look", ("p1",)), "image"),
        (agent("look", (), ("unknown",)), "text"),
        (agent("look", (), ("3",)), "text"),  # an item that nothing tells from others cannot be found
    ],
)
def test_product_goes_before_image_before_text(turn: Turn, modality: str):
    (sample,) = found(user("hi"), turn).samples
    assert sample.modality == modality


def test_what_the_corpus_states_goes_first():
    turn = agent("look", ("p1",), ("1",))
    (sample,) = found(user("hi"), turn, meta={"response_modality.1": "image"}).samples
    assert (sample.modality, sample.response_id) == ("image", "image:p1")


def test_a_stated_modality_that_is_not_asked_for_gives_way_to_the_words():
    turns, meta = (user("hi"), agent("look", ("p1",))), {"response_modality.1": "image"}
    (sample,) = found(*turns, meta=meta, modalities=("text",)).samples
    assert sample.response_id == response_id("text", "look")


def test_where_answers_are_stated_other_turns_are_none_unless_asked_for():
    turns, meta = (user("hi"), agent("one moment"), agent("red")), {"response_modality.2": "text"}
    assert [s.id for s in found(*turns, meta=meta, stated=True).samples] == ["d#2"]
    assert [s.id for s in found(*turns, meta=meta, stated=True, unstated=True).samples] == ["d#1", "d#2"]


def test_pictures_of_users_are_responses_where_the_settings_say_so():
    turns = (user("hi"), agent("show me"), user("here", ("p1", "p2", "p1")))
    assert [s.modality for s in found(*turns).samples] == ["text"]
    samples = found(*turns, image_from=("user",)).samples
    assert [(s.id, s.response_id, s.also) for s in samples[1:]] == [
        ("d#2", "image:p1", ("image:p2",)),
        ("d#2.2", "image:p2", ("image:p1",)),
    ]


def test_several_right_products_are_a_sample_each_that_names_the_others():
    samples = found(user("hi"), agent("these", items=("2", "1", "2", "9"))).samples
    assert [(s.id, s.response_id, s.also) for s in samples] == [
        ("d#1", "product:2", ("product:1",)),
        ("d#1.2", "product:1", ("product:2",)),
    ]


def test_a_query_keeps_the_last_turns():
    given = found(*(user(str(i)) for i in range(5)), agent("ok"), context_turns=2)
    assert [turn.text for turn in given.samples[0].query.turns] == ["3", "4"]


def test_the_catalogue_is_offered_where_products_occur():
    assert {r for r in found(user("hi"), agent("ok")).responses if r.startswith("product")} == set()
    given = found(user("hi"), agent("this", items=("2",)))
    assert set(given.responses) == {"product:1", "product:2", "product:4"}


def test_modalities_are_in_the_order_of_the_settings():
    turns = (user("hi"), agent("ok"), agent("look", ("p1",)))
    assert found(*turns, modalities=("image", "product", "text")).modalities == ("image", "text")


def test_an_unknown_modality_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'smell'.*text, image, product"):
        found(user("hi"), agent("ok"), modalities=("text", "smell"))


def test_equal_dialogues_in_parts_give_what_the_whole_gives(tiny_store: Path):
    corpus, settings = Corpus(ArtifactStore(str(tiny_store)).open("corpus/tiny")), SampleSettings()
    whole, facts = load_samples(corpus, None, settings), Facts.load(corpus, None, settings)
    parts = [find_samples([dialogue], facts, settings) for dialogue in corpus.dialogues()]
    assert whole.samples == tuple(sample for part in parts for sample in part.samples)
    assert set(whole.modalities) == {"text", "image", "product"}
    assert all(response == whole.responses[r] for part in parts for r, response in part.responses.items())
    assert has_samples(corpus, settings)


def test_every_stated_answer_of_the_shop_is_a_sample_of_its_modality(tiny_store: Path):
    corpus = Corpus(ArtifactStore(str(tiny_store)).open("corpus/tiny"))
    stated = {
        (f"{dialogue.id}#{key.rpartition('.')[2]}", modality)
        for dialogue in corpus.dialogues()
        for key, modality in dialogue.meta.items()
        if key.startswith("response_modality.") and not key.endswith(".0")
    }
    samples = load_samples(corpus, None, SampleSettings()).samples
    assert {(sample.id, sample.modality) for sample in samples if "." not in sample.id.rpartition("#")[2]} == stated


# ---------------------------------------------------------------- parts


def split_sample(dialogue: str, split: Split) -> Any:
    facts = facts_of()
    (sample,) = find_samples(
        [Dialogue(dialogue, "test", split, (user("hi"), agent("ok")))], facts, facts.settings
    ).samples
    return sample


def test_a_share_of_training_dialogues_is_held_out_and_test_dialogues_are_test():
    samples = [split_sample(f"d{i}", "train") for i in range(2000)]
    parts = [part_of(sample, 0.1, seed=1) for sample in samples]
    assert 150 < parts.count("validation") < 250  # 200 expected, standard deviation 13
    assert parts.count("test") == 0
    assert parts != [part_of(sample, 0.1, seed=2) for sample in samples]
    assert part_of(split_sample("d", "test"), 0.1, seed=1) == "test"


def test_dialogues_that_share_a_chat_are_held_out_together():
    """mmdial has chats several times, each time with a picture in another place; the other turns are the same."""
    facts = facts_of()
    turns = (user("hi"), agent("ok"))
    records = [
        Dialogue(f"c{i}#{turn}", "mmdial", "train", turns, meta={"dialog_dataset": "dd", "dialog_file": f"c{i}"})
        for i in range(100)
        for turn in (2, 4)
    ]
    given = find_samples(records, facts, facts.settings)
    samples = given.samples
    assert len({sample.id for sample in samples}) == 200
    parts = [part_of(sample, 0.5, seed=1) for sample in samples]
    assert set(parts) == {"train", "validation"}
    assert parts[::2] == parts[1::2]
    row = row_of(samples[0], given.responses[samples[0].response_id])
    assert sample_of(row) == samples[0]  # the row is what training's workers get


def test_a_larger_share_holds_out_the_smaller_ones_dialogues_too():
    samples = [split_sample(f"d{i}", "train") for i in range(300)]
    held = {f: {s.id for s in samples if part_of(s, f, seed=0) == "validation"} for f in (0.0, 0.1, 0.3)}
    assert held[0.0] == set()
    assert held[0.1] < held[0.3]


# ---------------------------------------------------------------- words


def test_mentions_become_titles_in_contexts_and_responses():
    assert with_titles("@1 or @12? not @3, me@x", {"1": "Alien", "3": ""}) == "Alien or @12? not a movie, me@x"
    given = found(user("like @2?"), agent("yes, @1", items=()), modalities=("text",))
    assert given.responses[given.samples[0].response_id].text == "yes, Red mug"
    assert context_text(given.samples[0].query, facts_of().titles) == ["user: like Blue bowl?"]


def test_texts_that_differ_in_mentions_of_untitled_items_are_one_response():
    given = found(user("hi"), agent("see @3"), agent("see @4"), modalities=("text",))
    assert list(given.responses) == [response_id("text", "see a movie")] == [f"text:{text_id('see a movie')}"]


def test_items_and_pictures_of_a_turn_are_put_into_words():
    facts = facts_of()
    turn = agent("These:", ("p1", "p9"), ("1", "2", "3", "1"))
    words = turn_words(turn, facts.titles, facts.pictures)
    assert words == "These: Red mug; Blue bowl [picture: a red mug 350 ml] [picture]"


def test_a_title_that_the_text_names_is_not_said_twice():
    assert turn_words(user("the red mug?", items=("1",)), facts_of().titles) == "the red mug?"


def test_a_silent_turn_is_left_out_of_the_context():
    assert context_text(Query((user("hi"), agent(), user(images=("x",))))) == ["user: hi", "user: [picture]"]


@pytest.mark.parametrize(
    ("picture_text", "words"),
    [("description", "a red mug"), ("ocr", "350 ml"), ("both", "a red mug 350 ml"), ("none", "")],
)
def test_encoders_read_of_pictures_what_the_settings_allow_and_people_all(picture_text: str, words: str):
    given = found(user("hi"), agent(images=("p1",)), picture_text=picture_text)
    response = given.responses["image:p1"]
    assert (response.text, response.title, response.image_id) == (words, "a red mug", "p1")
    assert facts_of(picture_text=picture_text).pictures.get("p1", "") == words


def test_recognised_text_goes_before_the_corpuss_and_is_one_line_of_256_characters(tiny_store: Path, tmp_path: Path):
    corpus = Corpus(ArtifactStore(str(tiny_store)).open("corpus/tiny"))
    first, second = corpus.image_table(["id"])["id"].to_pylist()[:2]
    rows = [
        {"image_id": first, "lines": ocr_to_row((line("50 % \n off"), line("today"))), "error": ""},
        {"image_id": second, "lines": ocr_to_row((line("x" * 300),)), "error": ""},
    ]
    store = ArtifactStore(str(tmp_path))
    with store.write("features", "f", settings={}) as writer:
        writer.write_table("ocr", pa.Table.from_pylist(rows, schema=OCR_TABLE))
    facts = Facts.load(corpus, Features(store.open("features/f")), SampleSettings())
    assert facts.ocr == {first: "50 % off today", second: "x" * 256}
    assert facts.answers_stated


def line(text: str) -> OcrLine:
    return OcrLine(text, 0.9, (0.0, 0.0, 1.0, 1.0))


@pytest.mark.real_data
def test_redial_gives_a_sample_for_every_film_that_the_recommender_names(real_data: Path, tmp_path: Path):
    for name in ("train.jsonl", "movies.tsv"):
        (tmp_path / name).symlink_to(real_data / "redial" / name)
    reader = RedialReader(str(tmp_path))
    dialogues = [reader.parse(record).dialogue for part in reader.plan() for record in reader.read(part)]
    settings = SampleSettings()
    facts = Facts(settings, {entry.item.id: entry.item for entry in reader.items()}, {}, {})
    given = find_samples(dialogues, facts, settings)
    named = sum(
        len({i for i in turn.item_ids if facts.titles[i]})
        for dialogue in dialogues
        for turn in dialogue.turns[1:]
        if turn.speaker == "agent"
    )
    assert len([s for s in given.samples if s.modality == "product"]) == pytest.approx(named, rel=0.01)
    assert len({s.id for s in given.samples}) == len(given.samples)
    known = {f"@{item}" for item in facts.items}
    words = [line for s in given.samples for line in context_text(s.query, facts.titles)]
    words += [response.text for response in given.responses.values()]
    assert not known & {mention for line in words for mention in re.findall(r"@\d+", line)}
