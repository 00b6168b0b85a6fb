"""DR, SDR, SDR with an intent encoder of its own, and MDR, trained alike and judged in the same pools.

Equal samples, epochs, batches and seeds; recall by each method's own choice of modality and with oracle intent, intent
and weights. BM25 and an encoder off the shelf stand beside them.

    mmd experiment retrieval_methods --corpus shop --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiments import figures, retrievers
from jobs.experiments.retrievers import BASELINES, Unit

METHODS = ("dr", "sdr", "sdr-separate", "mdr")
POOLS = ("union", "half", "corpus")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus and seeds."""
    retrievers.add_options(parser)


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train every method with every seed."""
    units = [Unit(BASELINES, 0, {})]
    units += [Unit(method, seed, {"method": method}) for seed in range(options["seeds"]) for method in METHODS]
    baselines, *outcomes = retrievers.run_units(options, units, retrievers.judged_on(options), "retrieval methods")
    found = retrievers.by_name(outcomes)
    return {
        "config": retrievers.config_of(options, retrievers.judged_on(options)),
        "repeats": options["seeds"],
        "samples": baselines["samples"],
        "parameters": {name: told[0]["parameters"] for name, told in found.items()},
        "recall": {name: table_of(told) for name, told in found.items()},
        "intent_weighted_f1": {
            name: figures.spread_of([next(iter(o["systems"].values()))["intent_weighted_f1"] for o in told])
            for name, told in found.items()
        },
        "baselines": baselines["systems"],
        "outcomes": outcomes,
    }


def table_of(outcomes: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return pool → subset → measure → mean, lowest and highest over seeds."""
    first = next(iter(outcomes[0]["systems"].values()))["recall"]
    return {
        pool: {
            subset: {m: retrievers.recall(outcomes, pool, subset, m) for m in ("R@1", "R@5", "R@10", "MRR")}
            for subset in subsets
        }
        for pool, subsets in first.items()
    }


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw R@1 of the union pools by method: own choice beside oracle intent, by subset."""
    methods, subsets = list(record["recall"]), list(record["samples"])
    title = f"R@1 in union pools, {record['config']['corpus']}: own choice of modality, and oracle intent"
    with figures.figure(path, title, columns=2, height=3.6, width=10.0) as axes:
        for ax, pool, name in zip(axes, ("union", "union, oracle"), ("own choice", "oracle intent"), strict=True):
            shown = {
                method: [
                    record["recall"][method].get(pool, record["recall"][method]["union"])[s]["R@1"] for s in subsets
                ]
                for method in methods
            }
            figures.interval_bars(ax, subsets, shown, label="R@1, mean and range of seeds")
            ax.set_title(name)
            ax.set_ylim(0, 1)
        figures.legend_below(axes[0])
