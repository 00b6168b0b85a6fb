"""Read a corpus into validated, deduplicated Parquet shards; bad records go to quarantine with their reason.

Any reader's corpus becomes one artefact corpus/NAME: tables dialogues, images (each distinct picture once, addressed
by the SHA-256 of its bytes), items, entities, triples, item_links and quarantine (source, position, reason, raw
record), with tasks.json and summary.json. Bad records never stop the job unless their share exceeds
data.max_bad_fraction; fix the source and run again to take them in. Of records that share an id the first in reading
order is kept: an equal one is counted as a duplicate, a different one is quarantined.

The result is the same, byte for byte, on any number of processes. An unchanged corpus with unchanged settings is
skipped. Interrupted, the job leaves nothing visible behind.

    mmd ingest                                          the built-in shop corpus
    mmd ingest --corpus taobao=../shared/data/taobao
    mmd ingest --corpus mine:chat=chats --set data.max_bad_fraction=0.2
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from jobs.glue.cluster import quiet_data, ray_cluster, worker_errors
from jobs.glue.entry import JobContext, main
from jobs.glue.nodes import worker_count
from jobs.glue.progress import progress
from jobs.glue.storage import require_visible
from mmd import schema
from mmd.artifacts import Artifact, ArtifactWriter, version_for
from mmd.corpora.base import CorpusReader, Graph, Part
from mmd.corpora.registry import build_reader
from mmd.corpora.settings import DataSettings, LimitSettings
from mmd.corpora.sources import source_fingerprint
from mmd.corpora.staging import (
    Merge,
    PartStager,
    Receipt,
    Shard,
    copy_shard,
    merge,
    plan_shards,
    quarantined_rows,
    write_quarantine,
)
from mmd.corpora.store import SUMMARY_FILE, TASKS_FILE
from mmd.corpora.validate import Tasks
from mmd.errors import CorpusError

_STAGING = "staging"
_MAX_BLOCKS = 2_000  # pieces of work are small; more blocks only cost bookkeeping
_EXAMPLES_A_REASON = 3
_REASONS_SHOWN = 8


def run(context: JobContext) -> Artifact:
    """Write corpus/NAME unless the same corpus and settings were ingested before."""
    config = context.config
    reader = build_reader(config.data, config.seed)
    parts = reader.plan()
    settings = version_settings(config.data, reader, skip=config.store if "://" not in config.store else None)
    seeds = {"seed": config.seed} if config.data.corpus.reader == "shop" else {}
    if found := context.existing("corpus", settings, {}, seeds):
        return found
    with ray_cluster(config.cluster):
        require_visible(source_paths(config.data, reader))
        with context.store.write(
            "corpus", context.name, settings=settings, seeds=seeds, replace=context.force
        ) as writer:
            Ingest(reader, parts, config.data, writer, context.options.get("workers")).run()
    return context.store.open(f"corpus/{context.name}@{version_for('corpus', settings, {}, seeds)}", verify=False)


def version_settings(data: DataSettings, reader: CorpusReader, skip: str | None = None) -> dict[str, Any]:
    """Return what determines the corpus: reader, limits, shards, and a fingerprint of the source files.

    Args:
        data: settings.
        reader: built from them.
        skip: folder that is no source even if it lies in the corpus folder.
    """
    is_shop = data.corpus.reader == "shop"
    return {
        "reader": data.corpus.reader,
        "sources": source_fingerprint(source_paths(data, reader), skip),
        "max_bad_fraction": data.max_bad_fraction,
        "shard_rows": data.shard_rows,
        "limits": data.limits.model_dump(mode="json"),
        "shop": data.shop.model_dump(mode="json", exclude={"catalogue_csv", "catalogue_images"}) if is_shop else None,
    }


def source_paths(data: DataSettings, reader: CorpusReader) -> list[str | Path]:
    """Return the files and folders that are read; a simulated corpus has none."""
    paths: list[str | Path] = [reader.root] if reader.root else []
    if data.corpus.reader == "shop" and data.shop.catalogue_csv:
        table = Path(data.shop.catalogue_csv)
        paths += [table, data.shop.catalogue_images or table.parent / "images"]
    return paths


class Ingest:
    """One run: stage the parts, merge, check the share of bad records, write the tables.

    Args:
        reader: of the corpus.
        parts: its plan.
        data: settings.
        writer: of the artefact.
        workers: processes; None takes as many as the cluster has cores for.
    """

    def __init__(
        self,
        reader: CorpusReader,
        parts: Sequence[Part],
        data: DataSettings,
        writer: ArtifactWriter,
        workers: int | None = None,
    ) -> None:
        self._reader = reader
        self._parts: dict[int, Part | None] = {**dict(enumerate(parts)), len(parts): None}  # None: the catalogue
        self._data = data
        self._writer = writer
        self._workers = workers or worker_count()
        self._tasks = {task: tuple(labels) for task, labels in reader.tasks().items()}

    def run(self) -> None:
        """Fill the writer.

        Raises:
            CorpusError: there are no records, or too many bad ones.
        """
        receipts = self._stage()
        merged = merge(receipts)
        counts = count(receipts, merged)
        check_share(counts, receipts, self._data)
        self._copy(merged)
        bad = quarantined_rows(self._reader, self._parts, receipts, merged.conflicts, self._folder)
        written = write_quarantine(bad, self._writer.path(), self._data.shard_rows)
        if written != sum(c.quarantined for c in counts.values()):
            raise RuntimeError(f"{written} rows went to quarantine, {counts} were counted")
        self._write_graph(self._reader.graph())
        self._summarise(counts, receipts, merged)
        self._writer.remove(_STAGING)

    @property
    def _folder(self) -> str:
        return self._writer.path(_STAGING)

    def _stage(self) -> list[Receipt]:
        """Pass 1; receipts come back in reading order whichever worker was faster."""
        # The catalogue first: it is one piece, often the longest.
        pieces = [{"part": i} for i in sorted(self._parts, key=lambda i: self._parts[i] is not None)]
        setup = (self._reader, self._parts, self._tasks, self._data.limits, self._folder)
        receipts = []
        with progress("read and check", len(pieces), "parts") as advance:
            for row in spread(pieces, StageWorker, setup, self._workers):
                receipt = Receipt(**row)
                receipts.append(receipt)
                advance(records=receipt.read, pictures=receipt.decoded, bad=len(receipt.bad_seqs))
        return sorted(receipts, key=lambda receipt: receipt.part)

    def _copy(self, merged: Merge) -> None:
        """Pass 2."""
        shards = [s for table, rows in merged.kept.items() for s in plan_shards(table, rows, self._data.shard_rows)]
        setup = (self._folder, self._writer.path())
        with progress("write", len(shards), "shards") as advance:
            for row in spread([asdict(shard) for shard in shards], copy_shards, setup, self._workers):
                advance(rows=row["rows"])

    def _write_graph(self, graph: Graph) -> None:
        tables: Mapping[str, tuple[Iterable[Any], pa.Schema]] = {
            "entities": (graph.entities, schema.ENTITIES),
            "triples": (graph.triples, schema.TRIPLES),
            "item_links": (graph.links, schema.ITEM_LINKS),
        }
        for name, (rows, columns) in tables.items():
            self._writer.write_table(name, pa.Table.from_pylist([asdict(row) for row in rows], columns))

    def _summarise(self, counts: Mapping[str, Counts], receipts: Sequence[Receipt], merged: Merge) -> None:
        reasons = Counter(reason for receipt in receipts for reason in receipt.bad_reasons)
        reasons["duplicate_id"] += sum(len(found) for found in merged.conflicts.values())
        images = merged.kept["images"]
        summary = {
            **{table: asdict(c) for table, c in counts.items()},
            "images": {"written": len(images), "bytes": sum(image.size for image in images)},
            "quarantine_reasons": dict(sorted((+reasons).items())),
        }
        self._writer.write_json(SUMMARY_FILE, summary)
        self._writer.write_json(TASKS_FILE, self._tasks)
        self._writer.metrics |= {
            **{f"dialogues_{name}": n for name, n in asdict(counts["dialogues"]).items()},
            **{f"items_{name}": n for name, n in asdict(counts["items"]).items() if counts["items"].read},
            "images": len(images),
            **{f"quarantined.{reason}": n for reason, n in sorted((+reasons).items())},
        }


@dataclass(frozen=True)
class Counts:
    """Where the records of one kind went; read = written + quarantined + duplicates."""

    read: int
    written: int
    quarantined: int
    duplicates: int


def count(receipts: Iterable[Receipt], merged: Merge) -> dict[str, Counts]:
    """Count dialogues and items, and check that none was lost or doubled."""
    counts = {}
    by_table: dict[str, list[Receipt]] = {"dialogues": [], "items": []}
    for receipt in receipts:
        by_table[receipt.table].append(receipt)
    for table, some in by_table.items():
        bad = sum(len(r.bad_seqs) + len(merged.conflicts.get(r.part, {})) for r in some)
        counted = Counts(sum(r.read for r in some), len(merged.kept[table]), bad, merged.duplicates[table])
        if counted.read != counted.written + counted.quarantined + counted.duplicates:
            raise RuntimeError(f"{table} are not conserved: {counted}")
        counts[table] = counted
    return counts


def check_share(counts: Mapping[str, Counts], receipts: Sequence[Receipt], data: DataSettings) -> None:
    """Refuse a corpus without records or with too many bad ones.

    Raises:
        CorpusError: with the most frequent reasons and where to find examples.
    """
    where = data.corpus.path or data.corpus.name
    if not counts["dialogues"].read:
        raise CorpusError(f"{where}: holds no records that the {data.corpus.reader} reader reads; check data.corpus.")
    for table, c in counts.items():
        share = c.quarantined / c.read if c.read else 0.0
        if share > data.max_bad_fraction:
            raise CorpusError(
                f"{where}: {c.quarantined} of {c.read} {table} are bad ({share:.1%}; data.max_bad_fraction allows "
                f"{data.max_bad_fraction:.1%}). Nothing was written.\n{_reasons(receipts, table, c.quarantined)}\n"
                "Mend the source, or raise the limit with --set data.max_bad_fraction=… to go on without them."
            )


def _reasons(receipts: Iterable[Receipt], table: str, quarantined: int) -> str:
    found: dict[str, list[str]] = {}
    for r in receipts:
        if r.table == table:
            for reason, position, detail in zip(r.bad_reasons, r.bad_positions, r.bad_details, strict=True):
                found.setdefault(reason, []).append(f"{r.source}:{position}: {detail}")
    shared_ids = quarantined - sum(len(examples) for examples in found.values())
    ranked = sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0]))[:_REASONS_SHOWN]
    lines = []
    for reason, examples in ranked:
        lines += [f"  {len(examples)} x {reason}", *(f"      {e}" for e in examples[:_EXAMPLES_A_REASON])]
    if shared_ids:
        lines.append(f"  {shared_ids} x duplicate_id")
    return "\n".join(lines)


class StageWorker:
    """A process that stages parts; the reader comes once with the process."""

    def __init__(
        self, reader: CorpusReader, parts: Mapping[int, Part | None], tasks: Tasks, limits: LimitSettings, folder: str
    ) -> None:
        self._parts = parts
        self._stager = PartStager(reader, tasks, limits, folder)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Take the numbers of parts (column ``part``), return their receipts."""
        receipts = []
        for index in batch["part"].to_pylist():
            part = self._parts[index]
            receipt = self._stager.stage_items(index) if part is None else self._stager.stage(index, part)
            receipts.append(receipt.to_table())
        return pa.concat_tables(receipts)


def copy_shards(batch: pa.Table, staging: str, target: str) -> pa.Table:
    """Take shards (a column a field), copy their rows, return how many rows each got."""
    done = [copy_shard(Shard(**row), staging, target) for row in batch.to_pylist()]
    return pa.table({"rows": pa.array(done, pa.int64())})


def spread(
    pieces: Sequence[Mapping[str, Any]],
    worker: Callable[..., Any],
    setup: tuple[Any, ...],
    workers: int,
    gpus: float = 0,
) -> Iterator[dict[str, Any]]:
    """Map pieces of work over processes; yield result rows as they come.

    Args:
        pieces: rows; each is handed out on its own.
        worker: from an Arrow batch to an Arrow batch: a function, run as tasks, or a callable class with state that is
            dear to build, one object a process.
        setup: further arguments of the function, or those of the class's constructor.
        workers: processes at most.
        gpus: that each process holds.
    """
    import ray.data

    if not pieces:
        return
    most = max(1, min(workers, len(pieces)))
    if isinstance(worker, type):
        how: dict[str, Any] = {
            "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            "fn_constructor_args": setup,
        }
    else:
        how = {"compute": ray.data.TaskPoolStrategy(size=most), "fn_args": setup}
    with quiet_data(), worker_errors():
        work = ray.data.from_items(list(pieces), override_num_blocks=min(len(pieces), _MAX_BLOCKS))
        results = work.map_batches(worker, batch_size=1, batch_format="pyarrow", num_cpus=1, num_gpus=gpus, **how)
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from cast("pa.Table", batch).to_pylist()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ingest's own options."""
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")


if __name__ == "__main__":
    sys.exit(main("ingest", __doc__, run, add_options=add_options))
