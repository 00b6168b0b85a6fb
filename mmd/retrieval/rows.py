"""Samples as self-contained rows: query, right response and keys, which a loader streams and joins with nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from mmd import schema
from mmd.retrieval.facts import Facts
from mmd.retrieval.samples import find_samples
from mmd.retrieval.settings import SampleSettings
from mmd.retrieval.types import RESPONSES, Query, Response, Sample

ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("dialogue_id", pa.string()),
        ("split", pa.string()),
        ("modality", pa.string()),
        ("also", pa.list_(pa.string())),
        ("chat", pa.string()),
        ("turns", schema.DIALOGUES.field("turns").type),
        ("response", pa.struct(list(RESPONSES))),
    ]
)
KEY_COLUMNS = ["id", "dialogue_id", "split", "modality", "also", "chat", "response"]


def row_of(sample: Sample, response: Response) -> dict[str, Any]:
    """Return the row that :func:`sample_of` and :func:`response_of` read back."""
    dialogue = schema.Dialogue(sample.dialogue_id, "", sample.split, sample.query.turns)
    return {
        "id": sample.id,
        "dialogue_id": sample.dialogue_id,
        "split": sample.split,
        "modality": sample.modality,
        "also": list(sample.also),
        "chat": sample.chat,
        "turns": schema.dialogue_to_row(dialogue)["turns"],
        "response": {name: getattr(response, name) for name in RESPONSES.names},
    }


def response_of(row: Mapping[str, Any]) -> Response:
    """Return a row's right response."""
    return Response(**row["response"])


def sample_of(row: Mapping[str, Any]) -> Sample:
    """Return a row's sample; its query is empty where the row has no turns (:data:`KEY_COLUMNS`)."""
    turns = schema.dialogue_from_row(
        {"id": row["dialogue_id"], "source": "", "split": row["split"], "turns": row.get("turns", ())}
        | {"labels": (), "meta": ()}
    ).turns
    return Sample(
        id=row["id"],
        dialogue_id=row["dialogue_id"],
        split=row["split"],
        query=Query(turns),
        modality=row["modality"],
        response_id=row["response"]["id"],
        also=tuple(row["also"]),
        chat=row.get("chat"),
    )


class FindRows:
    """Dialogues in, rows of their training samples out, a block at a time. Test dialogues have none here.

    Args:
        facts: of the corpus.
        settings: what is a sample.
    """

    def __init__(self, facts: Facts, settings: SampleSettings) -> None:
        self._facts, self._settings = facts, settings

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return rows of :data:`ROWS`."""
        dialogues = (schema.dialogue_from_row(row) for row in block.to_pylist())
        found = find_samples((d for d in dialogues if d.split == "train"), self._facts, self._settings)
        rows: Iterable[dict[str, Any]] = (row_of(s, found.responses[s.response_id]) for s in found.samples)
        return pa.Table.from_pylist(list(rows), schema=ROWS)
