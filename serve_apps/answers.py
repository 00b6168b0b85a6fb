"""From the engines' answers to their wire form."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmd.intent.engine import IntentAnswer
from mmd.intent.types import IntentPrediction
from mmd.recommend.engine import AnswerEvent, Piece, RecommendAnswer, RecommendedItem
from mmd.recommend.types import Mode
from mmd.retrieval.engine import RetrievalAnswer
from mmd.retrieval.types import Hit
from serve_apps.api import (
    Alternative,
    ApiError,
    FiredRuleOut,
    HitOut,
    IntentResponse,
    PredictedModality,
    PredictionOut,
    ReadyResponse,
    RetrieveResponse,
    Words,
)
from serve_apps.recommend_api import (
    EndEvent,
    ItemOut,
    ModeEvent,
    ModeOut,
    PieceEvent,
    RecommendResponse,
    ReplyOut,
    ReplyPart,
    StreamEvent,
    TokenMassOut,
)
from serve_apps.replica import PartStatus, Seat, absent_part

IMAGES_PATH = "/v1/images"


def all_stages(stages: Mapping[str, float], decoded_ms: float, total_ms: float) -> dict[Any, float]:
    """Return all stages' milliseconds; what none of them accounts for is waiting: queues, batching, hops."""
    known = {"decode": decoded_ms, **stages}
    timings = {**known, "wait": max(0.0, total_ms - sum(known.values())), "total": total_ms}
    return {stage: round(ms, 2) for stage, ms in timings.items()}


# ---------------------------------------------------------------- intent


def to_response(request_id: str, answer: IntentAnswer, decoded_ms: float, total_ms: float) -> IntentResponse:
    """Put an answer to /v1/intent into its wire form."""
    return IntentResponse(
        id=request_id,
        predictions=tuple(prediction_out(p, answer) for p in answer.predictions),
        degraded=answer.degraded,
        timings_ms=all_stages(answer.timings_ms, decoded_ms, total_ms),
        artifacts=dict(answer.artifacts),
    )


def prediction_out(prediction: IntentPrediction, answer: IntentAnswer) -> PredictionOut:
    """Put the answer to one task into its wire form."""
    return PredictionOut(
        task=prediction.task,
        label=prediction.label,
        confidence=unit(prediction.confidence),
        arm=prediction.arm,
        mllm_share=unit(answer.mllm_shares[prediction.task]),
        fired=tuple(
            FiredRuleOut(
                id=rule.rule_id,
                label=rule.label,
                words=Words(**answer.words[rule.rule_id]),
                precision=unit(rule.precision),
                wilson_lower=unit(rule.wilson_lower),
                support=rule.support,
            )
            for rule in prediction.fired
        ),
        alternatives=tuple(Alternative(label=label, probability=unit(p)) for label, p in prediction.alternatives),
    )


def unit(value: float) -> float:
    """Return a probability without rounding noise beyond [0, 1]."""
    return min(1.0, max(0.0, value))


# ---------------------------------------------------------------- retrieval


@dataclass(frozen=True)
class RetrievalResult:
    """An answer with what the service knows of it.

    Attributes:
        answer: the engine's.
        pictures: ids of its hits' pictures that the service has.
        degraded: parts that were missing or failed, and why.
        artifacts: role → reference of what answered.
    """

    answer: RetrievalAnswer
    pictures: Collection[str]
    degraded: tuple[str, ...]
    artifacts: Mapping[str, str]


def to_retrieve_response(
    request_id: str, result: RetrievalResult, decoded_ms: float, total_ms: float, root: str = ""
) -> RetrieveResponse:
    """Put an answer to /v1/retrieve into its wire form; ``root`` is the path that the application is mounted at."""
    answer = result.answer
    return RetrieveResponse(
        id=request_id,
        hits=tuple(hit_out(hit, result.pictures, root) for hit in answer.hits),
        predicted=_predicted(answer.intent),
        degraded=result.degraded,
        timings_ms=all_stages(answer.timings_ms, decoded_ms, total_ms),
        artifacts=dict(result.artifacts),
    )


def hit_out(hit: Hit, pictures: Collection[str], root: str) -> HitOut:
    """Put a found response into its wire form."""
    response = hit.response
    image = f"{root}{IMAGES_PATH}/{response.image_id}" if response.image_id in pictures else None
    return HitOut(
        id=response.id,
        modality=response.modality,
        title=response.title,
        text=response.text,
        score=hit.score,
        image=image,
    )


def _predicted(intent: Mapping[str, float] | None) -> PredictedModality | None:
    if intent is None:
        return None
    probabilities = {modality: unit(share) for modality, share in intent.items()}
    return PredictedModality(modality=max(probabilities, key=probabilities.__getitem__), probabilities=probabilities)


# ---------------------------------------------------------------- recommendation


@dataclass(frozen=True)
class RecommendResult:
    """A reply with what the service knows of it.

    Attributes:
        answer: the student's.
        degraded: parts that were missing or left out, and why.
        artifacts: role → reference of what answered.
    """

    answer: RecommendAnswer
    degraded: tuple[str, ...]
    artifacts: Mapping[str, str]


@dataclass(frozen=True)
class StreamPiece:
    """A piece of a streamed reply, and at its end the result."""

    event: AnswerEvent
    result: RecommendResult | None = None


def to_recommend_response(
    request_id: str, result: RecommendResult, decoded_ms: float, total_ms: float, root: str = ""
) -> RecommendResponse:
    """Put an answer to /v1/recommend into its wire form; ``root`` is the path that the application is mounted at."""
    answer = result.answer
    return RecommendResponse(
        id=request_id,
        reply=ReplyOut(text=answer.text, parts=tuple(_part(piece) for piece in answer.pieces)),
        mode=mode_out(answer.mode, answer.mode_probability),
        items=tuple(item_out(item, root) for item in answer.items),
        items_from=answer.items_from,
        item_mass=tuple(TokenMassOut(token=t.token, item_mass=unit(t.item_mass)) for t in answer.trace),
        degraded=result.degraded,
        timings_ms=all_stages(answer.timings_ms, decoded_ms, total_ms),
        artifacts=dict(result.artifacts),
    )


def to_stream_event(
    request_id: str, piece: StreamPiece, decoded_ms: float, total_ms: float, root: str = ""
) -> StreamEvent:
    """Put a piece of a streamed answer into its wire form; the other arguments matter for the last one."""
    event = piece.event
    if event.piece is not None:
        return PieceEvent(part=_part(event.piece))
    if piece.result is not None:
        return EndEvent(response=to_recommend_response(request_id, piece.result, decoded_ms, total_ms, root))
    return ModeEvent(mode=mode_out(event.mode or "gen", event.mode_probability))


def _part(piece: Piece) -> ReplyPart:
    return ReplyPart(text=piece.text, item=piece.item_id, start=piece.start, end=piece.end)


def mode_out(name: Mode, probability: float | None) -> ModeOut:
    """Put the student's mode into its wire form."""
    return ModeOut(name=name, probability=None if probability is None else unit(probability))


def item_out(item: RecommendedItem, root: str) -> ItemOut:
    """Put a recommended product into its wire form."""
    return ItemOut(
        id=item.id,
        title=item.title,
        score=unit(item.probability),
        named=item.named,
        image=f"{root}{IMAGES_PATH}/{item.image_id}" if item.image_id else None,
    )


# ---------------------------------------------------------------- what is serving


def to_ready(parts: Sequence[PartStatus]) -> ReadyResponse:
    """Join what the parts, and the policy among them, say of themselves.

    Raises:
        ApiError: 503, no part answers.
    """
    there = [part for part in parts if part.absent is None]
    answers = tuple(part.part for part in there if part.part != "policy")
    if not answers:
        models = [part for part in parts if part.part != "policy"]
        reasons = " ".join(absent_part(part.part, str(part.absent)).message for part in models)
        raise ApiError(503, "nothing_to_serve", reasons)
    artifacts: dict[str, str] = {}
    for part in there:  # where two parts read different versions of one kind, the first is told; answers name their own
        artifacts = {**part.artifacts, **artifacts}
    absent = [f"{part.part}: {part.absent}" for part in parts if part.absent is not None]
    rejected = [_rejected(part.part, part.rejected_update) for part in there if part.rejected_update]
    return ReadyResponse(
        status="ready",
        answers=answers,
        modalities=tuple(modality for part in there for modality in part.modalities),
        artifacts=artifacts,
        degraded=(*(problem for part in there for problem in part.degraded), *absent),
        rejected_update=" ".join(rejected) or None,
    )


def _rejected(part: Seat, reason: str) -> str:
    return f"{part}: {reason}"
