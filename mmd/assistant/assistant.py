"""One turn in process: intent first, then retrieval and the student, then the policy, then the words.

A part that is not there, or fails, is left out and named in ``degraded``; the turn fails only where no part is left.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from mmd.assistant.policy import Policy
from mmd.assistant.types import AssistantQuery, AssistantReply, Choice, Evidence, Part
from mmd.errors import MmdError, RequestError
from mmd.intent.engine import IntentAnswer, IntentQuery
from mmd.language import Language
from mmd.recommend.engine import RecommendAnswer
from mmd.recommend.online import PreparedRecommendation, RecommendQuery
from mmd.retrieval.engine import RetrievalAnswer
from mmd.retrieval.online import PreparedRetrieval
from mmd.retrieval.types import Query
from mmd.schema import Dialogue, Image


class IntentPart(Protocol):
    """What the assistant asks of an :class:`~mmd.intent.engine.IntentEngine`."""

    def answer(self, queries: Sequence[IntentQuery]) -> list[IntentAnswer]:
        """Return one answer a query, in order."""
        ...


class RetrievalPart(Protocol):
    """What the assistant asks of an :class:`~mmd.retrieval.online.OnlineRetrieval`."""

    degraded: tuple[str, ...]

    @property
    def artifacts(self) -> Mapping[str, str]:
        """Role → reference of what answers."""
        ...

    def prepare(self, query: Query, images: Mapping[str, Image]) -> PreparedRetrieval:
        """Read the pictures of a query."""
        ...

    def rank(
        self, prepared: Sequence[PreparedRetrieval], k: int, modality: str | None = None, *, each: bool = False
    ) -> list[RetrievalAnswer]:
        """Return one answer a query, in order."""
        ...


class RecommendationPart(Protocol):
    """What the assistant asks of an :class:`~mmd.recommend.online.OnlineRecommender`."""

    artifacts: Mapping[str, str]
    degraded: tuple[str, ...]

    def prepare(self, query: RecommendQuery) -> PreparedRecommendation:
        """Find the items and entities of a dialogue."""
        ...

    def answer(self, prepared: Sequence[PreparedRecommendation]) -> list[RecommendAnswer]:
        """Return one answer a query, in order."""
        ...


@dataclass
class _Turn:
    """What is gathered of a turn on the way."""

    intent: IntentAnswer | None = None
    retrieval: RetrievalAnswer | None = None
    recommended: RecommendAnswer | None = None
    absent: set[Part] = field(default_factory=set)
    degraded: list[str] = field(default_factory=list)
    timings_ms: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)

    def fail(self, part: Part, reason: str) -> None:
        """Leave a part out."""
        self.absent.add(part)
        self.degraded.append(f"{part}: {reason}")


class Assistant:
    """Answers turns with the parts that there are; threads may share it as far as they may share its parts.

    Args:
        policy: decides.
        intent: recognises intents.
        retrieval: finds responses.
        recommendation: the student.
        missing: part → why it is not there, for ``degraded``.
        degraded: what else was missing at loading, repeated in replies.
        artifacts: role → reference of the policy.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        intent: IntentPart | None = None,
        retrieval: RetrievalPart | None = None,
        recommendation: RecommendationPart | None = None,
        missing: Mapping[Part, str] | None = None,
        degraded: tuple[str, ...] = (),
        artifacts: Mapping[str, str] | None = None,
    ) -> None:
        self.policy = policy
        self.intent = intent
        self.retrieval = retrieval
        self.recommendation = recommendation
        self._degraded = degraded
        self._artifacts = dict(artifacts or {})
        self._missing = dict(missing or {})

    def answer(self, query: AssistantQuery) -> AssistantReply:
        """Answer a turn.

        Raises:
            RequestError: the turns say and show nothing.
            UnavailableError: no part can answer.
        """
        require_content(query)
        turn = _Turn(degraded=list(self._degraded), artifacts=dict(self._artifacts))
        self._ask_intent(query, turn)
        self._ask_retrieval(query, turn)
        self._ask_student(query, turn, None)
        started = time.perf_counter()
        evidence = evidence_of(turn.intent, turn.retrieval, turn.recommended, frozenset(turn.absent), query.spoken)
        choice = self.policy.choose(evidence)
        turn.timings_ms["policy"] = (time.perf_counter() - started) * 1000
        if speaks_otherwise(choice, evidence):
            self._ask_student(query, turn, choice)
        return self._reply(query, turn, evidence, choice)

    # ------------------------------------------------------------ asking the parts

    def _ask_intent(self, query: AssistantQuery, turn: _Turn) -> None:
        if self.intent is None:
            turn.fail("intent", self._reason("intent"))
            return
        try:
            (answer,) = self.intent.answer([intent_query(query)])
        except MmdError as err:  # no task of the dialogue's shape, for one
            turn.fail("intent", str(err))
            return
        turn.intent = answer
        _note(turn, "intent", answer.degraded, answer.timings_ms, answer.artifacts)

    def _ask_retrieval(self, query: AssistantQuery, turn: _Turn) -> None:
        if self.retrieval is None:
            turn.fail("retrieval", self._reason("retrieval"))
            return
        try:
            prepared = self.retrieval.prepare(Query(query.turns), query.images)
            (answer,) = self.retrieval.rank([prepared], self.policy.settings.candidates, each=True)
        except MmdError as err:
            turn.fail("retrieval", str(err))
            return
        turn.retrieval = answer
        problems = (*self.retrieval.degraded, *prepared.problems)
        _note(turn, "retrieval", problems, answer.timings_ms, self.retrieval.artifacts)

    def _ask_student(self, query: AssistantQuery, turn: _Turn, choice: Choice | None) -> None:
        """Ask the student; with a choice, again, in the mode that was chosen: in the other it said something else."""
        turn.recommended = None
        if self.recommendation is None:
            turn.fail("recommendation", self._reason("recommendation"))
            return
        asked = recommend_query(query)
        try:
            prepared = self.recommendation.prepare(replace(asked, mode=choice.mode) if choice else asked)
            (answer,) = self.recommendation.answer([prepared])
        except MmdError as err:
            turn.fail("recommendation", str(err))
            return
        turn.recommended = answer
        if choice is None:
            problems = (*self.recommendation.degraded, *prepared.problems)
            _note(turn, "recommendation", problems, answer.timings_ms, self.recommendation.artifacts)
        else:
            turn.timings_ms["recommendation.again"] = sum(answer.timings_ms.values())

    def _reason(self, part: Part) -> str:
        return self._missing.get(part, "not there")

    def _reply(self, query: AssistantQuery, turn: _Turn, evidence: Evidence, choice: Choice) -> AssistantReply:
        wanted = turn.recommended if choice.wants_student else None
        return AssistantReply(
            parts=self.policy.compose(choice, evidence, wanted, query.spoken or "en"),
            choice=choice,
            intents=evidence.intents,
            words=turn.intent.words if turn.intent else {},
            hits=evidence.hits,
            recommended=turn.recommended,
            timings_ms=turn.timings_ms,
            degraded=tuple(dict.fromkeys(turn.degraded)),
            artifacts=turn.artifacts,
        )


def require_content(query: AssistantQuery) -> None:
    """Raise unless a dialogue says or shows something.

    Raises:
        RequestError: it does not.
    """
    if not any(turn.text.strip() or turn.image_ids or turn.item_ids for turn in query.turns):
        raise RequestError("no turn has text, a picture or a product; there is nothing to answer. Add a turn.")


def intent_query(query: AssistantQuery) -> IntentQuery:
    """Return what the intent engine is asked: every task of the dialogue's shape."""
    return IntentQuery(Dialogue(query.id, "assistant", "test", query.turns), images=query.images)


def recommend_query(query: AssistantQuery) -> RecommendQuery:
    """Return what the student is asked, the mode being its own."""
    pictures = sum(len(turn.image_ids) for turn in query.turns)
    return RecommendQuery(query.id, query.turns, query.k, pictures=pictures)


def evidence_of(
    intent: IntentAnswer | None,
    retrieval: RetrievalAnswer | None,
    recommended: RecommendAnswer | None,
    absent: frozenset[Part],
    language: Language | None = None,
) -> Evidence:
    """Put together what the parts found."""
    moded = recommended is not None and recommended.mode_probability is not None
    return Evidence(
        intents=intent.predictions if intent else (),
        hits=retrieval.hits if retrieval else (),
        predicted_modality=retrieval.intent if retrieval else None,
        mode=recommended.mode if recommended and moded else None,
        mode_probability=recommended.mode_probability if recommended else None,
        absent=absent,
        language=language,
    )


def speaks_otherwise(choice: Choice, evidence: Evidence) -> bool:
    """Say whether the student is to speak in another mode than its own."""
    return choice.mode is not None and choice.mode != evidence.mode


def _note(
    turn: _Turn, part: Part, problems: Sequence[str], timings_ms: Mapping[str, float], artifacts: Mapping[str, str]
) -> None:
    turn.degraded += problems
    turn.timings_ms |= {f"{part}.{stage}": elapsed for stage, elapsed in timings_ms.items()}
    turn.artifacts |= artifacts
