"""Cutting files into records that fail alone."""

import json
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.corpora import json_records
from mmd.corpora.base import Part
from mmd.corpora.json_records import RecordFile, decode_record, plan_file, read_part
from mmd.errors import BadRecordError, CorpusError

RECORD = st.fixed_dictionaries({"text": st.text()}, optional={"more": st.lists(st.text() | st.integers())})


def cuts(path: Path, data: bytes | str) -> list[tuple[int, bytes]]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return [(cut.position, cut.raw) for cut in RecordFile(path, ["text"]).cuts()]


def reason(raw: bytes) -> str:
    with pytest.raises(BadRecordError) as caught:
        decode_record(raw)
    return caught.value.reason


def test_lines_keep_their_line_number_and_blank_lines_are_no_records(tmp_path: Path) -> None:
    found = cuts(tmp_path / "a.jsonl", b'{"text": "a"}\r\n\n  \n{broken\n{"text": "b"}')
    assert found == [(0, b'{"text": "a"}'), (3, b"{broken"), (4, b'{"text": "b"}')]


def test_a_byte_order_mark_belongs_to_no_record(tmp_path: Path) -> None:
    assert cuts(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n') == [(0, b'{"text": "a"}')]
    assert cuts(tmp_path / "a.json", b'\xef\xbb\xbf [{"text": "a"}]') == [(0, b'{"text": "a"}')]


def test_array_elements_are_cut_as_they_are_written(tmp_path: Path) -> None:
    found = cuts(tmp_path / "a.json", '[ {"text": "},{[\\"" }\n, null, 12 ,{"text": "é"}]\n')
    assert found == [(0, b'{"text": "},{[\\"" }'), (1, b"null"), (2, b"12"), (3, '{"text": "é"}'.encode())]


@pytest.mark.parametrize(
    "broken",
    [
        '{"text": "a", "n": }',
        '{"text": "a", "n": [1, 2}',
        '{"text": "a", "inner": {"n": 1',
        '{"text": "a',
        '{"n": {"inner": 1}, "text" "a"}',
        "{]",
        "nul",
    ],
)
def test_a_broken_element_costs_only_itself(tmp_path: Path, broken: str) -> None:
    found = cuts(tmp_path / "a.json", f'[{{"text": "1"}}, {broken}, {{"text": "2"}}, {{"text": "3"}}]')
    assert [raw for _, raw in found] == [b'{"text": "1"}', broken.encode(), b'{"text": "2"}', b'{"text": "3"}']
    assert reason(found[1][1]) == "broken_json"


def test_an_object_inside_a_broken_element_is_not_taken_for_a_record(tmp_path: Path) -> None:
    found = cuts(tmp_path / "a.json", '[{"n": [{"inner": 1}, {"inner": 2}], "text": }, {"text": "2"}]')
    assert [raw for _, raw in found] == [b'{"n": [{"inner": 1}, {"inner": 2}], "text": }', b'{"text": "2"}']


def test_without_a_next_record_the_tail_is_one_broken_record(tmp_path: Path) -> None:
    assert cuts(tmp_path / "a.json", '[{"text": "1"}, {"text": "2", "n": ]') == [
        (0, b'{"text": "1"}'),
        (1, b'{"text": "2", "n": ]'),
    ]


@pytest.mark.parametrize("tail", ["", ",", " "])
def test_an_array_that_is_not_closed_is_reported_after_its_records(tmp_path: Path, tail: str) -> None:
    found = cuts(tmp_path / "a.json", f'[{{"text": "1"}}{tail}')
    assert found == [(0, b'{"text": "1"}'), (1, b"")]
    assert reason(b"") == "broken_json"


def test_text_after_the_array_is_a_broken_record(tmp_path: Path) -> None:
    assert cuts(tmp_path / "a.json", '[{"text": "1"}] and more ')[1:] == [(1, b"and more")]


def test_a_stray_closing_bracket_hides_no_records(tmp_path: Path) -> None:
    found = cuts(tmp_path / "a.json", '[{"text": "1"}], {"text": "2"}, }], {"text": "3"}]')
    assert found == [(0, b'{"text": "1"}'), (1, b'{"text": "2"}'), (2, b"}]"), (3, b'{"text": "3"}')]


def test_invalid_bytes_in_an_array_spoil_one_record(tmp_path: Path) -> None:
    found = cuts(tmp_path / "a.json", b'[{"text": "\xff\xfe"}, {"text": "2"}]')
    assert [raw for _, raw in found] == [b'{"text": "\xff\xfe"}', b'{"text": "2"}']
    assert reason(found[0][1]) == "invalid_utf8"


def test_a_json_file_may_hold_one_record_a_line(tmp_path: Path) -> None:
    assert len(cuts(tmp_path / "a.json", '{broken\n{"text": "1"}\n{"text": "2"}\n')) == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [('{"data": [{"text": "1"}]}', "an object with the keys ['data']"), ("", "is empty"), ("id,text\n1,a", "id,text")],
)
def test_another_top_level_is_refused_with_what_is_expected(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(CorpusError, match="expected a JSON array") as caught:
        cuts(tmp_path / "a.json", content)
    assert says in str(caught.value)


def test_a_file_that_cannot_be_opened_is_a_corpus_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot be read"):
        RecordFile(tmp_path / "missing.jsonl", ["text"])


@given(records=st.lists(RECORD, max_size=8), indent=st.sampled_from([None, 1]), window=st.integers(1, 40))
def test_every_array_is_cut_at_its_elements_whatever_the_window(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], indent: int | None, window: int
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    text = json.dumps(records, ensure_ascii=False, indent=indent).encode("utf-8", "replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "_WINDOW_CHARS", window)
        found = cuts(path, text)
    assert [position for position, _ in found] == list(range(len(records)))
    assert [json.loads(raw) for _, raw in found] == json.loads(text)


@given(tail=st.binary(max_size=80))
def test_no_bytes_after_a_good_record_lose_it_or_stop_the_cut(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes
) -> None:
    found = cuts(tmp_path_factory.mktemp("tail") / "a.json", b'[{"text": "1"},' + tail)
    assert found[0] == (0, b'{"text": "1"}')
    assert [position for position, _ in found] == list(range(len(found)))
    assert all(raw in tail for _, raw in found[1:])


@given(raw=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_decode_to_an_object_or_a_bad_record(raw: bytes) -> None:
    with suppress(BadRecordError):
        assert isinstance(decode_record(raw).value, dict)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"[1]", "wrong_type"),
        (b"null", "wrong_type"),
        (b'{"a": 1', "broken_json"),
        (b'{"a": ' + b"[" * 100_000, "broken_json"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "broken_json"),
        (b'{"a": "\xc3"}', "invalid_utf8"),
        (b'{"a": ["x", {"\\ud83d": 1}]}', "invalid_utf8"),
        (b'{"a": "\\ude00\\ud83d"}', "invalid_utf8"),
    ],
)
def test_each_fault_has_its_reason(raw: bytes, expected: str) -> None:
    assert reason(raw) == expected


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert decode_record(b'{"a": "\\ud83d\\ude00"}').field("a").text() == "😀"


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_parts_are_bounded_and_together_give_every_record_once(tmp_path: Path, suffix: str) -> None:
    records = [{"text": "x" * (i % 7) + "é"} for i in range(50)]
    path = tmp_path / f"a.{suffix}"
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text(f"[{','.join(lines)}]" if suffix == "json" else "\n".join(lines))
    file = RecordFile(path, ["text"])
    plan = plan_file(file, path.name, "train", max_records=8, max_bytes=10_000)
    assert [(part.start, part.stop) for part in plan.parts] == [(i, min(i + 8, 50)) for i in range(0, 50, 8)]
    found = [record for part in reversed(plan.parts) for record in read_part(file, part, plan)]
    assert sorted((r.position, json.loads(r.raw)["text"]) for r in found) == [
        (i, record["text"]) for i, record in enumerate(records)
    ]
    assert found == [record for part in reversed(plan.parts) for record in read_part(file, part)]
    assert pickle.loads(pickle.dumps(plan)) == plan  # noqa: S301 (what travels to workers)


def test_a_part_ends_at_its_byte_limit_and_a_larger_record_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(['{"text": "a"}', '{"text": "b"}', json.dumps({"text": "c" * 500}), '{"text": "d"}']))
    plan = plan_file(RecordFile(path, ["text"]), "a.jsonl", "test", max_bytes=100)
    assert plan.parts == (
        Part("a.jsonl", "test", 0, 2),
        Part("a.jsonl", "test", 2, 3),
        Part("a.jsonl", "test", 3, 4),
    )


def test_an_endless_line_is_cut_off_and_the_next_line_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "MAX_RECORD_BYTES", 16)
    found = cuts(tmp_path / "a.jsonl", b"x" * 50 + b'\n{"text": "a"}\n')
    assert found == [(0, b"x" * 16), (1, b'{"text": "a"}')]
