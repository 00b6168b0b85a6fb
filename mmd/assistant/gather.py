"""What the parts find out about many turns, asked in batches: for fitting and for measuring a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mmd.assistant.assistant import Assistant, evidence_of, intent_query, recommend_query
from mmd.assistant.turns import AskedTurn
from mmd.assistant.types import PARTS, Choice, Evidence
from mmd.errors import MmdError
from mmd.intent.engine import IntentAnswer
from mmd.recommend.engine import RecommendAnswer
from mmd.recommend.types import Mode
from mmd.retrieval.engine import MAX_K, RetrievalAnswer
from mmd.retrieval.types import Hit, Query

_TOGETHER = 64

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True)
class Gathered:
    """What the parts found of one turn.

    Attributes:
        turn: that was asked.
        evidence: of all parts that there are.
        replies: mode → the student's answer in it; under None the answer of a student without modes.
        pool: hits within the turn's pool, all of it, the best first; None where no pool was given.
    """

    turn: AskedTurn
    evidence: Evidence
    replies: dict[Mode | None, RecommendAnswer]
    pool: tuple[Hit, ...] | None = None

    def recommended(self, choice: Choice) -> RecommendAnswer | None:
        """Return the student's answer that a reply by this choice is composed with."""
        if not choice.wants_student:
            return None
        mode = choice.mode if choice.mode in self.replies else self.evidence.mode
        return self.replies.get(mode)


def recognise(assistant: Assistant, turns: Sequence[AskedTurn]) -> list[IntentAnswer | None]:
    """Return what intent each turn has; None where it is of a kind that no intent is known for."""
    part = assistant.intent
    if part is None:
        return [None] * len(turns)
    return _each(turns, lambda some: part.answer([intent_query(turn.query) for turn in some]))


def gather(
    assistant: Assistant, turns: Sequence[AskedTurn], pools: Sequence[frozenset[str]] | None = None
) -> list[Gathered]:
    """Ask all parts about turns. The student answers in its own mode and in the other one.

    Args:
        assistant: whose parts are asked.
        turns: to ask about.
        pools: response ids, one set a turn, that hits are restricted to, too.
    """
    intents = recognise(assistant, turns)
    candidates = assistant.policy.settings.candidates
    found: list[Gathered] = []
    for start in range(0, len(turns), _TOGETHER):
        some = turns[start : start + _TOGETHER]
        ranked = _retrieve(assistant, some)
        replies = _replies(assistant, some)
        for offset, turn in enumerate(some):
            answer, own = ranked[offset], replies[offset]
            told = (intents[start + offset], answer, own)
            absent = frozenset(part for part, found_out in zip(PARTS, told, strict=True) if found_out is None)
            spoken = None if own is None else own[0]
            cut = None if answer is None else replace(answer, hits=first_of_each(answer.hits, candidates))
            found.append(
                Gathered(
                    turn,
                    evidence_of(intents[start + offset], cut, spoken, absent, turn.query.spoken),
                    {} if own is None else {_mode(reply): reply for reply in own},
                    _within(answer, pools[start + offset]) if pools is not None else None,
                )
            )
    return found


def _mode(reply: RecommendAnswer) -> Mode | None:
    return None if reply.mode_probability is None else reply.mode


def _within(answer: RetrievalAnswer | None, pool: frozenset[str]) -> tuple[Hit, ...]:
    return () if answer is None else tuple(hit for hit in answer.hits if hit.response.id in pool)


def first_of_each(hits: Sequence[Hit], k: int) -> tuple[Hit, ...]:
    """Return the first k hits of each modality, in order."""
    seen: dict[str, int] = {}
    kept = []
    for hit in hits:
        count = seen.get(hit.response.modality, 0)
        if count < k:
            kept.append(hit)
        seen[hit.response.modality] = count + 1
    return tuple(kept)


def _retrieve(assistant: Assistant, turns: Sequence[AskedTurn]) -> list[RetrievalAnswer | None]:
    part = assistant.retrieval
    if part is None:
        return [None] * len(turns)
    return _each(
        turns,
        lambda some: part.rank(
            [part.prepare(Query(turn.query.turns), turn.query.images) for turn in some], MAX_K, each=True
        ),
    )


def _replies(assistant: Assistant, turns: Sequence[AskedTurn]) -> list[tuple[RecommendAnswer, ...] | None]:
    """Return the student's own answer to each turn and, where it has modes, that in the other mode behind it."""
    part = assistant.recommendation
    if part is None:
        return [None] * len(turns)

    def ask(some: Sequence[AskedTurn], modes: Sequence[Mode | None]) -> list[RecommendAnswer]:
        queries = [replace(recommend_query(turn.query), mode=mode) for turn, mode in zip(some, modes, strict=True)]
        return part.answer([part.prepare(query) for query in queries])

    own = _each(turns, lambda some: ask(some, [None] * len(some)))
    others: dict[int, Mode] = {
        row: "gen" if reply.mode == "rec" else "rec"
        for row, reply in enumerate(own)
        if reply is not None and reply.mode_probability is not None
    }
    told = ask([turns[row] for row in others], list(others.values())) if others else []
    second = dict(zip(others, told, strict=True))
    return [
        None if reply is None else (reply, second[row]) if row in second else (reply,) for row, reply in enumerate(own)
    ]


def _each(turns: Sequence[AskedTurn], ask: Callable[[Sequence[AskedTurn]], Sequence[A]]) -> list[A | None]:
    """Ask about turns together; where one of them cannot be answered, each by itself."""
    if not turns:
        return []
    try:
        return list(ask(turns))
    except MmdError:
        if len(turns) == 1:
            return [None]
        return [found for turn in turns for found in _each([turn], ask)]
