"""Small systems trained for experiments: rules, probe and multimodal model, asked about a test split.

A unit names what it is trained on (tasks, shots a class, copies) and for how many optimizer steps; units are spread
over processes by Ray Tune, one thread each, and give what they give in one process. Nothing is chosen on the test
split, so every unit may answer it: weights of the joining are the settings', no checkpoint is picked, no temperature
is fitted (probabilities of the multimodal model are taken as they are).
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from jobs.experiments import domains, figures
from jobs.experiments.domains import Domain
from jobs.glue.cluster import ray_cluster
from jobs.glue.tune import tune_batches
from mmd.artifacts import code_revision, fingerprint
from mmd.evaluation.metrics import Confusion
from mmd.intent.augment import augment
from mmd.intent.augment.originals import held_out_hints, make_originals, with_bytes
from mmd.intent.finetune import Finetuned, finetune_plain
from mmd.intent.folds import assign_folds
from mmd.intent.gate import Opinions, TaskGate, decide
from mmd.intent.hints import hint_text, told_rules
from mmd.intent.matcher import CompiledRules
from mmd.intent.miner import MinedTask, in_order, join, mine_task
from mmd.intent.mining import NameVectors
from mmd.intent.mllm import MllmClassifier
from mmd.intent.probe import fit_probe
from mmd.intent.rulebase import RuleBase
from mmd.intent.samples import ORIGINAL, Sample
from mmd.intent.settings import IntentSettings
from mmd.intent.training_plan import TrainingRun
from mmd.intent.types import IntentExample, Probabilities
from mmd.models.settings import ModelSettings

MLLM = "tiny-llama"  # reads the text printed in pictures; learns in fewer steps than one that sees them
# Random weights learn from a few thousand samples only if prompts are short; rules are searched once a fold.
SMALL = (
    "intent.prompt.max_turns=2",
    "intent.prompt.max_dialogue_chars=80",
    "intent.prompt.max_ocr_chars=60",
    "intent.finetune.batch=8",
    "intent.finetune.warmup=0.15",
    "intent.search.seeds=1",
    "intent.folds=3",
)
SHARE = 0.5
"""Of the multimodal model in its pool with the probe; the settings list the shares that a sweep would try."""
Answers = dict[str, dict[str, list[str]]]
"""Task → system → one label an example of the test split, in its order."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, model, seeds and steps."""
    domains.add_options(parser)
    parser.add_argument("--corpus", default="shop", help="corpus whose test split may be read (default: %(default)s)")
    parser.add_argument("--mllm", default=MLLM, help="multimodal model that is fine-tuned (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="repeats, each with its own seed (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps of a model (default: %(default)s)")


def open_shop(options: Mapping[str, Any], overrides: Sequence[str] = ()) -> Domain:
    """Return the corpus of :func:`add_options`, with the model and :data:`SMALL` in its settings."""
    return domains.open_domain(options, options["corpus"], (f"models.mllm={options['mllm']}", *SMALL, *overrides))


def config_of(domain: Domain, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record tells of its conditions."""
    intent = domain.config.intent.model_dump(mode="json")
    return {
        "corpus": domain.name,
        "shop": domain.config.data.shop.model_dump(mode="json", exclude={"catalogue_csv", "catalogue_images"}),
        "splits": "trained on training, answered on test; nothing is chosen",
        "mllm": options["mllm"],
        "seeds": options["seeds"],
        "steps": options["steps"],
        "share_of_mllm_in_pool": SHARE,
        "intent": {key: intent[key] for key in ("augment", "prompt", "finetune", "search", "gate")},
    }


@dataclass(frozen=True)
class Unit:
    """One training.

    Attributes:
        name: of the variant.
        tasks: of the multimodal model; several are trained jointly.
        seed: of everything random in it.
        steps: optimizer steps of the multimodal model; 0 trains none.
        shots: examples a class; 0 takes all.
        copies: augmented copies of each example.
        balance: repeat the smaller task's samples until a joint batch holds both in equal shares.
        rules: mine rules and fit a probe, too (a single task only).
    """

    name: str
    tasks: tuple[str, ...]
    seed: int
    steps: int
    shots: int = 0
    copies: int = 0
    balance: bool = False
    rules: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a unit: answers on the test split, the loss of the last tenth of the steps, and seconds by part."""

    unit: Unit
    answers: Answers
    loss: float
    samples: int
    seconds: dict[str, float]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        """Invert ``asdict``."""
        unit = value["unit"]
        return cls(**{**value, "unit": Unit(**{**unit, "tasks": tuple(unit["tasks"])})})


@dataclass(frozen=True)
class Material:
    """What all units take from; examples carry vectors and their pictures' bytes."""

    train: Mapping[str, Sequence[IntentExample]]
    test: Mapping[str, Sequence[IntentExample]]
    labels: Mapping[str, tuple[str, ...]]
    names: Mapping[str, NameVectors]
    intent: IntentSettings
    models: ModelSettings

    @classmethod
    def of(cls, domain: Domain) -> Material:
        """Read everything from a domain."""
        tasks = list(domain.examples)
        return cls(
            {task: with_pixels(domain, domain.examples[task]) for task in tasks},
            {task: with_pixels(domain, domain.examples_of_test(task)) for task in tasks},
            {task: tuple(domain.corpus.tasks[task]) for task in tasks},
            domain.names,
            domain.config.intent,
            domain.config.models,
        )

    def golds(self, task: str) -> list[str]:
        """Return the true labels of the test split."""
        return [str(example.label) for example in self.test[task]]


def with_pixels(domain: Domain, examples: Sequence[IntentExample]) -> list[IntentExample]:
    """Return the examples with their pictures' bytes."""
    samples = [Sample(e.dialogue_id, e.dialogue_id, ORIGINAL, 0, "", e) for e in examples]
    return [sample.example for sample in with_bytes(samples, domain.corpus)]


def draw_shots(examples: Sequence[IntentExample], shots: int, seed: int) -> list[IntentExample]:
    """Return up to ``shots`` examples of each label, drawn by the seed; all of them for 0. The order is kept."""
    if not shots:
        return list(examples)
    chosen: dict[str, list[tuple[bytes, str]]] = {}
    for example in examples:
        key = hashlib.sha256(f"{seed}:{example.dialogue_id}".encode()).digest()
        chosen.setdefault(str(example.label), []).append((key, example.dialogue_id))
    kept = {dialogue for rows in chosen.values() for _, dialogue in sorted(rows)[:shots]}
    return [example for example in examples if example.dialogue_id in kept]


def balanced(samples: Mapping[str, Sequence[Sample]]) -> list[Sample]:
    """Return all tasks' samples, those of smaller tasks repeated (under new ids) up to the size of the largest."""
    largest = max(map(len, samples.values()))
    out: list[Sample] = []
    for rows in samples.values():
        for place in range(largest):
            again, row = divmod(place, len(rows))
            out.append(replace(rows[row], id=f"{rows[row].id}+{again}") if again else rows[row])
    return out


class SystemTrainer:
    """Trains and answers units in one process.

    Args:
        material: what they take from.
    """

    def __init__(self, material: Material) -> None:
        self._material = material

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run the units, given as mappings; return outcomes, JSON-able."""
        return [asdict(self.run(Unit(**{**unit, "tasks": tuple(unit["tasks"])}))) for unit in batch]

    def run(self, unit: Unit) -> Outcome:
        """Train one unit and answer the test split of its tasks."""
        clock = _Clock()
        chosen = {task: in_order(draw_shots(self._material.train[task], unit.shots, unit.seed)) for task in unit.tasks}
        mined = {task: self._mine(rows, unit) for task, rows in chosen.items()} if unit.rules or unit.copies else {}
        clock.lap("rules")
        samples = {task: self._samples(rows, mined.get(task), unit) for task, rows in chosen.items()}
        flat = balanced(samples) if unit.balance else [s for rows in samples.values() for s in rows]
        clock.lap("augment")
        trained = self._finetune(flat, unit) if unit.steps else None
        clock.lap("finetune")
        answers: Answers = {}
        for task in unit.tasks:
            said = self._answer(task, chosen[task], mined.get(task) if unit.rules else None, trained)
            answers[task] = said
        clock.lap("answer")
        history = trained.state.history if trained else []
        tail = [row["loss"] for row in history[-max(1, len(history) // 10) :]]
        return Outcome(unit, answers, float(np.mean(tail)) if tail else 0.0, len(flat), clock.laps)

    def _mine(self, examples: Sequence[IntentExample], unit: Unit) -> MinedTask:
        material = self._material
        return mine_task(examples, material.intent, unit.seed, names=material.names[examples[0].task])

    def _samples(self, examples: Sequence[IntentExample], mined: MinedTask | None, unit: Unit) -> list[Sample]:
        intent = self._material.intent
        base = join([mined]) if mined else RuleBase(())
        hints = held_out_hints(mined.firings, base, examples, intent.prompt.hints) if mined and unit.rules else {}
        originals = make_originals(examples, hints, folds=intent.folds, seed=unit.seed)
        if not unit.copies:
            return originals
        settings = intent.augment.model_copy(update={"copies": unit.copies})
        return list(augment(originals, base, settings, unit.seed).samples)

    def _finetune(self, samples: Sequence[Sample], unit: Unit) -> Finetuned:
        material = self._material
        run = TrainingRun(unit.name, tuple(sorted(unit.tasks)), None)
        labels = {task: material.labels[task] for task in unit.tasks}
        return finetune_plain(samples, run, labels, material.intent, material.models, unit.seed, steps=unit.steps)

    def _answer(
        self, task: str, chosen: Sequence[IntentExample], mined: MinedTask | None, trained: Finetuned | None
    ) -> dict[str, list[str]]:
        """Return every system's labels on the test split."""
        material = self._material
        test, labels = material.test[task], material.labels[task]
        mllm = MllmClassifier(task, labels, trained.mllm, 1.0, material.intent.prompt) if trained else None
        plain = mllm.predict(test) if mllm else None
        if mined is None:
            return {"mllm": _best(plain)} if plain else {}
        base = join([mined])
        fired = CompiledRules(base, task).fired_batch(test)
        hints = [hint_text(told_rules(rules, base.prototypes), material.intent.prompt.hints) for rules in fired]
        hinted = mllm.predict_hinted(test, hints) if mllm else None
        probes = self._probe(task, chosen).predict(test)
        said = [
            Opinions(p, plain[i] if plain else None, hinted[i] if hinted else None, mined.default)
            for i, p in enumerate(probes)
        ]
        gates = arms(task, material.intent, has_mllm=mllm is not None)
        return {
            name: [decide(gate, rules, told).label for rules, told in zip(fired, said, strict=True)]
            for name, gate in gates.items()
        }

    def _probe(self, task: str, examples: Sequence[IntentExample]) -> Any:  # noqa: ANN401 (a ProbeClassifier)
        material = self._material
        ids, golds = [e.dialogue_id for e in examples], [str(e.label) for e in examples]
        folds = assign_folds(ids, golds, material.intent.folds, 0)
        fitted = fit_probe(
            task, examples, material.labels[task], material.intent.probe, folds, label_vectors=material.names[task]
        )
        return fitted.classifier


def arms(task: str, intent: IntentSettings, *, has_mllm: bool) -> dict[str, TaskGate]:
    """Return system → how it joins rules, probe and multimodal model; the vote's weight is the settings' first one."""
    weight = intent.gate.vote_weights[0]
    gates = {
        "rules": TaskGate(task, "rules_only", 0.0),
        "probe": TaskGate(task, "vote", 0.0, 0.0, 0.0),
        "probe + rules (vote)": TaskGate(task, "vote", 0.0, weight, 0.0),
    }
    if has_mllm:
        gates |= {
            "mllm": TaskGate(task, "mllm_only"),
            "mllm + rules (prompt)": TaskGate(task, "prompt", 0.0, 0.0, 1.0),
            "mllm + rules (vote)": TaskGate(task, "vote", 0.0, weight, 1.0),
            "mllm + probe + rules (vote)": TaskGate(task, "vote", 0.0, weight, SHARE),
        }
    return gates


def _best(probabilities: Sequence[Probabilities]) -> list[str]:
    return [p.best[0] for p in probabilities]


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 2)
        self._last = now


def run_units(domain: Domain, material: Material, units: Sequence[Unit], title: str) -> list[Outcome]:
    """Run all units, spread over processes; return outcomes in the units' order.

    Long units come first, so that no process is left with the longest one at the end.
    """
    config = domain.config
    order = sorted(range(len(units)), key=lambda i: -units[i].steps)
    told = [
        code_revision(),
        domain.features.artifact.ref,
        config.intent.model_dump(mode="json"),
        config.models.model_dump(mode="json"),
    ]
    with ray_cluster(config.cluster):
        values = tune_batches(
            SystemTrainer,
            (material,),
            [[asdict(units[i])] for i in order],
            storage=domain.context.scratch(".tune"),
            name=f"systems-{fingerprint(told)[:12]}",
            max_concurrent=config.tune.max_concurrent,
            title=title,
        )
    found = dict(zip(order, map(Outcome.from_json, values), strict=True))
    return [found[i] for i in range(len(units))]


def score(material: Material, outcomes: Sequence[Outcome], task: str, system: str) -> dict[str, float]:
    """Return mean, minimum and maximum over outcomes of a system's weighted F1 on the test split."""
    golds = material.golds(task)
    return figures.spread_of([Confusion.of(golds, outcome.answers[task][system]).weighted_f1 for outcome in outcomes])


def costs(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return samples, last losses and seconds by part, over outcomes: those that trained a model, where some did."""
    outcomes = [outcome for outcome in outcomes if outcome.unit.steps] or outcomes
    parts = list(outcomes[0].seconds) if outcomes else []
    return {
        "samples": figures.spread_of([outcome.samples for outcome in outcomes]),
        "last_loss": figures.spread_of([outcome.loss for outcome in outcomes]),
        "seconds": {part: figures.spread_of([outcome.seconds[part] for outcome in outcomes]) for part in parts},
    }
