"""The challenge corpus: two tasks in one file, told apart by the prompt."""

import json
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from mmd.corpora.base import ImageSource, ParsedRecord, RawRecord
from mmd.corpora.taobao import END, START, TaobaoReader, parse_turns, prompt_labels
from mmd.errors import BadRecordError, CorpusError
from mmd.schema import OcrLine, Turn

SCENES = ["订单页", "其他(含[售后])"]
INTENTS = ["发货", "材质"]


def scene(**over: Any) -> dict[str, Any]:
    prompt = f"Picture 1: <image>\n请分类。标签:{json.dumps(SCENES, ensure_ascii=False)}。"
    return {"id": "s", "instruction": prompt, "input": "", "output": "订单页", "image": ["a.jpg"]} | over


def intent(*lines: str, labels: list[str] = INTENTS, **over: Any) -> dict[str, Any]:
    prompt = "\n".join(["请判断。", START, *lines, END, f"标签为：{json.dumps(labels, ensure_ascii=False)}\n"])
    return {"id": "d", "instruction": prompt, "input": "", "output": "发货", "image": []} | over


def corpus(root: Path, train: list[dict[str, Any]] | None = None, **files: list[dict[str, Any]]) -> TaobaoReader:
    (root / "images").mkdir(exist_ok=True)
    for name, records in {"train": train, **files}.items():
        if records is not None:
            (root / f"{name}.json").write_text(json.dumps(records, ensure_ascii=False))
    return TaobaoReader(root)


def parse(reader: TaobaoReader, record: dict[str, Any]) -> ParsedRecord:
    return reader.parse(RawRecord("train.json", 0, "train", json.dumps(record).encode()))


def test_train_json_is_train_and_dev_json_is_test(tmp_path: Path) -> None:
    reader = corpus(tmp_path, [scene(id="1"), scene(id="2")], dev=[intent("用户: 在吗", id="3")])
    records = [record for part in reader.plan() for record in reader.read(part)]
    assert [(r.source, r.position, r.split) for r in records] == [
        ("train.json", 0, "train"),
        ("train.json", 1, "train"),
        ("dev.json", 0, "test"),
    ]
    assert [reader.parse(r).dialogue.split for r in records] == ["train", "train", "test"]


def test_a_scene_is_one_user_turn_with_its_picture(tmp_path: Path) -> None:
    parsed = parse(corpus(tmp_path), scene())
    assert parsed.dialogue.turns == (Turn("user", "", ("a.jpg",)),)
    assert parsed.dialogue.labels == {"image_scene": "订单页"}
    assert parsed.images == {"a.jpg": ImageSource(path="images/a.jpg")}


def test_turns_pictures_and_links_stand_where_they_were_sent(tmp_path: Path) -> None:
    lines = ["用户: <http>", "客服: 您好", "用户：<image>", "用户: 这个 <image> 和 <image>", "要发几天", "客服: "]
    parsed = parse(corpus(tmp_path), intent(*lines, image=["a.jpg", "b.jpg", "c.jpg"]))
    assert parsed.dialogue.turns == (
        Turn("user", "<http>"),
        Turn("agent", "您好"),
        Turn("user", "", ("a.jpg",)),
        Turn("user", "这个 和\n要发几天", ("b.jpg", "c.jpg")),
    )
    assert parsed.dialogue.labels == {"dialogue_intent": "发货"}
    assert parsed.dialogue.meta == {"empty_agent_turns": "1"}


def test_pictures_without_a_marker_go_to_the_last_user_turn_and_are_counted(tmp_path: Path) -> None:
    parsed = parse(corpus(tmp_path), intent("用户: 你好", "用户: 看", "客服: 好", image=["a.jpg", "b.jpg"]))
    assert parsed.dialogue.turns[1] == Turn("user", "看", ("a.jpg", "b.jpg"))
    assert parsed.dialogue.meta == {"images_unplaced": "2"}


def test_markers_without_a_picture_are_counted(tmp_path: Path) -> None:
    parsed = parse(corpus(tmp_path), intent("用户: 看<image>", "用户: <image>"))
    assert parsed.dialogue.turns == (Turn("user", "看"),)
    assert parsed.dialogue.meta == {"image_markers_unmatched": "2", "empty_user_turns": "1"}


def test_pictures_find_a_place_in_a_conversation_of_agents_only(tmp_path: Path) -> None:
    assert parse(corpus(tmp_path), intent("客服: 您好", image=["a.jpg"])).dialogue.turns[0].image_ids == ("a.jpg",)


def test_label_sets_are_read_from_the_training_prompts_in_their_order(tmp_path: Path) -> None:
    train = [scene(), intent(labels=["材质", "发货"]), intent(labels=["气泡", "发货"])]
    reader = corpus(tmp_path, train, dev=[intent(labels=["only in dev"])])
    (tmp_path / "train.json").write_bytes((tmp_path / "train.json").read_bytes()[:-1] + b", {broken]")
    assert reader.tasks() == {"image_scene": tuple(SCENES), "dialogue_intent": ("材质", "发货", "气泡")}


def test_without_training_records_the_labels_come_from_the_others(tmp_path: Path) -> None:
    assert corpus(tmp_path, dev=[intent()]).tasks() == {"dialogue_intent": tuple(INTENTS)}


@pytest.mark.parametrize("prompt", ["no list", '["open', '["a", 1', ""])
def test_a_prompt_without_a_list_offers_no_labels(prompt: str) -> None:
    assert prompt_labels(prompt) == ()


@pytest.mark.parametrize(
    ("record", "expected", "where"),
    [
        ({"id": "x"}, "missing_field", "instruction"),
        (scene(instruction=3), "wrong_type", "instruction"),
        (scene(instruction="say something"), "missing_field", "instruction"),
        (scene(output=None), "missing_field", "output"),
        (scene(output=["a"]), "wrong_type", "output"),
        (scene(id={}), "wrong_type", "id"),
        (scene(image="a.jpg"), "wrong_type", "image"),
        (scene(image=["a.jpg", 7]), "wrong_type", "image[1]"),
        (scene(image=[]), "image_missing", "image"),
        (intent("系统: 你好"), "unknown_speaker", "系统"),
        (intent(instruction=f"{START}\n用户: 你好"), "missing_field", "END"),
    ],
)
def test_each_fault_names_reason_and_place(tmp_path: Path, record: dict[str, Any], expected: str, where: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        parse(corpus(tmp_path), record)
    assert caught.value.reason == expected
    assert where in caught.value.detail


def test_a_path_that_escapes_is_passed_on_to_be_refused_not_opened(tmp_path: Path) -> None:
    parsed = parse(corpus(tmp_path), scene(image=["../../secret.jpg", "/etc/hostname"]))
    assert [source.path for source in parsed.images.values()] == ["images/../../secret.jpg", "/etc/hostname"]


def test_given_ocr_joins_its_picture_and_unusable_lines_are_logged(tmp_path: Path) -> None:
    reader = corpus(tmp_path, [scene()])
    line = {"text": "订单", "score": 0.5, "box": [1, 2, 3, 4]}
    good = {"image": "a.jpg", "width": 9, "lines": [line]}
    bad = [{"image": "b.jpg"}, {"image": "b.jpg", "lines": [line | {"box": [1]}]}]
    huge = '{"image": "b.jpg", "lines": [{"text": "", "score": 1' + "0" * 400 + ', "box": [1, 2, 3, 4]}]}'
    (tmp_path / "ocr.jsonl").write_text("\n".join([json.dumps(good), "{broken", *map(json.dumps, bad), huge]))
    with structlog.testing.capture_logs() as logs:
        parsed = parse(reader, scene(image=["a.jpg", "b.jpg"]))
    assert parsed.images["a.jpg"].ocr == (OcrLine("订单", 0.5, (1.0, 2.0, 3.0, 4.0)),)
    assert parsed.images["b.jpg"].ocr is None
    assert [(log["event"], log["line"]) for log in logs] == [("ocr_line_unusable", i) for i in (1, 2, 3, 4)]


def test_a_reader_travels_between_processes_and_reads_the_same(tmp_path: Path) -> None:
    reader = corpus(tmp_path, [scene(id=str(i)) for i in range(300)])
    parts = reader.plan()
    assert len(parts) == 3  # 300 records, at most 128 a part
    parse(reader, scene())  # fills the OCR cache
    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301 (what Ray does to it)
    assert "_ocr" not in vars(copy)
    assert [r for part in parts for r in copy.read(part)] == [r for part in parts for r in reader.read(part)]


def test_a_missing_folder_or_file_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"does not exist.*train\.json and/or dev\.json"):
        TaobaoReader(tmp_path / "none").plan()
    with pytest.raises(CorpusError, match=r"images: does not exist.*a folder images/"):
        TaobaoReader(tmp_path).plan()
    with pytest.raises(CorpusError, match=r"holds no taobao records.*train\.json"):
        corpus(tmp_path).plan()
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match="is a file, not a folder"):
        TaobaoReader(tmp_path / "file").plan()


@given(
    said=st.lists(
        st.tuples(st.sampled_from(["用户", "客服"]), st.text(st.characters(exclude_characters="\n"))), min_size=1
    )
)
def test_every_word_of_a_conversation_lands_in_a_turn_of_its_speaker(said: list[tuple[str, str]]) -> None:
    drafts = parse_turns("\n".join(f"{who}: {text}" for who, text in said))
    assert [(draft.speaker, draft.text) for draft in drafts] == [
        ("user" if who == "用户" else "agent", text.strip()) for who, text in said
    ]


@given(
    over=st.dictionaries(
        st.sampled_from(["id", "instruction", "input", "output", "image"]),
        st.none() | st.integers() | st.text() | st.lists(st.text() | st.integers()) | st.just(f"{START}用户:{END}"),
    )
)
def test_any_record_is_parsed_or_a_bad_record(tmp_path_factory: pytest.TempPathFactory, over: dict[str, Any]) -> None:
    with suppress(BadRecordError):
        parse(TaobaoReader(tmp_path_factory.getbasetemp()), scene() | over)


@pytest.fixture
def training_part(real_data: Path, tmp_path: Path) -> TaobaoReader:
    for name in ("train.json", "images", "ocr.jsonl"):
        (tmp_path / name).symlink_to(real_data / "taobao" / name)
    return TaobaoReader(tmp_path)


@pytest.mark.real_data
def test_the_challenge_training_part_is_read_whole(training_part: TaobaoReader) -> None:
    parsed = [training_part.parse(r) for part in training_part.plan() for r in training_part.read(part)]
    tasks = training_part.tasks()
    assert len(parsed) == 504
    assert {task: len(labels) for task, labels in tasks.items()} == {"image_scene": 25, "dialogue_intent": 23}
    assert not {label for labels in tasks.values() for label in labels if list(tasks.values()).count(labels) != 1}
    for record in parsed:
        ((task, label),) = record.dialogue.labels.items()
        assert label in tasks[task]
        assert record.dialogue.turns
        assert {key for turn in record.dialogue.turns for key in turn.image_ids} == set(record.images)
        assert all(source.ocr is not None for source in record.images.values())
        assert record.dialogue.meta.keys() <= {"empty_agent_turns"}
