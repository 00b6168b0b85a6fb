"""Matching of many rules at once."""

from __future__ import annotations

from collections.abc import Iterable

from mmd.intent.predicates import holds
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Rule
from mmd.intent.types import IntentExample


class CompiledRules:
    """The enabled rules of one task, ready to match."""

    def __init__(self, rulebase: RuleBase, task: str) -> None:
        self.task = task
        self.rules = rulebase.of_task(task)
        self._prototypes = rulebase.prototypes

    def fired(self, example: IntentExample) -> tuple[Rule, ...]:
        """Return the rules that fire on an example, best first."""
        return tuple(r for r in self.rules if all(holds(p, example, self._prototypes) for p in r.predicates))

    def fired_batch(self, examples: Iterable[IntentExample]) -> list[tuple[Rule, ...]]:
        """Return the rules that fire on each example, in order."""
        return [self.fired(example) for example in examples]
