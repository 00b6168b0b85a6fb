"""Evaluations a second of the rule search on one core, at 1,000 … 1,000,000 examples.

An evaluation is the reward of one distinct conjunction: hits and support counted over all examples, precision
smoothed, breadth and length weighed. A conjunction reached again by another path is not counted again. The time is
that of the whole search (selection, opening, backing up, memory included), not of the counting alone; packing the
examples into bits is timed apart. Predicates are random: each holds on a tenth to six tenths of the label's examples
(a twentieth of all) and on one to twenty percent of the others.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.glue.records import spread, timed
from mmd.intent.search import RuleSearch, SearchProblem, SearchResult
from mmd.intent.settings import SearchSettings

SIZES = (1_000, 10_000, 100_000, 1_000_000)
TARGETS = {1_000: 100_000, 1_000_000: 10_000}
LABEL_SHARE = 0.05


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add sizes, predicates, rollouts and repeats."""
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="examples")
    parser.add_argument("--predicates", type=int, default=150, help="predicates of a search")
    parser.add_argument("--rollouts", type=int, default=400, help="rollouts of a search")
    parser.add_argument("--repeats", type=int, default=5, help="searches timed a size")


def make_truth(n_examples: int, n_predicates: int, seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return random predicates' truth, shape (n_predicates, n_examples), and which examples have the label."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n_examples) < LABEL_SHARE
    members = np.empty((n_predicates, n_examples), np.bool_)
    for row in members:
        row[:] = rng.random(n_examples) < np.where(positive, rng.uniform(0.1, 0.6), rng.uniform(0.01, 0.2))
    return members, positive


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Time searches at every size; each repeat is a whole new search of the same problem."""
    settings = SearchSettings(rollouts=options["rollouts"], patience=options["rollouts"])
    sizes = {}
    for n_examples in options["sizes"]:
        members, positive = make_truth(n_examples, options["predicates"])
        started = time.perf_counter()
        problem = SearchProblem.build(members, positive, np.ones(len(members)))
        packing_s = time.perf_counter() - started
        del members
        sizes[str(n_examples)] = _measure(problem, settings, options["repeats"]) | {
            "packing_s": packing_s,
            "target_per_s": TARGETS.get(n_examples),
            "bits_mb": problem.bits.nbytes / 2**20,
        }
    return {
        "config": {"search": settings.model_dump(), "predicates": options["predicates"], "label_share": LABEL_SHARE},
        "threads": {"cores_used": 1, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "warmup": 1,
        "repeats": options["repeats"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "sizes": sizes,
    }


def _measure(problem: SearchProblem, settings: SearchSettings, repeats: int) -> dict[str, Any]:
    results: list[SearchResult] = []
    wall_s, cpu_s = [], []
    for _ in range(repeats + 1):
        started = time.process_time()
        wall_s.append(timed(lambda: results.append(RuleSearch(problem, settings).run())))
        cpu_s.append(time.process_time() - started)
    evaluations = results[0].evaluations
    return {
        "evaluations": evaluations,
        "rollouts": results[0].rollouts,
        "search_s": spread(wall_s[1:]),  # the first warms up
        "evaluations_per_s": spread([evaluations / s for s in wall_s[1:]]),
        "evaluations_per_cpu_s": spread([evaluations / s for s in cpu_s[1:]]),
    }
