"""The seesaw: one model a task, or one for both, at equal steps.

KDSL's starting point (METHODS section 1): single-task models beat the joint one, because weight updates superpose.
Here task A and task B alone, jointly at as many optimizer steps as either alone (equal steps a model: each task then
gets half of the samples), and jointly at twice as many (equal steps a task: each task gets as many samples as alone).
The smaller task's samples are repeated, so that both tasks have equal shares of a joint batch. Weighted F1 on the test
split.

    mmd experiment seesaw --seeds 3 --steps 600
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.experiments import figures, systems
from jobs.experiments.systems import Material, Outcome, Unit
from mmd.errors import ConfigError

ALONE, JOINT, JOINT_TWICE = "alone", "joint, equal steps a model", "joint, equal steps a task"
VARIANTS = (ALONE, JOINT, JOINT_TWICE)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, model, seeds and steps."""
    systems.add_options(parser)


def plan(tasks: Sequence[str], seeds: int, steps: int, copies: int) -> list[Unit]:
    """Return every training: each task alone and both jointly, at one and two times the steps, by seed."""
    units = []
    for seed in range(seeds):
        units += [Unit(ALONE, (task,), seed, steps, copies=copies) for task in tasks]
        units.append(Unit(JOINT, tuple(tasks), seed, steps, copies=copies, balance=True))
        units.append(Unit(JOINT_TWICE, tuple(tasks), seed, 2 * steps, copies=copies, balance=True))
    return units


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train all variants; see the module's text."""
    domain = systems.open_shop(options)
    material = Material.of(domain)
    tasks = sorted(material.train)
    if len(tasks) != 2:
        raise ConfigError(f"corpus {domain.name}: has {len(tasks)} tasks with training examples; a seesaw needs two.")
    units = plan(tasks, options["seeds"], options["steps"], domain.config.intent.augment.copies)
    outcomes = systems.run_units(domain, material, units, "seesaw")
    return {
        "config": systems.config_of(domain, options),
        "repeats": options["seeds"],
        "examples": {task: {"train": len(material.train[task]), "test": len(material.test[task])} for task in tasks},
        "weighted_f1": {
            task: {name: systems.score(material, _of(outcomes, name, task), task, "mllm") for name in VARIANTS}
            for task in tasks
        },
        "costs": {name: systems.costs([o for o in outcomes if o.unit.name == name]) for name in VARIANTS},
    }


def _of(outcomes: Sequence[Outcome], name: str, task: str) -> list[Outcome]:
    return [o for o in outcomes if o.unit.name == name and task in o.unit.tasks]


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw each task's weighted F1 by variant."""
    scores = record["weighted_f1"]
    series = {name: [by_name[name] for by_name in scores.values()] for name in VARIANTS}
    title = f"One model a task or one for both, {record['config']['mllm']}, {record['config']['steps']} steps"
    with figures.figure(path, title, width=6.5) as [axes]:
        figures.interval_bars(axes, list(scores), series, label="weighted F1, mean and range of seeds")
        axes.set_ylim(0, 1)
        figures.legend_below(axes)
