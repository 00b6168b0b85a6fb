"""The route of /v1/recommend: a whole reply, or its pieces as they are decoded."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Protocol

from fastapi import FastAPI, Request
from starlette.responses import Response

from mmd.recommend.online import RecommendQuery
from serve_apps.answers import RecommendResult, StreamPiece, to_recommend_response, to_stream_event
from serve_apps.api import ErrorResponse
from serve_apps.asking import MAY_FAIL, Asked
from serve_apps.limits import read_recommend_query
from serve_apps.recommend_api import (
    STREAM_HELP,
    EndEvent,
    ErrorEvent,
    ModeEvent,
    RecommendRequest,
    RecommendResponse,
    StreamEvent,
)
from serve_apps.streaming import Opened, encode, opened, streamed

_REPLY = {"description": STREAM_HELP, "content": {"text/event-stream": {}}}


class Recommending(Protocol):
    """What replies; both methods may raise :class:`~serve_apps.api.ApiError`."""

    async def recommend(self, query: RecommendQuery) -> RecommendResult:
        """Reply to one dialogue."""
        ...

    def stream(self, query: RecommendQuery) -> AsyncGenerator[StreamPiece]:
        """Reply to one dialogue piece by piece."""
        ...


def add_recommend(app: FastAPI, backend: Recommending, asked: Asked) -> None:
    """Add /v1/recommend to an application."""

    @app.post(
        "/v1/recommend",
        summary="Reply and recommend",
        tags=["recommendation"],
        response_model=RecommendResponse,
        responses={**MAY_FAIL, 200: _REPLY},
    )
    async def recommend(body: RecommendRequest, request: Request) -> RecommendResponse | Response:
        """Continue the dialogue: say something, name products where they fit, and tell which others were likely.

        Over the limits, without anything to go by, or naming a product that there is not: a clear error.
        """
        if body.stream:
            return await stream(body, request)
        result, decoded_ms, total_ms = await asked(body, request, read_recommend_query, backend.recommend)
        root = request.scope.get("root_path", "")
        return to_recommend_response(request.state.request_id, result, decoded_ms, total_ms, root)

    async def stream(body: RecommendRequest, request: Request) -> Response:
        async def ask(query: RecommendQuery) -> Opened[StreamPiece]:
            return await opened(backend.stream(query))

        pieces, decoded_ms, _ = await asked(body, request, read_recommend_query, ask)
        return streamed(pieces, _Events(request, decoded_ms), *asked.limit(request), request.state.request_id)


class _Events:
    """Writes the pieces of a reply as events with names.

    Args:
        request: that they answer.
        decoded_ms: time that reading it took.
    """

    def __init__(self, request: Request, decoded_ms: float) -> None:
        self._request_id, self._started = request.state.request_id, request.state.started
        self._root = request.scope.get("root_path", "")
        self._decoded_ms = decoded_ms

    def piece(self, piece: StreamPiece) -> bytes:
        """Return the event of a piece."""
        total_ms = (time.perf_counter() - self._started) * 1000
        event = to_stream_event(self._request_id, piece, self._decoded_ms, total_ms, self._root)
        return encode(event.model_dump_json(), _kind(event))

    def error(self, error: ErrorResponse) -> bytes:
        """Return the event that ends a reply which breaks off."""
        return encode(ErrorEvent(error=error.error).model_dump_json(), "error")


def _kind(event: StreamEvent) -> str:
    if isinstance(event, ModeEvent):
        return "mode"
    if isinstance(event, EndEvent):
        return "end"
    return "text" if event.part.item is None else "item"
