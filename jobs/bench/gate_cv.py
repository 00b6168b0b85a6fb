"""What joining rules and classifier is worth, by nested cross-validation on the training split.

Everything is made without each outer fold in turn: rules are mined, the probe fitted, the gate chosen, and then the
outer fold is answered. Held-out firings within the training part flatter the rules (which rules are kept was
decided with them), so only this tells which arm and weight to trust. The test split is never opened.

    python -m jobs.bench gate_cv --corpus taobao=../shared/data/taobao
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
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
from mmd.intent.choice import HeldOutTask, choose_gate, deal_parts
from mmd.intent.examples import label_vectors
from mmd.intent.folds import assign_folds
from mmd.intent.gate import TaskGate, decide
from mmd.intent.matcher import CompiledRules
from mmd.intent.miner import join, mine_task
from mmd.intent.probe import fit_probe
from mmd.intent.settings import IntentSettings
from mmd.intent.types import IntentExample, Probabilities, Vector
from mmd.intent.vote import verdict

OUTER_SEED = 1000
FIXED: Mapping[str, TaskGate] = {
    **{f"vote, weight {w:g}": TaskGate("", "vote", 0.0, w) for w in (1.0, 2.0, 3.0, 4.0, 6.0)},
    **{f"verdict, τ {tau}": TaskGate("", "verdict", tau) for tau in (0.0, 0.8, 0.9, 0.95)},
    **{f"override, τ {tau}": TaskGate("", "override", tau) for tau in (0.0, 0.5, 0.6, 0.7)},
}
CHOSEN = ("override", "verdict", "vote", "auto")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, settings and the outer folds."""
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, help="settings file")
    parser.add_argument("--corpus", help="corpus as for mmd fit_intent, ingested and featurized before")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--outer", type=int, default=5, help="outer folds (default: %(default)s)")
    parser.add_argument("--partitions", type=int, default=2, help="times the outer folds are dealt anew (default: 2)")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Cross-validate every task of the corpus."""
    config = load_config(options["config"], overrides=[*corpus_overrides(options["corpus"]), *options["overrides"]])
    store, name = ArtifactStore(config.store), config.data.corpus.name
    corpus, features = Corpus(store.open(f"corpus/{name}")), Features(store.open(f"features/{name}"))
    tasks: dict[str, Any] = {}
    for task, examples in training_examples(corpus, features).items():
        labels = corpus.tasks[task]
        names = label_vectors(features, labels)
        started = time.perf_counter()
        runs = [
            cross_validate(examples, labels, config.intent, names, outer=options["outer"], seed=OUTER_SEED + number)
            for number in range(options["partitions"])
        ]
        tasks[task] = {
            "examples": len(examples),
            "weighted_f1": {system: [r[system] for r in runs] for system in runs[0]},
            "seconds": time.perf_counter() - started,
        }
    return {
        "config": {"corpus": name, "outer_folds": options["outer"], "intent": config.intent.model_dump(mode="json")},
        "warmup": 0,
        "repeats": options["partitions"],
        "tasks": tasks,
        "mean_gain_over_classifier": mean_gain([task["weighted_f1"] for task in tasks.values()]),
    }


def mean_gain(tasks: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Return system → its weighted F1 less the classifier's, averaged over tasks and partitions."""
    gains: defaultdict[str, list[float]] = defaultdict(list)
    for scores in tasks:
        for system, values in scores.items():
            gains[system] += [v - c for v, c in zip(values, scores["classifier"], strict=True)]
    return {system: sum(values) / len(values) for system, values in gains.items()}


def cross_validate(
    examples: Sequence[IntentExample],
    labels: Sequence[str],
    settings: IntentSettings,
    names: Mapping[str, Vector],
    *,
    outer: int,
    seed: int,
) -> dict[str, float]:
    """Return system → weighted F1 over all outer folds of one partition."""
    golds = [str(e.label) for e in examples]
    folds = assign_folds([e.dialogue_id for e in examples], golds, outer, seed)
    truth: list[str] = []
    answers: defaultdict[str, list[str]] = defaultdict(list)
    for fold in range(outer):
        inside = [e for e, f in zip(examples, folds, strict=True) if f != fold]
        outside = [e for e, f in zip(examples, folds, strict=True) if f == fold]
        truth += [str(e.label) for e in outside]
        for system, given in answer_fold(inside, outside, labels, settings, names).items():
            answers[system] += given
    return {system: Confusion.of(truth, given).weighted_f1 for system, given in answers.items()}


def answer_fold(
    inside: Sequence[IntentExample],
    outside: Sequence[IntentExample],
    labels: Sequence[str],
    settings: IntentSettings,
    names: Mapping[str, Vector],
) -> dict[str, list[str]]:
    """Mine, fit and choose on ``inside``; return every system's answers on ``outside``."""
    task, golds = inside[0].task, [str(e.label) for e in inside]
    mined = mine_task(inside, settings, 0, names=names)
    folds = assign_folds([e.dialogue_id for e in inside], golds, settings.folds, 0)
    fitted = fit_probe(task, inside, labels, settings.probe, folds, label_vectors=names)
    ids = [e.dialogue_id for e in inside]
    held_out = HeldOutTask(
        task=task,
        ids=ids,
        golds=golds,
        fired=[mined.firings[key] for key in ids],
        probes=[Probabilities(tuple(labels), tuple(map(float, row))) for row in fitted.held_out],
        parts=deal_parts(ids, golds, folds, settings.folds, 0),
        default=mined.default,
    )
    gates = dict(FIXED)
    for arm in CHOSEN:
        chosen = choose_gate(held_out, settings.gate.model_copy(update={"arm": arm})).chosen
        gates[f"{arm}, chosen on held-out"] = chosen.gate
    fired = CompiledRules(join([mined]), task).fired_batch(outside)
    found = fitted.classifier.predict(outside)
    verdicts = [verdict(rules, len(labels)) for rules in fired]
    systems = {
        "classifier": [p.best[0] for p in found],
        "rules": [v.label if v else mined.default for v in verdicts],
        "best of both, by an oracle": [
            v.label if v and v.label == e.label else p.best[0] for v, e, p in zip(verdicts, outside, found, strict=True)
        ],
    }
    return systems | {
        name: [decide(gate, rules, p).label for rules, p in zip(fired, found, strict=True)]
        for name, gate in gates.items()
    }
