"""What every HTTP exchange goes through: request id, body limit, security headers, one shape of errors, one log event.

A pure ASGI layer, so that it bounds a body before any framework parses it. The log event has sizes and times, never a
word of a dialogue.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Mapping
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmd.log import place_of
from serve_apps.api import ApiError
from serve_apps.congestion import Congestion, Place
from serve_apps.keys import Admission

# Scripts and styles only from here; pictures also from data: (thumbnails). No inline code, no frame, no form target.
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
MODEL_PATHS = frozenset({"/v1/chat/completions", "/v1/intent", "/v1/retrieve", "/v1/recommend"})
Observer = Callable[[str, str | None, int, float], None]
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LENGTH = re.compile(r"[0-9]{1,18}")  # what else is announced is not believed; the body is counted as it comes
_DRAIN_BYTES = 64 * 2**20  # a client that is still sending cannot read the refusal: take this much, keep none of it


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        max_body_bytes: largest body that is read.
        max_commas: most commas of a body that is parsed, which bounds its values: a validator takes 1 KB and 5 us for
            each wrong one, and holds the event loop meanwhile; None: any number.
        body_timeout_s: longest time from the start of a request until its whole body is there.
        observe: is told method, route (as the API document writes its path; None where there is none), status and
            seconds of every exchange.
        admit: lets requests in by their keys, before their bodies are read; None: all of them.
        congestion: lets those in that ask models; None: all of them.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        body_timeout_s: float,
        max_commas: int | None = None,
        observe: Observer | None = None,
        admit: Admission | None = None,
        congestion: Congestion | None = None,
    ) -> None:
        self._app = app
        self._observe = observe
        self._admit = admit
        self._congestion = congestion
        self._max_body_bytes = max_body_bytes
        self._max_commas = max_commas
        self._body_timeout_s = body_timeout_s
        self._log = structlog.get_logger("mmd.http")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one exchange."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        congestion = self._congestion if exchange.asks_models else None
        place: Place | None = None
        try:
            if self._admit:
                exchange.key_name = scope["state"]["key_name"] = self._admit(exchange.headers, exchange.path)
            body = await self._read_body(exchange, receive)
            if congestion:  # a place is for work, not for waiting until a body has come
                place = scope["state"]["place"] = await congestion.enter()
            await self._app(scope, _replay(body, receive), exchange.send)
        except ApiError as err:
            await exchange.respond(error_response(err), receive)
        except Exception as err:
            # Where it happened, not what it said: a message may quote the dialogue.
            self._log.error(
                "unhandled_error", request_id=exchange.request_id, error=type(err).__name__, where=place_of(err)
            )
            if exchange.status:  # a response has begun; all that is left is to break it off
                raise
            message = f"the service failed; its log has the reason under request id {exchange.request_id}."
            await exchange.respond(error_response(ApiError(500, "internal_error", message)), receive)
        finally:
            if congestion and place:
                _leave(congestion, place, exchange)
            elapsed_s = time.perf_counter() - exchange.started
            if self._observe:
                self._observe(exchange.method, exchange.route, exchange.status, elapsed_s)
            self._log.info(
                "http_request",
                request_id=exchange.request_id,
                method=scope["method"],
                path=scope["path"],
                key=exchange.key_name,
                status=exchange.status,
                body_bytes=exchange.body_bytes,
                ms=round(elapsed_s * 1000, 1),
            )

    async def _read_body(self, exchange: _Exchange, receive: Receive) -> bytes:
        if exchange.method not in ("POST", "PUT", "PATCH"):
            return b""
        deadline = asyncio.get_running_loop().time() + self._body_timeout_s
        declared = exchange.headers.get("content-length", "")
        if _LENGTH.fullmatch(declared) and int(declared) > self._max_body_bytes:
            await self._drain(receive, deadline)
            raise self._too_large(int(declared))
        pieces: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._next(receive, deadline)
            if message["type"] == "http.disconnect":
                raise ApiError(400, "disconnected", "the client went away before the body was complete.")
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            more = message.get("more_body", False)
            if size > self._max_body_bytes:
                pieces.clear()
                if more:
                    await self._drain(receive, deadline)
                raise self._too_large(size)
        exchange.body_bytes = size
        # Also what keeps other sites out: a cross-origin page cannot send JSON without asking first (CORS), which
        # serve.cors_origins alone allows.
        media = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            reason = f"content type {media[:60]!r} is not taken; send application/json."
            raise ApiError(415, "unsupported_media_type", reason)
        body = b"".join(pieces)
        if self._max_commas is not None and body.count(b",") > self._max_commas:
            reason = f"the body has more than {self._max_commas} values. Send fewer or shorter turns."
            raise ApiError(400, "too_many_values", reason)
        return body

    async def _drain(self, receive: Receive, deadline: float) -> None:
        size, more = 0, True
        while more and size < _DRAIN_BYTES:
            message = await self._next(receive, deadline)
            size += len(message.get("body", b""))
            more = message.get("more_body", False)

    async def _next(self, receive: Receive, deadline: float) -> Message:
        """Return the next piece; the deadline is the whole body's, so that no trickle holds a place for ever."""
        try:
            async with asyncio.timeout_at(deadline):
                return await receive()
        except TimeoutError:
            reason = f"the body was not complete after {self._body_timeout_s:g} s; send it again, or less."
            raise ApiError(408, "body_timeout", reason) from None

    def _too_large(self, size: int) -> ApiError:
        limit = self._max_body_bytes / 2**20
        message = (
            f"the request is {size / 2**20:.1f} MiB or more; at most {limit:g} MiB are taken. Scale pictures down."
        )
        return ApiError(413, "body_too_large", message)


class _Exchange:
    """One request and its response: id, headers, status."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.headers = Headers(scope=scope)
        self.method = str(scope["method"])
        given = self.headers.get("x-request-id", "")
        self._named_outside = bool(_REQUEST_ID.fullmatch(given))
        self.request_id = given if self._named_outside else uuid.uuid4().hex
        self.started = time.perf_counter()
        self.path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
        self.key_name: str | None = None
        self.status = 0
        self.body_bytes = 0
        self.streams = False
        self.begun_at = self.started  # its response began
        self._scope = scope
        self._send = send
        scope.setdefault("state", {})["request_id"] = self.request_id
        scope["state"]["started"] = self.started
        scope["state"]["key_name"] = scope["state"]["place"] = None

    @property
    def asks_models(self) -> bool:
        """Whether models work for the answer."""
        return self.method == "POST" and self.path in MODEL_PATHS

    @property
    def route(self) -> str | None:
        """As the API document writes the path; also of a request that was refused before it was routed."""
        routed: str | None = getattr(self._scope.get("route"), "path", None)
        return routed or (self.path if self.path in MODEL_PATHS else None)

    def work_s(self, since: float) -> float | None:
        """Return the seconds from ``since`` to the response, where they tell how busy the models are.

        An error takes no time, and a part that is gone, seconds: neither does.
        """
        if self.status != HTTPStatus.OK or self._scope["state"].get("went_without"):
            return None
        return self.begun_at - since

    async def send(self, message: Message) -> None:
        """Pass a message on, with our headers on the first."""
        if message["type"] == "http.response.start":
            self.status, self.begun_at = message["status"], time.perf_counter()
            headers = MutableHeaders(scope=message)
            self.streams = headers.get("content-type", "").startswith("text/event-stream")
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if not self._named_outside:  # who gave the id (Serve's proxy, say) returns it
                headers["X-Request-Id"] = self.request_id
        await self._send(message)

    async def respond(self, response: Response, receive: Receive) -> None:
        """Send a whole response."""
        await response(self._scope, receive, self.send)


def _leave(congestion: Congestion, place: Place, exchange: _Exchange) -> None:
    """Count a request out. Long bodies and pictures take their own time; a stream is timed to its first words."""
    kind = exchange.path, exchange.streams, exchange.body_bytes.bit_length() // 2
    place.leave(kind, exchange.work_s(place.since))
    if exchange.status == HTTPStatus.TOO_MANY_REQUESTS:
        congestion.refused()


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receiver that gives the body once, then what comes after it (the disconnect)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def error_response(err: ApiError) -> JSONResponse:
    """Return the response of an error; 429 and 503 say when to come back, 401 how to say who one is."""
    headers = {} if err.retry_after_s is None else {"Retry-After": str(err.retry_after_s)}
    if err.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(err.body().model_dump(), err.status, headers)
