"""What mode tokens are worth: replies that begin with [REC] or [GEN] against replies without, teachers alike.

Perplexity counts the mode as a token where there is one, so that of words alone is compared.

    mmd experiment mode_tokens --corpus shop --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiments import figures, students
from jobs.experiments.students import ARMS, NO_KD

WITHOUT = ", no mode"
SHOWN = ("F1@1", "ReR@1", "PrR@1", "F1@1, per response", "item ratio")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, seeds and arms."""
    students.add_options(parser)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=[NO_KD, "hard", "soft"])


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train every arm with and without mode tokens, with every seed."""
    variants: dict[str, Mapping[str, Any]] = {}
    for arm in options["arms"]:
        variants |= {arm: ARMS[arm], arm + WITHOUT: {**ARMS[arm], "conversations.mode_tokens": False}}
    field, record = students.compare_variants(options, variants, "mode tokens")
    pairs = {arm: (arm, arm + WITHOUT) for arm in options["arms"]}
    return {**record, "with_against_without": students.pairs_json(field, pairs, SHOWN)}


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw items named, perplexity of words and distinct n-grams by variant."""
    config = record["config"]
    title = f"With and without mode tokens, {config['corpus']}, {config['judged_on']}"
    with figures.figure(path, title, columns=3, height=3.6, width=13.0) as axes:
        students.draw_table(axes, record["table"], perplexity="word perplexity")
