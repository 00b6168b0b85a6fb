"""What rules and augmentation add to the fine-tuned model: with and without each.

The same models answer alone, with the fired rules told in the prompt, and with the rules' vote; trained on the
originals alone or on augmented copies, too, at equal steps. Rules alone, and the probe (frozen features, linear head)
with and without the vote, stand beside them. Weighted F1 on the test split; weights of the joining are the settings'.

    mmd experiment ablation --seeds 3 --steps 600
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiments import figures, systems
from jobs.experiments.systems import Material, Unit

PLAIN, AUGMENTED = "originals", "augmented"
SHOWN = (
    "rules",
    "probe",
    "probe + rules (vote)",
    "mllm",
    "mllm + rules (prompt)",
    "mllm + rules (vote)",
    "mllm + probe + rules (vote)",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, model, seeds and steps."""
    systems.add_options(parser)


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train each task's model with and without copies."""
    domain = systems.open_shop(options)
    material = Material.of(domain)
    tasks, copies = sorted(material.train), domain.config.intent.augment.copies
    units = [
        Unit(name, (task,), seed, options["steps"], copies=made, rules=True)
        for seed in range(options["seeds"])
        for task in tasks
        for name, made in ((PLAIN, 0), (AUGMENTED, copies))
    ]
    outcomes = systems.run_units(domain, material, units, "ablation")
    by_name = {
        task: {
            name: [o for o in outcomes if o.unit.name == name and o.unit.tasks == (task,)]
            for name in (PLAIN, AUGMENTED)
        }
        for task in tasks
    }
    return {
        "config": systems.config_of(domain, options),
        "repeats": options["seeds"],
        "examples": {task: {"train": len(material.train[task]), "test": len(material.test[task])} for task in tasks},
        "weighted_f1": {
            task: {
                name: {system: systems.score(material, found, task, system) for system in SHOWN}
                for name, found in variants.items()
            }
            for task, variants in by_name.items()
        },
        "costs": {
            task: {name: systems.costs(found) for name, found in variants.items()} for task, variants in by_name.items()
        },
    }


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw every system's weighted F1, trained with and without augmented copies."""
    scores = record["weighted_f1"]
    title = f"With and without rules and augmentation, {record['config']['mllm']}, {record['config']['steps']} steps"
    with figures.figure(path, title, rows=1, columns=len(scores), height=3.8) as axes:
        for ax, (task, variants) in zip(axes, scores.items(), strict=True):
            names = [system.replace(" + rules", "\n+ rules").replace(" + probe", "\n+ probe") for system in SHOWN]
            series = {name: [by_system[system] for system in SHOWN] for name, by_system in variants.items()}
            figures.interval_bars(ax, names, series, label="weighted F1, mean and range of seeds")
            ax.tick_params(axis="x", labelrotation=90, labelsize=8)
            ax.set_title(task)
            ax.set_ylim(0, 1)
        figures.legend_below(axes[0])
