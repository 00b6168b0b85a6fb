"""Sizes of the text encoder: frozen features under a head, a tiny trained model, a small sentence model.

Everything else is equal; recall in union pools, weights and training time.

    mmd experiment encoder_size --corpus shop --encoders features tiny-bert minilm-l6-v2
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiments import figures, retrievers
from jobs.experiments.retrievers import Unit

ENCODERS = ("features", "tiny-bert", "minilm-l6-v2")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, seeds and encoders."""
    retrievers.add_options(parser)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), help="values of retrieval.towers.text")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train with every encoder and seed."""
    units = [
        Unit(name, seed, {"towers.text": name}) for seed in range(options["seeds"]) for name in options["encoders"]
    ]
    outcomes = retrievers.run_units(options, units, retrievers.judged_on(options), "encoder size")
    found = retrievers.by_name(outcomes)
    return {
        "config": retrievers.config_of(options, retrievers.judged_on(options)),
        "repeats": options["seeds"],
        "samples": outcomes[0]["samples"],
        "parameters": {name: told[0]["parameters"]["total"] for name, told in found.items()},
        "train_s": {name: figures.spread_of([o["train_s"] for o in told]) for name, told in found.items()},
        "recall": {
            name: {
                subset: {m: retrievers.recall(told, "union", subset, m) for m in ("R@1", "R@10")}
                for subset in outcomes[0]["samples"]
            }
            for name, told in found.items()
        },
        "outcomes": outcomes,
    }


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw R@1 by encoder and subset, the weights in the legend."""
    title = f"R@1 in union pools by text encoder, {record['config']['corpus']}"
    subsets, weights = list(record["samples"]), record["parameters"]
    series = {
        f"{name} ({weights[name] / 1e6:.1f} M weights)": [told[s]["R@1"] for s in subsets]
        for name, told in record["recall"].items()
    }
    with figures.figure(path, title, height=3.6) as [ax]:
        figures.interval_bars(ax, subsets, series, label="R@1, mean and range of seeds")
        ax.set_ylim(0, 1)
        figures.legend_below(ax)
