"""Does interaction beyond one cosine help? R@1 in the whole corpus before and after the re-ranker.

The re-ranker learns from the training part and keeps the epoch that held-out samples prefer. With ``--judge test``
others judge; with ``--judge validation`` the very samples that the epoch was chosen on do, which flatters it.

    mmd experiment rerank_effect --corpus shop --methods mdr dr
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiments import figures, retrievers
from jobs.experiments.retrieval_methods import METHODS
from jobs.experiments.retrievers import Unit

STAGES = {"before": "retriever alone", "after": "re-ranked", "within": "among the first at all"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, seeds and methods."""
    retrievers.add_options(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["mdr"], help="methods to train")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train every method with a re-ranker, with every seed."""
    units = [Unit(m, seed, {"method": m}, rerank=True) for seed in range(options["seeds"]) for m in options["methods"]]
    outcomes = retrievers.run_units(options, units, retrievers.judged_on(options), "re-ranker")
    return {
        "config": retrievers.config_of(options, retrievers.judged_on(options)),
        "repeats": options["seeds"],
        "samples": outcomes[0]["samples"],
        "r1": {
            name: {stage: figures.spread_of([o["rerank"]["judged"][stage] for o in told]) for stage in STAGES}
            for name, told in retrievers.by_name(outcomes).items()
        },
        "outcomes": outcomes,
    }


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw R@1 before and after, and its bound, by method."""
    methods = list(record["r1"])
    series = {words: [record["r1"][m][stage] for m in methods] for stage, words in STAGES.items()}
    depth = record["config"]["retrieval"]["rerank"]["depth"]
    title = f"Re-ranking the first {depth} of the whole corpus, {record['config']['corpus']}"
    with figures.figure(path, title, height=3.4) as [ax]:
        figures.interval_bars(ax, methods, series, label="R@1, mean and range of seeds")
        ax.set_ylim(0, 1)
        figures.legend_below(ax)
