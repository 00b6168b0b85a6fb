"""Fired rules in words, as an MLLM is told them: the `prompt` arm of KDSL, and the hints it is fine-tuned with.

Training and serving tell rules in one form: a rule's conditions as English clauses, its label and its record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mmd.intent.rules import Predicate, Prototypes, Rule, RuleStats
from mmd.intent.wording import describe_predicate

_SAME_LABEL = 2
_LEAST_PRECISION = 0.25  # a rule that is nearly always wrong votes, but told alone it misleads


class WordedRule(Protocol):
    """A fired rule as far as a hint looks at it: its label, its record and, where known, its conditions."""

    @property
    def label(self) -> str:
        """What it speaks for."""
        ...

    @property
    def words(self) -> str:
        """Its conditions in words (:func:`conditions`); empty where unknown."""
        ...

    @property
    def stats(self) -> RuleStats:
        """Its held-out record."""
        ...


@dataclass(frozen=True, slots=True)
class ToldRule:
    """A rule of the base, ready to be told."""

    label: str
    words: str
    stats: RuleStats


def conditions(predicates: Iterable[Predicate], prototypes: Prototypes) -> str:
    """Return a rule's conditions in words, e.g. ``the customer's last message contains “fade” and …``.

    Neither label nor record is among them: a hint's line begins with both. What stands at a prototype is not quoted:
    it may be another dialogue's message, which a model that is validated on that dialogue must not have read.
    """
    return " and ".join(_told(p, prototypes) for p in predicates)


def _told(predicate: Predicate, prototypes: Prototypes) -> str:
    if predicate.kind != "near":
        return describe_predicate(predicate, "en", prototypes)
    what = "picture" if predicate.scope == "image" else "customer's last message"
    return f"the {what} is {'un' if predicate.negated else ''}like a known one"


def told_rules(fired: Iterable[Rule], prototypes: Prototypes) -> list[ToldRule]:
    """Return fired rules as :func:`hint_text` takes them, in the same order (best first, as matching gives them)."""
    return [ToldRule(rule.label, conditions(rule.predicates, prototypes), rule.stats) for rule in fired]


def hint_text(fired: Sequence[WordedRule], limit: int) -> str:
    """Return the hint of the first ``limit`` rules worth telling, one line each, best first; empty where there is none.

    A line is ``label (hits of support): words``, without the record for a rule that nobody measured. Left out are rules
    of very low precision, and those for the same label beyond the second, so that other labels are heard.
    """
    lines: list[str] = []
    told: dict[str, int] = {}
    for rule in fired:
        if len(lines) == limit:
            break
        stats = rule.stats
        if stats.support and stats.precision < _LEAST_PRECISION:
            continue
        told[rule.label] = told.get(rule.label, 0) + 1
        if told[rule.label] > _SAME_LABEL:
            continue
        record = f" ({stats.hits} of {stats.support})" if stats.support else ""
        sentence = f": {rule.words}" if rule.words else ""
        lines.append(f"{rule.label}{record}{sentence}")
    return "\n".join(lines)
