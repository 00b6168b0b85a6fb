"""PhotoChat: two peers, one shared photo, which may or may not be on disk."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.corpora.base import ImageSource, ParsedRecord, RawRecord
from mmd.corpora.photochat import PhotochatReader
from mmd.errors import BadRecordError, CorpusError
from mmd.schema import Turn


def message(user: object, text: str = "", *, photo: object = False) -> dict[str, Any]:
    return {"user_id": user, "message": text, "share_photo": photo}


def chat(*messages: object, **over: Any) -> dict[str, Any]:
    said = messages or (message(1, "Hi"), message(0, "Look"), message(0, photo=True), message(1, "Nice"))
    return {
        "dialogue": list(said),
        "dialogue_id": 5,
        "photo_description": "Objects in the photo: Cake",
        "photo_url": "https://example.org/cake.jpg",
        "photo_id": "train/abc",
    } | over


def parse(root: Path, record: dict[str, Any], source: str = "train/train_0.json") -> ParsedRecord:
    return PhotochatReader(root).parse(RawRecord(source, 0, "train", json.dumps(record).encode()))


def test_whoever_speaks_first_is_the_user(tmp_path: Path) -> None:
    turns = parse(tmp_path, chat()).dialogue.turns
    assert [turn.speaker for turn in turns] == ["user", "agent", "agent", "user"]


def test_with_an_image_folder_the_photo_turn_carries_the_photo_and_its_description(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    parsed = parse(tmp_path, chat())
    assert parsed.dialogue.turns[2] == Turn("agent", "", ("train/abc",))
    assert parsed.images == {
        "train/abc": ImageSource(path="images/train/abc.jpg", description="Objects in the photo: Cake")
    }


def test_photos_may_lie_beside_their_section(tmp_path: Path) -> None:
    (tmp_path / "train" / "images").mkdir(parents=True)
    parsed = parse(tmp_path, chat(photo_id="a.png"))
    assert parsed.images["a.png"].path == "train/images/a.png"


def test_without_an_image_folder_no_turn_carries_a_picture_and_the_meta_tells_which(tmp_path: Path) -> None:
    parsed = parse(tmp_path, chat())
    assert parsed.dialogue.turns[2] == Turn("agent", "")
    assert parsed.images == {}
    assert parsed.dialogue.meta == {
        "section": "train",
        "photo_turn": "2",
        "photo_id": "train/abc",
        "photo_url": "https://example.org/cake.jpg",
        "photo_description": "Objects in the photo: Cake",
    }


def test_ids_of_two_sections_do_not_collide(tmp_path: Path) -> None:
    ids = {parse(tmp_path, chat(), source).dialogue.id for source in ("train/train_0.json", "test/test_0.json")}
    assert ids == {"train-5", "test-5"}


def test_a_chat_in_which_no_photo_is_shared_has_none(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    parsed = parse(tmp_path, {"dialogue": [message(0, "Hi")], "dialogue_id": 1})
    assert parsed.dialogue.turns == (Turn("user", "Hi"),)
    assert parsed.images == {}


@pytest.mark.parametrize(
    ("record", "expected", "where"),
    [
        (chat(message(0), message(1), message(2)), "unknown_speaker", "dialogue[2].user_id"),
        (chat(message(None)), "missing_field", "dialogue[0].user_id"),
        (chat(message(0, photo="yes")), "wrong_type", "dialogue[0].share_photo"),
        (chat("Hi"), "wrong_type", "dialogue[0]"),
        (chat(dialogue="Hi"), "wrong_type", "dialogue"),
        (chat(dialogue_id=None), "missing_field", "dialogue_id"),
        (chat(photo_id=None), "missing_field", "photo_id"),
        (chat(photo_description=[1]), "wrong_type", "photo_description"),
    ],
)
def test_each_fault_names_reason_and_place(tmp_path: Path, record: dict[str, Any], expected: str, where: str) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(BadRecordError) as caught:
        parse(tmp_path, record)
    assert (caught.value.reason, where in caught.value.detail) == (expected, True)


def files(root: Path, *names: str) -> list[tuple[str, str]]:
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps([chat()]))
    return [(part.source, part.split) for part in PhotochatReader(root).plan()]


def test_sections_are_found_in_folders_and_file_names_and_strangers_are_not(tmp_path: Path) -> None:
    names = ["train/train_10.json", "train/train_2.json", "test_0.json", "images/train.json", "latest.json"]
    (tmp_path / "train" / "images").mkdir(parents=True)
    assert files(tmp_path, *names) == [
        ("train/train_10.json", "train"),
        ("train/train_2.json", "train"),
        ("test_0.json", "test"),
    ]


def test_a_development_section_is_test_only_where_no_test_section_is(tmp_path: Path) -> None:
    assert files(tmp_path, "train.json", "dev.json") == [("train.json", "train"), ("dev.json", "test")]
    assert files(tmp_path, "Test/0.json") == [("train.json", "train"), ("dev.json", "train"), ("Test/0.json", "test")]


def test_an_empty_folder_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no photochat records.*images/PHOTO_ID\.jpg"):
        PhotochatReader(tmp_path).plan()


@given(
    over=st.dictionaries(
        st.sampled_from(["dialogue", "dialogue_id", "photo_id", "photo_url"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["user_id", "share_photo"]), inner),
            max_leaves=5,
        ),
    )
)
def test_any_record_is_parsed_or_a_bad_record(tmp_path_factory: pytest.TempPathFactory, over: dict[str, Any]) -> None:
    with suppress(BadRecordError):
        parse(tmp_path_factory.getbasetemp(), chat() | over)
