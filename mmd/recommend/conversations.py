"""The graph artefact: an item graph and the corpus's dialogues linked to it.

Tables: those of :mod:`mmd.recommend.graph`, and ``dialogues`` (:data:`LINKED`), a shard for each shard of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmd.artifacts import Artifact
from mmd.recommend.graph import ItemGraph, load_graph
from mmd.recommend.linking import Coverage, Linker, link_measured
from mmd.recommend.samples import mention_samples, response_samples
from mmd.recommend.settings import ConversationSettings, GraphSettings
from mmd.recommend.types import LinkedDialogue, LinkedTurn
from mmd.schema import Split, dialogue_from_row

DIALOGUES = "dialogues"
LINKING_FILE = "linking.json"
"""How the dialogues were linked: ``settings`` and ``titles``, so that an online turn is linked in the same way."""
SUMMARY_FILE = "summary.json"

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
        table = self.artifact.read_table(DIALOGUES, LINKED)
        if split is not None:
            table = table.filter(pc.equal(table["split"], split))
        return [linked_from_row(row) for row in table.to_pylist()]


class LinkRows:
    """Links batches of dialogues: rows of a corpus in, linked rows out.

    Args:
        linker: to the item graph.
        settings: of the samples that are counted.
    """

    requires = frozenset({"id", "source", "split", "turns", "labels", "meta"})

    def __init__(self, linker: Linker, settings: ConversationSettings) -> None:
        self._linker = linker
        self._settings = settings
        self.coverage = Coverage()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Link a batch of :data:`mmd.schema.DIALOGUES` rows to :data:`LINKED` rows, adding to ``coverage``."""
        rows = []
        for row in batch.to_pylist():
            linked, coverage = link_measured(dialogue_from_row(row), self._linker)
            coverage.counts.update(count_samples(linked, self._settings))
            self.coverage.add(coverage)
            rows.append(linked_to_row(linked))
        return pa.Table.from_pylist(rows, schema=LINKED)


def count_samples(dialogue: LinkedDialogue, settings: ConversationSettings) -> dict[str, int]:
    """Return what a dialogue adds to the denominators: keys are ``split/name``."""
    mentions = mention_samples(dialogue, settings)
    of_agent = [mention for mention in mentions if mention.speaker == "agent"]
    responses = response_samples(dialogue, settings)
    counts = {
        "dialogues": 1,
        "responses": len(responses),
        "responses that name an item": sum(response.mode == "rec" for response in responses),
        "mentions": len(mentions),
        "agent's mentions": len(of_agent),
        "agent's novel mentions": sum(mention.novel for mention in of_agent),
    }
    return {f"{dialogue.split}/{name}": count for name, count in counts.items()}


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
