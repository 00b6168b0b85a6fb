"""Mining a rule base: searches on folds, pooled held-out evidence, selection. No Ray here.

One search is (task, label, repeat, fold): predicates are mined from the examples outside the fold, a tree is
searched there, and the rules it found fire on the fold's own examples, which nothing has looked at. Searches
are independent and each is determined by its unit and the seed alone, so any number of workers in any order gives
the same base; :func:`mine_rulebase` runs them one after another.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmd.evaluation.metrics import Confusion
from mmd.intent.firings import HeldOutFiring, HeldOutRule, held_out_firings
from mmd.intent.folds import assign_folds
from mmd.intent.hints import conditions
from mmd.intent.mining import NO_NAMES, Candidates, NameVectors, make_prototypes, mine_candidates, truth_matrix
from mmd.intent.proposer import MinedProposer, Proposal, Proposer
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Predicate, Prototype, Rule, measure
from mmd.intent.search import Found, RuleSearch, SearchProblem
from mmd.intent.select import Evidence, FoldRule, keep_rules, pool
from mmd.intent.settings import IntentSettings
from mmd.intent.types import IntentExample
from mmd.intent.vote import Verdict, label_weights, verdict


@dataclass(frozen=True, slots=True, order=True)
class SearchUnit:
    """One search: the rules of ``label``, found without the examples of ``fold`` of the ``repeat``-th partition."""

    task: str
    repeat: int
    fold: int
    label: str


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What one search found, and what it cost."""

    unit: SearchUnit
    rules: tuple[FoldRule, ...]
    rollouts: int
    evaluations: int


def result_to_json(result: UnitResult) -> dict[str, Any]:
    """Return a JSON-able form, which :func:`result_from_json` reads back."""
    unit = result.unit
    return {
        "unit": [unit.task, unit.repeat, unit.fold, unit.label],
        "rollouts": result.rollouts,
        "evaluations": result.evaluations,
        "rules": [
            {
                "if": [[p.kind, p.scope, p.value, p.negated] for p in rule.predicates],
                "reward": rule.reward,
                "hits": rule.hits,
                "support": rule.support,
                "fired": list(rule.fired),
            }
            for rule in result.rules
        ],
    }


def result_from_json(value: Mapping[str, Any]) -> UnitResult:
    """Invert :func:`result_to_json`."""
    unit = SearchUnit(*value["unit"])
    rules = tuple(
        FoldRule(
            unit.label,
            tuple(Predicate(*p) for p in rule["if"]),
            rule["reward"],
            rule["hits"],
            rule["support"],
            tuple(rule["fired"]),
        )
        for rule in value["rules"]
    )
    return UnitResult(unit, rules, value["rollouts"], value["evaluations"])


def in_order(examples: Iterable[IntentExample]) -> list[IntentExample]:
    """Return the examples by dialogue id: row numbers, and so the base, do not depend on how they were given."""
    return sorted(examples, key=lambda e: e.dialogue_id)


def derive_seed(seed: int, *parts: object) -> int:
    """Return a 32-bit seed that depends on every part."""
    text = ":".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def plan_units(examples: Sequence[IntentExample], settings: IntentSettings) -> list[SearchUnit]:
    """Return every search of one task, ordered so that those of one fold, which share their predicates, follow."""
    labels = sorted({str(e.label) for e in examples})
    return [
        SearchUnit(examples[0].task, repeat, fold, label)
        for repeat in range(settings.search.seeds)
        for fold in range(settings.folds)
        for label in labels
    ]


class FoldMiner:
    """Searches outside one fold and fires what it finds on the fold.

    Args:
        examples: all training examples of one task, in the order that row numbers refer to.
        repeat: which partition into folds.
        fold: the held-out fold.
        settings: predicates, search and selection.
        seed: from which the partition derives.
        names: sentence vectors of the labels' names, as far as there are any.
        proposer: chooses predicates and priors; mined ones by default.
    """

    def __init__(
        self,
        examples: Sequence[IntentExample],
        repeat: int,
        fold: int,
        settings: IntentSettings,
        *,
        seed: int,
        names: NameVectors = NO_NAMES,
        proposer: Proposer | None = None,
    ) -> None:
        self.examples = examples
        self.settings = settings
        self.names = names
        self.proposer = proposer or MinedProposer(settings.predicates)
        self.seed = derive_seed(seed, "folds", repeat)
        labels = [str(e.label) for e in examples]
        folds = assign_folds([e.dialogue_id for e in examples], labels, settings.folds, self.seed)
        self.inside: NDArray[np.intp] = np.flatnonzero(folds != fold)
        self.held: NDArray[np.intp] = np.flatnonzero(folds == fold)
        self.labels = np.array(labels)[self.inside]

    @cached_property
    def candidates(self) -> Candidates:
        """Predicates of the examples outside the fold."""
        inside = [self.examples[i] for i in self.inside]
        return mine_candidates(inside, self.settings.predicates, seed=self.seed, names=self.names)

    def run(self, unit: SearchUnit) -> UnitResult:
        """Search the rules of one label and fire them on the fold."""
        positive = self.labels == unit.label
        if positive.sum() < self.settings.min_support:
            return UnitResult(unit, (), 0, 0)
        proposal = self.proposer.propose(unit.label, positive, self.candidates)
        if not proposal.predicates:
            return UnitResult(unit, (), 0, 0)
        problem = SearchProblem.build(proposal.members, positive, proposal.prior)
        search = RuleSearch(problem, self.settings.search, min_hits=self.settings.min_support)
        result = search.run()
        chosen = cover(result.found, proposal, positive, self.settings.search.rules_per_search)
        return UnitResult(unit, self._fire(unit.label, chosen, proposal), result.rollouts, result.evaluations)

    def _fire(self, label: str, chosen: Sequence[Found], proposal: Proposal) -> tuple[FoldRule, ...]:
        used = sorted({i for found in chosen for i in found.state})
        row = {index: row for row, index in enumerate(used)}
        held = [self.examples[i] for i in self.held]
        truth = truth_matrix([proposal.predicates[i] for i in used], self.candidates.prototypes, held)
        rules = []
        for found in chosen:
            fires = truth[[row[i] for i in found.state]].all(axis=0)
            predicates = tuple(sorted(proposal.predicates[i] for i in found.state))
            rules.append(
                FoldRule(label, predicates, found.reward, found.hits, found.support, tuple(self.held[fires].tolist()))
            )
        return tuple(rules)


_POOL = 400  # best conjunctions that covering looks at


def cover(found: Iterable[Found], proposal: Proposal, positive: NDArray[np.bool_], limit: int) -> list[Found]:
    """Choose up to ``limit`` conjunctions that together cover the label's examples, best first.

    Greedy: each time an example is covered its weight halves, so that later rules look at what the earlier
    ones miss. Of rules with equal extent the shortest, then the best, stands; a superset that is no better
    than a subset is never chosen. Source: weighted covering, CN2-SD (Lavrač et al. 2004).
    """
    ranked = sorted(found, key=lambda f: (-f.reward, len(f.state), sorted(f.state)))[:_POOL]
    if not ranked:
        return []
    extents = np.stack([proposal.members[sorted(f.state)].all(axis=0) for f in ranked])
    _, first = np.unique(extents, axis=0, return_index=True)
    keep = sorted(first.tolist())
    ranked, extents = [ranked[i] for i in keep], extents[keep]
    hits, support = extents[:, positive], extents.sum(axis=1)
    weights = np.ones(hits.shape[1])
    chosen: list[int] = []
    open_ = np.ones(len(ranked), np.bool_)
    while len(chosen) < limit and open_.any():
        weighted = hits @ weights
        misses = support - hits.sum(axis=1)
        score = weighted / (weighted + misses + 1.0) * np.log1p(weighted)
        best = int(np.argmax(np.where(open_, score, -np.inf)))
        open_[best] = False
        weights = np.where(hits[best], weights / 2, weights)
        chosen.append(best)
    return [ranked[i] for i in chosen]


def run_units(
    examples: Sequence[IntentExample],
    units: Iterable[SearchUnit],
    settings: IntentSettings,
    *,
    seed: int,
    names: NameVectors = NO_NAMES,
    proposer: Proposer | None = None,
) -> Iterator[UnitResult]:
    """Run searches one after another; neighbours of one fold share its mined predicates."""
    miner: FoldMiner | None = None
    current: tuple[int, int] | None = None
    for unit in units:
        if miner is None or current != (unit.repeat, unit.fold):
            current = (unit.repeat, unit.fold)
            miner = FoldMiner(examples, *current, settings, seed=seed, names=names, proposer=proposer)
        yield miner.run(unit)


# ---------------------------------------------------------------- from searches to a base


@dataclass(frozen=True)
class MinedTask:
    """One task's part of the base, and what held-out evidence says of it.

    Attributes:
        firings: dialogue id → held-out firings, for choosing the gate's τ.
        metrics: counts, and held-out estimates of what the rules do alone.
    """

    task: str
    rules: tuple[Rule, ...]
    prototypes: Mapping[str, Prototype]
    default: str
    firings: Mapping[str, tuple[HeldOutFiring, ...]]
    metrics: Mapping[str, float]


def assemble(
    examples: Sequence[IntentExample],
    results: Sequence[UnitResult],
    settings: IntentSettings,
    *,
    names: NameVectors = NO_NAMES,
    proposer: str = MinedProposer.name,
) -> MinedTask:
    """Pool the searches' held-out evidence and keep the rules that it supports.

    Args:
        examples: all training examples of one task, as :func:`in_order` gives them.
        results: of every unit of the plan, in any order.
        settings: selection.
        names: sentence vectors of the labels' names.
        proposer: for the rules' provenance.
    """
    task, labels = examples[0].task, [str(e.label) for e in examples]
    searches = settings.folds * settings.search.seeds
    evidence = pool((rule for result in results for rule in result.rules), labels)
    kept = keep_rules(
        evidence,
        min_support=settings.min_support,
        min_precision=settings.min_precision,
        min_searches=settings.min_found * searches,
        max_overlap=settings.max_overlap,
    )
    wanted = {p.value for e in kept for p in e.key[1] if p.kind == "near"}
    prototypes = make_prototypes(wanted, examples, settings.predicates, names=names)
    kept = [e for e in kept if all(p.kind != "near" or p.value in prototypes for p in e.key[1])]
    rules = tuple(_rule(task, e, searches, len(examples), proposer) for e in kept)
    default = min(Counter(labels).items(), key=lambda item: (-item[1], item[0]))[0]
    weights = label_weights(rules)
    firings = [
        tuple(replace(f, stats=replace(f.stats, weight=weights[f.label])) for f in fired)
        for fired in _held_out(labels, results, {e.key for e in kept}, prototypes, settings)
    ]
    metrics = {
        "examples": len(examples),
        "searches": len(results),
        "rollouts": sum(r.rollouts for r in results),
        "evaluations": sum(r.evaluations for r in results),
        "rules found": len(evidence),
        "rules kept": len(rules),
        **estimate(labels, firings, default),
    }
    by_id = {e.dialogue_id: fired for e, fired in zip(examples, firings, strict=True)}
    return MinedTask(task, rules, prototypes, default, by_id, metrics)


def _rule(task: str, evidence: Evidence, searches: int, n_examples: int, proposer: str) -> Rule:
    label, predicates = evidence.key
    digest = hashlib.sha256(repr((task, label, predicates)).encode()).hexdigest()[:10]
    found = f"{evidence.searches} of {searches} searches"
    return Rule(
        id=f"r-{digest}",
        task=task,
        label=label,
        predicates=predicates,
        stats=measure(evidence.support, evidence.hits, n_examples),
        provenance={"found_by": "mcts", "found_in": found, "proposer": proposer},
    )


def _held_out(
    labels: Sequence[str],
    results: Sequence[UnitResult],
    kept: set[tuple[str, tuple[Predicate, ...]]],
    prototypes: Mapping[str, Prototype],
    settings: IntentSettings,
) -> list[tuple[HeldOutFiring, ...]]:
    """Return each example's held-out firings in the first partition, of rules that the base keeps.

    A prototype's vector differs from fold to fold, what stands at it does not: the base's words serve every fold.
    """
    found = [
        HeldOutRule(result.unit.fold, rule.label, rule.predicates, rule.fired, conditions(rule.predicates, prototypes))
        for result in sorted(results, key=lambda r: r.unit)
        if result.unit.repeat == 0
        for rule in result.rules
        if (rule.label, tuple(sorted(rule.predicates))) in kept
    ]
    return held_out_firings(
        labels, found, min_precision=settings.min_precision, min_support=max(1, settings.min_support - 1)
    )


def estimate(labels: Sequence[str], firings: Sequence[Sequence[HeldOutFiring]], default: str) -> dict[str, float]:
    """Return what the vote scores on held-out firings: weighted F1, and precision at 40 % coverage.

    Which rules are kept was decided with these examples, so both are somewhat optimistic; nested
    cross-validation (``jobs.bench rules``) tells by how much.
    """
    n_labels = len(set(labels))
    verdicts = [verdict(fired, n_labels) for fired in firings]
    answers = [v.label if v else default for v in verdicts]
    return {
        "held-out weighted F1": Confusion.of(labels, answers).weighted_f1,
        "held-out precision at coverage 0.4": precision_at(labels, verdicts, 0.4),
    }


def precision_at(labels: Sequence[str], verdicts: Sequence[Verdict | None], coverage: float) -> float:
    """Return the share of right verdicts among the surest ``coverage`` of all examples; 0 without any."""
    spoken = [(v.margin, v.label == label) for v, label in zip(verdicts, labels, strict=True) if v]
    return estimate_at(spoken, len(labels), coverage)


def estimate_at(answers: Sequence[tuple[float, bool]], n_examples: int, coverage: float) -> float:
    """Return the share that is right among the surest answers, given as (strength, right); 0 without any."""
    surest = sorted(answers, key=lambda pair: -pair[0])[: max(1, int(n_examples * coverage))]
    return sum(right for _, right in surest) / len(surest) if surest else 0.0


def join(mined: Sequence[MinedTask], meta: Mapping[str, str] | None = None) -> RuleBase:
    """Join the tasks' rules into one base; a prototype whose name two tasks use is told apart by its task."""
    count = Counter(name for part in mined for name in part.prototypes)
    rules: list[Rule] = []
    prototypes: dict[str, Prototype] = {}
    for part in mined:
        renamed = {name: f"{name} [{part.task}]" if count[name] > 1 else name for name in part.prototypes}
        prototypes |= {new: replace(part.prototypes[old], name=new) for old, new in renamed.items()}
        rules += [_rename(rule, renamed) for rule in part.rules]
    return RuleBase(tuple(rules), prototypes, {part.task: part.default for part in mined}, meta or {})


def _rename(rule: Rule, names: Mapping[str, str]) -> Rule:
    if not any(p.kind == "near" and names[p.value] != p.value for p in rule.predicates):
        return rule
    return replace(
        rule,
        predicates=tuple(replace(p, value=names[p.value]) if p.kind == "near" else p for p in rule.predicates),
    )


def mine_task(
    examples: Iterable[IntentExample],
    settings: IntentSettings,
    seed: int,
    *,
    names: NameVectors = NO_NAMES,
    proposer: Proposer | None = None,
    on_search: Callable[[UnitResult], None] | None = None,
) -> MinedTask:
    """Mine the rules of one task in this process.

    Args:
        examples: its labelled training examples, in any order.
        settings: predicates, search and selection.
        seed: decides partitions.
        names: sentence vectors of the labels' names.
        proposer: chooses predicates and priors; mined ones by default.
        on_search: called after each search.
    """
    rows = in_order(examples)
    results = []
    for result in run_units(rows, plan_units(rows, settings), settings, seed=seed, names=names, proposer=proposer):
        results.append(result)
        if on_search:
            on_search(result)
    return assemble(rows, results, settings, names=names, proposer=proposer.name if proposer else MinedProposer.name)


def mine_rulebase(
    examples: Iterable[IntentExample],
    settings: IntentSettings,
    seed: int,
    *,
    names: Mapping[str, NameVectors] | None = None,
    proposer: Proposer | None = None,
) -> RuleBase:
    """Mine the rules of every task among ``examples`` in this process; equal arguments give equal YAML.

    Args:
        examples: labelled training examples of one or more tasks.
        settings: predicates, search and selection.
        seed: decides partitions.
        names: task → sentence vectors of its labels' names.
        proposer: chooses predicates and priors; mined ones by default.
    """
    by_task: defaultdict[str, list[IntentExample]] = defaultdict(list)
    for example in examples:
        by_task[example.task].append(example)
    known = names or {}
    return join(
        [
            mine_task(rows, settings, seed, names=known.get(task, NO_NAMES), proposer=proposer)
            for task, rows in sorted(by_task.items())
        ]
    )
