"""The share of text samples in a batch of mixed modalities: 0.1 to 0.9, and as they come.

Ray Tune spreads the trainings; validation samples judge, since the share is a setting to be chosen.

    mmd experiment text_fraction --corpus shop --seeds 2
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiments import figures, retrievers
from jobs.experiments.retrievers import Unit

NATURAL = "as they come"
FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, seeds and shares."""
    retrievers.add_options(parser)
    parser.add_argument("--fractions", type=float, nargs="+", default=list(FRACTIONS), help="shares of text samples")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train with every share and seed."""
    shares: dict[str, float | None] = {f"{share:g}": share for share in options["fractions"]} | {NATURAL: None}
    units = [
        Unit(name, seed, {"training.text_fraction": share})
        for seed in range(options["seeds"])
        for name, share in shares.items()
    ]
    outcomes = retrievers.run_units(options, units, "validation", "text fraction")
    found = retrievers.by_name(outcomes)
    return {
        "config": retrievers.config_of(options, "validation"),
        "repeats": options["seeds"],
        "samples": outcomes[0]["samples"],
        "recall": {
            name: {subset: retrievers.recall(told, "union", subset) for subset in outcomes[0]["samples"]}
            for name, told in found.items()
        },
        "outcomes": outcomes,
    }


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw R@1 over the share of text, by subset; dotted: as they come."""
    by_share = {name: told for name, told in record["recall"].items() if name != NATURAL}
    places = [float(name) for name in by_share]
    with figures.figure(path, f"R@1 on validation by the share of text in a batch, {record['config']['corpus']}") as [
        ax
    ]:
        for subset, colour in zip(record["samples"], figures.COLOURS, strict=False):
            figures.band(ax, places, [told[subset] for told in by_share.values()], name=subset, colour=colour)
            ax.axhline(record["recall"][NATURAL][subset]["mean"], color=colour, linestyle=":", linewidth=1)
        ax.set_xlabel(f"share of text samples (dotted: {NATURAL})")
        ax.set_ylabel("R@1 in union pools")
        ax.set_ylim(0, 1)
        figures.legend_below(ax)
