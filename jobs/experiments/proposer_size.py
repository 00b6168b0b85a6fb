"""What is the size of the rule proposer worth? Rules mined with no language model, and with small ones of two sizes.

The proposer raises the prior of keywords that a small language model finds likelier after a label's name (METHODS
section 1: the small model turns knowledge into rules). Quality is that of nested cross-validation: bases mined without
an outer fold answer it. Differences to "mined only" are on the same examples, their intervals by paired bootstrap.

    mmd experiment proposer_size --corpus taobao=../shared/data/taobao --tasks dialogue_intent
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.experiments import domains, figures
from jobs.experiments.domains import Domain
from jobs.experiments.fold_bases import BaseUnit, FoldBase, MiningInputs, mine_bases
from mmd.evaluation.metrics import Answers, Confusion, bootstrap, interval
from mmd.intent.miner import estimate_at
from mmd.intent.vote import verdict
from mmd.models.resolve import resolve

NONE = "none"
COVERAGE = 0.4
RESAMPLES = 1000
QUICK = ("intent.search.seeds=1", "intent.folds=3")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, proposers and outer folds."""
    domains.add_options(parser)
    parser.add_argument("--corpus", default="shop", help="corpus as for any job (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", help="tasks (default: all)")
    parser.add_argument(
        "--proposers", nargs="+", default=[NONE, "smollm2-135m", "gemma3-270m"], help="models; none: mined only"
    )
    parser.add_argument("--outer", type=int, default=3, help="outer folds (default: %(default)s)")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Mine with every proposer; mining is reduced to one partition and three folds unless settings say otherwise."""
    domain = domains.open_domain(options, options["corpus"], QUICK)
    tasks = options["tasks"] or list(domain.examples)
    proposers, outer = options["proposers"], options["outer"]
    for name in proposers:
        if name != NONE:
            resolve(name, domain.config.models)  # a missing model is told before the work begins
    units = [
        BaseUnit(domain.name, task, fold, "" if name == NONE else name)
        for name in proposers
        for task in tasks
        for fold in range(outer)
    ]
    bases = mine_bases({domain.name: domain}, units, outer)
    return {
        "config": {
            "corpus": domain.name,
            "split": "training only",
            "outer_folds": outer,
            "proposers": proposers,
            "intent": domain.config.intent.model_dump(mode="json"),
        },
        "repeats": 1,
        "tasks": {task: measure_task(domain, task, proposers, bases, outer) for task in tasks},
    }


def measure_task(
    domain: Domain, task: str, proposers: Sequence[str], bases: Sequence[FoldBase], outer: int
) -> dict[str, Any]:
    """Score each proposer's bases on the folds that they were mined without."""
    inputs = MiningInputs.of(domain, outer)
    held = [inputs.held(task, fold) for fold in range(outer)]
    golds = [str(e.label) for rows in held for e in rows]
    results: dict[str, Any] = {}
    answers: dict[str, list[str]] = {}
    for name in proposers:
        own = [b for b in bases if (b.unit.task, b.unit.proposer) == (task, "" if name == NONE else name)]
        by_fold = [_answer(base, held[base.unit.fold], len(set(golds))) for base in own]
        answers[name] = [label for fold in by_fold for label, _ in fold]
        sure = [(m, label == gold) for (label, m), gold in zip((a for f in by_fold for a in f), golds, strict=True)]
        results[name] = {
            "precision_at_coverage_0.4": estimate_at([pair for pair in sure if pair[0] > 0.0], len(golds), COVERAGE),
            "rules": figures.spread_of([len(base.base.rules) for base in own]),
            "mining_s": figures.spread_of([base.seconds for base in own]),
        }
    draws = bootstrap({task: Answers(golds, answers)}, resamples=RESAMPLES, seed=0)
    for name in proposers:
        f1 = Confusion.of(golds, answers[name]).weighted_f1
        results[name]["weighted_f1"] = _told(f1, draws[name])
        if name != proposers[0]:
            gain = f1 - Confusion.of(golds, answers[proposers[0]]).weighted_f1
            results[name][f"gain_over_{proposers[0]}"] = _told(gain, draws[name] - draws[proposers[0]])
    return {"examples": len(golds), "proposers": results}


def _answer(base: FoldBase, examples: Sequence[Any], n_labels: int) -> list[tuple[str, float]]:
    """Return the verdict's label and margin on each example; the default label and 0 where nothing speaks."""
    verdicts = [verdict(rules, n_labels) for rules in base.fired(examples)]
    return [(v.label, v.margin) if v else (base.default, 0.0) for v in verdicts]


def _told(value: float, draws: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    found = interval(value, draws)
    return {"mean": found.value, "low": found.low, "high": found.high}


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw weighted F1 with its interval, and mining time, by proposer."""
    tasks, proposers = record["tasks"], record["config"]["proposers"]
    told = ["mined only" if name == NONE else name for name in proposers]
    with figures.figure(
        path, f"Rules alone by proposer, nested cross-validation, {record['config']['corpus']}", columns=2
    ) as axes:
        for ax, key, label in (
            (axes[0], "weighted_f1", "weighted F1, 95 % interval"),
            (axes[1], "mining_s", "mining one base, s (min to max)"),
        ):
            series = {task: [tasks[task]["proposers"][name][key] for name in proposers] for task in tasks}
            figures.interval_bars(ax, told, series, label=label)
        axes[0].set_ylim(0, 1)
        figures.legend_below(axes[0])
