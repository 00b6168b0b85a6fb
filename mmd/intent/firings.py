"""Held-out firings: what rules would have said of a training example that they had never seen.

For validation a rule must be foreign to the example in two ways: found without it, and judged without it. An
example of fold f therefore gets the rules that were searched outside f, each with its record on the other folds'
held-out examples. The final base's own firings on its training examples are neither.

One thing is not held out: mining keeps only rules that many searches found, and that choice has seen every example. So
thresholds chosen on these firings are somewhat optimistic; ``mmd bench gate_cv`` measures without that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmd.artifacts import Artifact, ArtifactWriter
from mmd.intent.rules import Predicate, RuleStats, measure

HELD_OUT_FILE = "held_out.json"


@dataclass(frozen=True, slots=True)
class HeldOutRule:
    """A rule found outside a fold, with the examples (row numbers) of the fold that it fired on.

    ``words`` are its conditions in English (:func:`mmd.intent.hints.conditions`).
    """

    fold: int
    label: str
    predicates: tuple[Predicate, ...]
    fired: tuple[int, ...]
    words: str = ""


@dataclass(frozen=True, slots=True)
class HeldOutFiring:
    """A firing on a held-out example; ``stats`` come from folds other than the example's.

    ``words`` are the rule's conditions; empty where a rule base was written before they were kept.
    """

    label: str
    stats: RuleStats
    words: str = ""


def held_out_firings(
    labels: Sequence[str], found: Iterable[HeldOutRule], *, min_precision: float, min_support: int
) -> list[tuple[HeldOutFiring, ...]]:
    """Return, per example, the rules that fired on it while it was held out, best first.

    Rules are kept as in the final base: by their precision and support, here on the other folds.

    Args:
        labels: true label of each example, by row number.
        found: every rule of one partition into folds.
        min_precision: precision that a rule needs.
        min_support: firings that a rule needs.
    """
    rules = list(found)
    where: defaultdict[tuple[str, frozenset[Predicate]], dict[int, set[int]]] = defaultdict(dict)
    for rule in rules:
        where[rule.label, frozenset(rule.predicates)].setdefault(rule.fold, set()).update(rule.fired)
    firings: list[dict[tuple[str, frozenset[Predicate]], HeldOutFiring]] = [{} for _ in labels]
    for rule in rules:
        key = (rule.label, frozenset(rule.predicates))
        elsewhere = set().union(*(rows for fold, rows in where[key].items() if fold != rule.fold))
        hits = sum(labels[row] == rule.label for row in elsewhere)
        stats = measure(len(elsewhere), hits, len(labels))
        if stats.support >= min_support and stats.precision >= min_precision:
            for row in rule.fired:
                firings[row][key] = HeldOutFiring(rule.label, stats, rule.words)
    return [tuple(sorted(fired.values(), key=_strength)) for fired in firings]


def _strength(firing: HeldOutFiring) -> tuple[float, int, str]:
    return (-firing.stats.wilson_lower, -firing.stats.support, firing.label)


def save_firings(
    writer: ArtifactWriter, by_task: Mapping[str, Mapping[str, Sequence[HeldOutFiring]]], examples: Mapping[str, int]
) -> None:
    """Write ``held_out.json``: task → table of rules, and dialogue id → numbers of the rules that fired, best first.

    A rule's row is [label, hits, support, weight, words]. A rule has a row for every record that it was heard with:
    records are counted without the fold that a firing lies in.

    Args:
        writer: of the rule base's artefact.
        by_task: task → dialogue id → firings.
        examples: task → training examples, which coverage refers to.
    """
    writer.write_json(HELD_OUT_FILE, {task: _to_table(rows, examples[task]) for task, rows in by_task.items()})


def _to_table(rows: Mapping[str, Sequence[HeldOutFiring]], examples: int) -> dict[str, Any]:
    table: dict[tuple[str, int, int, float, str], int] = {}
    fired = {
        key: [table.setdefault(_record(firing), len(table)) for firing in firings] for key, firings in rows.items()
    }
    return {"examples": examples, "rules": [list(record) for record in table], "fired": fired}


def _record(firing: HeldOutFiring) -> tuple[str, int, int, float, str]:
    stats = firing.stats
    return firing.label, stats.hits, stats.support, stats.weight, firing.words


def load_firings(artifact: Artifact, task: str) -> dict[str, tuple[HeldOutFiring, ...]] | None:
    """Return dialogue id → held-out firings, best first; None if the rule base came without (a hand-made one)."""
    if not artifact.has(HELD_OUT_FILE):
        return None
    content = artifact.read_json(HELD_OUT_FILE).get(task)
    if content is None:
        return None
    examples = content["examples"]
    if "rules" not in content:  # written before rules had words: each firing is a row of its own
        return {key: tuple(_firing(row, examples) for row in fired) for key, fired in content["fired"].items()}
    rules = [_firing(row, examples) for row in content["rules"]]
    return {key: tuple(rules[number] for number in fired) for key, fired in content["fired"].items()}


def _firing(row: Sequence[Any], examples: int) -> HeldOutFiring:
    label, hits, support, weight, *words = row
    return HeldOutFiring(label, replace(measure(support, hits, examples), weight=weight), *words)
