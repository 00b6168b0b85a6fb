"""The share of text samples in a batch of mixed modalities: 0.1 to 0.9, and as they come.

Ray Tune spreads the trainings; validation samples judge, since the share is a setting to be chosen.

    mmd experiment text_fraction --corpus shop --seeds 2
    mmd experiment text_fraction --space cluster/sweeps/text_fraction.yaml
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jobs.experiments import domains, figures, retrievers
from jobs.experiments.retrievers import Swept, Unit
from jobs.glue.sweeping import add_space
from mmd.evaluation.retrieval import ALL
from mmd.sweeps.kinds import KINDS, overrides_of, read_space
from mmd.sweeps.types import Trial

NATURAL = "as they come"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, seeds, shares, and a file with all of them."""
    retrievers.add_judging(parser)
    parser.add_argument("--seeds", type=int, help="repeats, each with its own seed (default: retrieval.sweep.seeds)")
    parser.add_argument(
        "--fractions", type=float, nargs="+", help="shares of text samples (default: retrieval.sweep.fractions)"
    )
    add_space(parser)


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train with every share and seed."""
    options = settled(options)
    shares: dict[str, float | None] = {f"{share:g}": share for share in options["fractions"]} | {NATURAL: None}
    units = [
        Unit(name, seed, {"training.text_fraction": share})
        for seed in range(options["seeds"])
        for name, share in shares.items()
    ]
    sweep = Swept("text_fraction", partial(shares_of, shares))
    outcomes = retrievers.run_units(options, units, "validation", "text fraction", sweep)
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


def settled(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, what they leave out taken from ``--space`` and the settings."""
    own: list[str] = []
    if (path := options.get("space")) is not None:
        own = overrides_of(read_space(path, KINDS["text_fraction"]))
    given = {**options, "overrides": [*options.get("overrides", ()), *own]}
    settings = domains.open_context(given, options["corpus"]).config.retrieval.sweep
    seeds, fractions = options.get("seeds") or settings.seeds, options.get("fractions") or settings.fractions
    searched = {"retrieval.sweep.seeds": seeds, "retrieval.sweep.fractions": list(fractions)}
    given["overrides"] += overrides_of(searched)  # so that a record tells what is searched, whoever said it
    return given | {"seeds": seeds, "fractions": list(fractions)}


def shares_of(shares: Mapping[str, float | None], outcome: Mapping[str, Any]) -> list[Trial]:
    """Return what is recorded of one training: R@1 of all validation samples in union pools, and over its epochs."""
    metrics = {"R@1": retrievers.recall([outcome], "union")["mean"]}
    metrics |= {
        f"R@1 {name}": retrievers.recall([outcome], "union", name)["mean"] for name in outcome["samples"] if name != ALL
    }
    curve = tuple((float(row["epoch"]), float(row["r1"])) for row in outcome["validations"])
    share = shares[outcome["name"]]
    setting = {"text_fraction": NATURAL if share is None else share, "seed": outcome["seed"]}
    return [Trial(setting=setting, metrics=metrics, curve=curve)]


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
