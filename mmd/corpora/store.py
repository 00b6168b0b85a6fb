"""Reading a corpus artefact: dialogues, pictures, items and graph as records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmd import schema
from mmd.artifacts import Artifact
from mmd.corpora.base import Graph
from mmd.errors import ArtifactError
from mmd.schema import Dialogue, Entity, Image, Item, ItemLink, Split, Triple

TASKS_FILE = "tasks.json"
SUMMARY_FILE = "summary.json"
_IMAGES_A_BATCH = 32


class Corpus:
    """A corpus that ``ingest`` wrote.

    Args:
        artifact: of kind ``corpus``.

    Raises:
        ArtifactError: the artefact is of another kind.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact.of_kind("corpus", "open corpus/NAME, which `mmd ingest` writes.")

    @cached_property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Task → its labels, in the corpus's order."""
        return {task: tuple(labels) for task, labels in self.artifact.read_json(TASKS_FILE).items()}

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """What ``ingest`` read, wrote and quarantined."""
        return cast("Mapping[str, Any]", self.artifact.read_json(SUMMARY_FILE))

    @property
    def simulated(self) -> bool:
        """Is all of it drawn, so that it may be shown to anyone? Not a shop over somebody's own catalogue."""
        settings = self.artifact.manifest.settings
        return settings.get("reader") == "shop" and not settings.get("sources") and not _catalogue(settings)

    def dialogues(self, split: Split | None = None) -> list[Dialogue]:
        """Return the dialogues of one split, or all, in reading order."""
        table = self.artifact.read_table("dialogues", schema.DIALOGUES)
        if split is not None:
            table = table.filter(pc.equal(table["split"], split))
        return [schema.dialogue_from_row(row) for row in table.to_pylist()]

    def image_table(self, columns: list[str] | None = None) -> pa.Table:
        """Return columns of the image table; None is all of them, the pictures' bytes included."""
        return self.artifact.read_table("images", schema.IMAGES, columns)

    def images(self, ids: Iterable[str] | None = None) -> Iterator[Image]:
        """Yield pictures in stored order, holding only a few in memory.

        Args:
            ids: yield only these.

        Raises:
            ArtifactError: pictures of ``ids`` are not in the corpus (after the others were yielded).
        """
        wanted = None if ids is None else set(ids)
        for shard in self.artifact.shards("images"):
            if wanted is not None and not wanted:
                return
            with self.artifact.fs.open(f"{self.artifact.root}/{shard}", "rb") as handle:
                yield from _matching(pq.ParquetFile(handle), wanted)
        if wanted:
            raise ArtifactError(
                f"{self.artifact.ref}: has no picture {min(wanted)} (and {len(wanted) - 1} others); "
                "take ids from this corpus's own dialogues or items."
            )

    def items(self) -> dict[str, Item]:
        """Return id → item, in catalogue order."""
        rows = self.artifact.read_table("items", schema.ITEMS).to_pylist()
        return {row["id"]: schema.item_from_row(row) for row in rows}

    def graph(self) -> Graph:
        """Return the knowledge graph, empty if the corpus has none."""
        return Graph(
            entities=tuple(Entity(**row) for row in self._rows("entities", schema.ENTITIES)),
            triples=tuple(Triple(**row) for row in self._rows("triples", schema.TRIPLES)),
            links=tuple(ItemLink(**row) for row in self._rows("item_links", schema.ITEM_LINKS)),
        )

    def quarantine(self) -> pa.Table:
        """Return the refused records with source, position, reason, detail and raw bytes."""
        return self.artifact.read_table("quarantine", schema.QUARANTINE)

    def _rows(self, folder: str, columns: pa.Schema) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self.artifact.read_table(folder, columns).to_pylist())


def _catalogue(settings: Mapping[str, Any]) -> str | None:
    return (settings.get("shop") or {}).get("catalogue_csv")


def _matching(file: pq.ParquetFile, wanted: set[str] | None) -> Iterator[Image]:
    """Yield a shard's pictures; those found are taken out of ``wanted``."""
    if wanted is not None and wanted.isdisjoint(file.read(columns=["id"])["id"].to_pylist()):
        return
    for batch in file.iter_batches(batch_size=_IMAGES_A_BATCH):
        chosen = batch if wanted is None else batch.filter(pc.is_in(batch["id"], pa.array(sorted(wanted), pa.string())))
        for row in chosen.to_pylist():
            if wanted is not None:
                wanted.discard(row["id"])
            yield schema.image_from_row(row)
