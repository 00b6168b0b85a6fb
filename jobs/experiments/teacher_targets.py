"""Is it the teachers' distributions that teach? Whole distributions against their likeliest token alone.

With one-hot teachers the gate is as it was, and each teacher says only its likeliest word or item. Beside them stands
no KD, whose items and words are the references'.

    mmd experiment teacher_targets --corpus shop --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiments import conkd_table, figures, students
from jobs.experiments.students import ARMS, NO_KD

ONE_HOT = ", one-hot"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, seeds and gates."""
    students.add_options(parser)
    parser.add_argument("--gates", nargs="+", choices=("hard", "soft", "static"), default=["hard", "soft"])


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train every gate with both kinds of targets, with every seed."""
    variants: dict[str, Mapping[str, Any]] = {NO_KD: ARMS[NO_KD]}
    for gate in options["gates"]:
        variants |= {gate: ARMS[gate], gate + ONE_HOT: {**ARMS[gate], "distill.one_hot": True}}
    field, record = students.compare_variants(options, variants, "teachers' targets")
    pairs = {gate: (gate, gate + ONE_HOT) for gate in options["gates"]}
    return {**record, "distributions_against_one_hot": students.pairs_json(field, pairs, conkd_table.SHOWN)}


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw items named, perplexity and distinct n-grams by variant."""
    config = record["config"]
    title = f"Teachers' distributions or their likeliest token, {config['corpus']}, {config['judged_on']}"
    with figures.figure(path, title, columns=3, height=3.6, width=13.0) as axes:
        students.draw_table(axes, record["table"])
