"""What rules alone are worth, by nested cross-validation: the outer folds are never touched by mining.

Held-out statistics choose which rules are kept and how they rank, so they flatter the base that they chose. Here
the whole of mining (predicates, prototypes, searches, selection) runs without each outer fold in turn, and the base
it gives answers the fold. Only the training split is read. Two ways to answer are scored: the verdict of all fired
rules and the best fired rule (Wilson lower bound, then support), both with the task's default label where none
fires.

    python -m jobs.bench rules_cv --corpus taobao=../shared/data/taobao
    python -m jobs.bench rules_cv --corpus taobao=../shared/data/taobao --set intent.search.seeds=4
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.glue.entry import corpus_overrides
from jobs.mine_rules import training_examples
from mmd.artifacts import ArtifactStore
from mmd.config import DEFAULT_PATH, load_config
from mmd.corpora.store import Corpus
from mmd.evaluation.metrics import Confusion
from mmd.features.store import Features
from mmd.intent.examples import label_vectors
from mmd.intent.folds import assign_folds
from mmd.intent.matcher import CompiledRules
from mmd.intent.miner import estimate_at, join, mine_task
from mmd.intent.mining import NameVectors
from mmd.intent.proposer import make_proposer
from mmd.intent.rules import Rule
from mmd.intent.settings import IntentSettings
from mmd.intent.types import IntentExample
from mmd.intent.vote import verdict
from mmd.models.settings import ModelSettings

COVERAGES = (0.3, 0.4, 0.5)
OUTER_SEED = 100  # no fold of mining's own is an outer fold


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, settings and the outer folds."""
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, help="settings file")
    parser.add_argument("--corpus", help="corpus as for mmd mine_rules, ingested and featurized before")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--outer", type=int, default=5, help="outer folds")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Cross-validate every task of the corpus."""
    config = load_config(options["config"], overrides=[*corpus_overrides(options["corpus"]), *options["overrides"]])
    store, name = ArtifactStore(config.store), config.data.corpus.name
    corpus, features = Corpus(store.open(f"corpus/{name}")), Features(store.open(f"features/{name}"))
    tasks = {
        task: cross_validate(
            examples,
            config.intent,
            config.models,
            seed=config.seed,
            outer=options["outer"],
            names=label_vectors(features, corpus.tasks[task]),
        )
        for task, examples in training_examples(corpus, features).items()
    }
    return {
        "config": {"corpus": name, "outer_folds": options["outer"], "intent": config.intent.model_dump(mode="json")},
        "proposer": config.models.proposer or "mined",
        "warmup": 0,
        "repeats": 1,
        "tasks": tasks,
    }


def cross_validate(
    examples: Sequence[IntentExample],
    settings: IntentSettings,
    models: ModelSettings,
    *,
    seed: int,
    outer: int,
    names: NameVectors,
) -> dict[str, Any]:
    """Mine without each outer fold and answer it; return weighted F1 and precision at coverages."""
    labels = [str(e.label) for e in examples]
    folds = assign_folds([e.dialogue_id for e in examples], labels, outer, OUTER_SEED)
    fired: dict[int, tuple[Rule, ...]] = {}
    defaults: dict[int, str] = {}
    sizes, started = [], time.perf_counter()
    proposer = make_proposer(settings.predicates, models)
    for fold in range(outer):
        inside = [e for e, f in zip(examples, folds, strict=True) if f != fold]
        held = [i for i, f in enumerate(folds) if f == fold]
        mined = mine_task(inside, settings, seed, names=names, proposer=proposer)
        rules = CompiledRules(join([mined]), examples[0].task)
        sizes.append(len(mined.rules))
        for i, found in zip(held, rules.fired_batch([examples[i] for i in held]), strict=True):
            fired[i], defaults[i] = found, mined.default
    return _score(labels, fired, defaults) | {
        "examples": len(examples),
        "rules_kept": sum(sizes) / len(sizes),
        "seconds": time.perf_counter() - started,
    }


def _score(labels: Sequence[str], fired: Mapping[int, Sequence[Rule]], defaults: Mapping[int, str]) -> dict[str, Any]:
    rows = range(len(labels))
    verdicts = [verdict(fired[i], len(set(labels))) for i in rows]
    voted = [v.label if v else defaults[i] for i, v in zip(rows, verdicts, strict=True)]
    best = [fired[i][0].label if fired[i] else defaults[i] for i in rows]
    strengths = [(fired[i][0].stats.wilson_lower, best[i] == labels[i]) for i in rows if fired[i]]
    margins = [(v.margin, v.label == label) for v, label in zip(verdicts, labels, strict=True) if v]
    return {
        "fires_on": sum(bool(fired[i]) for i in rows) / len(labels),
        "verdict": {
            "weighted_f1": Confusion.of(labels, voted).weighted_f1,
            "precision_at_coverage": {str(c): estimate_at(margins, len(labels), c) for c in COVERAGES},
        },
        "best_rule": {
            "weighted_f1": Confusion.of(labels, best).weighted_f1,
            "precision_at_coverage": {str(c): estimate_at(strengths, len(labels), c) for c in COVERAGES},
        },
    }
