"""What the experiments on retrieval share: units of training, each judged in the same pools, spread over processes.

A unit is a name, a seed and settings that differ from the corpus's own; its outcome holds recall in each pool, intent,
weights, and the curve over sizes of the pool. Whether test or validation samples judge is the experiment's to say:
nothing that is chosen is chosen on test samples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jobs.experiments import domains, figures
from jobs.glue.cluster import ray_cluster
from jobs.glue.sweeping import Read, recorded
from jobs.glue.tune import tune_batches
from jobs.train_retriever import inputs_of
from mmd.artifacts import ArtifactStore, code_revision, fingerprint
from mmd.config import AppConfig, build_config, change_settings
from mmd.corpora.store import Corpus
from mmd.evaluation.ranking import Questions
from mmd.evaluation.retrieval import ALL, Findings, System, summarise
from mmd.evaluation.retrieval_systems import make_questions, retriever_system, word_systems
from mmd.evaluation.shelf import shelf_encoders
from mmd.features.store import Features
from mmd.retrieval.facts import Facts
from mmd.retrieval.ranks import CUTOFFS
from mmd.retrieval.samples import find_samples, part_of
from mmd.retrieval.settings import RetrievalSettings
from mmd.sweeps.types import SweepName

Judged = Literal["test", "validation"]
BASELINES = "baselines"
"""Name of the unit that trains nothing."""


@dataclass(frozen=True)
class Unit:
    """One training.

    Attributes:
        name: of the variant.
        seed: of weights, order and dropout; the validation part is the same for all units.
        settings: keys under ``retrieval`` → value, as ``training.text_fraction`` → 0.5.
        rerank: whether a re-ranker is trained, too.
    """

    name: str
    seed: int
    settings: Mapping[str, Any]
    rerank: bool = False


@dataclass(frozen=True)
class Swept:
    """How units are recorded as a sweep.

    Attributes:
        name: of the sweep.
        read: of a unit's outcome.
    """

    name: SweepName
    read: Read


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, whose samples judge, and seeds."""
    add_judging(parser)
    parser.add_argument("--seeds", type=int, default=3, help="repeats, each with its own seed (default: %(default)s)")


def add_judging(parser: argparse.ArgumentParser) -> None:
    """Add corpus, and whose samples judge."""
    domains.add_options(parser)
    parser.add_argument("--corpus", default="shop", help="corpus in the store (default: %(default)s)")
    parser.add_argument(
        "--judge",
        choices=("auto", "test", "validation"),
        default="auto",
        help="whose samples judge; auto: test of the simulated shop, validation of any other corpus",
    )


def judged_on(options: Mapping[str, Any]) -> Judged:
    """Return whose samples judge: the test split of third-party data is read only when that is asked for."""
    if options["judge"] != "auto":
        return "test" if options["judge"] == "test" else "validation"
    context = domains.open_context(options, options["corpus"])
    return "test" if context.open("corpus").manifest.settings.get("reader") == "shop" else "validation"


def run_units(
    options: Mapping[str, Any], units: Sequence[Unit], judged: Judged, title: str, sweep: Swept | None = None
) -> list[dict[str, Any]]:
    """Train and judge all units; return their outcomes in order. Interrupted, the same command goes on.

    As a sweep, if it is one, they are recorded beside the artefacts while they run.
    """
    context = domains.open_context(options, options["corpus"])
    config = context.config.model_copy(update={"store": context.store.absolute})
    refs = {role: artifact.ref for role, artifact in inputs_of(context).items()}
    told = [code_revision(), refs, judged, config.retrieval.model_dump(mode="json"), [asdict(u) for u in units]]
    key = fingerprint(told)[:12]
    recording = recorded(context, sweep.name, key, sweep.read) if sweep else nullcontext()
    with recording as record:
        if record:
            record.expect(len(units))
        with ray_cluster(config.cluster):
            outcomes = tune_batches(
                UnitTrainer,
                (config.model_dump(mode="json"), refs, judged),
                [[asdict(unit)] for unit in units],
                storage=context.scratch(".tune"),
                name=f"retrievers-{key}",
                max_concurrent=config.tune.max_concurrent,
                title=title,
                tell=record.tell if record else None,
            )
        if record:  # those that an interrupted run had finished are not told as they end
            record.tell(outcomes)
    return outcomes


class UnitTrainer:
    """Trains and judges units in one process; an actor of Ray Tune holds one.

    Args:
        config: settings, as plain values, with a store that is found from here.
        refs: role → reference of corpus and, if there are any, features.
        judged: whose samples judge.
    """

    def __init__(self, config: Mapping[str, Any], refs: Mapping[str, str], judged: Judged) -> None:
        self._config: AppConfig = build_config(config)
        self._judged = judged
        store = ArtifactStore(self._config.store)
        self._corpus = Corpus(store.open(refs["corpus"], verify=False))
        self._features = Features(store.open(refs["features"], verify=False)) if "features" in refs else None

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return one outcome a unit."""
        return [self.run(Unit(**unit)) for unit in batch]

    def run(self, unit: Unit) -> dict[str, Any]:
        """Train and judge one unit."""
        from mmd.retrieval.bases import load_bases
        from mmd.retrieval.sources import build_maker, training_sources
        from mmd.retrieval.training import divide, train_plain

        # A process a core: threads that wait for each other on cores that others hold cost tens of times the work.
        config = self._config
        settings = with_settings(config.retrieval, {"training.threads": 1, **unit.settings})
        facts = Facts.load(self._corpus, self._features, settings.samples)
        given = find_samples(self._corpus.dialogues(), facts, settings.samples)
        samples = [
            s for s in given.samples if part_of(s, settings.samples.validation_fraction, config.seed) == self._judged
        ]
        source: Literal["test", "train"] = "test" if self._judged == "test" else "train"
        questions = make_questions(given, samples, settings.pools, source)
        if unit.name == BASELINES:
            encoders = shelf_encoders(settings.pools.encoder, settings.towers, config.features, config.models)
            return self._told(unit, questions, word_systems(questions, given, facts, encoders), {})
        towers, models = settings.towers, config.models
        sources = training_sources(self._corpus, self._features, towers, config.features, models, config.store)
        bases = load_bases(towers, models)
        maker = build_maker(towers, given.modalities, facts, sources, bases)
        started = time.perf_counter()
        done = train_plain(settings, given, maker, unit.seed, part_seed=config.seed, bases=bases, models=models)
        more: dict[str, Any] = {
            "train_s": round(time.perf_counter() - started, 1),
            "steps": done.state.step,
            "best_step": done.state.best_step,
            "validations": [{name: row[name] for name in ("epoch", "r1")} for row in done.state.validations],
            "validation_r1": done.state.best_value("r1"),
            "parameters": done.retriever.parameter_counts(),
        }
        system = retriever_system(settings.method, done.retriever, maker, questions, given)
        if unit.rerank:
            from mmd.retrieval.rerank import fit_reranker, judge_reranker

            division = divide(given.samples, settings.samples.validation_fraction, config.seed)
            started = time.perf_counter()
            reranker, told = fit_reranker(
                done.retriever, maker, division.train, division.held_out, given, settings.rerank, unit.seed
            )
            more["rerank"] = {
                "train_s": round(time.perf_counter() - started, 1),
                "held_out": told,
                "judged": asdict(judge_reranker(reranker, samples, given)),
            }
        return self._told(unit, questions, [system], more)

    def _told(
        self, unit: Unit, questions: Questions, systems: Sequence[System], more: Mapping[str, Any]
    ) -> dict[str, Any]:
        resamples = self._config.evaluation.bootstrap_resamples
        findings = summarise(questions, systems, resamples=resamples, seed=self._config.seed)
        return {
            "name": unit.name,
            "seed": unit.seed,
            **more,
            "samples": {subset: findings.score(systems[0].name, "corpus", subset).n for subset in findings.subsets},
            "drawn": str(questions.drawn),
            "systems": {system.name: told_of(findings, system.name) for system in systems},
        }


def told_of(findings: Findings, system: str) -> dict[str, Any]:
    """Return one system's recall by pool, oracle and subset, its intent and its curve, as plain values."""
    curve = findings.curves[system]
    return {
        "recall": {
            f"{row.pool}{', oracle' if row.oracle else ''}": {
                subset: {f"R@{k}": round(score.recall[k].value, 4) for k in CUTOFFS}
                | {"R@1 interval": [round(score.recall[1].low, 4), round(score.recall[1].high, 4)]}
                | {"MRR": round(score.mrr, 4)}
                for subset, score in row.scores.items()
            }
            for row in findings.rows
            if row.system == system
        },
        "intent_weighted_f1": round(findings.intents[system].weighted_f1, 4),
        "curve": {
            "sizes": list(curve.sizes),
            **{f"R@{k}": [round(v, 4) for v in vs] for k, vs in curve.recall.items()},
        },
    }


def with_settings(base: RetrievalSettings, changes: Mapping[str, Any]) -> RetrievalSettings:
    """Return settings with some keys changed (``training.epochs`` → 4.0), checked as those of the command line are."""
    return change_settings(
        AppConfig(retrieval=base), {f"retrieval.{key}": value for key, value in changes.items()}
    ).retrieval


def recall(
    outcomes: Sequence[Mapping[str, Any]], pool: str, subset: str = ALL, measure: str = "R@1"
) -> dict[str, float]:
    """Return mean, lowest and highest of a measure over seeds; of units that trained one system."""
    found = [next(iter(outcome["systems"].values()))["recall"] for outcome in outcomes]
    return figures.spread_of([told[pool][subset][measure] for told in found if pool in told and subset in told[pool]])


def by_name(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return variant → its outcomes, one a seed."""
    names = dict.fromkeys(outcome["name"] for outcome in outcomes)
    return {name: [o for o in outcomes if o["name"] == name] for name in names}


def config_of(options: Mapping[str, Any], judged: Judged) -> dict[str, Any]:
    """Return what a record tells of its conditions."""
    context = domains.open_context(options, options["corpus"])
    config = context.config
    return {
        "corpus": context.name,
        "made_from": {role: artifact.ref for role, artifact in inputs_of(context).items()},
        "judged_on": judged,
        "seeds": options["seeds"],
        "retrieval": config.retrieval.model_dump(mode="json", exclude={"index"}),
        "features": config.features.model_dump(mode="json", include={"ocr", "vision", "text"}),
    }
