"""MMDial: chats in which one utterance stands for a picture."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.corpora.base import ImageSource, ParsedRecord, RawRecord
from mmd.corpora.mmdial import MmdialReader
from mmd.errors import BadRecordError
from mmd.schema import Turn


def chat(**over: Any) -> dict[str, Any]:
    return {
        "dialog": ["hello .", "a dog runs .", "nice !"],
        "replaced_idx": 1,
        "img_idx": 9,
        "score": 0.5,
        "dialog_dataset": "persona",
        "dialog_file": "c1.txt",
        "img_dataset": "coco",
        "img_file": "dog.jpg",
    } | over


def parse(root: Path, record: dict[str, Any]) -> ParsedRecord:
    return MmdialReader(root).parse(RawRecord("dev.json", 0, "test", json.dumps(record).encode()))


def test_without_pictures_the_text_is_whole_and_the_meta_tells_turn_and_picture(tmp_path: Path) -> None:
    parsed = parse(tmp_path, chat())
    assert parsed.dialogue.turns == (Turn("user", "hello ."), Turn("agent", "a dog runs ."), Turn("user", "nice !"))
    assert parsed.images == {}
    assert parsed.dialogue.meta == {
        "section": "dev",
        "image_turn": "1",
        "dialog_dataset": "persona",
        "dialog_file": "c1.txt",
        "img_dataset": "coco",
        "img_file": "dog.jpg",
        "score": "0.5",
    }


def test_with_pictures_the_picture_takes_the_place_of_its_utterance(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    parsed = parse(tmp_path, chat())
    assert parsed.dialogue.turns[1] == Turn("agent", "", ("dog.jpg",))
    assert parsed.dialogue.meta["replaced_text"] == "a dog runs ."
    assert parsed.images == {"dog.jpg": ImageSource(path="images/dog.jpg")}


def test_an_id_names_chat_turn_and_picture(tmp_path: Path) -> None:
    assert parse(tmp_path, chat()).dialogue.id == "dev-persona/c1.txt#1=dog.jpg"
    others = [chat(replaced_idx=0), chat(img_file="cat.jpg"), chat(dialog_dataset=None), chat(dialog_file=None)]
    assert len({parse(tmp_path, other).dialogue.id for other in [chat(), *others]}) == 5


def test_a_list_and_one_record_a_line_read_the_same(tmp_path: Path) -> None:
    records = [chat(img_file=f"{i}.jpg") for i in range(3)]
    (tmp_path / "train.json").write_text(json.dumps(records))
    (tmp_path / "test.json").write_text("\n".join(map(json.dumps, records)))
    reader = MmdialReader(tmp_path)
    train, test = ([reader.parse(record).dialogue for record in reader.read(part)] for part in reader.plan())
    assert [d.turns for d in train] == [d.turns for d in test]
    assert ({d.split for d in train}, {d.split for d in test}) == ({"train"}, {"test"})


@pytest.mark.parametrize(
    ("record", "expected", "where"),
    [
        (chat(replaced_idx=3), "wrong_type", "replaced_idx"),
        (chat(replaced_idx=-1), "wrong_type", "replaced_idx"),
        (chat(replaced_idx=True), "wrong_type", "replaced_idx"),
        (chat(replaced_idx="1"), "wrong_type", "replaced_idx"),
        (chat(dialog=[]), "empty_dialogue", "dialog"),
        (chat(dialog=["a", 1]), "wrong_type", "dialog[1]"),
        (chat(img_file=None), "missing_field", "img_file"),
        (chat(img_file=""), "missing_field", "img_file"),
        (chat(score=[]), "wrong_type", "score"),
    ],
)
def test_each_fault_names_reason_and_place(tmp_path: Path, record: dict[str, Any], expected: str, where: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        parse(tmp_path, record)
    assert (caught.value.reason, where in caught.value.detail) == (expected, True)


@given(
    over=st.dictionaries(
        st.sampled_from(list(chat())),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.integers()),
    )
)
def test_any_record_is_parsed_or_a_bad_record(tmp_path_factory: pytest.TempPathFactory, over: dict[str, Any]) -> None:
    with suppress(BadRecordError):
        parse(tmp_path_factory.getbasetemp(), chat() | over)


@pytest.mark.real_data
def test_the_released_part_is_read_whole(real_data: Path) -> None:
    reader = MmdialReader(real_data / "mmdial")
    dialogues = [reader.parse(record).dialogue for part in reader.plan() for record in reader.read(part)]
    assert len(dialogues) == len({dialogue.id for dialogue in dialogues}) == 2_401
    assert all(0 <= int(d.meta["image_turn"]) < len(d.turns) and d.split == "test" for d in dialogues)
