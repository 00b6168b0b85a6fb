"""From the engines' answers to their wire form."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmd.intent.engine import IntentAnswer
from mmd.intent.types import IntentPrediction
from mmd.retrieval.engine import RetrievalAnswer
from mmd.retrieval.types import Hit
from serve_apps.api import (
    Alternative,
    ApiError,
    FiredRuleOut,
    HitOut,
    IntentResponse,
    Part,
    PredictedModality,
    PredictionOut,
    ReadyResponse,
    RetrieveResponse,
    Words,
)
from serve_apps.replica import PartStatus, absent_part

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
        predictions=tuple(_prediction(p, answer) for p in answer.predictions),
        degraded=answer.degraded,
        timings_ms=all_stages(answer.timings_ms, decoded_ms, total_ms),
        artifacts=dict(answer.artifacts),
    )


def _prediction(prediction: IntentPrediction, answer: IntentAnswer) -> PredictionOut:
    return PredictionOut(
        task=prediction.task,
        label=prediction.label,
        confidence=_unit(prediction.confidence),
        arm=prediction.arm,
        mllm_share=_unit(answer.mllm_shares[prediction.task]),
        fired=tuple(
            FiredRuleOut(
                id=rule.rule_id,
                label=rule.label,
                words=Words(**answer.words[rule.rule_id]),
                precision=_unit(rule.precision),
                wilson_lower=_unit(rule.wilson_lower),
                support=rule.support,
            )
            for rule in prediction.fired
        ),
        alternatives=tuple(Alternative(label=label, probability=_unit(p)) for label, p in prediction.alternatives),
    )


def _unit(value: float) -> float:
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
        hits=tuple(_hit(hit, result.pictures, root) for hit in answer.hits),
        predicted=_predicted(answer.intent),
        degraded=result.degraded,
        timings_ms=all_stages(answer.timings_ms, decoded_ms, total_ms),
        artifacts=dict(result.artifacts),
    )


def _hit(hit: Hit, pictures: Collection[str], root: str) -> HitOut:
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
    probabilities = {modality: _unit(share) for modality, share in intent.items()}
    return PredictedModality(modality=max(probabilities, key=probabilities.__getitem__), probabilities=probabilities)


# ---------------------------------------------------------------- what is serving


def to_ready(parts: Sequence[PartStatus]) -> ReadyResponse:
    """Join what the parts say of themselves.

    Raises:
        ApiError: 503, none of them answers.
    """
    there = [part for part in parts if part.absent is None]
    if not there:
        reasons = " ".join(absent_part(part.part, str(part.absent)).message for part in parts)
        raise ApiError(503, "nothing_to_serve", reasons)
    artifacts: dict[str, str] = {}
    for part in there:  # where two parts read different versions of one kind, the first is told; answers name their own
        artifacts = {**part.artifacts, **artifacts}
    absent = [f"{part.part}: {part.absent}" for part in parts if part.absent is not None]
    rejected = [_rejected(part.part, part.rejected_update) for part in there if part.rejected_update]
    return ReadyResponse(
        status="ready",
        answers=tuple(part.part for part in there),
        modalities=tuple(modality for part in there for modality in part.modalities),
        artifacts=artifacts,
        degraded=(*(problem for part in there for problem in part.degraded), *absent),
        rejected_update=" ".join(rejected) or None,
    )


def _rejected(part: Part, reason: str) -> str:
    return f"{part}: {reason}"
