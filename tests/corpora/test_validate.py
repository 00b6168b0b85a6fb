"""Validation: every defect has its own reason, nothing is changed on the way."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import PIL.Image
import pytest

from mmd.corpora.base import CatalogueItem, Graph, ImageSource, ParsedRecord, Part, RawRecord
from mmd.corpora.images import ImageLoader
from mmd.corpora.settings import LimitSettings
from mmd.corpora.validate import raw_item, validate_item, validate_record
from mmd.errors import BadRecordError
from mmd.schema import Dialogue, Item, OcrLine, Turn, image_id

LIMITS = LimitSettings()
TASKS = {"intent": ("refund", "greeting"), "scene": ("receipt",)}


def dot(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


class OneRecord:
    """A reader whose only record parses to what it was given."""

    name = "one"
    root = None

    def __init__(self, parse: Callable[[RawRecord], ParsedRecord]) -> None:
        self.parse = parse

    def tasks(self) -> dict[str, tuple[str, ...]]:
        return TASKS

    def plan(self) -> list[Part]:
        return [Part("one", "train")]

    def read(self, part: Part) -> Iterator[RawRecord]:
        yield RawRecord(part.source, 0, part.split, b"{}")

    def items(self) -> Iterator[CatalogueItem]:
        return iter(())

    def graph(self) -> Graph:
        return Graph()


def validate(dialogue: Dialogue, images: dict[str, ImageSource] | None = None, limits: LimitSettings = LIMITS):
    reader = OneRecord(lambda _: ParsedRecord(dialogue, images or {}))
    return validate_record(reader, RawRecord("one", 0, "train", b"{}"), limits, TASKS)


def reason(dialogue: Dialogue, images: dict[str, ImageSource] | None = None, limits: LimitSettings = LIMITS) -> str:
    with pytest.raises(BadRecordError) as caught:
        validate(dialogue, images, limits)
    return caught.value.reason


def talk(*turns: Turn, **fields: Any) -> Dialogue:
    return Dialogue(**{"id": "d1", "source": "one", "split": "train", "turns": turns, **fields})


HELLO = Turn("user", " Hello\u00a0 ")


def test_a_sound_dialogue_is_left_as_it_is():
    dialogue = talk(HELLO, Turn("agent", "你好", item_ids=("p1",)), labels={"intent": "greeting"}, meta={"shop": "7"})
    assert validate(dialogue).dialogue == dialogue


def test_pictures_are_named_by_content_and_kept_once():
    sources = {"a": ImageSource(data=dot()), "b": ImageSource(data=dot()), "c": ImageSource(data=dot("blue"))}
    valid = validate(talk(Turn("user", "", ("c", "a")), Turn("agent", "two", ("b", "c"))), sources)
    red, blue = image_id(dot()), image_id(dot("blue"))
    assert [turn.image_ids for turn in valid.dialogue.turns] == [(blue, red), (red, blue)]
    assert [image.id for image in valid.images] == [blue, red]


@pytest.mark.parametrize(
    ("expected", "dialogue"),
    [
        ("missing_field", talk(HELLO, id="")),
        ("wrong_type", talk(HELLO, id=17)),
        ("wrong_type", talk(HELLO, split="dev")),
        ("wrong_type", talk(Turn("user", None))),
        ("wrong_type", talk(HELLO, meta={"n": 3})),
        ("wrong_type", talk(HELLO, labels={"intent": None})),
        ("unknown_speaker", talk(Turn("bot", "hi"))),
        ("unknown_label", talk(HELLO, labels={"intent": "Refund"})),
        ("unknown_label", talk(HELLO, labels={"scene": "refund"})),  # another task's label
        ("unknown_label", talk(HELLO, labels={"mood": "good"})),
        ("empty_dialogue", talk()),
        ("empty_dialogue", talk(Turn("user", ""), Turn("agent", " \n"))),
        ("invalid_utf8", talk(Turn("user", "half \ud83d of a smile"))),
        ("invalid_utf8", talk(HELLO, id="\udc00")),
        ("text_too_long", talk(Turn("user", "a" * 200_001))),
        ("text_too_long", talk(HELLO, meta={"k": "a" * 200_001})),
        ("too_many_turns", talk(*[HELLO] * 2_001)),
        ("image_missing", talk(Turn("user", "", ("nowhere",)))),
    ],
)
def test_every_defect_has_its_reason(expected: str, dialogue: Dialogue):
    assert reason(dialogue) == expected


def test_the_nearest_label_is_suggested():
    with pytest.raises(BadRecordError, match="did you mean 'refund'"):
        validate(talk(HELLO, labels={"intent": "refnd"}))


def test_a_bad_picture_is_named_in_the_detail():
    with pytest.raises(BadRecordError, match=r"picture 'a\.png'.*starts with b'nonsense'") as caught:
        validate(talk(Turn("user", "", ("a.png",))), {"a.png": ImageSource(data=b"nonsense")})
    assert caught.value.reason == "not_an_image"


def test_text_that_comes_with_a_picture_is_checked_too():
    line = OcrLine("\ud800", 0.9, (0, 0, 1, 1))
    turn = Turn("user", "", ("a",))
    assert reason(talk(turn), {"a": ImageSource(data=dot(), ocr=(line,))}) == "invalid_utf8"
    assert reason(talk(turn), {"a": ImageSource(data=dot(), description="a" * 200_001)}) == "text_too_long"


def test_a_50_mb_record_is_refused_before_it_is_parsed():
    def parse(record: RawRecord) -> ParsedRecord:
        raise AssertionError("was parsed")

    record = RawRecord("one", 0, "train", b"a" * 50 * 2**20)
    with pytest.raises(BadRecordError, match=r"50\.0 MiB") as caught:
        validate_record(OneRecord(parse), record, LIMITS, TASKS)
    assert caught.value.reason == "text_too_long"


@pytest.mark.parametrize(
    ("expected", "fault"),
    [
        ("broken_json", lambda: json.loads("{")),
        ("broken_json", lambda: json.loads("[" * 100_000)),
        ("missing_field", lambda: {}["turns"]),
        ("wrong_type", lambda: len(3)),  # type: ignore[arg-type]
        ("wrong_type", lambda: int("x")),
        ("invalid_utf8", b"\xff".decode),
    ],
)
def test_what_a_reader_stumbles_over_becomes_a_reason(expected: str, fault: Callable[[], Any]):
    def parse(record: RawRecord) -> ParsedRecord:
        fault()
        raise AssertionError("the fault did not show")

    with pytest.raises(BadRecordError) as caught:
        validate_record(OneRecord(parse), RawRecord("one", 0, "train", b"{}"), LIMITS, TASKS)
    assert caught.value.reason == expected


def test_an_item_names_pictures_by_content():
    entry = CatalogueItem(
        Item("p1", "Cup", {"colour": "red"}, ("front", "back")),
        {"front": ImageSource(data=dot()), "back": ImageSource(data=dot())},
    )
    valid = validate_item(entry, LIMITS, ImageLoader(None, LIMITS))
    assert valid.item.image_ids == (image_id(dot()),) * 2
    assert len(valid.images) == 1


@pytest.mark.parametrize(
    ("expected", "item"),
    [
        ("missing_field", Item("", "Cup")),
        ("wrong_type", Item("p1", 5)),
        ("wrong_type", Item("p1", "Cup", {"price": 9.5})),
        ("image_missing", Item("p1", "Cup", {}, ("front",))),
    ],
)
def test_a_bad_item_has_its_reason_and_readable_raw_form(expected: str, item: Item):
    with pytest.raises(BadRecordError) as caught:
        validate_item(CatalogueItem(item), LIMITS, ImageLoader(None, LIMITS))
    assert caught.value.reason == expected
    assert json.loads(raw_item(CatalogueItem(item)))["id"] == item.id
