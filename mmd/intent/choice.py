"""Choosing a task's gate on held-out predictions of the training part, without flattering it.

A grid of settings (arm, τ, weight of the vote, share of the MLLM) is scored by weighted F1 on examples whose rules,
probe and MLLM were all made without them. Two things keep a lucky setting from winning:

- Among settings of one arm the *simplest* within ``caution`` standard errors of the best is taken (after the
  one-standard-error rule of Breiman et al. 1984): the largest τ, then the share whose pool has the least log loss,
  which tells shares apart on far fewer examples than weighted F1 does.
- An arm that hears rules is preferred to the pool of the classifiers alone only if it beats it by ``caution`` standard
  errors in *cross-fitted* answers: those for a part of the examples come from the setting chosen on the other parts.

Of the choice as a whole both estimates are kept: in-sample (the chosen setting on the examples that chose it:
optimistic) and cross-fitted (the whole choice repeated without each part). One thing neither removes: which rules the
base keeps was decided with all examples, so held-out firings flatter rules (:mod:`mmd.intent.firings`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmd.evaluation.metrics import Codes, weighted_f1_codes
from mmd.intent.folds import assign_folds
from mmd.intent.gate import ARMS, MLLM_ARMS, NEVER, THRESHOLD_ARMS, Arm, Firing, Opinions, TaskGate, believed, decide
from mmd.intent.settings import GateSettings
from mmd.intent.types import Probabilities
from mmd.intent.vote import verdict

POOL = "pool"
"""The family of settings that hear no rule."""
MIN_PARTS = 3  # choosing an arm crosses the parts that are left when one is scored
_FLOOR = 1e-6  # of a probability, so that one hopeless example does not decide
_CURVE = (*(round(0.05 * step, 2) for step in range(21)), NEVER)


@dataclass(frozen=True)
class HeldOutTask:
    """What was said of one task's training examples by models and rules made without them; all sequences aligned.

    Attributes:
        task: the task.
        ids: of the examples' dialogues.
        golds: true labels.
        fired: the rules that fired, best first (:mod:`mmd.intent.firings`).
        probes: the probe's distributions.
        parts: part of each example, int64 of shape (n_examples,); what is cross-fitted goes by these.
        mllm: the MLLM's distributions; None without one.
        hinted: the same with the fired rules told to it.
        default: the task's commonest label.
    """

    task: str
    ids: Sequence[str]
    golds: Sequence[str]
    fired: Sequence[Sequence[Firing]]
    probes: Sequence[Probabilities]
    parts: NDArray[np.int64]
    mllm: Sequence[Probabilities] | None = None
    hinted: Sequence[Probabilities] | None = None
    default: str | None = None

    @cached_property
    def opinions(self) -> list[Opinions]:
        """The models' opinions of each example."""
        absent: list[Probabilities | None] = [None] * len(self.golds)
        mllm = absent if self.mllm is None else self.mllm
        hinted = absent if self.hinted is None else self.hinted
        rows = zip(self.probes, mllm, hinted, strict=True)
        return [Opinions(p, plain, told, self.default) for p, plain, told in rows]

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every label that is true or can be answered, numbered in alphabetical order."""
        labels = {*self.golds, *(rule.label for rules in self.fired for rule in rules)}
        for said in self.opinions[:1]:
            labels |= {*said.probe.labels, *(said.mllm.labels if said.mllm else ())}
        return {label: i for i, label in enumerate(sorted(labels | ({self.default} if self.default else set())))}

    @cached_property
    def gold_codes(self) -> Codes:
        """True labels by number."""
        return np.array([self.vocabulary[gold] for gold in self.golds], dtype=np.int64)


def deal_parts(
    ids: Sequence[str], golds: Sequence[str], folds: NDArray[np.int64], k: int, seed: int
) -> NDArray[np.int64]:
    """Return the parts that are cross-fitted: the models' own folds, or ``k`` new ones if they are fewer than three.

    Every prediction is held out already, so that any parting of them is fair to the gate.
    """
    return folds if len(np.unique(folds)) >= MIN_PARTS else assign_folds(ids, golds, max(k, MIN_PARTS), seed)


# ---------------------------------------------------------------- the grid


@dataclass(frozen=True, slots=True)
class Slice:
    """Settings that differ in τ only: the unit of work of a sweep. ``family`` is the arm, or :data:`POOL`."""

    family: str
    task: str
    arm: Arm
    weight: float
    mllm: float
    taus: tuple[float, ...]

    @property
    def gates(self) -> list[TaskGate]:
        """The settings, in order of τ."""
        return [TaskGate(self.task, self.arm, tau, self.weight, self.mllm) for tau in self.taus]


def plan_slices(held_out: HeldOutTask, settings: GateSettings) -> list[Slice]:
    """Return the grid of one task. Without an MLLM shares are 0, and arms that need one give way to the vote."""
    task, has_mllm = held_out.task, held_out.mllm is not None
    shares = tuple(dict.fromkeys(settings.mllm_shares)) if has_mllm else (0.0,)
    arms: tuple[Arm, ...] = ARMS if settings.arm == "auto" else (settings.arm,)
    arms = tuple(arm for arm in arms if has_mllm or arm not in MLLM_ARMS) or ("vote",)
    slices = [Slice(POOL, task, "vote", 0.0, share, (NEVER,)) for share in shares] if settings.arm == "auto" else []
    for arm in arms:
        if arm == "rules_only":
            slices.append(Slice(arm, task, arm, 0.0, 0.0, (0.0,)))
        elif arm == "mllm_only":
            slices.append(Slice(arm, task, arm, 0.0, 1.0, (NEVER,)))
        else:
            taus, weights = _tau_grid(arm, held_out), settings.vote_weights if arm == "vote" else (0.0,)
            usable = [share for share in shares if share > 0.0] or [1.0] if arm == "prompt" else shares
            slices += [Slice(arm, task, arm, weight, share, taus) for weight in weights for share in usable]
    return slices


def _tau_grid(arm: Arm, held_out: HeldOutTask) -> tuple[float, ...]:
    """Return 0, every strength that decides (in hundredths, rounded down) and NEVER.

    Votes are weighed by their evidence already, so that they need no threshold, only to be heard or not.
    """
    strengths: list[float] = []
    if arm == "verdict":
        strengths = [c for rules, p in zip(held_out.fired, held_out.probes, strict=True) for c in _verdicts(rules, p)]
    elif arm != "vote":
        strengths = [max(rule.stats.wilson_lower for rule in rules) for rules in held_out.fired if rules]
    return tuple(sorted({0.0, NEVER} | {math.floor(s * 100) / 100 for s in strengths}))


def _verdicts(rules: Sequence[Firing], probe: Probabilities) -> list[float]:
    found = verdict(rules, len(probe.labels))
    return [found.confidence] if found else []


def slice_answers(held_out: HeldOutTask, plan: Slice) -> Codes:
    """Return what each setting of a slice answers, int64 of shape (n_taus, n_examples), numbers of the vocabulary.

    An answer changes only where τ passes a strength, so each example is decided once between two of them.
    """
    gates = plan.gates
    out = np.empty((len(gates), len(held_out.golds)), dtype=np.int64)
    for column, (rules, said) in enumerate(zip(held_out.fired, held_out.opinions, strict=True)):
        strengths = _strengths(plan.arm, rules, said)
        decided: dict[int, int] = {}
        for row, gate in enumerate(gates):
            heard = sum(strength >= gate.tau for strength in strengths)
            if heard not in decided:
                decided[heard] = held_out.vocabulary[decide(gate, rules, said).label]
            out[row, column] = decided[heard]
    return out


def _strengths(arm: Arm, rules: Sequence[Firing], said: Opinions) -> list[float]:
    if arm == "verdict":
        return _verdicts(rules, said.probe)
    return [rule.stats.wilson_lower for rule in rules]


# ---------------------------------------------------------------- choosing


@dataclass(frozen=True)
class Grid:
    """Every setting's answers to every example.

    ``answers`` are int64 of shape (n_settings, n_examples), ``golds`` and ``parts`` of shape (n_examples,);
    ``losses`` maps share → the pool's -log p(true label), float64 of shape (n_examples,).
    """

    gates: Sequence[TaskGate]
    families: Sequence[str]
    answers: Codes
    losses: Mapping[float, NDArray[np.float64]]
    golds: Codes
    parts: NDArray[np.int64]
    size: int
    caution: float

    def members(self, family: str) -> NDArray[np.int64]:
        """Return the numbers of a family's settings."""
        return np.array([i for i, name in enumerate(self.families) if name == family], dtype=np.int64)

    def f1(self, answers: Codes, rows: NDArray[np.int64]) -> float:
        """Return the weighted F1 of answers to some examples, both of shape (n_rows,)."""
        return weighted_f1_codes(self.golds[rows], answers, self.size)

    def pick(self, members: NDArray[np.int64], rows: NDArray[np.int64]) -> int:
        """Return the simplest of some settings within ``caution`` standard errors of the best, on some examples.

        One that hears rules must not score below one that does not. Between a vote's weights, and whether it is heard,
        the score alone decides: few settings flatter little.
        """
        answers = self.answers[np.ix_(members, rows)]
        scores = np.array([self.f1(row, rows) for row in answers])
        right, best = (answers == self.golds[rows]).astype(np.float64), int(np.argmax(scores))
        slack = self.caution * _standard_errors(right[best], right)
        slack[[_other_vote(self.gates[int(i)], self.gates[int(members[best])]) for i in members]] = 0.0
        taus = np.array([self.gates[int(i)].tau for i in members])
        floor = np.where(taus > 1.0, -np.inf, scores[taus > 1.0].max(initial=-np.inf))
        eligible = (scores >= scores.max() - slack - 1e-9) & (scores >= floor - 1e-9)
        losses = {share: float(loss[rows].mean()) for share, loss in self.losses.items()}
        return int(
            members[min(np.flatnonzero(eligible), key=lambda i: _complexity(self.gates[int(members[i])], losses))]
        )

    def picker(self, family: str) -> Callable[[NDArray[np.int64]], int]:
        """Return the choice among one family's settings."""
        members = self.members(family)
        return lambda rows: self.pick(members, rows)

    def cross_fit(self, choose: Callable[[NDArray[np.int64]], int], rows: NDArray[np.int64]) -> Codes:
        """Return answers to some examples, those to each part from the setting that ``choose`` takes on the others."""
        out = np.empty(len(rows), dtype=np.int64)
        for part in np.unique(self.parts[rows]):
            inside = self.parts[rows] == part
            chosen = choose(rows[~inside]) if not inside.all() else choose(rows)
            out[inside] = self.answers[chosen, rows[inside]]
        return out

    def choose(self, rows: NDArray[np.int64]) -> int:
        """Return the setting to take, looking at some examples only."""
        return self.pick(self.members(self.choose_family(rows)), rows)

    def choose_family(self, rows: NDArray[np.int64]) -> str:
        """Return the pool, or the best arm that beats it by ``caution`` standard errors in cross-fitted answers."""
        names = list(dict.fromkeys(self.families))
        if len(names) == 1:
            return names[0]
        crossed = {name: self.cross_fit(self.picker(name), rows) for name in names}
        scores = {name: self.f1(answers, rows) for name, answers in crossed.items()}
        right = {name: (answers == self.golds[rows]).astype(np.float64) for name, answers in crossed.items()}
        best = POOL
        for name in names:
            slack = self.caution * float(_standard_errors(right[name], right[POOL][None])[0])
            if scores[name] > scores[POOL] + slack + 1e-9 and scores[name] > scores[best] + 1e-9:
                best = name
        return best


def _standard_errors(best: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard error of each difference in accuracy, paired by example: shape (n_others,).

    It stands in for that of weighted F1, which has no closed form and is close to it.
    """
    differences = best[None] - others
    return np.asarray(differences.std(axis=1) / math.sqrt(max(1, best.size)))


def _other_vote(gate: TaskGate, best: TaskGate) -> bool:
    return gate.arm == "vote" and (gate.tau, gate.weight) != (best.tau, best.weight)


def _complexity(gate: TaskGate, losses: Mapping[float, float]) -> tuple[float, float, float, float]:
    """Return the sort key of simplicity: the fewest rules heard, the likeliest pool, small weights and shares."""
    return (-gate.tau, round(losses[gate.mllm], 9), gate.weight, gate.mllm)


@dataclass(frozen=True, slots=True)
class Validated:
    """A setting and its weighted F1 on held-out predictions of the training part.

    ``weighted_f1`` is in-sample: of the examples that chose it. ``cross_fitted_f1`` is of the choice repeated without
    each part and scored on it.
    """

    gate: TaskGate
    weighted_f1: float
    cross_fitted_f1: float


@dataclass(frozen=True)
class Choice:
    """What came of a task's sweep.

    Attributes:
        chosen: the gate to use.
        arms: the best setting of each arm that was tried, the chosen one first, then by cross-fitted F1.
        table: every setting tried with its in-sample weighted F1.
        curves: arm → (τ, in-sample weighted F1), weight and share being the arm's best.
        alone: system → weighted F1 of the same examples: ``rules``, ``probe``, ``mllm``.
        examples: number of examples that all models had held out.
        parts: number of parts that were crossed.
    """

    chosen: Validated
    arms: Sequence[Validated]
    table: Sequence[tuple[TaskGate, float]]
    curves: Mapping[str, Sequence[tuple[float, float]]]
    alone: Mapping[str, float]
    examples: int
    parts: int
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what the gate artefact keeps of the validation."""
        return {
            "examples": self.examples,
            "parts": self.parts,
            "alone": dict(self.alone),
            "classifier_weighted_f1": self.alone["probe"],
            "chosen": _validated_json(self.chosen),
            "arms": [_validated_json(v) for v in self.arms],
            "curves": {arm: [list(point) for point in points] for arm, points in self.curves.items()},
            "table": {
                "columns": ["arm", "tau", "weight", "mllm", "weighted_f1"],
                "rows": [[g.arm, g.tau, g.weight, g.mllm, round(score, 6)] for g, score in self.table],
            },
            **self.about,
        }


def _validated_json(found: Validated) -> dict[str, Any]:
    return {**asdict(found.gate), "weighted_f1": found.weighted_f1, "cross_fitted_f1": found.cross_fitted_f1}


def choose_gate(held_out: HeldOutTask, settings: GateSettings, answers: Sequence[Codes] | None = None) -> Choice:
    """Choose one task's gate.

    Args:
        held_out: what was said of its training examples.
        settings: the arms, weights and shares to try, and the caution.
        answers: of :func:`plan_slices`' slices, in order, where they were worked out elsewhere.

    Raises:
        ValueError: there is no example.
    """
    if not held_out.golds:
        raise ValueError(f"task {held_out.task}: no held-out example; a gate is chosen on at least one.")
    slices = plan_slices(held_out, settings)
    grid = _grid(held_out, slices, answers or [slice_answers(held_out, s) for s in slices], settings.caution)
    rows = np.arange(len(held_out.golds))
    arms = {name: _validate(grid, rows, name) for name in dict.fromkeys(grid.families)}
    first = grid.choose(rows)
    crossed = grid.f1(grid.cross_fit(grid.choose, rows), rows)
    chosen = Validated(grid.gates[first], grid.f1(grid.answers[first], rows), crossed)
    others = sorted(
        (v for name, v in arms.items() if name != grid.families[first]), key=lambda v: -round(v.cross_fitted_f1, 9)
    )
    return Choice(
        chosen=chosen,
        arms=[arms[grid.families[first]], *others],
        table=[(gate, grid.f1(row, rows)) for gate, row in zip(grid.gates, grid.answers, strict=True)],
        curves={name: _curve(held_out, v.gate, grid) for name, v in arms.items() if name in THRESHOLD_ARMS},
        alone=_alone(held_out, grid),
        examples=len(rows),
        parts=len(np.unique(held_out.parts)),
    )


def _grid(held_out: HeldOutTask, slices: Sequence[Slice], answers: Sequence[Codes], caution: float) -> Grid:
    return Grid(
        gates=[gate for s in slices for gate in s.gates],
        families=[s.family for s in slices for _ in s.taus],
        answers=np.concatenate(list(answers)),
        losses={share: log_losses(held_out, share) for share in {s.mllm for s in slices}},
        golds=held_out.gold_codes,
        parts=held_out.parts,
        size=len(held_out.vocabulary),
        caution=caution,
    )


def log_losses(held_out: HeldOutTask, share: float) -> NDArray[np.float64]:
    """Return -log p(true label) of each example in the pool with this share, float64 of shape (n_examples,)."""
    gate = TaskGate(held_out.task, mllm=share)
    said = [believed(gate, (), opinions) for opinions in held_out.opinions]
    likely = [
        dict(zip(p.labels, p.values, strict=True)).get(gold, 0.0) for p, gold in zip(said, held_out.golds, strict=True)
    ]
    return -np.log(np.maximum(likely, _FLOOR))


def _validate(grid: Grid, rows: NDArray[np.int64], family: str) -> Validated:
    best = grid.picker(family)(rows)
    crossed = grid.cross_fit(grid.picker(family), rows)
    return Validated(grid.gates[best], grid.f1(grid.answers[best], rows), grid.f1(crossed, rows))


def _curve(held_out: HeldOutTask, gate: TaskGate, grid: Grid) -> list[tuple[float, float]]:
    """Return (τ, weighted F1) on an even grid of τ, everything else being as in ``gate``."""
    plan = Slice(gate.arm, gate.task, gate.arm, gate.weight, gate.mllm, _CURVE)
    rows = np.arange(len(held_out.golds))
    return [(tau, grid.f1(row, rows)) for tau, row in zip(_CURVE, slice_answers(held_out, plan), strict=True)]


def _alone(held_out: HeldOutTask, grid: Grid) -> dict[str, float]:
    """Return the weighted F1 of each system by itself."""
    rows, task = np.arange(len(held_out.golds)), held_out.task
    systems = {"rules": TaskGate(task, "rules_only"), "probe": TaskGate(task)}
    if held_out.mllm is not None:
        systems["mllm"] = TaskGate(task, "mllm_only", mllm=1.0)
    return {
        name: grid.f1(slice_answers(held_out, Slice(name, task, g.arm, g.weight, g.mllm, (g.tau,)))[0], rows)
        for name, g in systems.items()
    }


def working_point(fired: Sequence[Sequence[Firing]], n_labels: int, coverage: float) -> float:
    """Return the largest τ that the rules' verdicts reach on at least this share of examples; 0 if too few fire."""
    verdicts = (verdict(rules, n_labels) for rules in fired)
    strengths = sorted((found.confidence for found in verdicts if found), reverse=True)
    needed = math.ceil(coverage * len(fired))
    return strengths[needed - 1] if 0 < needed <= len(strengths) else 0.0
