"""Evaluation of an intent model: every system on the same examples, and what joining them was worth.

Systems: ``rules`` (the verdict of the rules that fire, else the task's default label), ``classifier`` (the probe), and
``rules+classifier`` (the gate as chosen on the training part). With a fine-tuned MLLM also ``mllm`` (alone) and
``pooled`` (the gate's pool of probe and MLLM, no rule heard), so that the gate's gain can be told from the pool's.
Ablations run the gate with other settings; τ = 0 and τ > 1 are the pure ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
)
from mmd.intent.gate import NEVER, THRESHOLD_ARMS, Gate, Opinions, TaskGate, decide, pool
from mmd.intent.rules import Rule
from mmd.intent.types import IntentExample, IntentPrediction, Probabilities
from mmd.intent.vote import verdict

RULES, CLASSIFIER, MLLM, POOLED, JOINED = "rules", "classifier", "mllm", "pooled", "rules+classifier"
SYSTEMS = (RULES, CLASSIFIER, MLLM, POOLED, JOINED)


@dataclass(frozen=True)
class TaskResult:
    """What one task's test examples showed; all sequences are aligned with ``examples``."""

    task: str
    labels: tuple[str, ...]
    gate: TaskGate
    examples: Sequence[IntentExample]
    fired: Sequence[tuple[Rule, ...]]
    opinions: Sequence[Opinions]
    predictions: Sequence[IntentPrediction]
    systems: Mapping[str, Sequence[str]]
    ablations: Mapping[str, Sequence[str]]

    @property
    def golds(self) -> list[str]:
        """True labels."""
        return [str(example.label) for example in self.examples]

    @property
    def probabilities(self) -> list[Probabilities]:
        """The probe's distributions."""
        return [said.probe for said in self.opinions]

    @property
    def has_mllm(self) -> bool:
        """Say whether an MLLM was asked."""
        return MLLM in self.systems

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
        """Return the calibration of the probe, of the MLLM, or of the gate's confidence."""
        if system == CLASSIFIER:
            best = [p.best for p in self.probabilities]
        elif system == MLLM:
            best = [said.mllm.best for said in self.opinions if said.mllm]
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
    chosen = gate.setting(task)
    settings = _ablations_of(chosen, has_mllm=task in gate.mllms) | dict(others or {})
    fired = gate.rules(task).fired_batch(examples)
    said = gather(gate, task, examples, fired, [chosen, *settings.values()])
    rows = list(zip(fired, said, strict=True))
    ablations = {name: [decide(how, f, o).label for f, o in rows] for name, how in settings.items()}
    return TaskResult(
        task=task,
        labels=tuple(labels),
        gate=chosen,
        examples=examples,
        fired=fired,
        opinions=said,
        predictions=[gate.answer(e, f, o) for e, (f, o) in zip(examples, rows, strict=True)],
        systems=_systems(chosen, rows, gate.rulebase.defaults.get(task, "")),
        ablations=ablations | _oracles(examples, rows),
    )


def gather(
    gate: Gate,
    task: str,
    examples: Sequence[IntentExample],
    fired: Sequence[Sequence[Rule]],
    settings: Iterable[TaskGate],
) -> list[Opinions]:
    """Return what every model says of every example, whether or not one of the gates would have asked it.

    The MLLM is asked with rules told only where a setting of arm ``prompt`` would tell them.
    """
    default, mllm = gate.rulebase.defaults.get(task), gate.mllms.get(task)
    said = [Opinions(p, default=default) for p in gate.distributions(task, examples)]
    if mllm is None:
        return said
    said = [replace(o, mllm=p) for o, p in zip(said, mllm.predict(examples), strict=True)]
    least = min((how.tau for how in settings if how.arm == "prompt"), default=NEVER)
    reaching = [i for i, rules in enumerate(fired) if any(rule.stats.wilson_lower >= least for rule in rules)]
    hints = {i: hint for i in reaching if (hint := gate.hint(task, fired[i]))}  # of some rules nothing is told
    hinted = mllm.predict_hinted([examples[i] for i in hints], list(hints.values())) if hints else []
    for i, found in zip(hints, hinted, strict=True):
        said[i] = replace(said[i], hinted=found)
    return said


Row = tuple[Sequence[Rule], Opinions]


def _ablations_of(chosen: TaskGate, *, has_mllm: bool) -> dict[str, TaskGate]:
    task, share = chosen.task, chosen.mllm
    found = {
        "the best firing rule always overrides (override, τ = 0)": TaskGate(task, tau=0.0, mllm=share),
        "the rules' verdict always overrides (verdict, τ = 0)": TaskGate(task, "verdict", tau=0.0, mllm=share),
        "no rule is heard (τ > 1)": TaskGate(task, tau=NEVER, mllm=share),
    }
    if not has_mllm or chosen.arm not in THRESHOLD_ARMS:
        return found
    return found | {
        "the gate with the probe alone (MLLM share 0)": replace(chosen, mllm=0.0),
        "the gate with the MLLM alone (MLLM share 1)": replace(chosen, mllm=1.0),
    }


def _systems(chosen: TaskGate, rows: Sequence[Row], default: str) -> dict[str, list[str]]:
    systems = {
        RULES: [_rules_alone(f, len(o.probe.labels), default) for f, o in rows],
        CLASSIFIER: [o.probe.best[0] for _, o in rows],
        JOINED: [decide(chosen, f, o).label for f, o in rows],
    }
    if all(o.mllm for _, o in rows):
        systems[MLLM] = [o.mllm.best[0] for _, o in rows if o.mllm]
        systems[POOLED] = [pool(o.probe, o.mllm, chosen.mllm).best[0] for _, o in rows if o.mllm]
    return {name: systems[name] for name in SYSTEMS if name in systems}


def _rules_alone(fired: Sequence[Rule], n_labels: int, default: str) -> str:
    found = verdict(fired, n_labels)
    return found.label if found else default


def _oracles(examples: Sequence[IntentExample], rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return what a perfect gate would reach: the right answer wherever one of those it chooses from gives it."""
    both, all_three = [], []
    for example, (fired, said) in zip(examples, rows, strict=True):
        by_rules, by_probe = _rules_alone(fired, len(said.probe.labels), ""), said.probe.best[0]
        both.append(by_rules if by_rules == example.label else by_probe)
        by_mllm = said.mllm.best[0] if said.mllm else by_probe
        all_three.append(by_mllm if by_mllm == example.label else both[-1])
    found = {"best of both, by an oracle": both}
    if all(said.mllm for _, said in rows):
        found["best of rules, probe and MLLM, by an oracle"] = all_three
    return found


@dataclass(frozen=True)
class Summary:
    """The numbers of a report: by system and task, with intervals, and what joining gained.

    ``gains`` maps a system that the gate is compared with → task or ``overall`` → gain; ``gain`` is that over the
    probe, overall. ``tests`` compare the gate with the same classifiers when no rule is heard.
    """

    tasks: Mapping[str, Mapping[str, Interval]]
    overall: Mapping[str, Interval]
    gain: Interval
    gains: Mapping[str, Mapping[str, Interval]]
    tests: Mapping[str, McNemar]
    ablations: Mapping[str, Mapping[str, float]]

    @property
    def systems(self) -> tuple[str, ...]:
        """Every system that some task has, in order."""
        return tuple(s for s in SYSTEMS if any(s in scores for scores in self.tasks.values()))


def summarise(results: Sequence[TaskResult], *, resamples: int, seed: int) -> Summary:
    """Score all systems with bootstrap intervals, and test the gate against its classifiers."""
    answers = {r.task: Answers(r.golds, r.systems) for r in results}
    everywhere = [s for s in SYSTEMS if all(s in r.systems for r in results)]
    shared = {r.task: Answers(r.golds, {s: r.systems[s] for s in everywhere}) for r in results}
    draws = {task: bootstrap({task: own}, resamples=resamples, seed=seed) for task, own in answers.items()}
    draws["overall"] = bootstrap(shared, resamples=resamples, seed=seed)
    values = {r.task: {s: r.confusion(s).weighted_f1 for s in r.systems} for r in results}
    values["overall"] = {s: overall({r.task: r.confusion(s) for r in results}) for s in everywhere}
    scores = {
        name: {s: interval(value, draws[name][s]) for s, value in of_system.items()}
        for name, of_system in values.items()
    }
    gains = {
        base: {
            name: interval(value[JOINED] - value[base], draws[name][JOINED] - draws[name][base])
            for name, value in values.items()
            if base in value
        }
        for base in (CLASSIFIER, MLLM, POOLED)
    }
    return Summary(
        tasks={r.task: scores[r.task] for r in results},
        overall=scores["overall"],
        gain=gains[CLASSIFIER]["overall"],
        gains={base: found for base, found in gains.items() if found},
        tests={r.task: mcnemar(r.golds, r.systems[JOINED], r.systems[unruled(r)]) for r in results},
        ablations=_ablations(results),
    )


def unruled(result: TaskResult) -> str:
    """Return the system that is the gate without its rules."""
    return POOLED if result.has_mllm else CLASSIFIER


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
        "gains": {base: {name: asdict(g) for name, g in found.items()} for base, found in summary.gains.items()},
        "ablations": {name: dict(scores) for name, scores in summary.ablations.items()},
        "tasks": {r.task: _task_json(r, summary, working_points.get(r.task, 0.0)) for r in results},
    }


def _task_json(result: TaskResult, summary: Summary, tau: float) -> dict[str, Any]:
    record = result.rule_record
    return {
        "examples": len(result.examples),
        "gate": asdict(result.gate),
        "weighted_f1": {system: asdict(value) for system, value in summary.tasks[result.task].items()},
        "macro_f1": {system: result.confusion(system).macro_f1 for system in result.systems},
        "accuracy": {system: asdict(result.confusion(system).accuracy) for system in result.systems},
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
        "calibration_error": {system: result.calibration(system).error for system in calibrated(result)},
        "per_class": {system: [asdict(s) for s in result.confusion(system).per_class] for system in result.systems},
        "confusion": [[gold, answer, n] for (gold, answer), n in sorted(result.confusion(JOINED).counts.items())],
    }


def calibrated(result: TaskResult) -> tuple[str, ...]:
    """Return the systems whose confidence is measured."""
    return (CLASSIFIER, MLLM, JOINED) if result.has_mllm else (CLASSIFIER, JOINED)


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
        """The probe's own answer and confidence."""
        return self.result.opinions[self.row].probe.best

    @property
    def mllm(self) -> tuple[str, float] | None:
        """The MLLM's own answer and confidence, if there is one."""
        said = self.result.opinions[self.row].mllm
        return said.best if said else None

    @property
    def unruled(self) -> str:
        """What the gate would have answered without rules."""
        return self.result.systems[unruled(self.result)][self.row]


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
    before = shown.unruled == shown.example.label
    if right != before:
        return "rules put it right" if right else "rules put it wrong"
    if not right:
        return "wrong"
    return "right, with rules" if shown.prediction.fired else "right, without rules"
