"""build_graph: from a corpus to linked dialogues; spread over processes the result is the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import build_graph
from jobs.glue.entry import JobContext
from mmd import schema
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import build_config
from mmd.corpora.settings import ShopSettings
from mmd.corpora.shop import ShopReader
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError
from mmd.recommend.conversations import SUMMARY_FILE, Conversations
from mmd.recommend.graph import build_item_graph
from mmd.recommend.linking import Coverage, Linker, link_dialogue
from mmd.recommend.samples import mention_samples
from mmd.recommend.settings import ConversationSettings, GraphSettings

SHARD_ROWS = 16


@pytest.fixture
def context(tiny_store: Path, tmp_path: Path) -> JobContext:
    """The tiny shop with its graph, dialogues in several shards."""
    before, store = Corpus(ArtifactStore(str(tiny_store)).open("corpus/tiny")), ArtifactStore(str(tmp_path / "store"))
    graph = ShopReader(ShopSettings(dialogues=90, items=12, image_side_px=96), seed=7).graph()
    with store.write("corpus", "shop", settings={}) as writer:
        for name, rows, columns in (
            ("dialogues", map(schema.dialogue_to_row, before.dialogues()), schema.DIALOGUES),
            ("items", map(schema.item_to_row, before.items().values()), schema.ITEMS),
            ("entities", map(asdict, graph.entities), schema.ENTITIES),
            ("triples", map(asdict, graph.triples), schema.TRIPLES),
            ("item_links", map(asdict, graph.links), schema.ITEM_LINKS),
        ):
            writer.write_table(name, pa.Table.from_pylist(list(rows), schema=columns), SHARD_ROWS)
    return JobContext(build_config({"store": store.uri}))


def linked_plainly(artifact: Artifact) -> list[object]:
    corpus, settings = Corpus(artifact), GraphSettings()
    linker = Linker(build_item_graph(corpus.graph(), corpus.items(), settings), settings)
    return [link_dialogue(dialogue, linker) for dialogue in corpus.dialogues()]


def test_the_job_links_as_a_plain_loop_does(context: JobContext):
    artifact = build_graph.run(context)
    conversations = Conversations(artifact)
    assert conversations.dialogues() == linked_plainly(context.open("corpus"))
    assert [d.id for d in conversations.dialogues("test")] == [
        d.id for d in Corpus(context.open("corpus")).dialogues("test")
    ]
    assert conversations.graph.n_items == 12
    assert "bought_with" in conversations.graph.relations
    assert len(artifact.shards("dialogues")) > 1


def test_the_summary_counts_what_is_there(context: JobContext):
    artifact = build_graph.run(context)
    summary = artifact.read_json(SUMMARY_FILE)
    corpus, conversations = Corpus(context.open("corpus")), Conversations(artifact)
    stated = sum(len(turn.item_ids) for dialogue in corpus.dialogues() for turn in dialogue.turns)
    assert summary["linked"]["items_stated"] == stated > 0
    assert summary["graph"]["edges_kept"] == len(conversations.graph.edges)
    found = [
        m for d in conversations.dialogues("train") for m in mention_samples(d, ConversationSettings(), ("agent",))
    ]
    assert summary["denominators"]["train"]["agent_mentions"] == len(found) > 0
    assert artifact.manifest.metrics["train.agent_novel_mentions"] == sum(mention.novel for mention in found)


def test_an_online_turn_is_linked_as_the_dialogues_were(context: JobContext):
    artifact = build_graph.run(context)
    linker = Conversations(artifact).linker
    dialogues = Corpus(context.open("corpus")).dialogues()
    assert [link_dialogue(dialogue, linker) for dialogue in dialogues] == Conversations(artifact).dialogues()


def test_an_unchanged_corpus_is_linked_once(context: JobContext):
    assert build_graph.run(context).manifest == build_graph.run(context).manifest


@pytest.mark.ray
def test_spread_over_processes_the_result_is_the_same_byte_for_byte(
    context: JobContext, ray_local: None, monkeypatch: pytest.MonkeyPatch
):
    alone = build_graph.run(context)
    monkeypatch.setattr(build_graph, "SPREAD_FROM", 1)
    spread = build_graph.run(JobContext(context.config, force=True))
    assert spread.manifest.created_unix_s > alone.manifest.created_unix_s
    assert spread.manifest.files == alone.manifest.files


def test_items_that_the_catalogue_lacks_and_a_silent_agent_are_noted():
    coverage = Coverage(Counter({"train/agent_mentions": 0}), unknown=Counter({"p9": 3, "p8": 1}))
    lacking, silent = build_graph.notes(coverage)
    assert "4 stated mentions are of 2 items that the catalogue lacks, such as p9, p8" in lacking
    assert "recommend.graph.items=titles" in silent
    assert not list(build_graph.notes(Coverage(Counter({"train/agent_mentions": 1}))))


def test_a_corpus_without_items_is_refused(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    with store.write("corpus", "shop", settings={}) as writer:
        writer.write_json("tasks.json", {})
    with pytest.raises(CorpusError, match="no items"):
        build_graph.run(JobContext(build_config({"store": str(tmp_path)})))
    assert not store.find("graph")


@pytest.mark.real_data
@pytest.mark.slow
def test_redials_denominators_are_those_of_the_literature(tmp_path: Path, real_data: Path):
    """One sample a film mention of a recommender's turn with a context: 2,510 in the test part here, 2,274 novel."""
    from mmd.corpora.plain import ingest_plain
    from mmd.corpora.redial import RedialReader
    from mmd.corpora.settings import LimitSettings

    reader = RedialReader(real_data / "redial")
    tables = ingest_plain(reader, LimitSettings())
    graph = reader.graph()
    store = ArtifactStore(str(tmp_path))
    with store.write("corpus", "redial", settings={}) as writer:
        for name in ("dialogues", "items"):
            writer.write_table(name, tables[name])
        for name, rows, columns in (
            ("entities", graph.entities, schema.ENTITIES),
            ("triples", graph.triples, schema.TRIPLES),
            ("item_links", graph.links, schema.ITEM_LINKS),
        ):
            writer.write_table(name, pa.Table.from_pylist([asdict(row) for row in rows], schema=columns))
    values = {"store": str(tmp_path), "data": {"corpus": {"name": "redial", "reader": "redial"}}}
    artifact = build_graph.run(JobContext(build_config(values)))
    metrics = artifact.manifest.metrics
    assert (metrics["test.agent_mentions"], metrics["test.agent_novel_mentions"]) == (2_510, 2_274)
    graph_counts = artifact.read_json(SUMMARY_FILE)["graph"]
    assert (graph_counts["relations_kept"], graph_counts["edges_kept"]) == (26, 141_236)
    sizes = Corpus(store.open("corpus/redial")).graph().triples
    assert min(sum(t.relation == r for t in sizes) for r in Conversations(artifact).graph.relations) > 1_000
