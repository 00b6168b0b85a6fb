"""Linking of a corpus shard by shard, in the driver and in Ray Data's actors.

A module of its own, since Ray pickles what a job's ``__main__`` defines by value, with all that its globals hold.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from mmd.artifacts import ArtifactStore
from mmd.recommend.conversations import LinkRows
from mmd.recommend.graph import ItemGraph
from mmd.recommend.linking import Coverage, Linker
from mmd.recommend.settings import GraphSettings


@dataclass(frozen=True)
class LinkPlan:
    """What linking a corpus takes; small enough to go with every process.

    Attributes:
        store: URI that workers find the store by.
        corpus: reference of the corpus.
        target: folder that linked shards are written to.
        settings: which names are linked.
        titles: whether titles in the text are mentions.
    """

    store: str
    corpus: str
    target: str
    settings: GraphSettings
    titles: bool


class ShardLinker:
    """A process with a warm linker: names of shards in, linked shards on disk, what was found out."""

    def __init__(self, plan: LinkPlan, graph: ItemGraph) -> None:
        self._plan = plan
        self._corpus = ArtifactStore(plan.store).open(plan.corpus, verify=False)
        self._linker = Linker(graph, plan.settings, titles=plan.titles)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Link the shards of a batch (column ``shard``)."""
        found = [self.link(shard) for shard in batch["shard"].to_pylist()]
        rows = [{"found": json.dumps(vars(one))} for one in found]
        return pa.Table.from_pylist(rows, pa.schema([("found", pa.string())]))

    def link(self, shard: str) -> Coverage:
        """Link one shard of the corpus's dialogues into one of the same name."""
        with self._corpus.fs.open(f"{self._corpus.root}/{shard}", "rb") as handle:
            table = pq.read_table(handle)
        rows = LinkRows(self._linker)
        linked = rows(table)
        fs, folder = fsspec.core.url_to_fs(self._plan.target)
        fs.makedirs(folder, exist_ok=True)
        with fs.open(f"{folder}/{shard.rsplit('/', 1)[-1]}", "wb") as handle:
            pq.write_table(linked, handle, compression="zstd")
        return rows.coverage


def coverage_of(found: str) -> Coverage:
    """Return what a process found, from the text that it sent."""
    return Coverage(**{name: Counter(counts) for name, counts in json.loads(found).items()})
