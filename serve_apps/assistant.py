"""One turn over the deployments: intent, retrieval and the student side by side, then the policy, then the words.

None of the three needs what another one finds; the policy joins them. A part that is absent, fails or is late is left
out and named; the turn fails only where none is left. A streamed reply is decided as soon as the student has told its
mode; where others speak, the student's own answer comes behind their words.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import structlog

from mmd.assistant.assistant import intent_query, recommend_query, speaks_otherwise
from mmd.assistant.policy import Policy
from mmd.assistant.types import PARTS, AssistantQuery, AssistantReply, Choice, Evidence, Part, ReplyPart
from mmd.config import ServeSettings
from mmd.intent.engine import IntentAnswer, IntentQuery
from mmd.recommend.online import RecommendQuery
from mmd.recommend.types import Mode
from mmd.retrieval.types import Query
from serve_apps.answers import RecommendResult, RetrievalResult
from serve_apps.api import ApiError
from serve_apps.congestion import Place
from serve_apps.limits import RetrievalQuery
from serve_apps.presence import Presence
from serve_apps.recommend_routes import Recommending
from serve_apps.speech import Said, StudentSpeech, failure_of

T = TypeVar("T")
_MISSED = frozenset({"overloaded", "unavailable", "timeout", "part_failed"})


class Parts(Recommending, Protocol):
    """What a turn asks; every method may raise :class:`~serve_apps.api.ApiError`."""

    async def answer(self, query: IntentQuery) -> IntentAnswer:
        """Recognise the intent of one dialogue."""
        ...

    async def retrieve(self, query: RetrievalQuery) -> RetrievalResult:
        """Rank responses to one dialogue."""
        ...

    async def reach(self, part: Part) -> None:
        """Return once a part gives a sign of life."""
        ...


@dataclass(frozen=True)
class ServedPolicy:
    """What decides.

    Attributes:
        policy: it.
        corpus: name of the corpus that it speaks for.
        artifacts: role → reference of what it was made from.
        degraded: what it lacks, and why.
    """

    policy: Policy
    corpus: str
    artifacts: Mapping[str, str] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True)
class TurnResult:
    """A reply with what the service knows of it.

    Attributes:
        reply: of the policy; its timings are of the stages ``intent``, ``retrieval``, ``recommendation`` (as waited
            for here), what each of them tells of its own stages (``retrieval.search``, …), ``policy``, and of a
            streamed reply ``words``.
        intent: the answer behind its intents.
        mode: of the student, with its probability; None where it told none.
        pictures: ids of the hits' pictures that the service has.
        missed: parts that did not answer in time, or not at all.
    """

    reply: AssistantReply
    intent: IntentAnswer | None
    mode: tuple[Mode, float | None] | None
    pictures: frozenset[str]
    missed: frozenset[Part] = frozenset()


@dataclass
class _Turn:
    """What is gathered of a turn on the way."""

    query: AssistantQuery
    served: ServedPolicy
    place: Place | None = None
    intent: IntentAnswer | None = None
    retrieval: RetrievalResult | None = None
    recommended: RecommendResult | None = None
    mode: tuple[Mode, float | None] | None = None
    failed: dict[Part, ApiError] = field(default_factory=dict)
    timings_ms: dict[str, float] = field(default_factory=dict)

    def evidence(self) -> Evidence:
        """Put together what the parts found.

        Raises:
            ApiError: no part is left.
        """
        if all(part in self.failed for part in PARTS):
            raise nothing_left(self.failed)
        answer = self.retrieval.answer if self.retrieval else None
        told = None if "recommendation" in self.failed else self.mode
        mode, probability = told if told and told[1] is not None else (None, None)
        return Evidence(
            intents=self.intent.predictions if self.intent else (),
            hits=answer.hits if answer else (),
            predicted_modality=answer.intent if answer else None,
            mode=mode,
            mode_probability=probability,
            absent=frozenset(self.failed),
            language=self.query.spoken,
        )

    def decide(self) -> tuple[Evidence, Choice]:
        """Let the policy decide on what there is.

        Raises:
            ApiError: no part is left.
        """
        evidence, started = self.evidence(), time.perf_counter()
        choice = self.served.policy.choose(evidence)
        self.timings_ms["policy"] = (time.perf_counter() - started) * 1000
        return evidence, choice

    def compose(self, choice: Choice, evidence: Evidence) -> tuple[ReplyPart, ...]:
        """Return the reply, from as much of the student's as has come."""
        wanted = self.recommended.answer if self.recommended and choice.wants_student else None
        return self.served.policy.compose(choice, evidence, wanted, self.query.spoken or "en")

    def result(self, choice: Choice, evidence: Evidence, parts: tuple[ReplyPart, ...]) -> TurnResult:
        """Put the reply together with how it came about."""
        answers = (self.intent, self.retrieval, self.recommended)
        told = [answer for answer in answers if answer is not None]
        problems = [problem for answer in told for problem in answer.degraded]
        problems += [_problem(part, self.failed[part]) for part in PARTS if part in self.failed]
        reply = AssistantReply(
            parts=parts,
            choice=choice,
            intents=evidence.intents,
            words=self.intent.words if self.intent else {},
            hits=evidence.hits,
            recommended=self.recommended.answer if self.recommended else None,
            timings_ms=self._stages(),
            degraded=tuple(dict.fromkeys((*self.served.degraded, *problems))),
            artifacts={**self.served.artifacts, **{k: v for answer in told for k, v in answer.artifacts.items()}},
        )
        missed = frozenset(part for part, err in self.failed.items() if err.code in _MISSED)
        return TurnResult(reply, self.intent, self.mode, self.pictures, missed)

    @property
    def pictures(self) -> frozenset[str]:
        """Ids of the hits' pictures that the service has."""
        return frozenset(self.retrieval.pictures) if self.retrieval else frozenset()

    def _stages(self) -> dict[str, float]:
        stages = dict(self.timings_ms)
        inner: list[tuple[str, Mapping[str, float]]] = []
        if self.intent:
            inner.append(("intent", self.intent.timings_ms))
        if self.retrieval:
            inner.append(("retrieval", self.retrieval.answer.timings_ms))
        if self.recommended:
            inner.append(("recommendation", self.recommended.answer.timings_ms))
        return stages | {f"{part}.{stage}": ms for part, told in inner for stage, ms in told.items()}


def nothing_left(failed: Mapping[Part, ApiError]) -> ApiError:
    """Return the error of a turn without any part: the one that passes soonest says when to come back."""
    reasons = " ".join(_problem(part, err) for part, err in failed.items())
    for status in (429, 504):
        if any(err.status == status for err in failed.values()):
            first = next(err for err in failed.values() if err.status == status)
            return ApiError(status, first.code, reasons, retry_after_s=first.retry_after_s)
    waits = [err.retry_after_s for err in failed.values() if err.retry_after_s is not None]
    return ApiError(503, "nothing_to_serve", reasons, retry_after_s=min(waits, default=None))


def _problem(part: Part, err: ApiError) -> str:
    return f"{part}: {str(err).removeprefix(f'{part} is ')}"


class TurnService:
    """Answers turns, whole or piece by piece.

    Args:
        parts: what is asked.
        settings: how long a part may take.
    """

    def __init__(self, parts: Parts, settings: ServeSettings) -> None:
        self._parts = parts
        self._presence = Presence(parts.reach)
        # Twice within the request's own limit: the student may have to be asked again.
        self._limit_s = min(settings.part_timeout_s, 0.4 * settings.request_timeout_s)
        self._log = structlog.get_logger("mmd.assistant")

    async def answer(self, served: ServedPolicy, query: AssistantQuery, place: Place | None = None) -> TurnResult:
        """Answer a turn.

        Args:
            served: what decides.
            query: the conversation.
            place: of the request, which others get while it waits for a part that may be gone.

        Raises:
            ApiError: no part can answer.
        """
        turn = _Turn(query, served, place)
        # The longest first: sending a question takes a while itself.
        await asyncio.gather(self._ask_student(turn), self._ask_intent(turn), self._ask_retrieval(turn))
        evidence, choice = turn.decide()
        if speaks_otherwise(choice, evidence):
            turn.recommended = None  # in the other mode it said something else
            await self._ask_student(turn, choice.mode)
            if "recommendation" in turn.failed:  # then somebody else is to speak
                evidence, choice = turn.decide()
        return self._told(turn, turn.result(choice, evidence, turn.compose(choice, evidence)), streamed=False)

    async def stream(
        self, served: ServedPolicy, query: AssistantQuery, place: Place | None = None
    ) -> AsyncGenerator[Said | TurnResult]:
        """Answer a turn piece by piece; the result comes last. Arguments as of :meth:`answer`.

        Raises:
            ApiError: no part can answer, or the student breaks off in the middle of its words.
        """
        turn, student = _Turn(query, served, place), StudentSpeech(self._parts)
        try:
            await asyncio.gather(self._open(turn, student), self._ask_intent(turn), self._ask_retrieval(turn))
            evidence, choice = turn.decide()
            if speaks_otherwise(choice, evidence):
                await self._open(turn, student, choice.mode)
                if "recommendation" in turn.failed:
                    await student.aclose()  # what it began in the other mode
                    evidence, choice = turn.decide()
            spoken, started = False, time.perf_counter()
            if choice.speaker == "student":
                async with aclosing(student.words(query.id, self._limit_s)) as words:
                    async for said in words:
                        spoken = True
                        yield said
            else:  # the student's answer changes nothing of what others say
                spoken = True
                for said in _said(turn.compose(choice, evidence), turn.pictures):
                    yield said
            turn.timings_ms["words"] = (time.perf_counter() - started) * 1000
            await self._finish(turn, student)
            if not spoken and "recommendation" in turn.failed:  # who was to speak did not: decide again without
                evidence, choice = turn.decide()
            parts = turn.compose(choice, evidence)
            if not spoken:
                for said in _said(parts, turn.pictures):
                    yield said
            yield self._told(turn, turn.result(choice, evidence, parts), streamed=True)
        finally:
            await student.aclose()

    # ------------------------------------------------------------ asking the parts

    async def _ask_intent(self, turn: _Turn) -> None:
        query = intent_query(turn.query)
        turn.intent = await self._within(turn, "intent", lambda: self._parts.answer(query))

    async def _ask_retrieval(self, turn: _Turn) -> None:
        query, count = turn.query, turn.served.policy.settings.candidates
        asked = RetrievalQuery(query.id, Query(query.turns), query.images, count, each=True)
        turn.retrieval = await self._within(turn, "retrieval", lambda: self._parts.retrieve(asked))

    async def _ask_student(self, turn: _Turn, mode: Mode | None = None) -> None:
        query = _in_mode(turn.query, mode)
        found = await self._within(turn, "recommendation", lambda: self._parts.recommend(query))
        turn.recommended = found
        if found and mode is None:
            turn.mode = found.answer.mode, found.answer.mode_probability

    async def _open(self, turn: _Turn, student: StudentSpeech, mode: Mode | None = None) -> None:
        """Begin a stream of the student's."""
        query = _in_mode(turn.query, mode)
        told = await self._within(turn, "recommendation", lambda: student.open(query))
        if mode is None:
            turn.mode = told

    async def _finish(self, turn: _Turn, student: StudentSpeech) -> None:
        """Wait for the end of the student's stream, which has all that it had in mind."""
        if "recommendation" not in turn.failed:
            turn.recommended = await self._within(turn, "recommendation", student.result)

    async def _within(self, turn: _Turn, part: Part, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Wait for a part's answer; None, and its failure noted, where none comes in time."""
        started = time.perf_counter()
        try:
            return await self._presence.answer(part, ask, self._limit_s, turn.place)
        except ApiError as err:
            turn.failed[part] = err
        except TimeoutError:
            turn.failed[part] = ApiError(504, "timeout", f"no answer within {self._limit_s:g} s; try again.")
        except Exception as err:  # noqa: BLE001 (whatever a part fails of: the turn goes on without it)
            turn.failed[part] = failure_of(part, err, turn.query.id)
        finally:
            elapsed_ms = (time.perf_counter() - started) * 1000
            turn.timings_ms[part] = turn.timings_ms.get(part, 0.0) + elapsed_ms
        return None

    def _told(self, turn: _Turn, result: TurnResult, *, streamed: bool) -> TurnResult:
        """Log a turn, without a word of it."""
        self._log.info(
            "turn_answered",
            request_id=turn.query.id,
            turns=len(turn.query.turns),
            pictures=len(turn.query.images),
            streamed=streamed,
            modality=result.reply.choice.modality,
            speaker=result.reply.choice.speaker,
            parts=[part.kind for part in result.reply.parts],
            absent=sorted(turn.failed),
            timings_ms={stage: round(ms, 2) for stage, ms in result.reply.timings_ms.items()},
        )
        return result


def _in_mode(query: AssistantQuery, mode: Mode | None) -> RecommendQuery:
    return replace(recommend_query(query), mode=mode)


def shown_picture(part: ReplyPart, pictures: Collection[str]) -> str | None:
    """Return the id of a part's picture if the service has it; the student's are all there."""
    return part.image_id if part.response_id is None or part.image_id in pictures else None


def _said(parts: Sequence[ReplyPart], pictures: Collection[str]) -> list[Said]:
    """Return what :attr:`~mmd.assistant.types.AssistantReply.text` reads, part by part."""
    texts = [part for part in parts if part.kind == "text"] or [part for part in parts if part.text]
    return [
        Said(("\n" if place else "") + part.text, part.item_id, part.text, shown_picture(part, pictures))
        for place, part in enumerate(texts)
    ]
