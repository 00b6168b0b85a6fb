"""Which parts answer at the moment, so that no turn waits long for one that is gone.

A part's replica may die, and a new one takes seconds to load. Whoever waits for an answer longer than is usual has the
part asked for a sign of life, once for all who wait; where none comes, all of them go on without, and so does
everybody until it gives one. Who waits for the sign keeps nobody else out of the house meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from mmd.assistant.types import PARTS, Part
from serve_apps.api import ApiError
from serve_apps.congestion import Place

T = TypeVar("T")

DOUBT_S = 0.5
"""Waiting from which on a sign of life is asked for, s."""
NEAR_S = 0.1
"""Wait for one within the house, s; a part that is there and slow gives it sooner, and all of its turns would go out at
once, others come in, and all be inside together."""
SIGN_S = 1.0
"""Longest wait for one, s. It takes a place among a replica's requests, so that a part whose queue is full gives none
and is left alone for as long."""
_CANCEL_S = 1.0


class Presence:
    """Waits for parts, and knows which are gone.

    Args:
        reach: returns when a part gives a sign of life; raises where it cannot.
    """

    def __init__(self, reach: Callable[[Part], Awaitable[None]]) -> None:
        self._reach = reach
        self._gone = {part: asyncio.Event() for part in PARTS}
        self._looking: dict[Part, asyncio.Task[None]] = {}

    async def answer(
        self, part: Part, ask: Callable[[], Awaitable[T]], limit_s: float, place: Place | None = None
    ) -> T:
        """Return a part's answer.

        Args:
            part: that is asked.
            ask: asks it; not called while it is gone.
            limit_s: longest wait.
            place: of the request, if it takes one.

        Raises:
            ApiError: it is gone, or what ``ask`` raises.
            TimeoutError: it is there, and has not answered within the limit.
        """
        gone = self._gone[part]
        if gone.is_set():
            raise _unreached()
        asking = asyncio.ensure_future(ask())
        leaving = asyncio.ensure_future(gone.wait())
        deadline = time.monotonic() + limit_s

        async def wait(also: set[asyncio.Future[Any]], seconds: float = float("inf")) -> bool:
            """Wait for one of both, or something else; return whether it is neither of both yet."""
            left_s = max(0.0, min(seconds, deadline - time.monotonic()))
            await asyncio.wait({asking, leaving, *also}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            return not asking.done() and not leaving.done()

        try:
            if await wait(set(), DOUBT_S):
                looking = self._look(part)
                if await wait({looking}, NEAR_S) and not looking.done():  # who knows for how long
                    with place.outside() if place else contextlib.nullcontext():
                        await wait({looking})
                await wait(set())  # where a sign came, it is only slow
            if asking.done():
                return asking.result()
            if leaving.done():
                raise _unreached()
            raise TimeoutError
        finally:
            leaving.cancel()
            asking.cancel()  # nothing, where it has answered
            await asyncio.wait({asking}, timeout=_CANCEL_S)  # a stream that is still being opened cannot be closed

    def _look(self, part: Part) -> asyncio.Task[None]:
        """Look for a sign of life, unless somebody does already; return what ends with it."""
        looking = self._looking.get(part)
        if looking is None or looking.done():
            # In no request's context: Ray cancels what a request has called when its client goes away.
            looking = asyncio.create_task(self._watch(part), context=contextvars.Context())
            self._looking[part] = looking
        return looking

    async def _watch(self, part: Part) -> None:
        """Wait for a sign of life; from the first that is late until one comes, the part is gone."""
        gone = self._gone[part]
        sign = asyncio.ensure_future(self._reach(part))
        await asyncio.wait({sign}, timeout=SIGN_S)
        while not _came(sign):
            gone.set()
            if sign.done():
                await asyncio.sleep(SIGN_S)
                sign = asyncio.ensure_future(self._reach(part))
            await asyncio.wait({sign})
        gone.clear()


def _came(sign: asyncio.Future[None]) -> bool:
    return sign.done() and not sign.cancelled() and sign.exception() is None


def _unreached() -> ApiError:
    message = "it does not answer now; turns go on without it until it does."
    return ApiError(503, "unavailable", message, retry_after_s=1)
