"""From pools of 50 to the whole corpus: recall of each method, BM25 and an encoder off the shelf by size of the pool.

Exact expectations over all pools that could be drawn (hypergeometric), up to all responses there are.

    mmd experiment pool_size --corpus shop
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiments import figures, retrievers
from jobs.experiments.retrieval_methods import METHODS
from jobs.experiments.retrievers import BASELINES, Unit


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, seeds and methods."""
    retrievers.add_options(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["dr", "mdr"], help="methods to train")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train the methods, and return the curves of the first seed with those of the baselines."""
    units = [Unit(BASELINES, 0, {})]
    units += [Unit(m, seed, {"method": m}) for seed in range(options["seeds"]) for m in options["methods"]]
    baselines, *outcomes = retrievers.run_units(options, units, retrievers.judged_on(options), "pool size")
    curves = {name: told["curve"] for name, told in baselines["systems"].items()}
    for name, told in retrievers.by_name(outcomes).items():
        found = [next(iter(o["systems"].values()))["curve"] for o in told]
        curves[name] = {"sizes": found[0]["sizes"]} | {
            k: [sum(values) / len(found) for values in zip(*(curve[k] for curve in found), strict=True)]
            for k in ("R@1", "R@10")
        }
    return {
        "config": retrievers.config_of(options, retrievers.judged_on(options)),
        "repeats": options["seeds"],
        "samples": baselines["samples"],
        "curves": curves,
        "outcomes": outcomes,
    }


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw R@1 and R@10 over the size of the pool."""
    title = f"Recall by the size of the pool, {record['config']['corpus']}, mean of seeds"
    with figures.figure(path, title, columns=2, height=3.4, width=10.0) as axes:
        for ax, measure in zip(axes, ("R@1", "R@10"), strict=True):
            for (name, curve), colour in zip(record["curves"].items(), figures.COLOURS, strict=False):
                ax.plot(curve["sizes"], curve[measure], marker=".", color=colour, label=name)
            ax.set_xscale("log")
            ax.set_ylim(0, 1.03)
            ax.set_xlabel("responses a modality in the pool")
            ax.set_ylabel(f"expected {measure}")
        figures.legend_below(axes[0])
