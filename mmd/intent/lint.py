"""Faults of a rule base that are legal but surely or probably not meant."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mmd.intent.matcher import truth_table, value_key
from mmd.intent.patterns import compile_regex
from mmd.intent.predicates import format_predicate
from mmd.intent.rulebase import Labels, RuleBase, count_labels, prune_supersets
from mmd.intent.rules import UNMEASURED, Predicate, Rule
from mmd.intent.textnorm import normalise
from mmd.intent.types import IntentExample

Level = Literal["error", "warning", "note"]
# Wider scopes of each scope: what the narrow one contains, the wide one contains too.
_WIDER: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("text", "last_user"): ("last_user", "user", "any"),
    ("text", "user"): ("user", "any"),
    ("text", "agent"): ("agent", "any"),
    ("text", "any"): ("any",),
    ("ocr", "top"): ("top", "any"),
    ("ocr", "middle"): ("middle", "any"),
    ("ocr", "bottom"): ("bottom", "any"),
    ("ocr", "any"): ("any",),
    ("item", "title"): ("title",),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. ``error``: the rule cannot do its work; ``warning``: probably not meant; ``note``: worth knowing."""

    level: Level
    code: str
    where: str  # rule id, or task and label
    message: str


def lint(
    base: RuleBase,
    *,
    labels: Labels | None = None,
    examples: Mapping[str, Sequence[IntentExample]] | None = None,
    tau: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Return what looks wrong, errors first, otherwise in the base's order.

    Args:
        base: the rule base.
        labels: task → labels, to name those that no rule speaks for.
        examples: task → examples, to name predicates that never hold on them.
        tau: task → the gate's threshold on the Wilson lower bound, to name rules that cannot override.
    """
    findings = [
        *(f for rule in base.rules for f in _lint_rule(rule)),
        *_same_conditions(base),
        *_useless_supersets(base),
        *_labels_without_rules(base, labels or {}),
        *_never_hold(base, examples or {}),
        *_below_threshold(base, tau or {}),
    ]
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda f: order[f.level])


# ---------------------------------------------------------------- one rule


def _lint_rule(rule: Rule) -> Iterator[Finding]:
    for positive, negative in _contradictions(rule):
        message = f"`{format_predicate(positive)}` and `{format_predicate(negative)}` never hold together; drop one."
        yield Finding("error", "contradiction", rule.id, message)
    for predicate in rule.predicates:
        yield from _lint_predicate(rule, predicate)
    if all(p.negated for p in rule.predicates):
        message = "has only negated conditions, so it fires on almost everything; add what the label looks like."
        yield Finding("warning", "only-negated", rule.id, message)
    if rule.stats == UNMEASURED:
        message = "has no statistics, so it ranks last; `mmd rules edit-check OLD NEW --write` measures it."
        yield Finding("note", "unmeasured", rule.id, message)


def _contradictions(rule: Rule) -> Iterator[tuple[Predicate, Predicate]]:
    positive = [p for p in rule.predicates if not p.negated]
    for p in positive:
        for q in rule.predicates:
            if (q.negated and _implies(p, q)) or (q in positive and p < q and _exclude(p, q)):
                yield p, q


def _implies(p: Predicate, q: Predicate) -> bool:
    """Say whether the plain form of ``q`` holds wherever ``p`` does."""
    if p.kind != q.kind:
        return False
    wider = _WIDER.get((p.kind, p.scope))
    if wider is None:
        return p.scope == q.scope and value_key(p) == value_key(q)
    return q.scope in wider and value_key(q) in value_key(p)


def _exclude(p: Predicate, q: Predicate) -> bool:
    """Say whether two plain predicates can never both hold: there is one number of pictures, one answer."""
    one_value = (p.kind, p.scope) == ("image", "count") or p.kind == "ask"
    return one_value and (p.kind, p.scope) == (q.kind, q.scope) and p.value != q.value


def _lint_predicate(rule: Rule, predicate: Predicate) -> Iterator[Finding]:
    line = format_predicate(predicate)
    if predicate.kind in ("text", "ocr") and not predicate.negated and len(normalise(predicate.value)) == 1:
        message = f"`{line}`: a single character is too broad; write the whole word."
        yield Finding("warning", "broad-keyword", rule.id, message)
    if predicate.kind != "regex":
        return
    if compile_regex(predicate.value).search("") is not None:
        message = f"`{line}`: matches the empty text, so it always holds (or, negated, never); narrow it."
        yield Finding("warning", "matches-everything", rule.id, message)
    lost = sorted({c for c in predicate.value if not c.isascii() and _is_normalised_away(c)})
    if lost:
        message = f"`{line}`: {' '.join(lost)} cannot occur, since texts are in NFKC; write {_plain(lost)} instead."
        yield Finding("warning", "normalised-away", rule.id, message)


def _is_normalised_away(char: str) -> bool:
    return not unicodedata.is_normalized("NFKC", char)


def _plain(chars: Sequence[str]) -> str:
    return " ".join(unicodedata.normalize("NFKC", char) for char in chars)


# ---------------------------------------------------------------- rules together


def _same_conditions(base: RuleBase) -> Iterator[Finding]:
    first: dict[tuple[str, frozenset[tuple[str, str, str, bool]]], Rule] = {}
    for rule in base.rules:
        conditions = frozenset((p.kind, p.scope, value_key(p), p.negated) for p in rule.predicates)
        other = first.setdefault((rule.task, conditions), rule)
        if other is rule:
            continue
        if other.label == rule.label:
            yield Finding("warning", "duplicate", rule.id, f"has the conditions of {other.id}; delete one of them.")
        else:
            message = f"has the conditions of {other.id} but says {rule.label}, not {other.label}; decide for one."
            yield Finding("error", "conflict", rule.id, message)


def _useless_supersets(base: RuleBase) -> Iterator[Finding]:
    measured = [r for r in base.rules if r.enabled and r.stats != UNMEASURED]
    kept = prune_supersets(measured)
    kept_ids = {rule.id for rule in kept}
    for rule in measured:
        if rule.id in kept_ids:
            continue
        conditions = frozenset(rule.predicates)
        wider = next((r for r in kept if (r.task, r.label) == (rule.task, rule.label) and _covers(r, conditions)), None)
        if wider is not None and frozenset(wider.predicates) != conditions:
            message = f"only adds conditions to {wider.id}, which is at least as good; delete it."
            yield Finding("warning", "superset", rule.id, message)


def _covers(rule: Rule, conditions: frozenset[Predicate]) -> bool:
    return frozenset(rule.predicates) <= conditions


def _labels_without_rules(base: RuleBase, labels: Labels) -> Iterator[Finding]:
    counts = count_labels(base)
    for task, known in labels.items():
        for label in known:
            if not counts[task, label]:
                message = "no enabled rule speaks for it; the rules alone can then answer it only as default."
                yield Finding("note", "label-without-rules", f"{task}: {label}", message)


def _never_hold(base: RuleBase, examples: Mapping[str, Sequence[IntentExample]]) -> Iterator[Finding]:
    for task, situations in examples.items():
        rules = base.of_task(task)
        predicates = list(dict.fromkeys(p for rule in rules for p in rule.predicates))
        table = truth_table(predicates, situations, base.prototypes)
        never = {p for p, row in zip(predicates, table, strict=True) if not row.any()}
        for rule in rules:
            for predicate in rule.predicates:
                if predicate in never:
                    message = f"`{format_predicate(predicate)}` holds on none of {len(situations)} examples."
                    yield Finding("warning", "never-holds", rule.id, message)


def _below_threshold(base: RuleBase, tau: Mapping[str, float]) -> Iterator[Finding]:
    for rule in base.rules:
        threshold = tau.get(rule.task)
        if threshold is None or not rule.enabled or rule.stats == UNMEASURED:
            continue
        if rule.stats.wilson_lower < threshold:
            message = (
                f"its lower bound {rule.stats.wilson_lower:.2f} is below the gate's {threshold:.2f}: never decides."
            )
            yield Finding("note", "below-tau", rule.id, message)
