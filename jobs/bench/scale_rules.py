"""Rule search at growing numbers of examples, and mining by several workers."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.bench import mcts
from jobs.glue.cluster import ray_cluster
from jobs.glue.records import spread
from jobs.glue.tune import tune_batches
from jobs.mine_rules import BatchSearcher, batch_units
from mmd.config import build_config
from mmd.corpora.settings import LimitSettings, ShopSettings
from mmd.corpora.shop import ShopReader
from mmd.corpora.validate import validate_record
from mmd.intent.examples import make_example
from mmd.intent.miner import plan_units
from mmd.intent.types import ImageFacts, IntentExample

if TYPE_CHECKING:
    from mmd.intent.mining import NameVectors

_TASK = "dialogue_intent"


def search_sized(examples: int, predicates: int = 150, rollouts: int = 400, repeats: int = 3) -> dict[str, Any]:
    """Search for rules of one label on one core."""
    options = {"sizes": [examples], "predicates": predicates, "rollouts": rollouts, "repeats": repeats}
    found = mcts.run(options)
    return {"examples": examples, **found["sizes"][str(examples)]}


class ClockedSearcher(BatchSearcher):
    """Runs batches of searches, and says which process took how much processor time for each."""

    def __call__(self, batch: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """Return the results, and behind them who made them and in which processor time."""
        started = time.process_time()
        found = super().__call__(batch)
        return [*found, {"process": f"{socket.gethostname()}:{os.getpid()}", "cpu_s": time.process_time() - started}]


@dataclass(frozen=True)
class Mining:
    """One run of all searches.

    Attributes:
        seconds: from the first search to the last, start and end of the workers included.
        by_process: processor seconds of the searches of each.
        results: of the searches, in order.
    """

    seconds: float
    by_process: Mapping[str, float]
    results: list[dict[str, Any]]

    @classmethod
    def of(cls, seconds: float, rows: Sequence[Mapping[str, Any]]) -> Mining:
        """Take clocks and results apart; how long a search took is no part of its result."""
        by_process: Counter[str] = Counter()
        for row in rows:
            if "process" in row:
                by_process[row["process"]] += row["cpu_s"]
        return cls(seconds, by_process, [{**row, "seconds": 0.0} for row in rows if "process" not in row])


def mine_sized(examples: int, labels: int, workers: Sequence[int], repeats: int, rollouts: int) -> dict[str, Any]:
    """Mine rules with different numbers of workers, in turn, on one cluster.

    Args:
        examples: dialogues of the simulated shop.
        labels: kinds of dialogues taken among them.
        workers: numbers of workers; the first is what the others are compared with.
        repeats: of each.
        rollouts: of a search.
    """
    rows = shop_examples(examples, labels)
    config = build_config({"intent": {"search": {"rollouts": rollouts, "patience": rollouts}}})
    units = plan_units(rows, config.intent)
    size = max(1, min(config.tune.searches_per_trial, len(units) // 8))
    batches = [[[u.task, u.repeat, u.fold, u.label] for u in batch] for batch in batch_units(units, size)]
    no_names: NameVectors = {}
    arguments = ({_TASK: rows}, {_TASK: no_names}, config.intent, config.models, config.seed)

    def mined(count: int, some: Sequence[Any], name: str, folder: str) -> Mining:
        started = time.perf_counter()
        answer = tune_batches(
            ClockedSearcher,
            arguments,
            some,
            storage=folder,
            name=name,
            max_concurrent=count,
            title=f"searches by {count}",
        )
        return Mining.of(time.perf_counter() - started, answer)

    runs: dict[int, list[Mining]] = {count: [] for count in workers}
    with tempfile.TemporaryDirectory(prefix="mmd-scale-") as folder, ray_cluster(config.cluster):
        mined(max(workers), batches[:2], "warm-up", folder)  # processes, imports
        for repeat in range(repeats):
            for count in workers:
                runs[count].append(mined(count, batches, f"scale-{count}-{repeat}", folder))
    alone, first = runs[workers[0]], runs[workers[0]][0].results
    return {
        "examples": len(rows),
        "labels": len({row.label for row in rows}),
        "searches": len(units),
        "batches": len(batches),
        "mining_s": {str(count): spread([run.seconds for run in own]) for count, own in runs.items()},
        "mining_cpu_s": {str(count): spread([total(run) for run in own]) for count, own in runs.items()},
        "times_one_worker": {
            str(count): spread([one.seconds / own.seconds for one, own in zip(alone, runs[count], strict=True)])
            for count in workers[1:]
        },
        # Of the searches alone, as if every process had a core for itself: what others run does not blur it.
        "times_one_worker_by_cpu": {
            str(count): spread(
                [total(one) / max(own.by_process.values()) for one, own in zip(alone, runs[count], strict=True)]
            )
            for count in workers[1:]
        },
        "same_rules": all(run.results == first for own in runs.values() for run in own),
    }


def total(run: Mining) -> float:
    """Return the processor seconds of all searches."""
    return sum(run.by_process.values())


def shop_examples(count: int, labels: int) -> list[IntentExample]:
    """Return labelled dialogues of the simulated shop, of so many labels, without their pictures' pixels.

    Args:
        count: dialogues written; those with other labels or none are left out.
        labels: kept, the first in alphabetical order.
    """
    reader = ShopReader(ShopSettings(dialogues=count, image_side_px=32), seed=0)
    limits, tasks = LimitSettings(), reader.tasks()
    kept = set(sorted(tasks[_TASK])[:labels])
    found = []
    for part in reader.plan():
        for raw in reader.read(part):
            record = validate_record(reader, raw, limits, tasks)
            if record.dialogue.labels.get(_TASK) in kept:
                images = {one.id: ImageFacts(one.id, one.width, one.height) for one in record.images}
                found.append(make_example(record.dialogue, _TASK, images=images))
    return sorted(found, key=lambda example: example.dialogue_id)
