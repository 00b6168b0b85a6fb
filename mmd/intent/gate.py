"""The gate: where rules and classifier meet, one task at a time.

Three ways to join them. ``override`` (the paper's): the best firing rule (Wilson lower bound, then support) answers
when its Wilson lower bound reaches τ, else the classifier does. ``verdict``: what the fired rules say together answers
when its confidence reaches τ. ``vote``: each label's probability is multiplied by exp(weight · evidence), the evidence
being its share of what the fired rules that reach τ say. In each, τ > 1 never hears a rule; in the first two, τ = 0
lets every firing rule (every verdict) override. τ, and among several the arm and weight, are chosen on the training
part, from firings and probabilities that were both held out.
Source: METHODS section 1, prediction; verdict and vote are ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from mmd.artifacts import Artifact, ArtifactWriter
from mmd.errors import ArtifactError
from mmd.evaluation.metrics import Confusion
from mmd.intent.matcher import CompiledRules
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Rule, RuleStats
from mmd.intent.settings import GateSettings
from mmd.intent.types import FiredRule, IntentClassifier, IntentExample, IntentPrediction, Probabilities
from mmd.intent.vote import tally, verdict
from mmd.intent.wording import describe_rule

Arm = Literal["override", "verdict", "vote"]
ARMS: tuple[Arm, ...] = ("override", "verdict", "vote")
GATE_FILE = "gate.json"
FORMAT_VERSION = 1
NEVER = 1.01
"""A τ that no Wilson bound reaches: the classifier alone."""
_ALTERNATIVES = 3
_EXPLAINED = 8  # fired rules that a prediction puts into words; dozens may fire


class Firing(Protocol):
    """A rule that fired, as far as the gate looks at it; :class:`~mmd.intent.rules.Rule` is one."""

    @property
    def label(self) -> str:
        """What it speaks for."""
        ...

    @property
    def stats(self) -> RuleStats:
        """Its held-out record."""
        ...


@dataclass(frozen=True, slots=True)
class TaskGate:
    """How one task's rules and classifier are joined; ``tau`` in [0, 1.01], ``weight`` of votes ≥ 0."""

    task: str
    arm: Arm = "override"
    tau: float = NEVER
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's choice; ``arm`` is ``rules``, ``vote``, ``classifier`` or ``default``."""

    label: str
    confidence: float
    arm: str


def decide(gate: TaskGate, fired: Sequence[Firing], probabilities: Probabilities) -> Decision:
    """Choose a label from the rules that fired, best first, and the classifier's distribution."""
    classifier = Decision(*probabilities.best, "classifier")
    if gate.arm == "verdict":
        found = verdict(fired, len(probabilities.labels))
        if found is None or found.confidence < gate.tau:
            return classifier
        return Decision(found.label, found.confidence, "rules")
    reaching = [rule for rule in fired if rule.stats.wilson_lower >= gate.tau]
    if not reaching:
        return classifier
    if gate.arm == "override":
        return Decision(reaching[0].label, smoothed_precision(reaching[0].stats), "rules")
    votes = evidence(reaching, len(probabilities.labels))
    if not votes or gate.weight == 0.0:
        return classifier
    return Decision(*vote(probabilities, votes, gate.weight).best, "vote")


def smoothed_precision(stats: RuleStats) -> float:
    """Return (hits + 1) / (support + 2): an honest confidence of a rule that fired a few times (Laplace)."""
    return (stats.hits + 1) / (stats.support + 2)


def evidence(fired: Sequence[Firing], n_labels: int) -> dict[str, float]:
    """Return label → its share of all the evidence (log lift, :mod:`mmd.intent.vote`) of the rules that fired.

    A share, not the sum: alike rules fire by the dozen, and their number says little. It came out ahead of the other
    forms tried, by no more than noise (docs/results/kdsl-probe-research.md).
    """
    totals = tally(fired, n_labels)
    everything = sum(totals.values())
    return {label: value / everything for label, value in totals.items() if value > 0.0}


def vote(probabilities: Probabilities, votes: Mapping[str, float], weight: float) -> Probabilities:
    """Return the distribution proportional to p(label) · exp(weight · votes[label])."""
    scores = np.log(np.maximum(probabilities.values, 1e-12))
    scores += weight * np.array([votes.get(label, 0.0) for label in probabilities.labels])
    values = np.exp(scores - scores.max())
    return Probabilities(probabilities.labels, tuple(map(float, values / values.sum())))


# ---------------------------------------------------------------- choosing τ


@dataclass(frozen=True, slots=True)
class Validated:
    """A gate and its weighted F1 on held-out predictions of the training part."""

    gate: TaskGate
    weighted_f1: float


def choose_gate(
    task: str,
    golds: Sequence[str],
    fired: Sequence[Sequence[Firing]],
    probabilities: Sequence[Probabilities],
    settings: GateSettings,
) -> list[Validated]:
    """Score every arm's best setting on held-out firings and probabilities; the winner comes first.

    Ties prefer the larger τ (fewer overrides), then the smaller weight, then the simpler arm.

    Args:
        task: the task.
        golds: true labels of the examples.
        fired: per example the rules that fired, best first; found and judged without the
            example, though which rules are kept was decided with it (see :mod:`mmd.intent.firings`).
        probabilities: per example the classifier's distribution, from a fit without the example.
        settings: the arms and weights to try.
    """
    arms: tuple[Arm, ...] = ARMS if settings.arm == "auto" else (settings.arm,)
    n_labels = len(probabilities[0].labels) if probabilities else 1
    best = []
    for arm in arms:
        # Votes are weighed by their evidence already, so that they need no threshold, only to be heard or not.
        taus = (0.0, NEVER) if arm == "vote" else _tau_grid(arm, fired, n_labels)
        weights = settings.vote_weights if arm == "vote" else (0.0,)
        tried = [
            _validate(TaskGate(task, arm, tau, weight), golds, fired, probabilities)
            for tau, weight in itertools.product(taus, weights)
        ]
        best.append(max(tried, key=lambda v: (round(v.weighted_f1, 9), v.gate.tau, -v.gate.weight)))
    return sorted(best, key=lambda v: (-round(v.weighted_f1, 9), arms.index(v.gate.arm)))


def _tau_grid(arm: Arm, fired: Sequence[Sequence[Firing]], n_labels: int) -> tuple[float, ...]:
    """Return 0, every strength seen (in hundredths, rounded down) and NEVER."""
    if arm == "override":
        strengths = [rule.stats.wilson_lower for rules in fired for rule in rules]
    else:
        strengths = [found.confidence for rules in fired if (found := verdict(rules, n_labels))]
    return tuple(sorted({0.0, NEVER} | {math.floor(s * 100) / 100 for s in strengths}))


def _validate(
    gate: TaskGate, golds: Sequence[str], fired: Sequence[Sequence[Firing]], probabilities: Sequence[Probabilities]
) -> Validated:
    answers = [decide(gate, rules, p).label for rules, p in zip(fired, probabilities, strict=True)]
    return Validated(gate, Confusion.of(golds, answers).weighted_f1)


def working_point(fired: Sequence[Sequence[Firing]], n_labels: int, coverage: float) -> float:
    """Return the largest τ that the rules' verdicts reach on at least this share of examples; 0 if too few fire."""
    verdicts = (verdict(rules, n_labels) for rules in fired)
    strengths = sorted((found.confidence for found in verdicts if found), reverse=True)
    needed = math.ceil(coverage * len(fired))
    return strengths[needed - 1] if 0 < needed <= len(strengths) else 0.0


# ---------------------------------------------------------------- predicting


def default_distribution(labels: Sequence[str], label: str) -> Probabilities:
    """Return all the mass on one label."""
    known = tuple(labels) if label in labels else (*labels, label)
    return Probabilities(known, tuple(float(name == label) for name in known))


@dataclass(frozen=True)
class Gate:
    """Rules, classifiers and how each task joins them: the whole intent model.

    Args:
        rulebase: the rules of all tasks.
        classifiers: task → classifier; a task without one falls back on the base's default label.
        tasks: task → its gate; a task without one is left to its classifier.
        language: of the fired rules' words, ``en`` or ``zh``.
    """

    rulebase: RuleBase
    classifiers: Mapping[str, IntentClassifier]
    tasks: Mapping[str, TaskGate]
    language: str = "en"
    _compiled: dict[str, CompiledRules] = field(default_factory=dict, repr=False, compare=False)

    def rules(self, task: str) -> CompiledRules:
        """Return the compiled rules of a task."""
        if task not in self._compiled:
            self._compiled[task] = CompiledRules(self.rulebase, task)
        return self._compiled[task]

    def predict(self, examples: Sequence[IntentExample]) -> list[IntentPrediction]:
        """Answer each example's own task, in order.

        Raises:
            ArtifactError: neither a classifier nor a rule base's default knows an example's task.
        """
        out: dict[int, IntentPrediction] = {}
        for task in dict.fromkeys(example.task for example in examples):
            rows = [i for i, example in enumerate(examples) if example.task == task]
            batch = [examples[i] for i in rows]
            fired = self.rules(task).fired_batch(batch)
            for i, example, rules, p in zip(rows, batch, fired, self.distributions(task, batch), strict=True):
                out[i] = self.answer(example, rules, p)
        return [out[i] for i in range(len(examples))]

    def distributions(self, task: str, examples: Sequence[IntentExample]) -> list[Probabilities]:
        """Return the classifier's distributions, or the default label's where the task has no classifier.

        Raises:
            ArtifactError: the task has neither.
        """
        if task in self.classifiers:
            return self.classifiers[task].predict(examples)
        if task not in self.rulebase.defaults:
            known = ", ".join(sorted({*self.classifiers, *self.rulebase.defaults})) or "none"
            raise ArtifactError(f"task {task!r}: no classifier and no default label; there are {known}.")
        labels = sorted({rule.label for rule in self.rulebase.of_task(task)})
        return [default_distribution(labels, self.rulebase.defaults[task])] * len(examples)

    def answer(self, example: IntentExample, fired: Sequence[Rule], probabilities: Probabilities) -> IntentPrediction:
        """Join what was found for one example."""
        task = example.task
        choice = decide(self.tasks.get(task, TaskGate(task)), fired, probabilities)
        arm = "default" if choice.arm == "classifier" and task not in self.classifiers else choice.arm
        ranked = sorted(zip(probabilities.labels, probabilities.values, strict=True), key=lambda pair: -pair[1])
        others = [pair for pair in ranked if pair[0] != choice.label]
        return IntentPrediction(
            dialogue_id=example.dialogue_id,
            task=task,
            label=choice.label,
            confidence=choice.confidence,
            arm=arm,
            fired=tuple(self.explain(rule) for rule in fired[:_EXPLAINED]),
            alternatives=tuple(others[:_ALTERNATIVES]),
        )

    def explain(self, rule: Rule) -> FiredRule:
        """Put a rule that fired into words."""
        return FiredRule(
            rule_id=rule.id,
            label=rule.label,
            words=describe_rule(rule, self.language, self.rulebase.prototypes),
            precision=rule.stats.precision,
            wilson_lower=rule.stats.wilson_lower,
            support=rule.stats.support,
        )


# ---------------------------------------------------------------- files


def save_gates(writer: ArtifactWriter, gates: Mapping[str, TaskGate], validation: Mapping[str, Any]) -> None:
    """Write ``gate.json``: each task's gate, and how the choice was validated."""
    content = {
        "format_version": FORMAT_VERSION,
        "tasks": {task: asdict(gate) for task, gate in gates.items()},
        "validation": dict(validation),
    }
    writer.write_json(GATE_FILE, content)


def load_gates(artifact: Artifact) -> dict[str, TaskGate]:
    """Read what :func:`save_gates` wrote.

    Raises:
        ArtifactError: another format.
    """
    content = artifact.read_json(GATE_FILE)
    if content.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{artifact.ref}: {GATE_FILE} has format {content.get('format_version')}, this mmd reads "
            f"{FORMAT_VERSION}; run fit_intent again."
        )
    return {task: TaskGate(**gate) for task, gate in content["tasks"].items()}
