"""Fired rules in words, as an MLLM is told them: the `prompt` arm of KDSL, and the hints it is fine-tuned with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mmd.intent.rules import RuleStats


class WordedRule(Protocol):
    """A fired rule as far as a hint looks at it: its label, its record and, where known, its sentence."""

    @property
    def label(self) -> str:
        """What it speaks for."""
        ...

    @property
    def words(self) -> str:
        """The rule as a sentence; empty where unknown."""
        ...

    @property
    def stats(self) -> RuleStats:
        """Its held-out record."""
        ...


def hint_text(fired: Sequence[WordedRule], limit: int) -> str:
    """Return the hint of the first ``limit`` rules, one line each, best first; empty where none fired.

    A line is ``label (hits of support cases): words``; rules for the same label beyond the second are left out, so that
    other labels are heard.
    """
    lines: list[str] = []
    told: dict[str, int] = {}
    for rule in fired:
        if len(lines) == limit:
            break
        told[rule.label] = told.get(rule.label, 0) + 1
        if told[rule.label] > 2:
            continue
        sentence = f": {rule.words}" if rule.words else ""
        lines.append(f"{rule.label} ({rule.stats.hits} of {rule.stats.support}){sentence}")
    return "\n".join(lines)
