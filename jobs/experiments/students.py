"""What the experiments on ConKD share: students as units, each answering the same responses, spread over processes.

A unit's teachers are the artefact that ``train_teachers`` makes of its settings: one for all units, unless they change
what a teacher is. What they say is computed once. A unit that was done is not done again: its outcome is kept beside
the artefacts, under what it depends on. Whether test or validation responses judge is the experiment's to say: nothing
is chosen on test responses.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

import mmd
from jobs import build_graph, train_teachers
from jobs.distill import ask_teachers
from jobs.experiments import domains, figures, retrievers, student_trainer
from jobs.experiments.student_trainer import SUMS, StudentTrainer, Unit, read_outcome
from jobs.glue import outputs
from jobs.glue.cluster import hold_cluster, ray_cluster
from jobs.glue.entry import JobContext, console
from jobs.glue.recommend import RecommendJob, trains_on_cpu
from jobs.glue.tune import tune_batches
from mmd.artifacts import fingerprint
from mmd.config import change_settings
from mmd.errors import ArtifactError, ConfigError
from mmd.evaluation.metrics import Interval
from mmd.evaluation.recommend_pairs import INTERVALS, MEASURES, Comparison, Difference
from mmd.evaluation.recommend_systems import Judged
from mmd.evaluation.recommending import GRAMS

NO_KD = "no KD"
"""The arm that learns words and items together, without teachers."""
ARMS: Mapping[str, Mapping[str, Any]] = {
    NO_KD: {"distill.gate": "none"},
    "dialogue": {"distill.teachers": "dialogue"},
    "recommendation": {"distill.teachers": "recommendation"},
    "static": {"distill.gate": "static"},
    "hard": {"distill.gate": "hard"},
    "soft": {"distill.gate": "soft"},
}
"""Arm of the main table → its settings under ``recommend``."""
_CODE = (
    "recommend/*.py",
    "models/*.py",
    "evaluation/metrics.py",
    "evaluation/recommending.py",
    "evaluation/recommend_findings.py",
    "evaluation/recommend_pairs.py",
    "evaluation/recommend_systems.py",
    "retrieval/ranks.py",
    "schema.py",
    "splits.py",
)
"""Files of the package that train and judge a unit; the report's looks do not count."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, seeds, whose responses judge, and whether outcomes of other code count."""
    retrievers.add_options(parser)
    parser.add_argument(
        "--keep-units", action="store_true", help="take outcomes that another state of the code left, too"
    )
    parser.add_argument(
        "--own-teachers",
        action="store_true",
        help="train teachers, on a validation part of their own, for every seed; test responses must judge",
    )


def run_units(options: Mapping[str, Any], units: Sequence[Unit], judged: Judged, title: str) -> list[dict[str, Any]]:
    """Train and judge all units; return their outcomes in order. Interrupted, the same command goes on.

    Raises:
        ConfigError: every seed shall have teachers, and so a validation part, of its own, and validation judges.
    """
    own_teachers, any_code = options.get("own_teachers", False), options.get("keep_units", False)
    if own_teachers and judged == "validation":
        raise ConfigError(
            "--own-teachers: each seed then holds other dialogues out, so that units would be judged on different "
            "responses; add --judge test, or leave it out."
        )
    with hold_cluster():
        context = open_graph(options)
        units = [replace(unit, part_seed=unit.seed if own_teachers else context.config.seed) for unit in units]
        ready = [prepare(context, unit, judged, any_code=any_code) for unit in units]
        config = context.config.model_copy(update={"store": context.store.absolute})
        with ray_cluster(config.cluster):
            tune_batches(
                StudentTrainer,
                (config.model_dump(mode="json"), context.open("graph").ref, judged),
                [[asdict(unit)] for unit in ready],
                storage=context.scratch(".tune"),
                name="students",
                max_concurrent=config.tune.max_concurrent,
                title=title,
                tell=print_brief,
            )
    return [outcome_of(unit) for unit in ready]


def outcome_of(unit: Unit) -> dict[str, Any]:
    """Return what came of a unit that was run.

    Raises:
        ArtifactError: nothing did.
    """
    found = read_outcome(unit.kept)
    if found is None:
        raise ArtifactError(
            f"{unit.kept or 'no file'}: {unit.name}, seed {unit.seed}, left no outcome there; run the command again: "
            "what was finished is kept."
        )
    return {**found, "name": unit.name}


def open_graph(options: Mapping[str, Any]) -> JobContext:
    """Return a context with the corpus's graph, which is built on first use."""
    context = domains.open_context(options, options["corpus"])
    return context.pinned(build_graph.run(context))


def prepare(context: JobContext, unit: Unit, judged: Judged, *, any_code: bool) -> Unit:
    """Return a unit with what it needs: its teachers, trained, and what they say; and where its outcome is kept.

    Args:
        context: with the graph pinned.
        unit: what shall be trained.
        judged: whose responses judge.
        any_code: take the newest outcome whatever the code that made it.
    """
    own = replace(context, config=change_settings(context.config, {**unit.changes, "seed": unit.part_seed}))
    refs = {"graph": own.open("graph").ref}
    if unit.what == "student":
        teacher = train_teachers.run(own)
        unit, refs = replace(unit, teacher=teacher.ref), {**refs, "teacher": teacher.ref}
    kept = outcome_place(own, unit, refs, judged, any_code=any_code)
    if unit.what == "student" and own.config.recommend.distill.gate != "none" and read_outcome(kept) is None:
        unit = replace(unit, outputs=ask(own, refs))
    return replace(unit, kept=kept)


def ask(context: JobContext, refs: Mapping[str, str]) -> str:
    """Return the folder of what the teachers say of the training responses, computed on first use."""
    config = context.config
    with ray_cluster(config.cluster):
        job = RecommendJob("student", config, context.store.absolute, refs, on_cpu=trains_on_cpu(config))
        return ask_teachers(context, job, job.ground())


def outcome_place(context: JobContext, unit: Unit, refs: Mapping[str, str], judged: Judged, *, any_code: bool) -> str:
    """Return the file in which a unit's outcome is, or will be, kept."""
    recommend = context.config.recommend.model_dump(mode="json", exclude={"train", "enabled", "graph"})
    if unit.what == "recommender":
        recommend = {name: recommend[name] for name in ("recommender", "conversations")}
    digests = {role: context.store.open(ref, verify=False).manifest.digest for role, ref in refs.items()}
    key = fingerprint([digests, recommend, unit.what, unit.seed, unit.part_seed, judged])[:12]
    folder = f"{context.scratch('.experiments')}/students/{key}"
    own = f"{folder}/{code_digest()[:12]}.json"
    if not any_code:
        return own
    fs, root = fsspec.core.url_to_fs(folder)
    found = sorted(fs.glob(f"{root}/*.json"), key=lambda path: str(fs.info(path).get("mtime", "")))
    return f"{folder}/{found[-1].rpartition('/')[2]}" if found else own


@cache
def code_digest() -> str:
    """Return the digest of the code that trains and judges a unit."""
    return fingerprint([hashlib.sha256(path.read_bytes()).hexdigest() for path in code_files()])


def code_files() -> list[Path]:
    """Return the files on which an outcome depends."""
    package = Path(mmd.__file__).parent
    own = [Path(str(module.__file__)) for module in (student_trainer, outputs)]
    return [*own, *(path for part in _CODE for path in sorted(package.glob(part)))]


def print_brief(told: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each unit that ended."""
    for unit in told:
        numbers = {key: value for key, value in unit.items() if isinstance(value, float)}
        words = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
        line = f"{unit['name']}, seed {unit['seed']}: step {unit['best_step']} of {unit['steps']}, {words}"
        console.print(line, markup=False, soft_wrap=True)


# ---------------------------------------------------------------- what units add up to


def comparison_of(outcomes: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> Comparison:
    """Return the variants side by side, their responses paired."""
    found = retrievers.by_name(outcomes)
    return Comparison(
        {name: [np.array(outcome[SUMS]["rows"]) for outcome in told] for name, told in found.items()},
        [str(dialogue) for dialogue in outcomes[0][SUMS]["dialogues"]],
        resamples,
        seed,
    )


def compare_variants(
    options: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]], title: str
) -> tuple[Comparison, dict[str, Any]]:
    """Train every variant with every seed.

    Args:
        options: of the command.
        variants: name → what is set differently.
        title: of the progress.

    Returns:
        What pairs of them can be asked of, and the record without the answers.
    """
    judged = retrievers.judged_on(options)
    outcomes = run_units(options, units_of(variants, options["seeds"]), judged, title)
    resamples = domains.open_context(options, options["corpus"]).config.evaluation.bootstrap_resamples
    field = comparison_of(outcomes, resamples, seed=0)
    return field, {
        "config": config_of(options, judged),
        "repeats": options["seeds"],
        "samples": {"responses": outcomes[0]["responses"], "mentions": outcomes[0]["mentions"]},
        "table": table_of(field, outcomes),
        "recall": recall_of(outcomes),
        "outcomes": without_sums(outcomes),
    }


def pairs_json(
    field: Comparison, pairs: Mapping[str, tuple[str, str]], measures: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return name → measure → by how much the first of a pair is ahead of the second."""
    return {name: {m: difference_json(field.difference(*pair, m)) for m in measures} for name, pair in pairs.items()}


def table_of(field: Comparison, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return variant → measure → mean and range over seeds; of MEASURES the interval, too."""
    table = {}
    for name, told in retrievers.by_name(outcomes).items():
        said = [outcome["speaker"] for outcome in told]
        row: dict[str, Any] = {}
        for measure in MEASURES:
            row[measure] = measure_json(field, name, measure)
        for n in GRAMS:
            row[f"DIST-{n}"] = figures.spread_of([one[f"DIST-{n}"]["by_responses"] for one in said])
            row[f"DIST-{n}, per gram"] = figures.spread_of([one[f"DIST-{n}"]["by_grams"] for one in said])
        row["word perplexity"] = figures.spread_of([one["word_perplexity"]["value"] for one in said])
        row["mode accuracy"] = figures.spread_of([one["mode_accuracy"] for one in said])
        row["ms per token"] = figures.spread_of([one["ms_per_token"]["batch"] for one in said])
        table[name] = row
    return table


def measure_json(field: Comparison, name: str, measure: str) -> dict[str, Any]:
    """Return mean, range over seeds and interval of a variant's measure."""
    interval = field.value(name, measure)
    spread = figures.spread_of(field.by_seed(name, measure).tolist())
    return {**spread, "interval": [round(interval.low, 4), round(interval.high, 4)]}


def training_of(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return variant → where its students began, the steps that they made, and those that the kept weights had."""
    return {
        name: {
            "start": told[0].get("start"),
            "steps_before": told[0].get("steps_before"),
            "steps": figures.spread_of([one["steps"] for one in told]),
            "kept_step": figures.spread_of([one["best_step"] for one in told]),
        }
        for name, told in retrievers.by_name(outcomes).items()
    }


def recall_of(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return variant → ranker → subset → R@k → mean and range over seeds."""
    return {
        name: {
            ranker: {
                subset: {k: figures.spread_of([o["recall"][ranker][subset][k] for o in told]) for k in values}
                for subset, values in subsets.items()
            }
            for ranker, subsets in told[0]["recall"].items()
        }
        for name, told in retrievers.by_name(outcomes).items()
    }


def units_of(
    variants: Mapping[str, Mapping[str, Any]], seeds: int, common: Mapping[str, Any] | None = None
) -> list[Unit]:
    """Return a unit for every variant and seed.

    Args:
        variants: name → settings under ``recommend``.
        seeds: repeats.
        common: settings of all.
    """
    return [
        Unit(name, seed, {**(common or {}), **settings}) for seed in range(seeds) for name, settings in variants.items()
    ]


def difference_json(found: Difference) -> dict[str, Any]:
    """Return a difference as plain values."""

    def numbers(interval: Interval) -> dict[str, float]:
        return {key: round(value, 4) for key, value in asdict(interval).items()}

    return {
        "first": round(float(np.mean(found.firsts)), 4),
        "second": round(float(np.mean(found.seconds)), 4),
        "difference": numbers(found.absolute),
        "relative": numbers(found.relative) if found.relative else None,
        "by_seed": [round(value, 4) for value in found.by_seed],
    }


def draw_table(axes: Sequence[Any], table: Mapping[str, Any], perplexity: str = "perplexity") -> None:
    """Draw, into three axes, items named, a perplexity and distinct n-grams by variant."""
    of_items, of_words, of_grams = axes
    names = list(table)
    rates = {m: [with_interval(row[m]) for row in table.values()] for m in ("F1@1", "ReR@1", "PrR@1")}
    figures.interval_bars(of_items, names, rates, label="items named, 95 % of draws")
    figures.interval_bars(
        of_words, names, {perplexity: [with_interval(row[perplexity]) for row in table.values()]}, label=perplexity
    )
    grams = {f"DIST-{n}": [row[f"DIST-{n}"] for row in table.values()] for n in GRAMS}
    figures.interval_bars(of_grams, names, grams, label="distinct n-grams a response")
    for ax in axes:
        figures.crowded(ax)


def with_interval(told: Mapping[str, Any]) -> dict[str, float]:
    """Return a mean with its interval over draws, where there is one, else with its range over seeds."""
    low, high = told.get("interval", (told["low"], told["high"]))
    return {"mean": told["mean"], "low": low, "high": high}


def without_sums(outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return outcomes as a record has them."""
    return [{key: value for key, value in outcome.items() if key != SUMS} for outcome in outcomes]


def config_of(options: Mapping[str, Any], judged: Judged) -> dict[str, Any]:
    """Return what a record tells of its conditions."""
    context = open_graph(options)
    return {
        "corpus": context.name,
        "graph": context.open("graph").ref,
        "judged_on": judged,
        "seeds": options["seeds"],
        "teachers": "of each seed" if options.get("own_teachers") else "shared by all seeds",
        "intervals": INTERVALS,
        "recommend": context.config.recommend.model_dump(mode="json", exclude={"enabled"}),
    }
