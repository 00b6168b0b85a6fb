"""Rule search at growing numbers of examples, and mining by several workers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.bench import mcts
from jobs.bench.apart import spent_cpu_s
from jobs.glue.cluster import ray_cluster
from jobs.glue.records import spread
from mmd.config import build_config
from mmd.corpora.settings import LimitSettings, ShopSettings
from mmd.corpora.shop import ShopReader
from mmd.corpora.validate import validate_record
from mmd.intent.examples import make_example
from mmd.intent.types import ImageFacts, IntentExample

if TYPE_CHECKING:
    from mmd.intent.mining import NameVectors

_TASK = "dialogue_intent"


def search_sized(examples: int, predicates: int = 150, rollouts: int = 400, repeats: int = 3) -> dict[str, Any]:
    """Search for rules of one label on one core."""
    options = {"sizes": [examples], "predicates": predicates, "rollouts": rollouts, "repeats": repeats}
    found = mcts.run(options)
    return {"examples": examples, **found["sizes"][str(examples)]}


def mine_sized(examples: int, labels: int, workers: Sequence[int], repeats: int, rollouts: int) -> dict[str, Any]:
    """Mine rules with different numbers of workers, in turn, on one cluster.

    Args:
        examples: dialogues of the simulated shop.
        labels: kinds of dialogues taken among them.
        workers: numbers of workers; the first is what the others are compared with.
        repeats: of each.
        rollouts: of a search.
    """
    from jobs.glue.tune import tune_batches
    from jobs.mine_rules import BatchSearcher, batch_units
    from mmd.intent.miner import plan_units

    rows = shop_examples(examples, labels)
    config = build_config({"intent": {"search": {"rollouts": rollouts, "patience": rollouts}}})
    units = plan_units(rows, config.intent)
    batches = [
        [[u.task, u.repeat, u.fold, u.label] for u in batch]
        for batch in batch_units(units, max(1, min(config.tune.searches_per_trial, len(units) // 8)))
    ]
    no_names: NameVectors = {}
    arguments = ({_TASK: rows}, {_TASK: no_names}, config.intent, config.models, config.seed)
    seconds: dict[int, list[float]] = {count: [] for count in workers}
    cpu_s: dict[int, list[float]] = {count: [] for count in workers}
    answers = []
    with tempfile.TemporaryDirectory(prefix="mmd-scale-") as folder, ray_cluster(config.cluster):
        for repeat in range(repeats + 1):  # the first warms up: processes, imports
            for count in workers:
                started, before = time.perf_counter(), spent_cpu_s()
                answer = tune_batches(
                    BatchSearcher,
                    arguments,
                    batches if repeat else batches[:2],
                    storage=folder,
                    name=f"scale-{count}-{repeat}",
                    max_concurrent=count,
                    title=f"searches by {count}",
                )
                if repeat:
                    seconds[count].append(time.perf_counter() - started)
                    cpu_s[count].append(spent_cpu_s() - before)
                    answers.append([{**row, "seconds": 0.0} for row in answer])
    alone = seconds[workers[0]]
    return {
        "examples": len(rows),
        "labels": len({row.label for row in rows}),
        "searches": len(units),
        "batches": len(batches),
        "mining_s": {str(count): spread(values) for count, values in seconds.items()},
        "mining_cpu_s": {str(count): spread(values) for count, values in cpu_s.items()},
        "times_one_worker": {
            str(count): spread([one / own for one, own in zip(alone, seconds[count], strict=True)])
            for count in workers[1:]
        },
        "same_rules": all(answer == answers[0] for answer in answers),
    }


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
