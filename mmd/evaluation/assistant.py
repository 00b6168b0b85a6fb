"""What the assistant is worth on the turns that the agent of a corpus answered, against its parts.

The same evidence is decided on by the policy with all parts, with each part absent, and with each part alone, so that
what differs is the policy's doing. Shares come with intervals that are bootstrapped over dialogues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmd.assistant.gather import Gathered
from mmd.assistant.judging import Verdict, judge
from mmd.assistant.policy import Policy
from mmd.assistant.types import PARTS, Choice, Evidence, Part, ReplyPart
from mmd.evaluation.metrics import Confusion, Interval, interval, overall, resample_sums

ASSISTANT = "assistant"
METRICS = ("right modality", "right response", "right response in its pool", "right item", "right item shown")
"""Shares, in [0, 1]. ``right response``: the first that is shown, among all there are; ``in its pool``: retrieval's are
taken from the turn's pool alone, while the student's are not; ``right item``: the first product that is shown, of turns
in which the agent names some; ``shown``: any product that is shown."""
WORDS, ANSWERED = "words F1", "answered"


@dataclass(frozen=True)
class Told:
    """What a system made of one turn.

    Attributes:
        choice: decided.
        parts: of the reply.
        verdict: on it.
        in_pool: verdict on the reply whose responses come from the turn's pool; None where there is none.
    """

    choice: Choice
    parts: tuple[ReplyPart, ...]
    verdict: Verdict
    in_pool: Verdict | None


@dataclass(frozen=True)
class System:
    """A set of parts with what it told: ``absent`` are those that it does without."""

    name: str
    absent: frozenset[Part]
    told: tuple[Told, ...]


@dataclass(frozen=True)
class Row:
    """A system's shares, by metric; those without a case are left out."""

    system: str
    shares: Mapping[str, Interval]


@dataclass(frozen=True)
class AssistantFindings:
    """All that was measured.

    Attributes:
        split: on which.
        turns: that were asked.
        systems: the whole assistant first.
        rows: one a system.
        modalities: true against chosen modality, of the whole assistant.
        intents: task → true against recognised intent, of labelled dialogues.
    """

    split: str
    turns: int
    systems: tuple[System, ...]
    rows: tuple[Row, ...]
    modalities: Confusion
    intents: Mapping[str, Confusion]

    @property
    def headline(self) -> dict[str, float]:
        """What the manifest tells."""
        shares = self.rows[0].shares
        found = {name: share.value for name, share in shares.items()}
        for row in self.rows[1:]:
            if "right modality" in row.shares:
                found[f"right modality, {row.system}"] = row.shares["right modality"].value
        return found | ({"intent F1": overall(self.intents)} if self.intents else {})

    def to_json(self) -> dict[str, Any]:
        """Return everything for machines."""
        return {
            "split": self.split,
            "turns": self.turns,
            "systems": {
                row.system: {name: [share.value, share.low, share.high] for name, share in row.shares.items()}
                for row in self.rows
            },
            "modalities": [[gold, chosen, n] for (gold, chosen), n in sorted(self.modalities.counts.items())],
            "intent weighted F1": {task: found.weighted_f1 for task, found in self.intents.items()},
            "intent examples": {task: found.total for task, found in self.intents.items()},
        }


def systems_of(there: frozenset[Part]) -> dict[str, frozenset[Part]]:
    """Return name → absent parts: the whole, each part alone, and without each part; each set of parts once."""
    everything = frozenset(PARTS)
    names = {"intent": "intent", "retrieval": "retrieval", "recommendation": "student"}
    wanted = {ASSISTANT: everything - there}
    wanted |= {f"{names[part]} alone": everything - {part} for part in PARTS if part in there}
    wanted |= {f"without {names[part]}": everything - there | {part} for part in PARTS if part in there}
    found: dict[str, frozenset[Part]] = {}
    for name, absent in wanted.items():
        if absent not in found.values() and absent != everything:
            found[name] = absent
    return found


def without(evidence: Evidence, absent: frozenset[Part]) -> Evidence:
    """Return evidence as it is where parts are absent."""
    left = replace(evidence, absent=evidence.absent | absent)
    if "intent" in absent:
        left = replace(left, intents=())
    if "retrieval" in absent:
        left = replace(left, hits=(), predicted_modality=None)
    if "recommendation" in absent:
        left = replace(left, mode=None, mode_probability=None)
    return left


def tell(policy: Policy, found: Gathered, absent: frozenset[Part]) -> Told:
    """Let a policy answer a gathered turn without some parts; in its pool, too, with the same modality and speaker."""
    evidence = without(found.evidence, absent)
    choice = policy.choose(evidence)
    recommended = found.recommended(choice)
    parts = policy.compose(choice, evidence, recommended)
    in_pool = None
    if found.pool is not None:
        pool = () if "retrieval" in absent else found.pool
        asked = policy.asked(evidence)
        intent = None if asked is None else (asked.task, asked.label)
        hits, _ = policy.candidates(replace(evidence, hits=pool), choice.modality, intent)
        narrowed = policy.compose(replace(choice, hits=hits), replace(evidence, hits=pool), recommended)
        in_pool = judge(found.turn, choice.modality, narrowed)
    return Told(choice, parts, judge(found.turn, choice.modality, parts), in_pool)


def measure(
    policy: Policy,
    gathered: Sequence[Gathered],
    split: str,
    intents: Mapping[str, Confusion],
    *,
    resamples: int,
    seed: int,
) -> AssistantFindings:
    """Let every system answer every turn, and score them.

    Turns for which a system has nothing at all, a part having failed on them, count as not answered.
    """
    there = frozenset(part for part in PARTS if any(found.evidence.has(part) for found in gathered))
    systems = []
    for name, absent in systems_of(there).items():
        systems.append(System(name, absent, tuple(_tell(policy, found, absent) for found in gathered)))
    groups = [found.turn.dialogue_id for found in gathered]
    golds = [found.turn.modality for found in gathered]
    return AssistantFindings(
        split,
        len(gathered),
        tuple(systems),
        tuple(Row(system.name, shares_of(system.told, groups, resamples, seed)) for system in systems),
        Confusion.of(golds, [told.choice.modality for told in systems[0].told]),
        intents,
    )


def _tell(policy: Policy, found: Gathered, absent: frozenset[Part]) -> Told:
    if any(without(found.evidence, absent).has(part) for part in PARTS):
        return tell(policy, found, absent)
    asked = bool(found.turn.items)
    nothing = Verdict(
        modality=False,
        response=False,
        item=False if asked else None,
        any_item=False if asked else None,
        words=0.0,
        answered=False,
    )
    return Told(Choice("none", "intent", (), (), wants_items=False), (), nothing, nothing if found.pool else None)


def shares_of(told: Sequence[Told], groups: Sequence[str], resamples: int, seed: int) -> dict[str, Interval]:
    """Return metric → share with its interval; turns that a metric does not ask about are no case of it."""
    values: dict[str, list[float | None]] = {
        "right modality": [float(one.verdict.modality) for one in told],
        "right response": [float(one.verdict.response) for one in told],
        "right response in its pool": [None if one.in_pool is None else float(one.in_pool.response) for one in told],
        "right item": [None if one.verdict.item is None else float(one.verdict.item) for one in told],
        "right item shown": [None if one.verdict.any_item is None else float(one.verdict.any_item) for one in told],
        WORDS: [one.verdict.words for one in told],
        ANSWERED: [float(one.verdict.answered) for one in told],
    }
    found = {}
    for name, column in values.items():
        cases = np.array([value is not None for value in column], dtype=np.float64)
        if not cases.sum():
            continue
        hits = np.array([value or 0.0 for value in column])
        drawn = resample_sums(np.stack([hits, cases], axis=1), groups, resamples, seed)
        draws = drawn[:, 0] / np.maximum(drawn[:, 1], 1.0)
        found[name] = interval(float(hits.sum() / cases.sum()), draws)
    return found
