"""ReDial: who says what, which films are mentioned, and the graph behind them."""

import json
import pickle
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.corpora.base import Graph, RawRecord
from mmd.corpora.redial import RedialReader
from mmd.errors import BadRecordError, CorpusError
from mmd.schema import Dialogue, Entity, Item, ItemLink, Triple, Turn


def conversation(*said: tuple[int, str], **over: Any) -> dict[str, Any]:
    return {
        "conversationId": "7",
        "initiatorWorkerId": 1,
        "respondentWorkerId": 2,
        "movieMentions": {"111": "Alien (1979)", "222": "Heat"},
        "messages": [{"senderWorkerId": who, "text": text, "messageId": i} for i, (who, text) in enumerate(said)],
    } | over


def parse(root: Path, record: dict[str, Any]) -> Dialogue:
    return RedialReader(root).parse(RawRecord("train.jsonl", 0, "train", json.dumps(record).encode())).dialogue


def test_the_seeker_is_the_user_and_the_recommender_the_agent(tmp_path: Path) -> None:
    assert parse(tmp_path, conversation((2, "Hello"), (1, "Hi"))).turns == (Turn("agent", "Hello"), Turn("user", "Hi"))


def test_consecutive_messages_of_one_sender_are_one_turn(tmp_path: Path) -> None:
    dialogue = parse(
        tmp_path, conversation((1, "Hi"), (1, "seen @111 ?"), (2, "yes"), (2, ""), (2, "and @222"), (1, "ok"))
    )
    assert dialogue.turns == (
        Turn("user", "Hi\nseen @111 ?", item_ids=("111",)),
        Turn("agent", "yes\nand @222", item_ids=("222",)),
        Turn("user", "ok"),
    )


def test_mentions_keep_order_and_repeats_and_stay_in_the_text(tmp_path: Path) -> None:
    turn = parse(tmp_path, conversation((1, "@222 or @111? @222!"))).turns[0]
    assert turn == Turn("user", "@222 or @111? @222!", item_ids=("222", "111", "222"))


def test_an_at_sign_before_another_number_is_no_mention(tmp_path: Path) -> None:
    assert parse(tmp_path, conversation((1, "tonight @8 then"))).turns[0].item_ids == ()


def test_a_film_of_the_catalogue_is_mentioned_even_where_the_record_does_not_list_it(tmp_path: Path) -> None:
    (tmp_path / "movies.tsv").write_text("movie_id\tentity_id\ttitle\n333\t5\t\n")
    assert parse(tmp_path, conversation((1, "@333"), movieMentions=[])).turns[0].item_ids == ("333",)


def test_a_turn_without_words_is_dropped_and_counted(tmp_path: Path) -> None:
    dialogue = parse(tmp_path, conversation((1, " "), (2, "Hi")))
    assert dialogue.turns == (Turn("agent", "Hi"),)
    assert dialogue.meta == {"empty_user_turns": "1"}


@pytest.mark.parametrize(
    ("record", "expected", "where"),
    [
        (conversation((3, "Hi")), "unknown_speaker", "messages[0].senderWorkerId"),
        (conversation(respondentWorkerId=1), "unknown_speaker", "respondentWorkerId"),
        (conversation(messages=None), "missing_field", "messages"),
        (conversation(messages=[{"senderWorkerId": 1}]), "missing_field", "messages[0].text"),
        (conversation(messages=["Hi"]), "wrong_type", "messages[0]"),
        (conversation(messages={"0": "Hi"}), "wrong_type", "messages"),
        (conversation(movieMentions=["111"]), "wrong_type", "movieMentions"),
        (conversation(conversationId=True), "wrong_type", "conversationId"),
    ],
)
def test_each_fault_names_reason_and_place(tmp_path: Path, record: dict[str, Any], expected: str, where: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        parse(tmp_path, record)
    assert (caught.value.reason, where in caught.value.detail) == (expected, True)


def test_official_file_names_are_known_too(tmp_path: Path) -> None:
    for name in ("train_data.jsonl", "test_data.jsonl"):
        (tmp_path / name).write_text(json.dumps(conversation((1, "Hi"))) + "\n{broken\n")
    reader = RedialReader(tmp_path)
    records = [record for part in reader.plan() for record in reader.read(part)]
    assert [(r.source, r.position, r.split) for r in records] == [
        ("train_data.jsonl", 0, "train"),
        ("train_data.jsonl", 1, "train"),
        ("test_data.jsonl", 0, "test"),
        ("test_data.jsonl", 1, "test"),
    ]


def test_films_entities_triples_and_links_come_from_the_tables(tmp_path: Path) -> None:
    (tmp_path / "movies.tsv").write_text("movie_id\tentity_id\ttitle\n111\t0\t Alien (1979)\n222\t2\t\n")
    base = "http://dbpedia.org/resource/"
    entities = ["entity_id\turi", f"0\t{base}Alien_(film)", f'1\t{base}"Crocodile"_Caf%C3%A9', "2\tredial:movie/222"]
    (tmp_path / "kg_entities.tsv").write_text("\n".join(entities))
    (tmp_path / "kg_triples.tsv").write_text("head_id\trelation_id\ttail_id\n0\t9\t1\n")
    reader = RedialReader(tmp_path)
    assert [entry.item for entry in reader.items()] == [
        Item("111", "Alien (1979)", {"year": "1979"}),
        Item("222", "", {}),
    ]
    assert reader.graph() == Graph(
        entities=(
            Entity("0", "Alien (1979)", "movie"),
            Entity("1", '"Crocodile" Café', "entity"),
            Entity("2", "redial:movie/222", "movie"),
        ),
        triples=(Triple("0", "9", "1"),),
        links=(ItemLink("111", "0"), ItemLink("222", "2")),
    )


def test_without_tables_there_are_no_items_and_no_graph(tmp_path: Path) -> None:
    reader = RedialReader(tmp_path)
    assert list(reader.items()) == []
    assert reader.graph() == Graph()


@pytest.mark.parametrize(
    "content", [b"movie_id\ttitle\n1\tAlien\n", b"movie_id\tentity_id\ttitle\n1\n", b"movie_id\xff\n"]
)
def test_a_broken_table_is_named_with_line_and_columns(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "movies.tsv").write_bytes(content)
    with pytest.raises(CorpusError, match=r"movies\.tsv:"):
        RedialReader(tmp_path).graph()


def test_cached_titles_stay_behind_when_the_reader_travels(tmp_path: Path) -> None:
    reader = RedialReader(tmp_path)
    parse(tmp_path, conversation((1, "@111")))
    list(reader.items())
    assert "_titles" in vars(reader)
    assert "_titles" not in vars(pickle.loads(pickle.dumps(reader)))  # noqa: S301 (what Ray does to it)


@given(
    over=st.dictionaries(
        st.sampled_from(["conversationId", "messages", "movieMentions", "initiatorWorkerId"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["text", "senderWorkerId"]), inner),
            max_leaves=5,
        ),
    )
)
def test_any_record_is_parsed_or_a_bad_record(tmp_path_factory: pytest.TempPathFactory, over: dict[str, Any]) -> None:
    with suppress(BadRecordError):
        parse(tmp_path_factory.getbasetemp(), conversation((1, "Hi @111")) | over)


@pytest.mark.real_data
def test_the_training_part_is_read_whole_and_every_mention_links(real_data: Path, tmp_path: Path) -> None:
    for name in ("train.jsonl", "movies.tsv", "kg_entities.tsv", "kg_triples.tsv"):
        (tmp_path / name).symlink_to(real_data / "redial" / name)
    reader = RedialReader(tmp_path)
    dialogues = [reader.parse(record).dialogue for part in reader.plan() for record in reader.read(part)]
    graph = reader.graph()
    linked = {link.item_id for link in graph.links}
    assert len(dialogues) == 2_731
    assert (len(graph.entities), len(graph.triples), len(linked)) == (64_362, 165_696, 6_924)
    assert len({triple.relation for triple in graph.triples}) == 214
    assert {link.entity_id for link in graph.links} <= {entity.id for entity in graph.entities}
    assert {entry.item.id for entry in reader.items()} == linked
    for dialogue in dialogues:
        for turn in dialogue.turns:
            assert turn.item_ids == tuple(re.findall(r"@(\d+)", turn.text))
            assert linked.issuperset(turn.item_ids)
        assert all(a.speaker != b.speaker for a, b in zip(dialogue.turns, dialogue.turns[1:], strict=False))
