"""Shots per class: rules, probe, fine-tuned model and all together with 1, 2, 4 or 8 examples a class, or all.

Everything is made anew from the drawn examples: rules mined, probe fitted, model fine-tuned (on augmented copies, at
equal steps) and joined with the settings' weights. Weighted F1 on the whole test split, over draws.

    mmd experiment shots --seeds 3 --steps 250
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiments import figures, systems
from jobs.experiments.systems import Material, Unit

SHOTS = (1, 2, 4, 8, 0)
SHOWN = ("rules", "probe", "probe + rules (vote)", "mllm", "mllm + probe + rules (vote)")
WITHOUT_MLLM = SHOWN[:3]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, model, seeds, steps and shots."""
    systems.add_options(parser)
    parser.add_argument("--shots", type=int, nargs="+", default=list(SHOTS), help="examples a class; 0: all")
    parser.add_argument(
        "--mllm-seeds", type=int, default=2, help="seeds with a fine-tuned model (default: %(default)s)"
    )


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Make every system from every draw; the fine-tuned model, the slow part, for the first seeds only."""
    domain = systems.open_shop(options)
    material = Material.of(domain)
    tasks, copies = sorted(material.train), domain.config.intent.augment.copies
    units = [
        Unit(
            f"{shots} shots",
            (task,),
            seed,
            options["steps"] if seed < options["mllm_seeds"] else 0,
            shots=shots,
            copies=copies,
            rules=True,
        )
        for seed in range(options["seeds"])
        for task in tasks
        for shots in options["shots"]
    ]
    outcomes = systems.run_units(domain, material, units, "shots")
    results: dict[str, Any] = {}
    for task in tasks:
        results[task] = {}
        for shots in options["shots"]:
            found = [o for o in outcomes if o.unit.tasks == (task,) and o.unit.shots == shots]
            trained = [o for o in found if o.unit.steps]
            results[task][str(shots)] = {
                system: systems.score(material, found if system in WITHOUT_MLLM else trained, task, system)
                for system in (SHOWN if trained else WITHOUT_MLLM)
            } | {"costs": systems.costs(found), "examples": _originals(material, task, shots)}
    return {
        "config": systems.config_of(domain, options) | {"mllm_seeds": options["mllm_seeds"], "shots": options["shots"]},
        "repeats": options["seeds"],
        "examples": {task: {"train": len(material.train[task]), "test": len(material.test[task])} for task in tasks},
        "weighted_f1": results,
    }


def _originals(material: Material, task: str, shots: int) -> int:
    return len(systems.draw_shots(material.train[task], shots, 0))


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw weighted F1 against shots per class."""
    scores, shots = record["weighted_f1"], record["config"]["shots"]
    places = list(range(len(shots)))
    title = f"Examples per class: rules, probe, {record['config']['mllm']} and together"
    with figures.figure(path, title, columns=len(scores), height=3.4) as axes:
        for ax, (task, by_shots) in zip(axes, scores.items(), strict=True):
            for system, colour in zip(SHOWN, ("#d29922", "#4c8dff", "#39a0a0", "#a371f7", "#2ea043"), strict=True):
                if all(system in by_shots[str(s)] for s in shots):
                    figures.band(ax, places, [by_shots[str(s)][system] for s in shots], name=system, colour=colour)
            ax.set_xticks(places, [str(s) if s else "all" for s in shots])
            ax.set_title(task)
            ax.set_xlabel("examples a class")
            ax.set_ylabel("weighted F1, mean and range of draws")
            ax.set_ylim(0, 1)
        figures.legend_below(axes[0])
