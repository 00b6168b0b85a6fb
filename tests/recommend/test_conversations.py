"""The graph artefact: linked dialogues as rows, and what a corpus states of items."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from mmd import schema
from mmd.artifacts import Artifact, ArtifactStore
from mmd.corpora.base import Graph
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError
from mmd.recommend.conversations import (
    LINKED,
    Conversations,
    LinkRows,
    count_samples,
    linked_from_row,
    linked_to_row,
    names_items,
    states_items,
    titles_are_mentions,
)
from mmd.recommend.graph import build_item_graph
from mmd.recommend.linking import Linker, link_dialogue
from mmd.recommend.settings import GraphSettings
from mmd.recommend.types import LinkedDialogue, LinkedTurn
from mmd.schema import Dialogue, Item, Turn

ITEMS = {"1": Item("1", "Blue Mug"), "2": Item("2", "Red Mug"), "3": Item("3", "")}
ANSWERED = Dialogue("d1", "t", "train", (Turn("user", "a mug?"), Turn("agent", "the Red Mug", item_ids=("2",))))
UNSTATED = Dialogue("d2", "t", "train", (Turn("user", "a mug?"), Turn("agent", "the Red Mug")))
SMALL_TALK = Dialogue("d3", "t", "train", (Turn("user", "Red Mug?"), Turn("agent", "Sorry?")))
GREETED = Dialogue("d4", "t", "train", (Turn("agent", "Take @1", item_ids=("1",)), Turn("user", "no")))


def write_corpus(folder: Path, *dialogues: Dialogue, items: Mapping[str, Item] = ITEMS) -> Artifact:
    store = ArtifactStore(str(folder))
    with store.write("corpus", "c", settings={"dialogues": [d.id for d in dialogues]}) as writer:
        rows = [schema.dialogue_to_row(dialogue) for dialogue in dialogues]
        writer.write_table("dialogues", pa.Table.from_pylist(rows, schema=schema.DIALOGUES), rows_per_shard=1)
        rows = [schema.item_to_row(item) for item in items.values()]
        writer.write_table("items", pa.Table.from_pylist(rows, schema=schema.ITEMS))
    return store.open("corpus/c")


def test_a_linked_dialogue_survives_its_row():
    dialogue = LinkedDialogue("d", "test", (LinkedTurn("user", ("hi ", 0, "", 7), (3, 1)), LinkedTurn("agent", (), ())))
    table = pa.Table.from_pylist([linked_to_row(dialogue)], schema=LINKED)
    assert linked_from_row(table.to_pylist()[0]) == dialogue


def test_rows_are_linked_as_dialogues_are():
    """The batch callable gives what linking dialogue by dialogue gives."""
    linker = Linker(build_item_graph(Graph(), ITEMS, GraphSettings()), GraphSettings())
    dialogues = [ANSWERED, UNSTATED, SMALL_TALK, GREETED]
    rows = LinkRows(linker)
    linked = rows(pa.Table.from_pylist([schema.dialogue_to_row(d) for d in dialogues], schema=schema.DIALOGUES))
    assert [linked_from_row(row) for row in linked.to_pylist()] == [link_dialogue(d, linker) for d in dialogues]
    assert rows.coverage.counts["train/responses"] == 3  # the greeting has no context
    assert rows.coverage.counts["train/agent_mentions"] == 1
    assert rows.coverage.counts["items_stated"] == 2


def test_denominators_of_one_dialogue():
    turns = [LinkedTurn("user", (1,), ()), LinkedTurn("agent", (1, 2), ()), LinkedTurn("user", (2, 5), ())]
    assert count_samples(LinkedDialogue("d", "test", tuple(turns))) == {
        "test/dialogues": 1,
        "test/responses": 1,
        "test/rec_responses": 1,
        "test/mentions": 4,
        "test/agent_mentions": 2,
        "test/agent_novel_mentions": 1,
    }


@pytest.mark.parametrize(
    ("dialogues", "stated"), [((UNSTATED, ANSWERED), True), ((UNSTATED, SMALL_TALK), False), ((), False)]
)
def test_titles_are_mentions_where_the_corpus_states_no_items(
    tmp_path: Path,
    dialogues: tuple[Dialogue, ...],
    stated: bool,  # noqa: FBT001 (a table's column)
):
    artifact = write_corpus(tmp_path, *dialogues)
    assert states_items(artifact) is stated
    corpus = Corpus(artifact)
    assert titles_are_mentions(GraphSettings(), corpus) is not stated
    assert titles_are_mentions(GraphSettings(items="titles"), corpus)
    assert not titles_are_mentions(GraphSettings(items="stated"), corpus)


@pytest.mark.parametrize(
    ("dialogues", "named"),
    [
        ((ANSWERED,), True),
        ((UNSTATED,), True),  # by title
        ((ANSWERED, UNSTATED), True),
        ((SMALL_TALK,), False),  # only the user names an item
        ((GREETED,), False),  # nothing is said before it
        ((), False),
    ],
)
def test_a_corpus_names_items_when_an_answer_of_the_agent_does(
    tmp_path: Path,
    dialogues: tuple[Dialogue, ...],
    named: bool,  # noqa: FBT001 (a table's column)
):
    assert names_items(Corpus(write_corpus(tmp_path, *dialogues)), GraphSettings()) is named


def test_a_corpus_without_items_names_none(tmp_path: Path):
    assert not names_items(Corpus(write_corpus(tmp_path, ANSWERED, items={})), GraphSettings())


def test_an_artefact_of_another_kind_is_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match="mmd build_graph"):
        Conversations(write_corpus(tmp_path, ANSWERED))
