"""What the knowledge graph's edges are worth: to the recommendation teacher, and to the student that it teaches.

The teacher ψ is trained with typed edges (R-GCN), with one matrix for all (blind), and without edges. Students of the
soft gate (or another one) are trained with edges in both, in neither, and in one of ψ and the backbone; the backbone is
φ's and θ's, so that each variant has teachers of its own.

    mmd experiment graph_edges --corpus shop --seeds 3
    mmd experiment graph_edges --corpus redial --seeds 3 --teachers-only
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.experiments import conkd_table, domains, figures, retrievers, students
from jobs.experiments.students import ARMS

RELATIONS = ("typed", "blind", "none")
WHOLE = "edges in both"
STUDENTS: Mapping[str, Mapping[str, Any]] = {
    WHOLE: {},
    "in the backbone": {"recommender.relations": "none"},
    "in ψ": {"backbone.graph": "embedding"},
    "no edges": {"recommender.relations": "none", "backbone.graph": "embedding"},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, seeds, the students' gate, and whether students are trained at all."""
    students.add_options(parser)
    parser.add_argument("--gate", choices=("hard", "soft"), default="soft", help="of the students")
    parser.add_argument("--teachers-only", action="store_true", help="train no students")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train every teacher and student with every seed."""
    judged = retrievers.judged_on(options)
    teachers = {name: {"recommender.relations": name} for name in RELATIONS}
    ranking = [replace(unit, what="recommender") for unit in students.units_of(teachers, options["seeds"])]
    rankers = students.run_units(options, ranking, judged, "recommendation teachers")
    record: dict[str, Any] = {
        "config": students.config_of(options, judged) | {"gate": options["gate"]},
        "repeats": options["seeds"],
        "samples": {"mentions": rankers[0]["mentions"]},
        "teachers": students.recall_of(rankers),
        "parameters": {name: told[0]["parameters"] for name, told in retrievers.by_name(rankers).items()},
        "outcomes": {"teachers": rankers},
    }
    if options["teachers_only"]:
        return record
    units = students.units_of(STUDENTS, options["seeds"], ARMS[options["gate"]])
    outcomes = students.run_units(options, units, judged, "students and edges")
    resamples = domains.open_context(options, options["corpus"]).config.evaluation.bootstrap_resamples
    field = students.comparison_of(outcomes, resamples, seed=0)
    record["outcomes"]["students"] = students.without_sums(outcomes)
    record["samples"]["responses"] = outcomes[0]["responses"]
    return record | {
        "table": students.table_of(field, outcomes),
        "recall": students.recall_of(outcomes),
        "differences_to_edges_in_both": conkd_table.differences(field, WHOLE),
    }


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw recall of the teachers on all and on novel mentions, and what students name."""
    config, has_students = record["config"], "table" in record
    title = f"With and without edges of the graph, {config['corpus']}, {config['judged_on']}"
    with figures.figure(path, title, columns=2 + 3 * has_students, height=3.6, width=9.0 + 9.0 * has_students) as axes:
        for ax, subset in zip(axes, ("all", "novel"), strict=False):
            found = {name: told["recommender"][subset] for name, told in record["teachers"].items()}
            cutoffs = list(next(iter(found.values())))
            series = {name: [values[k] for k in cutoffs] for name, values in found.items()}
            figures.interval_bars(ax, cutoffs, series, label=f"ψ, {subset} mentions, range of seeds")
            figures.crowded(ax)
        if has_students:
            students.draw_table(axes[2:], record["table"])
