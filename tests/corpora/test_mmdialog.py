"""MMDialog: turns made of text and media parts."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.corpora.base import ImageSource, ParsedRecord, RawRecord
from mmd.corpora.mmdialog import MmdialogReader
from mmd.errors import BadRecordError
from mmd.schema import Turn


def text(value: object) -> dict[str, object]:
    return {"__TEXT__": value}


def media(value: object) -> dict[str, object]:
    return {"__MEDIA__": value}


def talk(*turns: object, **over: Any) -> dict[str, Any]:
    said = turns or ([text("look :dog:"), media("k1"), text("and"), media("k2.png")], [text("nice")], [media("k1")])
    return {"conversation": list(said), "conversation_id": "c"} | over


def parse(root: Path, record: dict[str, Any], source: str = "valid/conversations.json") -> ParsedRecord:
    return MmdialogReader(root).parse(RawRecord(source, 0, "test", json.dumps(record).encode()))


def test_pictures_come_from_the_section_s_folder_in_the_order_sent(tmp_path: Path) -> None:
    (tmp_path / "valid" / "images").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    parsed = parse(tmp_path, talk())
    assert parsed.dialogue.turns == (
        Turn("user", "look :dog:\nand", ("k1", "k2.png")),
        Turn("agent", "nice"),
        Turn("user", "", ("k1",)),
    )
    assert parsed.images == {
        "k1": ImageSource(path="valid/images/k1.jpg"),
        "k2.png": ImageSource(path="valid/images/k2.png"),
    }
    assert parsed.dialogue.meta == {"section": "val"}


def test_pictures_may_lie_in_one_folder_at_the_top(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert parse(tmp_path, talk()).images["k1"].path == "images/k1.jpg"


def test_without_pictures_the_meta_names_turn_and_key(tmp_path: Path) -> None:
    parsed = parse(tmp_path, talk())
    assert [turn.image_ids for turn in parsed.dialogue.turns] == [(), (), ()]
    assert json.loads(parsed.dialogue.meta["absent_images"]) == [[0, "k1"], [0, "k2.png"], [2, "k1"]]
    assert parsed.images == {}


def test_a_media_part_may_list_several_keys(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert parse(tmp_path, talk([media(["a", "b"])])).dialogue.turns[0].image_ids == ("a", "b")


def test_records_without_an_id_get_one_from_their_content(tmp_path: Path) -> None:
    ids = [parse(tmp_path, talk([text(t)], conversation_id=None)).dialogue.id for t in ("a", "b", "a")]
    assert ids[0] == ids[2] != ids[1]


def test_sections_become_splits(tmp_path: Path) -> None:
    for section in ("train", "valid", "test"):
        (tmp_path / section).mkdir()
        (tmp_path / section / "conversations.json").write_text(json.dumps([talk()]))
    assert [(part.source, part.split) for part in MmdialogReader(tmp_path).plan()] == [
        ("train/conversations.json", "train"),
        ("valid/conversations.json", "train"),
        ("test/conversations.json", "test"),
    ]


@pytest.mark.parametrize(
    ("record", "expected", "where"),
    [
        (talk(conversation=None), "missing_field", "conversation"),
        (talk("hi"), "wrong_type", "conversation[0]"),
        (talk([{}]), "wrong_type", "conversation[0][0]"),
        (talk([text(1)]), "wrong_type", "conversation[0][0].__TEXT__"),
        (talk([media({})]), "wrong_type", "conversation[0][0].__MEDIA__"),
        (talk(conversation_id=[]), "wrong_type", "conversation_id"),
    ],
)
def test_each_fault_names_reason_and_place(tmp_path: Path, record: dict[str, Any], expected: str, where: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        parse(tmp_path, record)
    assert (caught.value.reason, where in caught.value.detail) == (expected, True)


@given(
    turns=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["__TEXT__", "__MEDIA__"]), inner),
            max_leaves=5,
        ),
        min_size=1,
    )
)
def test_any_record_is_parsed_or_a_bad_record(tmp_path_factory: pytest.TempPathFactory, turns: list[Any]) -> None:
    with suppress(BadRecordError):
        parse(tmp_path_factory.getbasetemp(), talk(*turns))
