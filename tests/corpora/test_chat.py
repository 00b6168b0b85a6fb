"""Bring your own conversations: OpenAI-style messages and ShareGPT, with pictures and labels."""

import base64
import json
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.corpora.base import Graph, ImageSource, ParsedRecord, RawRecord
from mmd.corpora.chat import ChatReader
from mmd.errors import BadRecordError, CorpusError
from mmd.schema import Item, OcrLine, Turn, image_id


def messages(*said: tuple[str, object], **over: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said], "id": "m"} | over


def sharegpt(*said: tuple[str, str], **over: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": value} for who, value in said], "id": "s"} | over


def text(value: object) -> dict[str, object]:
    return {"type": "text", "text": value}


def image(url: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def parse(root: Path, record: dict[str, Any], source: str = "a.jsonl") -> ParsedRecord:
    return ChatReader(root).parse(RawRecord(source, 0, "train", json.dumps(record).encode()))


def corpus(root: Path, **files: list[object]) -> ChatReader:
    for name, records in files.items():
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return ChatReader(root)


def test_openai_messages_become_turns_and_system_messages_meta(tmp_path: Path) -> None:
    record = messages(("system", "be kind"), ("user", "Hi"), ("assistant", None), ("user", "?"), ("developer", "now"))
    dialogue = parse(tmp_path, record).dialogue
    assert dialogue.turns == (Turn("user", "Hi"), Turn("agent", ""), Turn("user", "?"))
    assert dialogue.meta == {"system": "be kind\nnow"}


def test_sharegpt_conversations_become_turns(tmp_path: Path) -> None:
    record = sharegpt(("system", "be kind"), ("human", "Hi"), ("gpt", "Hello"))
    dialogue = parse(tmp_path, record).dialogue
    assert dialogue.turns == (Turn("user", "Hi"), Turn("agent", "Hello"))
    assert dialogue.meta == {"system": "be kind"}


def test_text_and_picture_parts_stay_in_their_turn(tmp_path: Path) -> None:
    parts = [
        text("is this"),
        image("pics/a.jpg"),
        text("new?"),
        image(data_url(b"png")),
        {"type": "image_url", "image_url": "b.jpg"},
    ]
    parsed = parse(tmp_path, messages(("user", parts)), source="train/a.jsonl")
    inline = image_id(b"png")
    assert parsed.dialogue.turns == (Turn("user", "is this\nnew?", ("train/pics/a.jpg", inline, "train/b.jpg")),)
    assert parsed.images == {
        "train/pics/a.jpg": ImageSource(path="train/pics/a.jpg"),
        inline: ImageSource(data=b"png"),
        "train/b.jpg": ImageSource(path="train/b.jpg"),
    }


def test_listed_images_take_the_places_of_markers(tmp_path: Path) -> None:
    parsed = parse(tmp_path, sharegpt(("human", "<image>\nwhat?"), ("gpt", "a dog"), images=["a.jpg", "b.jpg"]))
    assert parsed.dialogue.turns == (Turn("user", "what?", ("a.jpg", "b.jpg")), Turn("agent", "a dog"))
    assert parsed.dialogue.meta == {"images_unplaced": "1"}
    assert parse(tmp_path, sharegpt(("human", "see <image>"), image="a.jpg")).dialogue.turns[0].image_ids == ("a.jpg",)


def test_a_marker_in_a_record_without_images_is_text(tmp_path: Path) -> None:
    assert parse(tmp_path, messages(("user", "what is <image>?"))).dialogue.turns[0].text == "what is <image>?"


def test_labels_split_meta_and_id_are_taken_over(tmp_path: Path) -> None:
    extra = {"labels": {"intent": "price"}, "split": "test", "meta": {"shop": "a", "vip": True, "age": 3}, "id": 12}
    dialogue = parse(tmp_path, messages(("user", "how much"), **extra)).dialogue
    assert (dialogue.labels, dialogue.split, dialogue.id) == ({"intent": "price"}, "test", "12")
    assert dialogue.meta == {"shop": "a", "vip": "true", "age": "3"}


def test_records_without_an_id_get_one_from_their_content(tmp_path: Path) -> None:
    ids = [parse(tmp_path, messages(("user", t), id=None)).dialogue.id for t in ("a", "b", "a")]
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize(
    ("record", "expected", "where"),
    [
        ({"id": "x"}, "missing_field", "messages"),
        (messages(("tool", "42")), "unknown_speaker", "messages[0]"),
        (sharegpt(("observation", "42")), "unknown_speaker", "conversations[0]"),
        ({"messages": [{"content": "Hi"}]}, "missing_field", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "missing_field", "messages[0].content"),
        ({"messages": "Hi"}, "wrong_type", "messages"),
        (messages(("user", 3)), "wrong_type", "messages[0].content"),
        (messages(("user", [{"type": "audio"}])), "wrong_type", "messages[0].content[0].type"),
        (messages(("user", [text(None)])), "missing_field", "messages[0].content[0].text"),
        (messages(("user", [image("")])), "missing_field", "messages[0].content[0].image_url.url"),
        (messages(("user", [image("https://a.example/b.jpg")])), "remote_image", "save the picture"),
        (messages(("user", [image("HTTP://a.example/b.jpg")])), "remote_image", "messages[0]"),
        (messages(("user", [image("file:///etc/hostname")])), "remote_image", "messages[0]"),
        (messages(("user", [image("data:image/png;base64,@@@")])), "not_an_image", "base64"),
        (messages(("user", [image("data:image/png;base64,QUJ")])), "not_an_image", "base64"),
        (messages(("user", [image("data:image/png")])), "not_an_image", "comma"),
        (messages(("user", "Hi"), split="dev"), "wrong_type", "split"),
        (messages(("user", "Hi"), labels=["price"]), "wrong_type", "labels"),
        (messages(("user", "Hi"), labels={"intent": 1}), "wrong_type", "labels.intent"),
        (messages(("user", "Hi"), meta={"a": []}), "wrong_type", "meta.a"),
    ],
)
def test_each_fault_names_reason_and_place(tmp_path: Path, record: dict[str, Any], expected: str, where: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        parse(tmp_path, record)
    assert (caught.value.reason, where in caught.value.detail) == (expected, True)


def test_a_path_that_escapes_is_passed_on_to_be_refused_not_opened(tmp_path: Path) -> None:
    parsed = parse(tmp_path, messages(("user", [image("../secret.jpg"), image("/etc/hostname")])))
    assert [source.path for source in parsed.images.values()] == ["../secret.jpg", "/etc/hostname"]


def test_ocr_beside_the_records_joins_by_path(tmp_path: Path) -> None:
    line = {"text": "49", "score": 1, "box": [0, 0, 5, 5]}
    (tmp_path / "ocr.jsonl").write_text(json.dumps({"image": "pics/a.jpg", "lines": [line]}))
    parsed = parse(tmp_path, messages(("user", [image("pics/a.jpg")])))
    assert parsed.images["pics/a.jpg"].ocr == (OcrLine("49", 1.0, (0.0, 0.0, 5.0, 5.0)),)


def test_every_record_file_is_read_and_nothing_else(tmp_path: Path) -> None:
    reader = corpus(tmp_path, b=[messages()], test=[messages()], ocr=[{}])
    (tmp_path / "a.json").write_text(json.dumps([sharegpt(), sharegpt()]))
    (tmp_path / "tasks.json").write_text("{}")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "c.jsonl").write_text(json.dumps(messages()))
    assert [(part.source, part.split, part.stop) for part in reader.plan()] == [
        ("a.json", "train", 2),
        ("b.jsonl", "train", 1),
        ("test.jsonl", "test", 1),
        ("train/c.jsonl", "train", 1),
    ]


def test_label_sets_come_from_tasks_json(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps({"intent": ["price", "stock"]}))
    assert ChatReader(tmp_path).tasks() == {"intent": ("price", "stock")}


def test_without_tasks_json_the_training_labels_are_the_set(tmp_path: Path) -> None:
    train = [
        messages(labels={"intent": "stock", "scene": "bill"}),
        messages(labels={"intent": "price"}),
        messages(labels={"intent": "only in test"}, split="test"),
        messages(labels={"intent": 3}),
        "labels",
        messages(),
    ]
    reader = corpus(tmp_path, train=train, test=[messages(labels={"intent": "only in test"})])
    assert reader.tasks() == {"intent": ("stock", "price"), "scene": ("bill",)}


@pytest.mark.parametrize("content", ["[]", "{", '{"intent": "price"}', '{"intent": []}', '{"intent": ["a", "a"]}'])
def test_an_unusable_tasks_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tasks.json").write_text(content)
    with pytest.raises(CorpusError, match=r"tasks\.json: "):
        ChatReader(tmp_path).tasks()


def test_a_folder_without_records_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no chat records.*JSON Lines"):
        ChatReader(tmp_path).plan()


def test_bad_lines_keep_their_place_among_good_ones(tmp_path: Path) -> None:
    good = json.dumps(messages(("user", "Hi"))).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, b"{broken", b'{"messages": "\xff"}', b"", good]))
    reader = ChatReader(tmp_path)
    found = {}
    for record in (record for part in reader.plan() for record in reader.read(part)):
        try:
            reader.parse(record)
            found[record.position] = "parsed"
        except BadRecordError as err:
            found[record.position] = err.reason
    assert found == {0: "parsed", 1: "broken_json", 2: "invalid_utf8", 4: "parsed"}


def test_a_long_file_is_read_in_parts_by_copies_of_the_reader(tmp_path: Path) -> None:
    reader = corpus(tmp_path, a=[messages(("user", str(i)), id=i) for i in range(1_000)])
    parts = reader.plan()
    assert len(parts) == 8  # 1,000 records, at most 128 a part
    copies = [pickle.loads(pickle.dumps(reader)) for _ in parts]  # noqa: S301 (what Ray does to it)
    ids = [copy.parse(r).dialogue.id for copy, part in zip(copies, parts, strict=True) for r in copy.read(part)]
    assert ids == [str(i) for i in range(1_000)]


@given(line=st.binary(max_size=80).filter(lambda line: b"\n" not in line and line.strip(b" \r\t\x0b\x0c")))
def test_any_line_is_parsed_or_a_bad_record_at_its_place(tmp_path_factory: pytest.TempPathFactory, line: bytes) -> None:
    root = tmp_path_factory.mktemp("chat")
    good = json.dumps(messages(("user", "Hi"))).encode()
    (root / "a.jsonl").write_bytes(good + b"\n" + line + b"\n" + good)
    reader = ChatReader(root)
    first, odd, last = (record for part in reader.plan() for record in reader.read(part))
    assert (first.position, odd.position, last.position) == (0, 1, 2)
    assert odd.raw == line.rstrip(b"\r")
    assert reader.parse(first).dialogue == reader.parse(last).dialogue
    with suppress(BadRecordError):
        reader.parse(odd)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text", "image_url", "url"]), inner
        )
    ),
    max_leaves=8,
)


@given(
    over=st.dictionaries(
        st.sampled_from(["messages", "conversations", "labels", "meta", "id", "split", "images"]), JSON
    )
)
def test_any_record_is_parsed_or_a_bad_record(tmp_path_factory: pytest.TempPathFactory, over: dict[str, Any]) -> None:
    with suppress(BadRecordError):
        parse(tmp_path_factory.getbasetemp(), over)


@given(url=st.text() | st.text().map("data:".__add__) | st.text().map("data:;base64,".__add__))
def test_any_address_is_a_picture_source_or_a_bad_record(tmp_path_factory: pytest.TempPathFactory, url: str) -> None:
    with suppress(BadRecordError):
        ((key, source),) = parse(tmp_path_factory.getbasetemp(), messages(("user", [image(url)]))).images.items()
        assert (source.path is None) != (source.data is None)
        assert key


def test_products_csv_is_the_catalogue_and_messages_name_its_products(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "r1.jpg").write_bytes(b"jpeg")
    (tmp_path / "products.csv").write_text("id,title,colour\nr1,Rake,green\nr2,Hoe,green\n")
    record = messages(("user", "Which one?"))
    record["messages"].append({"role": "assistant", "content": "The rake.", "items": ["r1", 7]})
    reader = corpus(tmp_path, a=[record])
    assert [part.source for part in reader.plan()] == ["a.jsonl"]
    assert parse(tmp_path, record).dialogue.turns[1] == Turn("agent", "The rake.", (), ("r1", "7"))
    first, second = (entry.item for entry in reader.items())
    assert first == Item("r1", "Rake", {"colour": "green"}, ("images/r1.jpg",))
    assert second.image_ids == ()
    assert next(dict(entry.images) for entry in reader.items()) == {
        "images/r1.jpg": ImageSource(path="images/r1.jpg", ocr=None)
    }
    assert {triple.relation for triple in reader.graph().triples} == {"has_colour"}


def test_without_products_csv_there_are_no_items(tmp_path: Path) -> None:
    reader = corpus(tmp_path, a=[messages(("user", "Hi"))])
    assert list(reader.items()) == []
    assert reader.graph() == Graph()


def test_items_that_are_no_list_are_a_bad_record(tmp_path: Path) -> None:
    record = messages(("user", "Hi"))
    record["messages"][0]["items"] = "r1"
    with pytest.raises(BadRecordError, match=r"messages\[0\]\.items: .* needs a list"):
        parse(tmp_path, record)
