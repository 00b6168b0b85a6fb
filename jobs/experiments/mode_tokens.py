"""What mode tokens are worth: replies that begin with [REC] or [GEN] against replies without, teachers alike.

Perplexity counts the mode as a token where there is one, so that of words alone is compared.

    mmd experiment mode_tokens --corpus shop --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiments import domains, figures, retrievers, students
from jobs.experiments.students import ARMS, NO_KD

WITHOUT = ", no mode"
SHOWN = ("F1@1", "ReR@1", "PrR@1", "F1@1, per response", "item ratio")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, seeds and arms."""
    students.add_options(parser)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=[NO_KD, "hard", "soft"])


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train every arm with and without mode tokens, with every seed."""
    judged = retrievers.judged_on(options)
    variants: dict[str, Mapping[str, Any]] = {}
    for arm in options["arms"]:
        variants |= {arm: ARMS[arm], arm + WITHOUT: {**ARMS[arm], "conversations.mode_tokens": False}}
    outcomes = students.run_units(options, students.units_of(variants, options["seeds"]), judged, "mode tokens")
    resamples = domains.open_context(options, options["corpus"]).config.evaluation.bootstrap_resamples
    field = students.comparison_of(outcomes, resamples, seed=0)
    return {
        "config": students.config_of(options, judged),
        "repeats": options["seeds"],
        "samples": {"responses": outcomes[0]["responses"], "mentions": outcomes[0]["mentions"]},
        "table": students.table_of(field, outcomes),
        "recall": students.recall_of(outcomes),
        "with_against_without": {
            arm: {m: students.difference_json(field.difference(arm, arm + WITHOUT, m)) for m in SHOWN}
            for arm in options["arms"]
        },
        "outcomes": students.without_sums(outcomes),
    }


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw items named, perplexity of words and distinct n-grams by variant."""
    config = record["config"]
    title = f"With and without mode tokens, {config['corpus']}, {config['judged_on']}"
    with figures.figure(path, title, columns=3, height=3.6, width=13.0) as axes:
        students.draw_table(axes, record["table"], perplexity="word perplexity")
