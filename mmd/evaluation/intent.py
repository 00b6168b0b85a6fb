"""Evaluation of an intent model: every system on the same examples, what rules were worth, and how fast it is.

Systems: ``rules`` (the verdict of the rules that fire, else the task's default label), ``classifier``, and
``rules+classifier`` (the gate as chosen on the training part). Ablations run the gate with other settings; τ = 0 and
τ > 1 are the pure ends.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmd.evaluation.metrics import (
    Answers,
    Calibration,
    Confusion,
    Fraction,
    Interval,
    McNemar,
    RuleRecord,
    bootstrap,
    interval,
    mcnemar,
    overall,
    percentiles,
)
from mmd.intent.gate import NEVER, Gate, TaskGate, decide
from mmd.intent.rules import Rule
from mmd.intent.types import IntentExample, IntentPrediction, Probabilities
from mmd.intent.vote import verdict

RULES, CLASSIFIER, JOINED = "rules", "classifier", "rules+classifier"
SYSTEMS = (RULES, CLASSIFIER, JOINED)
STAGES = ("matching", "classifier", "gate")


@dataclass(frozen=True)
class TaskResult:
    """What one task's test examples showed; all sequences are aligned with ``examples``."""

    task: str
    labels: tuple[str, ...]
    gate: TaskGate
    examples: Sequence[IntentExample]
    fired: Sequence[tuple[Rule, ...]]
    probabilities: Sequence[Probabilities]
    predictions: Sequence[IntentPrediction]
    systems: Mapping[str, Sequence[str]]
    ablations: Mapping[str, Sequence[str]]

    @property
    def golds(self) -> list[str]:
        """True labels."""
        return [str(example.label) for example in self.examples]

    def confusion(self, system: str) -> Confusion:
        """Return a system's (or ablation's) confusion."""
        answers = self.systems[system] if system in self.systems else self.ablations[system]
        return Confusion.of(self.golds, answers)

    @property
    def rule_record(self) -> RuleRecord:
        """Confidence and truth of the rules' verdict on each example on which they have one."""
        found = [verdict(rules, len(p.labels)) for rules, p in zip(self.fired, self.probabilities, strict=True)]
        pairs = zip(self.golds, found, strict=True)
        return RuleRecord(tuple((v.confidence, v.label == gold) for gold, v in pairs if v), len(self.examples))

    @property
    def arms(self) -> dict[str, Fraction]:
        """Accuracy of the gate by who answered."""
        found: defaultdict[str, Fraction] = defaultdict(Fraction)
        for gold, prediction in zip(self.golds, self.predictions, strict=True):
            found[prediction.arm] += Fraction(int(prediction.label == gold), 1)
        return dict(sorted(found.items()))

    def calibration(self, system: str) -> Calibration:
        """Return the calibration of the classifier, or of the gate's confidence."""
        if system == CLASSIFIER:
            best = [p.best for p in self.probabilities]
        else:
            best = [(p.label, p.confidence) for p in self.predictions]
        right = [label == gold for gold, (label, _) in zip(self.golds, best, strict=True)]
        return Calibration.of([confidence for _, confidence in best], right)


def evaluate_task(
    gate: Gate,
    task: str,
    labels: Sequence[str],
    examples: Sequence[IntentExample],
    others: Mapping[str, TaskGate] | None = None,
) -> TaskResult:
    """Run every system and ablation on one task's examples.

    Args:
        gate: the intent model.
        task: the task.
        labels: its label set.
        examples: labelled examples that nothing was fitted on.
        others: name → gate setting to run as an ablation, beside the two pure ends.
    """
    chosen = gate.tasks.get(task, TaskGate(task))
    fired = gate.rules(task).fired_batch(examples)
    probabilities = gate.distributions(task, examples)
    default = gate.rulebase.defaults.get(task, "")
    ablations = {
        "the best firing rule always overrides (override, τ = 0)": TaskGate(task, tau=0.0),
        "the rules' verdict always overrides (verdict, τ = 0)": TaskGate(task, "verdict", tau=0.0),
        "no rule is heard (τ > 1)": TaskGate(task, tau=NEVER),
        **(others or {}),
    }
    return TaskResult(
        task=task,
        labels=tuple(labels),
        gate=chosen,
        examples=examples,
        fired=fired,
        probabilities=probabilities,
        predictions=[gate.answer(e, f, p) for e, f, p in zip(examples, fired, probabilities, strict=True)],
        systems={
            RULES: [_rules_alone(f, len(p.labels), default) for f, p in zip(fired, probabilities, strict=True)],
            CLASSIFIER: [p.best[0] for p in probabilities],
            JOINED: [decide(chosen, f, p).label for f, p in zip(fired, probabilities, strict=True)],
        },
        ablations={
            name: [decide(setting, f, p).label for f, p in zip(fired, probabilities, strict=True)]
            for name, setting in ablations.items()
        }
        | {"best of both, by an oracle": _oracle(examples, fired, probabilities)},
    )


def _rules_alone(fired: Sequence[Rule], n_labels: int, default: str) -> str:
    found = verdict(fired, n_labels)
    return found.label if found else default


def _oracle(
    examples: Sequence[IntentExample], fired: Sequence[Sequence[Rule]], probabilities: Sequence[Probabilities]
) -> list[str]:
    """Return the rules' verdict where it is right, else the classifier's answer: what a perfect gate would reach."""
    return [
        label if (label := _rules_alone(rules, len(p.labels), "")) == example.label else p.best[0]
        for example, rules, p in zip(examples, fired, probabilities, strict=True)
    ]


def time_stages(gate: Gate, examples: Sequence[IntentExample], samples: int) -> dict[str, dict[str, float]]:
    """Time single predictions, features given: stage → p50, p90, p99 in ms; the first one only warms up."""
    taken: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "total")}
    if not examples:
        return {}
    for number in range(samples + 1):
        example = examples[number % len(examples)]
        marks = [time.perf_counter()]
        fired = gate.rules(example.task).fired(example)
        marks.append(time.perf_counter())
        [probabilities] = gate.distributions(example.task, [example])
        marks.append(time.perf_counter())
        gate.answer(example, fired, probabilities)
        marks.append(time.perf_counter())
        if number:
            spent = [(b - a) * 1000 for a, b in itertools.pairwise(marks)]
            for stage, ms in zip(STAGES, spent, strict=True):
                taken[stage].append(ms)
            taken["total"].append(sum(spent))
    return {stage: percentiles(ms) for stage, ms in taken.items()}


@dataclass(frozen=True)
class Summary:
    """The numbers of a report: by system and task, with intervals, and what joining gained."""

    tasks: Mapping[str, Mapping[str, Interval]]
    overall: Mapping[str, Interval]
    gain: Interval
    tests: Mapping[str, McNemar]
    ablations: Mapping[str, Mapping[str, float]]


def summarise(results: Sequence[TaskResult], *, resamples: int, seed: int) -> Summary:
    """Score all systems with bootstrap intervals, and test rules + classifier against the classifier alone."""
    answers = {r.task: Answers(r.golds, r.systems) for r in results}
    by_task = {
        r.task: {
            system: interval(
                r.confusion(system).weighted_f1,
                bootstrap({r.task: answers[r.task]}, resamples=resamples, seed=seed)[system],
            )
            for system in SYSTEMS
        }
        for r in results
    }
    draws = bootstrap(answers, resamples=resamples, seed=seed)
    values = {system: overall({r.task: r.confusion(system) for r in results}) for system in SYSTEMS}
    return Summary(
        tasks=by_task,
        overall={system: interval(values[system], draws[system]) for system in SYSTEMS},
        gain=interval(values[JOINED] - values[CLASSIFIER], draws[JOINED] - draws[CLASSIFIER]),
        tests={r.task: mcnemar(r.golds, r.systems[JOINED], r.systems[CLASSIFIER]) for r in results},
        ablations=_ablations(results),
    )


def _ablations(results: Sequence[TaskResult]) -> dict[str, dict[str, float]]:
    """Return ablation → task → weighted F1, and their mean as ``overall`` where every task has it."""
    names = dict.fromkeys(name for r in results for name in r.ablations)
    table: dict[str, dict[str, float]] = {}
    for name in names:
        scores = {r.task: r.confusion(name).weighted_f1 for r in results if name in r.ablations}
        if len(scores) == len(results):
            scores["overall"] = sum(scores.values()) / len(scores)
        table[name] = scores
    return table


def to_json(summary: Summary, results: Sequence[TaskResult], working_points: Mapping[str, float]) -> dict[str, Any]:
    """Return everything measured as plain JSON.

    Args:
        summary: of the same results.
        results: by task.
        working_points: task → τ at which rules alone are reported.
    """
    return {
        "overall": {system: asdict(value) for system, value in summary.overall.items()},
        "gain_over_classifier": asdict(summary.gain),
        "ablations": {name: dict(scores) for name, scores in summary.ablations.items()},
        "tasks": {r.task: _task_json(r, summary, working_points.get(r.task, 0.0)) for r in results},
    }


def _task_json(result: TaskResult, summary: Summary, tau: float) -> dict[str, Any]:
    record = result.rule_record
    return {
        "examples": len(result.examples),
        "gate": asdict(result.gate),
        "weighted_f1": {system: asdict(value) for system, value in summary.tasks[result.task].items()},
        "macro_f1": {system: result.confusion(system).macro_f1 for system in SYSTEMS},
        "accuracy": {system: asdict(result.confusion(system).accuracy) for system in SYSTEMS},
        "mcnemar": asdict(summary.tests[result.task]),
        "rules": {
            "fired": asdict(record.coverage()),
            "right_where_fired": asdict(record.precision()),
            "working_point": {
                "tau": tau,
                "coverage": asdict(record.coverage(tau)),
                "precision": asdict(record.precision(tau)),
            },
            "curve": [list(point) for point in record.curve()],
        },
        "arms": {arm: asdict(share) for arm, share in result.arms.items()},
        "calibration_error": {system: result.calibration(system).error for system in (CLASSIFIER, JOINED)},
        "per_class": {system: [asdict(s) for s in result.confusion(system).per_class] for system in SYSTEMS},
        "confusion": [[gold, answer, n] for (gold, answer), n in sorted(result.confusion(JOINED).counts.items())],
    }


@dataclass(frozen=True)
class WorkedExample:
    """A test example picked for the report, and what it shows."""

    shows: str
    result: TaskResult
    row: int

    @property
    def example(self) -> IntentExample:
        """The example."""
        return self.result.examples[self.row]

    @property
    def prediction(self) -> IntentPrediction:
        """The gate's answer."""
        return self.result.predictions[self.row]

    @property
    def classifier(self) -> tuple[str, float]:
        """The classifier's own answer and confidence."""
        return self.result.probabilities[self.row].best


_KINDS = ("rules put it right", "right, with rules", "rules put it wrong", "wrong", "right, without rules")


def pick_examples(results: Sequence[TaskResult], count: int) -> list[WorkedExample]:
    """Pick examples of every kind and task in turn, in the corpus's order, so that failures are shown, too."""
    piles: dict[tuple[str, str], list[WorkedExample]] = defaultdict(list)
    for result in results:
        for row in range(len(result.examples)):
            shown = WorkedExample("", result, row)
            kind = _kind(shown)
            piles[kind, result.task].append(replace(shown, shows=kind))
    order = [piles[kind, r.task] for kind in _KINDS for r in results if piles[kind, r.task]]
    picked: list[WorkedExample] = []
    depth = 0
    while len(picked) < count and any(depth < len(pile) for pile in order):
        picked += [pile[depth] for pile in order if depth < len(pile)][: count - len(picked)]
        depth += 1
    return sorted(picked, key=lambda w: _KINDS.index(w.shows))


def _kind(shown: WorkedExample) -> str:
    right = shown.prediction.label == shown.example.label
    before = shown.classifier[0] == shown.example.label
    if right != before:
        return "rules put it right" if right else "rules put it wrong"
    if not right:
        return "wrong"
    return "right, with rules" if shown.prediction.fired else "right, without rules"
