"""What the teachers say of all training responses, in the driver and in Ray Data's actors, a Parquet file a part.

A module of its own, since Ray pickles what a job's ``__main__`` defines by value, with all that its globals hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.glue.nodes import worker_count
from jobs.glue.progress import progress
from jobs.glue.recommend import RecommendJob
from jobs.glue.train import RunPlace
from jobs.ingest import spread
from mmd.models.devices import choose_device
from mmd.recommend.cache import by_length

if TYPE_CHECKING:
    from mmd.recommend.batches import BatchMaker
    from mmd.recommend.runs import Ground
    from mmd.recommend.types import ResponseSample

_BATCH = 64
_PART_BATCHES = 16
_SPREAD_FROM = 4
"""Parts from which starting Ray's processes pays: 3,000 responses, some 15 s for one process."""


@dataclass(frozen=True)
class OutputsPlan:
    """What asking the teachers takes; small enough to go with every process.

    Attributes:
        job: settings and inputs, ``graph`` and ``teacher`` among them.
        folder: folder or URI that parts are written to.
    """

    job: RecommendJob
    folder: str


def parts_of(ground: Ground, maker: BatchMaker) -> list[list[list[ResponseSample]]]:
    """Return the training responses in parts of batches of like length, the same wherever they are made."""
    batches = list(by_length(ground.responses.train, maker, _BATCH))
    return [batches[i : i + _PART_BATCHES] for i in range(0, len(batches), _PART_BATCHES)]


class OutputsWriter:
    """A process with warm teachers: numbers of parts in, parts on disk, how many responses they hold."""

    def __init__(self, plan: OutputsPlan) -> None:
        from mmd.recommend.runs import speaker_of

        ground, settings = plan.job.ground(), plan.job.config
        device = choose_device(settings.models)
        self._speaker, maker = speaker_of(ground, plan.job.open("teacher"), device)
        self._parts = parts_of(ground, maker)
        self._folder = plan.folder

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write the parts of a batch (column ``part``)."""
        numbers = batch["part"].to_pylist()
        return pa.table({"part": numbers, "responses": [self.write(number) for number in numbers]})

    def write(self, number: int) -> int:
        """Write one part, whole or not at all, unless it is there; return its responses."""
        part = self._parts[number]
        fs, root = fsspec.core.url_to_fs(self._folder)
        target = f"{root}/part-{number:05d}.parquet"
        if not fs.exists(target):
            rows = pa.concat_tables([self._speaker(samples) for samples in part])
            with fs.open(f"{target}.tmp", "wb") as handle:
                pq.write_table(rows, handle, compression="zstd")
            fs.mv(f"{target}.tmp", target)
        return sum(map(len, part))


def write_outputs(plan: OutputsPlan, place: RunPlace, ground: Ground, maker: BatchMaker) -> None:
    """Ask the teachers about every training response, unless that was done before."""
    if place.finished() is not None:
        return
    fs, root = fsspec.core.url_to_fs(plan.folder)
    fs.makedirs(root, exist_ok=True)
    parts = parts_of(ground, maker)
    with progress("teachers' outputs", sum(len(samples) for part in parts for samples in part), "responses") as advance:
        for count in _written(plan, len(parts)):
            advance(count)
    place.finish("outputs")


def _written(plan: OutputsPlan, count: int) -> Iterator[int]:
    """Yield how many responses each part holds, in any order."""
    if count < _SPREAD_FROM:
        yield from map(OutputsWriter(plan).write, range(count))
        return
    gpus = 0 if plan.job.on_cpu else 1
    for row in spread([{"part": number} for number in range(count)], OutputsWriter, (plan,), worker_count(), gpus):
        yield int(row["responses"])
