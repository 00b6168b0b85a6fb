"""From a turn's result to OpenAI's shapes, whole and chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mmd.assistant.types import ReplyPart
from mmd.recommend.engine import RecommendAnswer
from mmd.recommend.words import split_words
from mmd.schema import Turn
from serve_apps.answers import IMAGES_PATH, hit_out, item_out, mode_out, prediction_out, unit
from serve_apps.api import ErrorResponse, Words
from serve_apps.assistant import TurnResult, shown_picture
from serve_apps.chat_api import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatResponse,
    ChunkChoice,
    DecisionOut,
    Delta,
    ImagePartOut,
    ItemPartOut,
    PartOut,
    Span,
    SpanOut,
    TextPartOut,
    TraceToken,
    TurnOut,
    Usage,
)
from serve_apps.speech import Said
from serve_apps.streaming import encode

DONE = encode("[DONE]")


@dataclass(frozen=True)
class ChatWriter:
    """Puts one reply into OpenAI's shapes.

    Attributes:
        request_id: of the request.
        model: that was asked.
        turns: of the request, for its usage.
        k: responses and products wanted beside the reply.
        ignored: fields of the request that changed nothing.
        started: when the request began, by ``time.perf_counter``.
        created: the same, as Unix time.
        root: path that the application is mounted at.
    """

    request_id: str
    model: str
    turns: tuple[Turn, ...]
    k: int
    ignored: tuple[str, ...]
    started: float
    created: int
    root: str

    def response(self, result: TurnResult, decoded_ms: float) -> ChatResponse:
        """Return the whole."""
        message = AnswerMessage(role="assistant", content=result.reply.text)
        return ChatResponse(
            id=self._id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=(ChatChoice(index=0, message=message, finish_reason="stop"),),
            usage=self.usage(result),
            mmd=self.turn(result, decoded_ms),
        )

    def usage(self, result: TurnResult) -> Usage:
        """Return how many words were read and said."""
        asked = sum(len(split_words(turn.text)) for turn in self.turns)
        said = len(split_words(result.reply.text))
        return Usage(prompt_tokens=asked, completion_tokens=said, total_tokens=asked + said)

    # ------------------------------------------------------------ how it came about

    def turn(self, result: TurnResult, decoded_ms: float) -> TurnOut:
        """Return how a reply came about."""
        reply, answer = result.reply, result.reply.recommended
        chosen = dict.fromkeys((*reply.choice.hits, *reply.hits))  # those that the reply was taken from first
        total_ms = (time.perf_counter() - self.started) * 1000
        timings = {"decode": decoded_ms, **reply.timings_ms, "total": total_ms}
        return TurnOut(
            request_id=self.request_id,
            parts=tuple(self._part(part, result) for part in reply.parts),
            intents=tuple(prediction_out(p, result.intent) for p in reply.intents) if result.intent else (),
            decisions=tuple(
                DecisionOut(
                    step=decision.step,
                    choice=decision.choice,
                    reason=Words(**decision.reason),
                    confidence=None if decision.confidence is None else unit(decision.confidence),
                )
                for decision in reply.decisions
            ),
            retrieved=tuple(hit_out(hit, result.pictures, self.root) for hit in list(chosen)[: self.k]),
            recommended=tuple(item_out(item, self.root) for item in answer.items) if answer else (),
            mode=mode_out(*result.mode) if result.mode else None,
            trace=tuple(_trace(answer)) if answer else (),
            timings_ms={stage: round(ms, 2) for stage, ms in timings.items()},
            degraded=reply.degraded,
            artifacts=dict(reply.artifacts),
            ignored=self.ignored,
        )

    def _part(self, part: ReplyPart, result: TurnResult) -> PartOut:
        url = self._url(shown_picture(part, result.pictures))
        if part.kind == "item" and part.item_id is not None:
            return ItemPartOut(kind="item", item_id=part.item_id, title=part.text, url=url)
        if part.kind == "image" and part.image_id is not None:
            return ImagePartOut(kind="image", image_id=part.image_id, url=url, title=part.text)
        return TextPartOut(kind="text", text=part.text)

    def _url(self, image_id: str | None) -> str | None:
        return f"{self.root}{IMAGES_PATH}/{image_id}" if image_id else None

    # ------------------------------------------------------------ chunks

    def begin(self) -> ChatChunk:
        """Return the first chunk: who speaks."""
        return self._chunk(Delta(role="assistant", content=""))

    def said(self, said: Said) -> ChatChunk:
        """Return the chunk of some words."""
        if said.item_id is None:
            return self._chunk(Delta(content=said.text))
        span = Span(item_id=said.item_id, title=said.title, url=self._url(said.image_id))
        return self._chunk(Delta(content=said.text), mmd=SpanOut(span=span))

    def end(self, result: TurnResult, decoded_ms: float) -> ChatChunk:
        """Return the chunk that finishes the reply."""
        choice = ChunkChoice(index=0, delta=Delta(), finish_reason="stop")
        return self._bare((choice,), mmd=self.turn(result, decoded_ms))

    def end_usage(self, result: TurnResult) -> ChatChunk:
        """Return the chunk behind the end that has no choice."""
        return self._bare((), usage=self.usage(result))

    def _chunk(self, delta: Delta, **extra: SpanOut) -> ChatChunk:
        return self._bare((ChunkChoice(index=0, delta=delta, finish_reason=None),), **extra)

    def _bare(self, choices: tuple[ChunkChoice, ...], **extra: TurnOut | SpanOut | Usage) -> ChatChunk:
        return ChatChunk.model_validate(
            {
                "id": self._id,
                "object": "chat.completion.chunk",
                "created": self.created,
                "model": self.model,
                "choices": choices,
                **extra,
            }
        )

    @property
    def _id(self) -> str:
        return f"chatcmpl-{self.request_id}"


class ChatEvents:
    """Writes a streamed reply as OpenAI does: lines of data, the last of them ``[DONE]``.

    Args:
        writer: of this reply.
        decoded_ms: time that reading the request took.
        usage: whether it was asked for.
        told: is told of the result.
    """

    def __init__(
        self, writer: ChatWriter, decoded_ms: float, *, usage: bool, told: Callable[[TurnResult], None]
    ) -> None:
        self._writer = writer
        self._decoded_ms = decoded_ms
        self._usage = usage
        self._told = told
        self._begun = False

    def piece(self, piece: Said | TurnResult) -> bytes:
        """Return the chunks of a piece; before the first one, who speaks."""
        chunks = [] if self._begun else [self._writer.begin()]
        self._begun = True
        chunks += self._chunks(piece)
        data = b"".join(encode(chunk.model_dump_json(exclude_unset=True)) for chunk in chunks)
        return data + DONE if isinstance(piece, TurnResult) else data

    def _chunks(self, piece: Said | TurnResult) -> Iterator[ChatChunk]:
        if isinstance(piece, Said):
            yield self._writer.said(piece)
            return
        self._told(piece)
        yield self._writer.end(piece, self._decoded_ms)
        if self._usage:
            yield self._writer.end_usage(piece)

    def error(self, error: ErrorResponse) -> bytes:
        """Return what ends a reply that breaks off; there is no ``[DONE]`` behind it."""
        return encode(error.model_dump_json())


def _trace(answer: RecommendAnswer) -> Iterator[TraceToken]:
    """Yield what was decoded; a token that reads as one of the reply's products is one."""
    titles = {piece.text.strip() for piece in answer.pieces if piece.item_id is not None}
    for token in answer.trace:
        yield TraceToken(token=token.token, mass=unit(token.item_mass), is_item=token.token in titles)
