"""The probe's settings by repeated stratified cross-validation on a corpus's training split.

Reads corpus/NAME and features/NAME of a store; the test split is never opened. Each variant changes one thing of the
defaults: a feature block, the regularisation, the label names.

    python -m jobs.bench probe --corpus taobao
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmd.artifacts import ArtifactStore
from mmd.corpora.store import Corpus
from mmd.evaluation.metrics import Confusion
from mmd.features.store import Features
from mmd.intent.examples import label_vectors, load_examples
from mmd.intent.folds import assign_folds
from mmd.intent.probe import fit_probe, label_indices
from mmd.intent.settings import BlockWeights, ProbeSettings
from mmd.intent.types import IntentExample, Probabilities, Vector


def _without(*blocks: str) -> ProbeSettings:
    return ProbeSettings(weights=BlockWeights(**dict.fromkeys(blocks, 0.0)))


VARIANTS: Mapping[str, ProbeSettings] = {
    "default": ProbeSettings(),
    "without label names": ProbeSettings(label_name_weight=0.0),
    "label names twice": ProbeSettings(label_name_weight=2.0),
    "without the reply": _without("reply", "reply_sentence"),
    "without sentence vectors": _without("sentence", "reply_sentence"),
    "without all user turns": _without("user"),
    "with all agent turns": ProbeSettings(weights=BlockWeights(agent=0.5)),
    "without picture vectors": _without("image"),
    "without picture text": _without("ocr"),
    "n-grams up to 2": ProbeSettings(ngram_max=2),
    "every n-gram (min_df 1)": ProbeSettings(min_df=1),
    "C 5": ProbeSettings(c=5.0),
    "C 60": ProbeSettings(c=60.0),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--store", default="artifacts", help="artefact store (default: %(default)s)")
    parser.add_argument("--corpus", default="shop", help="name of corpus and features (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="folds of a partition (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="partitions (default: %(default)s)")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Score every variant on every task."""
    store, name = ArtifactStore(options["store"]), options["corpus"]
    corpus, features = Corpus(store.open(f"corpus/{name}")), Features(store.open(f"features/{name}"))
    results = {}
    for task, labels in corpus.tasks.items():
        examples = load_examples(corpus, features, task, "train")
        if examples:
            bench = TaskBench(examples, labels, label_vectors(features, labels), options)
            results[task] = {
                "examples": len(examples),
                "variants": {variant: bench.score(settings) for variant, settings in VARIANTS.items()},
            }
    return {
        "config": {key: options[key] for key in ("corpus", "folds", "repeats")},
        "warmup": 0,
        "repeats": options["repeats"],
        "tasks": results,
    }


class TaskBench:
    """Cross-validation of one task.

    Args:
        examples: its training examples.
        labels: its label set.
        vectors: sentence vectors of the labels' names.
        options: ``folds`` and ``repeats``.
    """

    def __init__(
        self,
        examples: Sequence[IntentExample],
        labels: Sequence[str],
        vectors: Mapping[str, Vector],
        options: Mapping[str, Any],
    ) -> None:
        self.examples, self.labels, self.vectors, self.options = examples, labels, vectors, options
        self.golds = [str(e.label) for e in examples]
        self.targets = label_indices(examples, labels)

    def held_out(self, settings: ProbeSettings) -> list[list[Probabilities]]:
        """Return the held-out distributions of every partition."""
        ids = [e.dialogue_id for e in self.examples]
        out = []
        for seed in range(self.options["repeats"]):
            folds = assign_folds(ids, self.golds, self.options["folds"], seed)
            fitted = fit_probe("bench", self.examples, self.labels, settings, folds, label_vectors=self.vectors)
            out.append([Probabilities(tuple(self.labels), tuple(map(float, row))) for row in fitted.held_out])
        return out

    def score(self, settings: ProbeSettings) -> dict[str, float]:
        """Return mean and deviation of the weighted F1 over partitions, and the mean log loss."""
        partitions = self.held_out(settings)
        f1 = [Confusion.of(self.golds, [p.best[0] for p in rows]).weighted_f1 for rows in partitions]
        loss = [
            -np.log(max(p.values[target], 1e-12))
            for rows in partitions
            for p, target in zip(rows, self.targets, strict=True)
        ]
        return {"weighted_f1": float(np.mean(f1)), "deviation": float(np.std(f1)), "log_loss": float(np.mean(loss))}
