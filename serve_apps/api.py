"""What goes over the wire: requests, responses and the one shape of errors.

A dialogue comes either as ``turns`` (this project's own shape) or as ``messages`` (OpenAI's chat shape); both become
the same :class:`~mmd.schema.Dialogue`. These models describe shape only; sizes are checked in :mod:`serve_apps.limits`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmd.errors import RequestError

IMAGE_HELP = (
    "A picture as a data URL: data:image/png;base64,… (PNG, JPEG, WebP, GIF or BMP); an https address only of hosts "
    "that the service was told to trust."
)
Stage = Literal["decode", "pictures", "texts", "decide", "wait", "total"]
RetrievalStage = Literal["decode", "pictures", "encode", "search", "rerank", "wait", "total"]
Part = Literal["intent", "retrieval", "recommendation"]
MAX_HITS = 50
"""Most responses that one request may ask for."""


class Wire(BaseModel):
    """What goes over the wire; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ---------------------------------------------------------------- request


class TurnIn(Wire):
    """One utterance of a dialogue, with the pictures sent along."""

    speaker: Literal["user", "agent"] = Field(description="Who speaks: the customer (user) or the service (agent).")
    text: str = Field(default="", description="What was said; may be empty when a picture was sent.")
    images: tuple[str, ...] = Field(default=(), description=IMAGE_HELP)
    item_ids: tuple[str, ...] = Field(
        default=(), description="Products the turn names; unknown ids are ignored, and refused by /v1/recommend."
    )


class TextPart(Wire):
    """A text part of an OpenAI-style message."""

    type: Literal["text"]
    text: str


class ImageUrl(Wire):
    """The address of a picture."""

    url: str = Field(description=IMAGE_HELP)
    detail: Literal["auto", "low", "high", "original"] | None = Field(default=None, description="Accepted and ignored.")


class ImagePart(Wire):
    """A picture part of an OpenAI-style message."""

    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


NULLS: dict[str, Any] = {"additionalProperties": {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]}}
"""Of a JSON schema: fields that it does not name may be null or an empty list."""


class Lenient(Wire):
    """What OpenAI's clients send, who write fields that they do not use as null or []: such fields may be unknown."""

    model_config = ConfigDict(json_schema_extra=NULLS)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:  # noqa: ANN401 (whatever was sent)
        if not isinstance(given, Mapping):
            return given
        return {name: value for name, value in given.items() if value not in (None, []) or name in cls.model_fields}


class MessageIn(Lenient):
    """One OpenAI-style message. ``system`` and ``developer`` messages are no part of the dialogue and are left out."""

    role: Literal["user", "assistant", "system", "developer"] = Field(description="user is the customer.")
    content: str | tuple[ContentPart, ...] | None = Field(
        description="A text, or text and picture parts in order; null where the assistant said nothing."
    )
    name: str | None = Field(default=None, description="Accepted and ignored.")


class DialogueRequest(Wire):
    """A dialogue, oldest turn first; exactly one of ``turns`` and ``messages``."""

    turns: tuple[TurnIn, ...] | None = Field(default=None, description="The dialogue, oldest turn first.")
    messages: tuple[MessageIn, ...] | None = Field(default=None, description="The dialogue as OpenAI-style messages.")

    @model_validator(mode="after")
    def _one_dialogue(self) -> Self:
        if (self.turns is None) == (self.messages is None):
            raise ValueError("give the dialogue once: either as turns or as messages")
        return self


class IntentRequest(DialogueRequest):
    """A dialogue up to the customer turn whose intent is asked; exactly one of ``turns`` and ``messages``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"turns": [{"speaker": "user", "text": "The sleeves are too long, can I send it back?"}]},
                {"messages": [{"role": "user", "content": "The sleeves are too long, can I send it back?"}]},
            ]
        }
    )
    task: str | None = Field(
        default=None,
        description="The question to answer (see /v1/tasks). Absent: every task whose training dialogues have this "
        "one's shape: text, picture or both.",
    )


class RetrieveRequest(DialogueRequest):
    """A dialogue up to the turn that is wanted; exactly one of ``turns`` and ``messages``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"turns": [{"speaker": "user", "text": "Do you have this dress in blue?"}], "k": 5},
                {"messages": [{"role": "user", "content": "Do you have this dress in blue?"}], "modality": "product"},
            ]
        }
    )
    modality: str | None = Field(
        default=None,
        description="Rank only responses of this modality (see /readyz). Absent: the one that the method predicts, or "
        "all of them in one ranking.",
    )
    k: int = Field(default=10, ge=1, le=MAX_HITS, description="Responses wanted; where fewer exist, all are given.")


# ---------------------------------------------------------------- response


class Words(Wire):
    """One sentence in both languages."""

    en: str
    zh: str


class FiredRuleOut(Wire):
    """A rule that held, with what it was worth on training dialogues held out from the search that found it."""

    id: str
    label: str = Field(description="The label that the rule speaks for.")
    words: Words = Field(description="The rule as a sentence.")
    precision: float = Field(ge=0, le=1, description="Share of its firings that were right, out of fold.")
    wilson_lower: float = Field(ge=0, le=1, description="Lower end of precision's 95 % Wilson interval.")
    support: int = Field(ge=0, description="Training dialogues it fired on, out of fold.")


class Alternative(Wire):
    """Another label, and how likely the classifier finds it."""

    label: str
    probability: float = Field(ge=0, le=1)


class PredictionOut(Wire):
    """The answer to one task."""

    task: str
    label: str
    confidence: float = Field(ge=0, le=1)
    arm: str = Field(
        description="Who decided: rules, classifier, vote (both), prompt (the classifier, its large model having been "
        "told the rules), mllm (the large model alone), or default (neither had a say)."
    )
    mllm_share: float = Field(
        ge=0,
        le=1,
        description="The large model's share in the classifier that was asked: 0 the small one (probe) alone, "
        "1 the large one alone.",
    )
    fired: tuple[FiredRuleOut, ...] = Field(description="Rules that fired, best first.")
    alternatives: tuple[Alternative, ...] = Field(description="The classifier's labels, likeliest first.")


class IntentResponse(Wire):
    """One prediction a task, with what was used and how long it took."""

    id: str = Field(description="Request id; also in the header X-Request-Id and in the log.")
    predictions: tuple[PredictionOut, ...]
    degraded: tuple[str, ...] = Field(description="Parts that were missing or failed, and why.")
    timings_ms: dict[Stage, float] = Field(description="Milliseconds a stage; total is from request to answer.")
    artifacts: dict[str, str] = Field(description="Role → kind/name@version of what answered.")


class TaskOut(Wire):
    """A question that the service answers."""

    name: str
    labels: tuple[str, ...]
    takes: tuple[str, ...] = Field(description="Shapes of dialogue it was trained on: text, picture, text+picture.")


class TasksResponse(Wire):
    """Every task of the served corpus."""

    tasks: tuple[TaskOut, ...]


class ExampleOut(Wire):
    """A dialogue to try, with the labels that it carries in the corpus."""

    id: str
    turns: tuple[TurnIn, ...]
    labels: dict[str, str]


class ExamplesResponse(Wire):
    """Dialogues to try; empty where the corpus may not be shown."""

    examples: tuple[ExampleOut, ...]


class HitOut(Wire):
    """A response that was found."""

    id: str = Field(description="Modality and content, e.g. product:17 or text:<sha256>.")
    modality: str
    title: str = Field(description="What a person reads: an utterance, a picture's description, a product's title.")
    text: str = Field(description="All words that stand for it, a product's attributes included.")
    score: float = Field(
        description="Larger is better: the cosine in [-1, 1], or the re-ranker's score where one looked again."
    )
    image: str | None = Field(description="Path of its picture on this service, if it has one.")


class PredictedModality(Wire):
    """Which modality a two-step method takes the next turn to have."""

    modality: str
    probabilities: dict[str, float] = Field(description="Modality → probability, in [0, 1].")


class RetrieveResponse(Wire):
    """The best responses to a dialogue, with what was used and how long it took."""

    id: str = Field(description="Request id; also in the header X-Request-Id and in the log.")
    hits: tuple[HitOut, ...] = Field(description="Best first; equal scores by id.")
    predicted: PredictedModality | None = Field(description="Null for a method that ranks all modalities at once.")
    degraded: tuple[str, ...] = Field(description="Parts that were missing or failed, and why.")
    timings_ms: dict[RetrievalStage, float] = Field(
        description="Milliseconds a stage; total is from request to answer."
    )
    artifacts: dict[str, str] = Field(description="Role → kind/name@version of what answered.")


class ReadyResponse(Wire):
    """What is serving, and what is missing."""

    status: Literal["ready"]
    answers: tuple[Part, ...] = Field(
        description="Parts that have what they need: /v1/intent, /v1/retrieve, /v1/recommend."
    )
    modalities: tuple[str, ...] = Field(description="Modalities that /v1/retrieve ranks.")
    artifacts: dict[str, str] = Field(description="Role → kind/name@version of what answers.")
    degraded: tuple[str, ...] = Field(description="Parts that are missing, and what is done without them.")
    rejected_update: str | None = Field(description="Why the last change of artefacts was refused, if it was.")


class HealthResponse(Wire):
    """The process answers."""

    status: Literal["ok"]


# ---------------------------------------------------------------- errors


class ErrorDetail(Wire):
    """What is wrong, in OpenAI's error shape."""

    message: str = Field(description="What is wrong, where, and the way out.")
    type: str = Field(
        description="invalid_request_error, authentication_error, permission_error, overloaded_error, timeout_error or "
        "server_error."
    )
    param: str | None = Field(description="Path of the offending field, e.g. turns[2].images[0].")
    code: str = Field(description="Stable machine-readable reason.")


class ErrorResponse(Wire):
    """Every error has this body."""

    error: ErrorDetail


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "overloaded_error",
    504: "timeout_error",
    408: "timeout_error",
}


class ApiError(RequestError):
    """A request that cannot be answered.

    Args:
        status: HTTP status code.
        code: stable machine-readable reason.
        message: what is wrong, where, and the way out.
        param: path of the offending field.
        retry_after_s: for overload, when to come back.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> ErrorResponse:
        """Return the response body."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        if self.status == 503 and self.retry_after_s is not None:  # it passes; else something must be trained first
            kind = "overloaded_error"
        return ErrorResponse(error=ErrorDetail(message=str(self), type=kind, param=self.param, code=self.code))
