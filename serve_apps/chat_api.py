"""What goes over the wire at /v1/chat/completions and /v1/models: OpenAI's shapes, and ours in the field ``mmd``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from serve_apps.api import MAX_HITS, NULLS, HitOut, Lenient, MessageIn, PredictionOut, Wire, Words
from serve_apps.recommend_api import ItemOut, ModeOut

# ---------------------------------------------------------------- request


class TextFormat(Wire):
    """The only form of replies; schemas cannot be asked for."""

    type: Literal["text"]


class Sampling(Lenient):
    """OpenAI's fields that do not change anything here; the reply's ``mmd.ignored`` names those that were given."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of the fields that were given, sorted."""
        return tuple(sorted(name for name in Sampling.model_fields if getattr(self, name) is not None))


class StreamOptions(Wire):
    """What a stream tells beside the reply."""

    include_usage: bool | None = Field(default=None, description="End with a chunk that has the usage and no choice.")
    include_obfuscation: bool | None = Field(default=None, description="Accepted and ignored.")


class ChatOptions(Wire):
    """What OpenAI's API has no field for; its client sends it by ``extra_body``."""

    k: int = Field(default=5, ge=1, le=MAX_HITS, description="Responses and products told beside the reply.")
    language: Literal["en", "zh"] | None = Field(
        default=None, description="Of what the service itself says; absent: that of the customer's last words."
    )


class ChatRequest(Sampling):
    """A conversation so far, oldest message first; the service keeps nothing between requests."""

    model_config = ConfigDict(
        json_schema_extra={
            **NULLS,
            "examples": [
                {"messages": [{"role": "user", "content": "Do you have this dress in blue?"}]},
                {"messages": [{"role": "user", "content": "A gift, please"}], "stream": True, "mmd": {"k": 3}},
            ],
        }
    )
    messages: tuple[MessageIn, ...] = Field(min_length=1, description="The conversation, oldest message first.")
    model: str | None = Field(default=None, description="Any of /v1/models; absent: the one that there is.")
    stream: bool | None = Field(default=None, description="Send the reply piece by piece, as server-sent events.")
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = Field(default=None, description="There is one reply.")
    response_format: TextFormat | None = None
    user: str | None = Field(default=None, description="Accepted and ignored.")
    mmd: ChatOptions | None = None

    @property
    def options(self) -> ChatOptions:
        """What ``mmd`` says, or its defaults."""
        return self.mmd or ChatOptions()

    @property
    def turns(self) -> None:
        """The other shape of a dialogue, which this API does not take."""
        return


# ---------------------------------------------------------------- response


class TextPartOut(Wire):
    """Words."""

    kind: Literal["text"]
    text: str


class ImagePartOut(Wire):
    """A picture."""

    kind: Literal["image"]
    image_id: str
    url: str | None = Field(description="Path of the picture on this service, if it has it.")
    title: str = Field(description="What it shows, as far as known.")


class ItemPartOut(Wire):
    """A product."""

    kind: Literal["item"]
    item_id: str
    title: str
    url: str | None = Field(description="Path of its picture on this service, if it has one.")


PartOut = Annotated[TextPartOut | ImagePartOut | ItemPartOut, Field(discriminator="kind")]


class DecisionOut(Wire):
    """One decision of the policy, and why it fell so."""

    step: str = Field(description="What was decided: intent, modality, speaker, products.")
    choice: str
    reason: Words
    confidence: float | None = Field(ge=0, le=1, description="Null where the step has no number of its own.")


class TraceToken(Wire):
    """A token that the student decoded; control tokens in brackets."""

    token: str
    mass: float = Field(ge=0, le=1, description="The student's summed probability of all products at this token.")
    is_item: bool = Field(description="Whether the token is a product.")


class TurnOut(Wire):
    """How a reply came about."""

    request_id: str = Field(description="Also in the header X-Request-Id and in the log.")
    parts: tuple[PartOut, ...] = Field(description="The reply in order: words, pictures and products.")
    intents: tuple[PredictionOut, ...] = Field(description="What the customer wants, one prediction a task.")
    decisions: tuple[DecisionOut, ...] = Field(description="What the policy decided, in order, each with its reason.")
    retrieved: tuple[HitOut, ...] = Field(description="Responses that fit, best first.")
    recommended: tuple[ItemOut, ...] = Field(description="Products that the student had in mind, likeliest first.")
    mode: ModeOut | None = Field(description="Whether the student recommends; null where it was not asked.")
    trace: tuple[TraceToken, ...] = Field(description="What the student decoded, token by token, if it was asked.")
    timings_ms: dict[str, float] = Field(
        description="Milliseconds a stage: decode; intent, retrieval and recommendation, which run side by side, each "
        "as waited for, and with a dot behind the name what it tells of itself (retrieval.search); policy; words, from "
        "the decision to the last word of a streamed reply; total, from request to answer."
    )
    degraded: tuple[str, ...] = Field(description="Parts that were missing, late or failed, and why.")
    artifacts: dict[str, str] = Field(description="Role → kind/name@version of what answered.")
    ignored: tuple[str, ...] = Field(description="Fields of the request that changed nothing.")


class Usage(Wire):
    """Words of the request and of the reply, signs counted; of Chinese and Japanese, characters.

    Several models read them, each in tokens of its own; no count of tokens would be right for all.
    """

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class AnswerMessage(Wire):
    """What the assistant says, as a text; pictures and products by their titles."""

    role: Literal["assistant"]
    content: str


class ChatChoice(Wire):
    """The one reply."""

    index: Literal[0]
    message: AnswerMessage
    finish_reason: Literal["stop"]


class ChatResponse(Wire):
    """A reply in OpenAI's shape; ``mmd`` tells how it came about."""

    id: str = Field(description="chatcmpl-, and the request id.")
    object: Literal["chat.completion"]
    created: int = Field(description="Unix time, s.")
    model: str
    choices: tuple[ChatChoice]
    usage: Usage
    mmd: TurnOut


# ---------------------------------------------------------------- pieces of a stream


class Span(Wire):
    """The product that a piece of a streamed reply names."""

    item_id: str
    title: str
    url: str | None = Field(description="Path of its picture on this service, if it has one.")


class SpanOut(Wire):
    """Beside the words of a product's name."""

    span: Span


class Delta(Wire):
    """What is to be appended."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Wire):
    """A piece of the one reply."""

    index: Literal[0]
    delta: Delta
    finish_reason: Literal["stop"] | None


class ChatChunk(Wire):
    """A piece of a streamed reply; the one with ``finish_reason`` carries how it came about."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | None = None
    mmd: SpanOut | TurnOut | None = None


CHAT_STREAM_HELP = (
    f"The reply; with `stream`, server-sent events, each a line `data: JSON` ({ChatChunk.__name__}): first the role, "
    "then the words, then `finish_reason` with `mmd`, then the usage where `stream_options.include_usage` asks for it, "
    'and `data: [DONE]` last. Where the reply breaks off, `data: {"error": …}` ends it.'
)


# ---------------------------------------------------------------- models


class ModelOut(Wire):
    """An assistant that can be asked."""

    id: str = Field(description="mmd/CORPUS.")
    object: Literal["model"]
    created: int = Field(description="When this process began to serve it: Unix time, s.")
    owned_by: str


class ModelsResponse(Wire):
    """What `model` can name."""

    object: Literal["list"]
    data: tuple[ModelOut, ...]
