"""What mode tokens are worth: replies that begin with [REC] or [GEN] against replies without, teachers alike.

A mode is one more token, and what follows it is easier to foresee. Compared is therefore ``perplexity a word``: the
nats of a response, its mode's among them, over its words, items and end. What would be named first is left out: with
modes it is asked behind [REC], without them in place of the first word.

    mmd experiment mode_tokens --corpus shop --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiments import figures, students
from jobs.experiments.students import ARMS, NO_KD
from mmd.evaluation.recommend_pairs import Comparison, mode_uncounted

WITHOUT = ", no mode"
A_WORD = "perplexity a word"
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
    words = by_word(field)
    for name, row in record["table"].items():
        row[A_WORD] = students.measure_json(words, name, "perplexity")
    compared = students.pairs_json(field, pairs, SHOWN)
    for arm, told in students.pairs_json(words, pairs, ("perplexity",)).items():
        compared[arm][A_WORD] = told["perplexity"]
    del record["recall"]
    return {**record, "with_against_without": compared}


def by_word(field: Comparison) -> Comparison:
    """Return a comparison whose perplexities are a word, whether a mode comes before it or not."""
    runs = {
        name: rows if name.endswith(WITHOUT) else [mode_uncounted(one) for one in rows]
        for name, rows in field.runs.items()
    }
    return Comparison(runs, field.groups, field.resamples, field.seed)


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw items named, perplexity of words and distinct n-grams by variant."""
    config = record["config"]
    title = f"With and without mode tokens, {config['corpus']}, {config['judged_on']}"
    with figures.figure(path, title, columns=3, height=3.6, width=13.0) as axes:
        students.draw_table(axes, record["table"], perplexity=A_WORD)
