"""What a hand edit of a rule base changes, in words and in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mmd.intent.matcher import CompiledRules
from mmd.intent.predicates import format_predicate
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import UNMEASURED, Rule, measure
from mmd.intent.types import IntentExample


@dataclass(frozen=True, slots=True)
class Change:
    """A rule that differs between two bases."""

    what: Literal["added", "removed", "changed"]
    rule_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class OtherAnswer:
    """An example that the rules alone (with the task's default) answer differently."""

    dialogue_id: str
    gold: str | None
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Effect:
    """What changes on the examples of one task; ``right_*`` count correct answers of the rules alone."""

    examples: int
    fired_changed: tuple[str, ...]  # ids of dialogues on which other rules fire
    answer_changed: tuple[OtherAnswer, ...]
    right_before: int
    right_after: int


def changes(old: RuleBase, new: RuleBase) -> list[Change]:
    """Return every rule that was added, removed or changed, by id."""
    before, after = {r.id: r for r in old.rules}, {r.id: r for r in new.rules}
    found = []
    for rule_id in sorted({*before, *after}):
        a, b = before.get(rule_id), after.get(rule_id)
        if a is None and b is not None:
            found.append(Change("added", rule_id, _written(b)))
        elif b is None and a is not None:
            found.append(Change("removed", rule_id, _written(a)))
        elif a is not None and b is not None and a != b:
            found.append(Change("changed", rule_id, "; ".join(_differences(a, b))))
    return found


def _written(rule: Rule) -> str:
    return f"{' and '.join(f'`{format_predicate(p)}`' for p in rule.predicates)} → {rule.task}: {rule.label}"


def _differences(a: Rule, b: Rule) -> list[str]:
    out = [f"now also `{format_predicate(p)}`" for p in b.predicates if p not in a.predicates]
    out += [f"no longer `{format_predicate(p)}`" for p in a.predicates if p not in b.predicates]
    if (a.task, a.label) != (b.task, b.label):
        out.append(f"{a.task}: {a.label} → {b.task}: {b.label}")
    if a.enabled != b.enabled:
        out.append("switched on" if b.enabled else "switched off")
    if a.stats != b.stats:
        out.append(f"statistics {a.stats.hits}/{a.stats.support} → {b.stats.hits}/{b.stats.support}")
    if a.note != b.note or a.provenance != b.provenance:
        out.append("other note or provenance")
    return out or ["conditions in another order"]


def remeasure(old: RuleBase, new: RuleBase, examples: Mapping[str, Sequence[IntentExample]]) -> RuleBase:
    """Return ``new`` with statistics for each rule that is new to ``old``, says something else, or has none.

    They are counted over all given examples: a person wrote the rule, so that no fold of them took part in finding
    it. Whoever wrote it after reading these very examples should take the figures as in-sample.
    """
    known = {rule.id: (rule.task, rule.label, frozenset(rule.predicates)) for rule in old.rules}
    stale = {
        rule.id
        for rule in new.rules
        if rule.stats == UNMEASURED or known.get(rule.id) != (rule.task, rule.label, frozenset(rule.predicates))
    }
    rules = [_measured(rule, new, examples) if rule.id in stale else rule for rule in new.rules]
    return RuleBase(tuple(rules), new.prototypes, new.defaults, new.meta)


def _measured(rule: Rule, base: RuleBase, examples: Mapping[str, Sequence[IntentExample]]) -> Rule:
    situations = examples.get(rule.task, ())
    alone = RuleBase((replace(rule, enabled=True),), base.prototypes)
    fired = CompiledRules(alone, rule.task).fired_batch(situations)
    golds = [example.label for example, rules in zip(situations, fired, strict=True) if rules]
    return replace(rule, stats=measure(len(golds), golds.count(rule.label), len(situations)))


def measure_effect(old: RuleBase, new: RuleBase, task: str, examples: Sequence[IntentExample]) -> Effect:
    """Compare two bases on the examples of a task."""
    before, after = (CompiledRules(base, task).fired_batch(examples) for base in (old, new))
    answers = [
        OtherAnswer(example.dialogue_id, example.label, _answer(a, old, task), _answer(b, new, task))
        for example, a, b in zip(examples, before, after, strict=True)
    ]
    return Effect(
        examples=len(examples),
        fired_changed=tuple(
            example.dialogue_id
            for example, a, b in zip(examples, before, after, strict=True)
            if [_content(rule) for rule in a] != [_content(rule) for rule in b]
        ),
        answer_changed=tuple(answer for answer in answers if answer.before != answer.after),
        right_before=sum(answer.before == answer.gold for answer in answers),
        right_after=sum(answer.after == answer.gold for answer in answers),
    )


def _answer(fired: Sequence[Rule], base: RuleBase, task: str) -> str:
    return fired[0].label if fired else base.defaults.get(task, "no answer")


def _content(rule: Rule) -> tuple[str, str, frozenset[object]]:
    return rule.id, rule.label, frozenset(rule.predicates)
