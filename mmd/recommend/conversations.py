"""The graph artefact: an item graph and the corpus's dialogues linked to it.

Tables: those of :mod:`mmd.recommend.graph`, and ``dialogues`` (:data:`LINKED`), a shard for each shard of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmd.artifacts import Artifact
from mmd.corpora.base import Graph
from mmd.corpora.store import Corpus
from mmd.recommend.graph import ItemGraph, build_item_graph, load_graph
from mmd.recommend.linking import Coverage, Linker, link_dialogue, link_measured
from mmd.recommend.samples import mention_samples, response_samples
from mmd.recommend.settings import ConversationSettings, GraphSettings
from mmd.recommend.types import LinkedDialogue, LinkedTurn
from mmd.schema import Split, dialogue_from_row

DIALOGUES = "dialogues"
LINKING_FILE = "linking.json"
"""How the dialogues were linked: ``settings`` and ``titles``, so that an online turn is linked in the same way."""
SUMMARY_FILE = "summary.json"
SAMPLE_COUNTS = ("dialogues", "responses", "rec_responses", "mentions", "agent_mentions", "agent_novel_mentions")
"""Denominators. ``responses``: agent's turns with a context, ``rec_responses`` those naming an item; ``mentions``: of
both speakers in turns with a context, ``agent_mentions`` the agent's, ``agent_novel_mentions`` of items that no prior
turn mentions."""

_PART = pa.struct([("text", pa.string()), ("item", pa.int32())])
_TURN = pa.struct(
    [("speaker", pa.string()), ("parts", pa.list_(_PART)), ("entities", pa.list_(pa.int32()))],
)
LINKED = pa.schema([("id", pa.string()), ("split", pa.string()), ("turns", pa.list_(_TURN))])
"""Linked dialogues; of a part either ``text`` or ``item`` is null."""


class Conversations:
    """What ``build_graph`` wrote.

    Args:
        artifact: of kind ``graph``.

    Raises:
        ArtifactError: the artefact is of another kind.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact.of_kind("graph", "open graph/NAME, which `mmd build_graph` writes.")

    @cached_property
    def graph(self) -> ItemGraph:
        """The item graph."""
        return load_graph(self.artifact)

    @cached_property
    def linker(self) -> Linker:
        """The linker that the dialogues were linked by."""
        how = self.artifact.read_json(LINKING_FILE)
        return Linker(self.graph, GraphSettings.model_validate(how["settings"]), titles=how["titles"])

    def dialogues(self, split: Split | None = None) -> list[LinkedDialogue]:
        """Return the linked dialogues of one split, or all, in the corpus's order."""
        return [linked_from_row(row) for row in _rows(self.artifact, split)]


class LinkRows:
    """Links batches of dialogues: rows of a corpus in, linked rows out.

    Args:
        linker: to the item graph.
    """

    def __init__(self, linker: Linker) -> None:
        self._linker = linker
        self.coverage = Coverage()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Link a batch of :data:`mmd.schema.DIALOGUES` rows to :data:`LINKED` rows, adding to ``coverage``."""
        rows = []
        for row in batch.to_pylist():
            linked, coverage = link_measured(dialogue_from_row(row), self._linker)
            coverage.counts.update(count_samples(linked))
            self.coverage.add(coverage)
            rows.append(linked_to_row(linked))
        return pa.Table.from_pylist(rows, schema=LINKED)


def count_samples(dialogue: LinkedDialogue) -> dict[str, int]:
    """Return what a dialogue adds to the denominators: keys are ``split/name``, names those of SAMPLE_COUNTS."""
    settings = ConversationSettings()  # cuts contexts, which changes no count
    mentions = mention_samples(dialogue, settings)
    of_agent = [mention for mention in mentions if mention.speaker == "agent"]
    responses = response_samples(dialogue, settings)
    counted = (
        1,
        len(responses),
        sum(response.mode == "rec" for response in responses),
        len(mentions),
        len(of_agent),
        sum(mention.novel for mention in of_agent),
    )
    return {f"{dialogue.split}/{name}": count for name, count in zip(SAMPLE_COUNTS, counted, strict=True)}


def states_items(corpus: Artifact) -> bool:
    """Say whether a corpus states for any turn which items it mentions."""
    for table in _tables(corpus, ["turns"]):
        turns = pc.list_flatten(table["turns"])
        if pc.sum(pc.list_value_length(pc.struct_field(turns, "item_ids"))).as_py():
            return True
    return False


def names_items(corpus: Corpus, settings: GraphSettings) -> bool:
    """Say whether any training dialogue has an answer that names an item, so that there is something to learn."""
    items = corpus.items()
    if not items:
        return False
    alone = settings.model_copy(update={"link_text": False})
    linker = Linker(build_item_graph(Graph(), items, alone), alone, titles=titles_are_mentions(settings, corpus))
    dialogues = (dialogue_from_row(row) for row in _rows(corpus.artifact, "train"))
    counts = (count_samples(link_dialogue(dialogue, linker)) for dialogue in dialogues)
    return any(count["train/agent_mentions"] for count in counts)


def titles_are_mentions(settings: GraphSettings, corpus: Corpus) -> bool:
    """Say whether titles in the text are mentions, and not only what the corpus states for a turn."""
    return settings.items == "titles" or (settings.items == "auto" and not states_items(corpus.artifact))


def _tables(artifact: Artifact, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the shards of an artefact's dialogues, one in memory at a time."""
    for shard in artifact.shards(DIALOGUES):
        with artifact.fs.open(f"{artifact.root}/{shard}", "rb") as handle:
            yield pq.read_table(handle, columns=columns)


def _rows(artifact: Artifact, split: Split | None) -> Iterator[dict[str, Any]]:
    """Yield the dialogues of one split, or all, as rows."""
    for table in _tables(artifact):
        chosen = table if split is None else table.filter(pc.equal(table["split"], split))
        yield from chosen.to_pylist()


def linked_to_row(dialogue: LinkedDialogue) -> dict[str, Any]:
    """Convert a linked dialogue to a row of :data:`LINKED`."""
    return {
        "id": dialogue.id,
        "split": dialogue.split,
        "turns": [
            {
                "speaker": turn.speaker,
                "parts": [
                    {"text": None, "item": part} if isinstance(part, int) else {"text": part, "item": None}
                    for part in turn.parts
                ],
                "entities": list(turn.entities),
            }
            for turn in dialogue.turns
        ],
    }


def linked_from_row(row: Mapping[str, Any]) -> LinkedDialogue:
    """Invert :func:`linked_to_row`."""
    return LinkedDialogue(row["id"], row["split"], tuple(_turns(row["turns"])))


def _turns(rows: list[dict[str, Any]]) -> Iterator[LinkedTurn]:
    for row in rows:
        parts = tuple(part["text"] if part["item"] is None else part["item"] for part in row["parts"])
        yield LinkedTurn(row["speaker"], parts, tuple(row["entities"]))
