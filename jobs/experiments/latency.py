"""Latency of each arm: what an answer costs with rules alone, the probe, the large model, and all together.

Each arm answers the test split's examples in batches of several sizes, everything in this process on the settings'
threads; features (OCR, vectors) are there already, pictures are decoded and processed by the large model itself. A
batch's time is divided by its examples. Weights are the base model's, untrained: time does not depend on them. The
rules are those of the whole training split, mined on first use. Requests over HTTP: ``mmd bench serving``.

    mmd experiment latency --mllms tiny-qwen2-vl gemma3-270m
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import mine_rules
from jobs.experiments import domains, figures, systems
from jobs.experiments.domains import Domain
from jobs.experiments.systems import arms
from mmd.evaluation.metrics import percentiles
from mmd.intent.folds import assign_folds
from mmd.intent.gate import Gate
from mmd.intent.mllm import MllmClassifier
from mmd.intent.probe import ProbeClassifier, fit_probe
from mmd.intent.rulebase import RuleBase
from mmd.intent.types import IntentExample
from mmd.models.threads import torch_threads

ARMS = ("rules", "probe", "probe + rules (vote)")
MLLM_ARMS = ("mllm", "mllm + rules (prompt)", "mllm + probe + rules (vote)")
BATCHES = (1, 8, 32)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, models, batch sizes and length."""
    domains.add_options(parser)
    parser.add_argument("--corpus", default="shop", help="corpus whose test split is answered (default: %(default)s)")
    parser.add_argument("--mllms", nargs="+", default=[systems.MLLM], help="multimodal models (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), help="examples answered together")
    parser.add_argument(
        "--calls", type=int, default=40, help="timed calls an arm and batch size (default: %(default)s)"
    )


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Time every arm of every task."""
    domain = domains.open_domain(options, options["corpus"])
    base = RuleBase.load(mine_rules.run(domain.context))
    results: dict[str, Any] = {}
    for task in sorted(domain.examples):
        results[task] = {"rules": len(base.of_task(task)), "arms": time_task(domain, base, task, options)}
    return {
        "config": {
            "corpus": domain.name,
            "batches": options["batches"],
            "mllms": options["mllms"],
            "threads": domain.config.models.threads,
            "dtype": domain.config.models.dtype,
        },
        "warmup": 1,
        "repeats": options["calls"],
        "tasks": results,
    }


def time_task(domain: Domain, base: RuleBase, task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return arm → batch size → percentiles of ms an example."""
    test = systems.with_pixels(domain, domain.examples_of_test(task))
    probes = {task: fit(domain, task)}
    gates = arms(task, domain.config.intent, has_mllm=True)
    out: dict[str, Any] = {}

    def time_arms(names: Sequence[str], mllms: Mapping[str, MllmClassifier], suffix: str = "") -> None:
        for name in names:
            gate = Gate(base, probes, {task: gates[name]}, mllms=mllms)
            out[name + suffix] = {
                str(size): time_calls(gate, test, size, options["calls"]) for size in options["batches"]
            }

    with torch_threads(domain.config.models.threads):
        time_arms(ARMS, {})
        for name in options["mllms"]:
            classifier = load(domain, task, name)
            time_arms(MLLM_ARMS, {task: classifier}, f", {name}")
    return out


def fit(domain: Domain, task: str) -> ProbeClassifier:
    """Fit the task's probe on the training split."""
    examples, settings = domain.examples[task], domain.config.intent
    folds = assign_folds([e.dialogue_id for e in examples], [str(e.label) for e in examples], settings.folds, 0)
    labels = domain.corpus.tasks[task]
    return fit_probe(task, examples, labels, settings.probe, folds, label_vectors=domain.names[task]).classifier


def load(domain: Domain, task: str, name: str) -> MllmClassifier:
    """Load a base model as the task's classifier."""
    from mmd.models.mllm import load_mllm

    mllm = load_mllm(name, domain.config.models)
    return MllmClassifier(task, domain.corpus.tasks[task], mllm, 1.0, domain.config.intent.prompt)


def time_calls(gate: Gate, examples: Sequence[IntentExample], size: int, calls: int) -> dict[str, float]:
    """Return p50, p90 and p99 of ms an example over calls of ``size`` examples each, after one call unmeasured.

    Examples follow each other round and round the split.
    """
    rows = itertools.cycle(examples)
    gate.predict(list(itertools.islice(rows, size)))
    times = []
    for _ in range(calls):
        batch = list(itertools.islice(rows, size))
        started = time.perf_counter()
        gate.predict(batch)
        times.append((time.perf_counter() - started) * 1000 / size)
    return {name: round(value, 3) for name, value in percentiles(times).items()}


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw p50 (bar) and p99 (whisker) of each arm by batch size, logarithmic."""
    tasks, batches = record["tasks"], record["config"]["batches"]
    n_arms = len(next(iter(tasks.values()))["arms"])
    with figures.figure(
        path, "Latency of an answer by arm: median, whisker to p99", columns=len(tasks), height=1.4 + 0.36 * n_arms
    ) as axes:
        for ax, (task, found) in zip(axes, tasks.items(), strict=True):
            names = list(found["arms"])
            width = 0.8 / len(batches)
            for number, size in enumerate(batches):
                cells = [found["arms"][name][str(size)] for name in names]
                places = [row + (number - (len(batches) - 1) / 2) * width for row in range(len(names))]
                medians, tails = [c["p50_ms"] for c in cells], [c["p99_ms"] - c["p50_ms"] for c in cells]
                colour = figures.COLOURS[number]
                ax.barh(places, medians, width * 0.9, color=colour, label=f"{size} at a time")
                ax.errorbar(
                    medians, places, xerr=[[0.0] * len(names), tails], fmt="none", ecolor=figures.INK, elinewidth=1
                )
            ax.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names] if ax is axes[0] else [])
            ax.invert_yaxis()
            ax.set_xscale("log")
            ax.set_xlabel("ms an example")
            ax.set_title(f"{task}, {found['rules']} rules")
            ax.grid(visible=False, axis="y")
        figures.legend_below(axes[0])
