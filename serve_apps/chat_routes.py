"""The routes of /v1/chat/completions and /v1/models: OpenAI's chat over the whole assistant."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from fastapi import FastAPI, Request
from starlette.responses import Response

from mmd.assistant.types import AssistantQuery
from mmd.config import ServeSettings
from serve_apps.api import ApiError
from serve_apps.asking import ERRORS, MAY_FAIL, Asked
from serve_apps.assistant import Parts, ServedPolicy, TurnResult, TurnService
from serve_apps.chat_answers import ChatEvents, ChatWriter
from serve_apps.chat_api import CHAT_STREAM_HELP, ChatRequest, ChatResponse, ModelOut, ModelsResponse
from serve_apps.limits import read_chat_query
from serve_apps.speech import Said
from serve_apps.streaming import Opened, opened, streamed

_REPLY = {"description": CHAT_STREAM_HELP, "content": {"text/event-stream": {}}}


class Chatting(Parts, Protocol):
    """What a conversation is held with."""

    @property
    def policy(self) -> ServedPolicy:
        """What decides; may be another one at the next look."""
        ...


def add_chat(
    app: FastAPI, backend: Chatting, asked: Asked, settings: ServeSettings, told: Callable[[TurnResult], None]
) -> None:
    """Add conversations to an application.

    Args:
        app: gets the routes.
        backend: answers.
        asked: reads requests.
        settings: limits.
        told: is told of every answered turn.
    """
    turns, since = TurnService(backend, settings), int(time.time())

    @app.post(
        "/v1/chat/completions",
        summary="Converse",
        tags=["conversation"],
        response_model=ChatResponse,
        responses={**MAY_FAIL, 200: _REPLY, 404: ERRORS[404]},
    )
    async def chat(body: ChatRequest, request: Request) -> ChatResponse | Response:
        """Answer the customer in words, pictures and products, and tell how the answer came about.

        OpenAI's clients can be used as they are. A part of the assistant that fails or is missing is left out and
        named in `mmd.degraded`. Over the limits, or without anything to go by: a clear error.
        """
        served = backend.policy
        check_model(body.model, served)
        request.state.went_without = True  # until the turn is answered: a client that leaves tells nothing

        def answered(result: TurnResult) -> None:
            request.state.went_without = bool(result.missed)
            told(result)

        async def whole(query: AssistantQuery) -> tuple[AssistantQuery, TurnResult]:
            return query, await turns.answer(served, query, request.state.place)

        async def begun(query: AssistantQuery) -> tuple[AssistantQuery, Opened[Said | TurnResult]]:
            return query, await opened(turns.stream(served, query, request.state.place))

        if body.stream:
            (query, pieces), decoded_ms, _ = await asked(body, request, read_chat_query, begun)
            wants_usage = bool(body.stream_options and body.stream_options.include_usage)
            events = ChatEvents(_writer(body, request, query, served), decoded_ms, usage=wants_usage, told=answered)
            return streamed(pieces, events, *asked.limit(request), request.state.request_id)
        (query, result), decoded_ms, _ = await asked(body, request, read_chat_query, whole)
        answered(result)
        return _writer(body, request, query, served).response(result, decoded_ms)

    @app.get("/v1/models", summary="Who can be asked", tags=["conversation"])
    async def models() -> ModelsResponse:
        """Return what `model` can name in a conversation."""
        return ModelsResponse(object="list", data=(_model(backend.policy, since),))

    @app.get("/v1/models/{model:path}", summary="One of them", tags=["conversation"], responses={404: ERRORS[404]})
    async def model(model: str) -> ModelOut:
        """Return one of /v1/models."""
        check_model(model, backend.policy)
        return _model(backend.policy, since)


def model_name(served: ServedPolicy) -> str:
    """Return what `model` can name."""
    return f"mmd/{served.corpus}"


def check_model(name: str | None, served: ServedPolicy) -> None:
    """Refuse a model that is not served.

    Raises:
        ApiError: 404, as OpenAI's.
    """
    own = model_name(served)
    if name is not None and name != own:
        message = f"model {name[:80]!r} is not served here; write {own!r}, or leave it out (see /v1/models)."
        raise ApiError(404, "model_not_found", message, "model")


def _model(served: ServedPolicy, since: int) -> ModelOut:
    return ModelOut(id=model_name(served), object="model", created=since, owned_by="mmd")


def _writer(body: ChatRequest, request: Request, query: AssistantQuery, served: ServedPolicy) -> ChatWriter:
    return ChatWriter(
        request_id=request.state.request_id,
        model=model_name(served),
        turns=query.turns,
        k=query.k,
        ignored=body.ignored,
        started=request.state.started,
        created=int(time.time()),
        root=request.scope.get("root_path", ""),
    )
