"""Asking a model about the dialogue of a request: reading it, waiting for the answer, both within the time limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request

from mmd.config import ServeSettings
from serve_apps.api import ApiError, ErrorResponse
from serve_apps.limits import Spoken, fetches, has_pictures

DECODERS = 2
"""Threads that decode pictures. Pillow lets go of the interpreter meanwhile; more would only hold more memory."""
FETCHERS = 4
"""Threads that fetch pictures from the web and decode those: whoever waits for a slow host keeps no decoder."""
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "Malformed, or over a limit."},
    401: {"model": ErrorResponse, "description": "The service asks for API keys, and this request has none."},
    403: {"model": ErrorResponse, "description": "This service, or this key, may not do that; the message says why."},
    408: {"model": ErrorResponse, "description": "The body did not arrive in time."},
    404: {"model": ErrorResponse, "description": "There is no such thing."},
    409: {"model": ErrorResponse, "description": "Not as things are now; the message says what is in the way."},
    413: {"model": ErrorResponse, "description": "Too many bytes."},
    415: {"model": ErrorResponse, "description": "Not JSON."},
    429: {"model": ErrorResponse, "description": "Overloaded; come back after Retry-After seconds."},
    500: {"model": ErrorResponse, "description": "The service failed."},
    503: {"model": ErrorResponse, "description": "Not ready, or nothing was trained for this; the message says."},
    504: {"model": ErrorResponse, "description": "No answer in time."},
}
MAY_FAIL: dict[int | str, dict[str, Any]] = {code: ERRORS[code] for code in (400, 408, 413, 415, 429, 504)}
"""Of paths that take a dialogue."""

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R", bound=Spoken)


class Asked:
    """Reads requests with a dialogue and asks for the answer, both within the time limit."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        # Not asyncio's own pool: its many threads would decode as many requests' pictures at a time.
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")

    async def __call__(
        self,
        body: R,
        request: Request,
        read: Callable[[R, str, ServeSettings], Q],
        answer: Callable[[Q], Awaitable[T]],
    ) -> tuple[T, float, float]:
        """Return the answer, the milliseconds that reading took (waiting for a thread not counted), and all of them."""
        settings, started = self._settings, request.state.started

        def timed_read() -> tuple[Q, float]:
            begun = time.perf_counter()
            query = read(body, request.state.request_id, settings)
            return query, (time.perf_counter() - begun) * 1000

        try:
            async with asyncio.timeout(settings.request_timeout_s - (time.perf_counter() - started)):
                if has_pictures(body):
                    threads = self._fetchers if fetches(body, settings) else self._decoders
                    query, decoded_ms = await asyncio.get_running_loop().run_in_executor(threads, timed_read)
                else:  # words alone need not wait behind other people's pictures
                    query, decoded_ms = timed_read()
                found = await answer(query)
        except TimeoutError:
            raise late_answer(settings.request_timeout_s) from None
        return found, decoded_ms, (time.perf_counter() - started) * 1000

    def limit(self, request: Request) -> tuple[ApiError, float]:
        """Return the error of an answer that comes late, and from when on it does, by ``time.perf_counter``."""
        limit_s = self._settings.request_timeout_s
        return late_answer(limit_s), request.state.started + limit_s


def late_answer(timeout_s: float) -> ApiError:
    """Return the error of an answer that did not come in time."""
    message = f"no answer within {timeout_s:g} s; send fewer or smaller pictures, or try again."
    return ApiError(504, "timeout", message)
