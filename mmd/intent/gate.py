"""The gate: where rules, probe and MLLM meet, one task at a time.

The probe and the MLLM are pooled first: p(label) ∝ p_mllm^s · p_probe^(1-s), a log-linear pool whose share s is the
task's own; s = 0 is exactly the probe, s = 1 exactly the MLLM. Then an arm says what rules do:

========== =========================================================================================================
override   the paper's: the best firing rule (Wilson lower bound, then support) answers when its bound reaches τ
verdict    what the fired rules say together answers when its confidence reaches τ
vote       each label's probability is multiplied by exp(weight · evidence), the evidence being its share of what the
           fired rules that reach τ say
prompt     where the best rule's Wilson bound reaches τ, the fired rules are told to the MLLM in words, and what it then
           says is pooled
rules_only the verdict of the rules, else the task's default label: no model is asked
mllm_only  the MLLM alone; no rule is heard
========== =========================================================================================================

In the first four τ > 1 never hears a rule: the pooled classifier answers. In the first two τ = 0 lets every firing rule
(every verdict) override. Without an MLLM its share counts as 0, and arms that are nothing without it leave the answer
to the probe. What is chosen, and how: :mod:`mmd.intent.choice`.
Source: METHODS section 1, prediction; verdict, vote and the pool are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import numpy as np

from mmd.artifacts import Artifact, ArtifactWriter
from mmd.errors import ArtifactError
from mmd.intent.hints import hint_text, told_rules
from mmd.intent.matcher import CompiledRules
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Rule, RuleStats
from mmd.intent.settings import PromptSettings
from mmd.intent.types import (
    FiredRule,
    IntentClassifier,
    IntentExample,
    IntentPrediction,
    Probabilities,
    PromptedClassifier,
)
from mmd.intent.vote import tally, verdict
from mmd.intent.wording import describe_rule

Arm = Literal["override", "verdict", "vote", "prompt", "rules_only", "mllm_only"]
ARMS: tuple[Arm, ...] = ("override", "verdict", "vote", "prompt", "rules_only", "mllm_only")
THRESHOLD_ARMS: tuple[Arm, ...] = ("override", "verdict", "vote", "prompt")
"""Arms with a τ; the others are pure systems."""
MLLM_ARMS: tuple[Arm, ...] = ("prompt", "mllm_only")
"""Arms that are nothing without an MLLM."""
GATE_FILE = "gate.json"
FORMAT_VERSION = 2
_READABLE = (1, 2)  # 1 knew no MLLM: its share is 0
NEVER = 1.01
"""A τ that no Wilson bound reaches: the classifier alone."""
_ALTERNATIVES = 3
_EXPLAINED = 8  # fired rules that a prediction puts into words; dozens may fire
_FLOOR = 1e-12  # of a probability, before its logarithm


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
    """How one task's rules and classifiers are joined.

    Attributes:
        task: the task.
        arm: what rules do.
        tau: in [0, 1.01]; arms without a threshold ignore it.
        weight: of the vote, at least 0.
        mllm: share of the MLLM in the pool with the probe, in [0, 1].
    """

    task: str
    arm: Arm = "override"
    tau: float = NEVER
    weight: float = 0.0
    mllm: float = 0.0

    @property
    def asks_mllm(self) -> bool:
        """Say whether the MLLM's answer can matter."""
        return self.arm == "mllm_only" or (self.mllm > 0.0 and self.arm != "rules_only")


@dataclass(frozen=True, slots=True)
class Opinions:
    """What was found out about one example besides the rules that fired.

    Attributes:
        probe: the probe's distribution (all on the default label where a task has no probe).
        mllm: the MLLM's; None where it was not asked, or could not answer.
        hinted: the MLLM's with the fired rules told to it.
        default: the task's commonest label, which ``rules_only`` falls back on.
    """

    probe: Probabilities
    mllm: Probabilities | None = None
    hinted: Probabilities | None = None
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's choice; ``arm`` says who decided.

    It is ``rules``, ``vote`` (rules and classifier), ``prompt`` (the pool, its MLLM having been told rules), ``mllm``
    (asked for alone), ``classifier`` (the pool) or ``default``.
    """

    label: str
    confidence: float
    arm: str


def decide(gate: TaskGate, fired: Sequence[Firing], opinions: Opinions | Probabilities) -> Decision:
    """Choose a label from the rules that fired, best first, and what the models say.

    Args:
        gate: how to join them.
        fired: rules, best first.
        opinions: of the models; a bare distribution is the probe's.
    """
    said = opinions if isinstance(opinions, Opinions) else Opinions(opinions)
    n_labels = len(said.probe.labels)
    if by_rules := ruled(gate, fired, n_labels, said.default):
        return by_rules
    belief = believed(gate, fired, said)
    if gate.arm == "vote" and gate.weight > 0.0 and (votes := evidence(_reaching(gate, fired), n_labels)):
        return Decision(*vote(belief, votes, gate.weight).best, "vote")
    return Decision(*belief.best, _who(gate, fired, said))


def ruled(gate: TaskGate, fired: Sequence[Firing], n_labels: int, default: str | None = None) -> Decision | None:
    """Return what the rules decide on their own, whatever any model would say; None where a model has a say."""
    if gate.arm in ("verdict", "rules_only"):
        found = verdict(fired, n_labels)
        if found is not None and (gate.arm == "rules_only" or found.confidence >= gate.tau):
            return Decision(found.label, found.confidence, "rules")
        return Decision(default, 0.0, "default") if gate.arm == "rules_only" and default is not None else None
    if gate.arm == "override" and (reaching := _reaching(gate, fired)):
        return Decision(reaching[0].label, smoothed_precision(reaching[0].stats), "rules")
    return None


def believed(gate: TaskGate, fired: Sequence[Firing], said: Opinions) -> Probabilities:
    """Return the distribution that stands beside the rules: the pool of probe and MLLM, or what the arm makes of it."""
    if gate.arm == "mllm_only":
        return said.mllm or said.probe
    mllm = said.hinted if _hinted(gate, fired) and said.hinted else said.mllm
    return pool(said.probe, mllm, gate.mllm) if mllm else said.probe


def _who(gate: TaskGate, fired: Sequence[Firing], said: Opinions) -> str:
    if gate.arm == "mllm_only" and said.mllm:
        return "mllm"
    return "prompt" if _hinted(gate, fired) and said.hinted and gate.mllm > 0.0 else "classifier"


def _hinted(gate: TaskGate, fired: Sequence[Firing]) -> bool:
    return gate.arm == "prompt" and bool(_reaching(gate, fired))


def _reaching(gate: TaskGate, fired: Sequence[Firing]) -> list[Firing]:
    return [rule for rule in fired if rule.stats.wilson_lower >= gate.tau]


def pool(probe: Probabilities, mllm: Probabilities, share: float) -> Probabilities:
    """Return the log-linear pool, proportional to p_mllm^share · p_probe^(1 - share), over the probe's labels.

    A share of 0 gives exactly the probe, of 1 exactly the MLLM; a label that the MLLM does not know is unlikely.
    """
    if share <= 0.0:
        return probe
    if share >= 1.0:
        return mllm
    known = dict(zip(mllm.labels, mllm.values, strict=True))
    said = np.array([known.get(label, 0.0) for label in probe.labels])
    scores = share * np.log(np.maximum(said, _FLOOR)) + (1.0 - share) * np.log(np.maximum(probe.values, _FLOOR))
    return _normalised(probe.labels, scores)


def _normalised(labels: tuple[str, ...], scores: Any) -> Probabilities:  # noqa: ANN401 (float64 of shape (n_labels,))
    values = np.exp(scores - scores.max())
    return Probabilities(labels, tuple(map(float, values / values.sum())))


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
    scores = np.log(np.maximum(probabilities.values, _FLOOR))
    scores += weight * np.array([votes.get(label, 0.0) for label in probabilities.labels])
    return _normalised(probabilities.labels, scores)


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
        classifiers: task → probe; a task without one falls back on its MLLM, else on the base's default label.
        tasks: task → its gate; a task without one is left to its classifier.
        language: of the fired rules' words, ``en`` or ``zh``.
        mllms: task → fine-tuned MLLM; examples need their pictures' bytes where one looks at pixels.
    """

    rulebase: RuleBase
    classifiers: Mapping[str, IntentClassifier]
    tasks: Mapping[str, TaskGate]
    language: str = "en"
    mllms: Mapping[str, PromptedClassifier] = field(default_factory=dict)
    _compiled: dict[str, CompiledRules] = field(default_factory=dict, repr=False, compare=False)

    def rules(self, task: str) -> CompiledRules:
        """Return the compiled rules of a task."""
        if task not in self._compiled:
            self._compiled[task] = CompiledRules(self.rulebase, task)
        return self._compiled[task]

    def setting(self, task: str) -> TaskGate:
        """Return how a task is joined; where it has an MLLM and no probe, the MLLM's share is all."""
        chosen = self.tasks.get(task, TaskGate(task))
        return replace(chosen, mllm=1.0) if task in self.mllms and task not in self.classifiers else chosen

    def predict(self, examples: Sequence[IntentExample]) -> list[IntentPrediction]:
        """Answer each example's own task, in order. What an MLLM raises is raised; callers may go on without it.

        Raises:
            ArtifactError: neither a model nor a rule base's default knows an example's task.
        """
        out: dict[int, IntentPrediction] = {}
        for task in dict.fromkeys(example.task for example in examples):
            rows = [i for i, example in enumerate(examples) if example.task == task]
            batch = [examples[i] for i in rows]
            fired = self.rules(task).fired_batch(batch)
            said = self.opinions(task, batch, fired, self.distributions(task, batch))
            for i, example, rules, found in zip(rows, batch, fired, said, strict=True):
                out[i] = self.answer(example, rules, found)
        return [out[i] for i in range(len(examples))]

    def distributions(self, task: str, examples: Sequence[IntentExample]) -> list[Probabilities]:
        """Return the probe's distributions, or the default label's where the task has no probe.

        Raises:
            ArtifactError: the task has no probe, no MLLM and no default label.
        """
        if task in self.classifiers:
            return self.classifiers[task].predict(examples)
        if task in self.rulebase.defaults:
            labels = sorted({rule.label for rule in self.rulebase.of_task(task)})
            return [default_distribution(labels, self.rulebase.defaults[task])] * len(examples)
        if task in self.mllms:
            labels = list(self.mllms[task].labels)
            return [Probabilities(tuple(labels), (1.0 / len(labels),) * len(labels))] * len(examples)
        known = ", ".join(sorted({*self.classifiers, *self.mllms, *self.rulebase.defaults})) or "none"
        raise ArtifactError(f"task {task!r}: no classifier and no default label; there are {known}.")

    def opinions(
        self,
        task: str,
        examples: Sequence[IntentExample],
        fired: Sequence[Sequence[Rule]],
        probes: Sequence[Probabilities],
    ) -> list[Opinions]:
        """Ask the MLLM, in one batch, about those examples on which its answer can matter; return all opinions.

        It is asked plainly, or (arm ``prompt``, best rule at τ) with the fired rules told, never both.
        """
        gate, default = self.setting(task), self.rulebase.defaults.get(task)
        said = [Opinions(p, default=default) for p in probes]
        mllm = self.mllms.get(task)
        if mllm is None or not gate.asks_mllm:
            return said
        asked = [
            i
            for i, (rules, p) in enumerate(zip(fired, probes, strict=True))
            if ruled(gate, rules, len(p.labels), default) is None
        ]
        hints = [self.hint(task, fired[i]) if _hinted(gate, fired[i]) else "" for i in asked]
        batch = [examples[i] for i in asked]
        if not asked:
            return said
        found = mllm.predict_hinted(batch, hints) if any(hints) else mllm.predict(batch)
        for i, hint, distribution in zip(asked, hints, found, strict=True):
            said[i] = replace(said[i], hinted=distribution) if hint else replace(said[i], mllm=distribution)
        return said

    def hint(self, task: str, fired: Sequence[Rule]) -> str:
        """Return the fired rules, best first, as the MLLM is told them: in English, as it was in training."""
        return hint_text(told_rules(fired, self.rulebase.prototypes), _hint_limit(self.mllms.get(task)))

    def answer(
        self, example: IntentExample, fired: Sequence[Rule], opinions: Opinions | Probabilities
    ) -> IntentPrediction:
        """Join what was found for one example; a bare distribution is the probe's."""
        task, said = example.task, opinions if isinstance(opinions, Opinions) else Opinions(opinions)
        gate = self.setting(task)
        choice, belief = decide(gate, fired, said), believed(gate, fired, said)
        unmodelled = task not in self.classifiers and not (said.mllm or said.hinted)
        ranked = sorted(zip(belief.labels, belief.values, strict=True), key=lambda pair: -pair[1])
        others = [pair for pair in ranked if pair[0] != choice.label]
        return IntentPrediction(
            dialogue_id=example.dialogue_id,
            task=task,
            label=choice.label,
            confidence=choice.confidence,
            arm="default" if choice.arm == "classifier" and unmodelled else choice.arm,
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


def _hint_limit(mllm: PromptedClassifier | None) -> int:
    """Return how many rules an MLLM was told at most when it was fine-tuned."""
    prompt = getattr(mllm, "prompt", None)
    return prompt.hints if isinstance(prompt, PromptSettings) else PromptSettings().hints


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
        ArtifactError: another format, or a gate that is none.
    """
    content = artifact.read_json(GATE_FILE)
    if content.get("format_version") not in _READABLE:
        raise ArtifactError(
            f"{artifact.ref}: {GATE_FILE} has format {content.get('format_version')}, this mmd reads "
            f"{' and '.join(map(str, _READABLE))}; run fit_intent again."
        )
    return {task: _gate(artifact, task, gate) for task, gate in content["tasks"].items()}


def _gate(artifact: Artifact, task: str, value: Mapping[str, Any]) -> TaskGate:
    unknown = sorted(value.keys() - {f.name for f in fields(TaskGate)})
    if unknown or value.get("arm") not in ARMS:
        what = f"unknown field {unknown[0]!r}" if unknown else f"unknown arm {value.get('arm')!r}"
        raise ArtifactError(
            f"{artifact.ref}: {GATE_FILE}, task {task!r}: {what}; arms are {', '.join(ARMS)}. Run fit_intent again."
        )
    return TaskGate(**value)
