"""From dialogues to examples: texts, vectors and pictures find their place; labels online stay unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmd import schema
from mmd.artifacts import ArtifactStore
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError
from mmd.intent.examples import load_examples, make_example, vector_texts, wanted_texts
from mmd.intent.types import ImageFacts
from mmd.schema import Dialogue, Image, Item, OcrLine, Turn, dialogue_to_row, image_to_row, text_id

TURNS = (
    Turn("user", "hello", ("p",)),
    Turn("agent", "hi"),
    Turn("user", "does it rust?", (), ("i1", "gone")),
    Turn("user", "<http>"),
    Turn("agent", "no"),
)
PICTURE = ImageFacts("p", 10, 20)


def dialogue(name: str = "d", split: schema.Split = "train", **labels: str) -> Dialogue:
    return Dialogue(name, "made-up", split, TURNS, labels)


def test_the_last_user_turn_is_the_last_that_says_something():
    assert vector_texts(dialogue()) == ["does it rust?", "no"]


def test_printed_text_is_read_as_a_message_where_the_user_says_nothing():
    page = ImageFacts("p", 10, 20, (OcrLine("Refund", 1.0, (0, 0, 5, 5)), OcrLine("$5", 1.0, (0, 5, 5, 9))))
    silent = Dialogue("s", "made-up", "train", (Turn("user", "<http>", ("p",)),), {})
    assert vector_texts(silent, {"p": page}) == ["Refund $5"]
    assert vector_texts(dialogue(), {"p": page}) == ["does it rust?", "no"]
    vector = np.ones(2, np.float32)
    example = make_example(silent, "scene", images={"p": page}, text_vectors={text_id("Refund $5"): vector})
    assert example.shown_vector is vector


def test_vectors_pictures_and_items_find_their_place():
    said, answered = np.ones(2, np.float32), np.zeros(2, np.float32)
    example = make_example(
        dialogue(intent="rust"),
        "intent",
        images={"p": PICTURE},
        items={"i1": Item("i1", "kettle")},
        text_vectors={text_id("does it rust?"): said, text_id("no"): answered},
    )
    assert example.label == "rust"
    assert example.images == (PICTURE,)
    assert [item.id for item in example.items] == ["i1"]
    assert example.last_user_vector is said
    assert example.reply_vector is answered


def test_without_vectors_or_label_an_example_is_still_made():
    example = make_example(dialogue(), "intent", images={"p": PICTURE})
    assert (example.label, example.last_user_vector, example.reply_vector) == (None, None, None)


def test_a_picture_that_is_nowhere_is_an_error_with_the_way_out():
    with pytest.raises(CorpusError, match=r"picture p .* run ingest again"):
        make_example(dialogue(), "intent", images={})


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    store = ArtifactStore(str(tmp_path))
    rows = [dialogue("a", intent="rust"), dialogue("b"), dialogue("c", "test", intent="colour")]
    picture = Image("p", "PNG", 10, 20, b"", (OcrLine("SALE", 1.0, (0, 0, 5, 5)),))
    with store.write("corpus", "tiny", settings={}) as writer:
        writer.write_table("dialogues", pa.Table.from_pylist([dialogue_to_row(d) for d in rows], schema.DIALOGUES))
        writer.write_table("images", pa.Table.from_pylist([image_to_row(picture)], schema.IMAGES))
        writer.write_json("tasks.json", {"intent": ["rust", "colour"]})
    return Corpus(store.open("corpus/tiny"))


def test_splits_stay_apart_and_unlabelled_dialogues_out(corpus: Corpus):
    assert [e.dialogue_id for e in load_examples(corpus, None, "intent", "train")] == ["a"]
    assert [e.dialogue_id for e in load_examples(corpus, None, "intent", "test")] == ["c"]


def test_text_given_with_a_picture_is_used(corpus: Corpus):
    [example] = load_examples(corpus, None, "intent", "train")
    assert example.ocr_text() == "SALE"


def test_an_unknown_task_is_refused_with_those_that_there_are(corpus: Corpus):
    with pytest.raises(CorpusError, match="it has intent"):
        load_examples(corpus, None, "scene", "train")


def test_vectors_are_wanted_of_texts_and_of_labels_names(corpus: Corpus):
    assert set(wanted_texts(corpus).values()) == {"does it rust?", "no", "rust", "colour"}
