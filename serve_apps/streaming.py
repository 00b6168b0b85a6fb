"""Server-sent events: pieces of an answer as they come, an error in the API's shape where it breaks off.

What can be refused is refused before the response begins, with its own status; afterwards only an event can tell.
How a piece is written is the route's business: events with names, or OpenAI's lines of data alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Generic, Protocol, TypeVar

import structlog
from starlette.responses import StreamingResponse

from mmd.log import place_of
from serve_apps.api import ApiError, ErrorResponse

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nobody on the way is to collect the pieces

P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)


class Writing(Protocol[P_contra]):
    """How a stream is written."""

    def piece(self, piece: P_contra) -> bytes:
        """Return a piece as it goes over the wire; may be empty."""
        ...

    def error(self, error: ErrorResponse) -> bytes:
        """Return what ends a stream that cannot go on."""
        ...


class Opened(Generic[P]):
    """Pieces of which the first has come.

    Args:
        first: it.
        rest: the others.
    """

    def __init__(self, first: P, rest: AsyncGenerator[P]) -> None:
        self._first = first
        self._rest = rest

    async def __aiter__(self) -> AsyncIterator[P]:
        """Yield all pieces."""
        yield self._first
        async for piece in self._rest:
            yield piece

    async def aclose(self) -> None:
        """Tell who makes the pieces that no more are wanted."""
        await self._rest.aclose()


async def opened(pieces: AsyncGenerator[P]) -> Opened[P]:
    """Wait for the first piece.

    Raises:
        ApiError: there is none.
    """
    async for first in pieces:
        return Opened(first, pieces)
    raise ApiError(500, "internal_error", "the reply ended before it began.")


def streamed(
    pieces: Opened[P], writing: Writing[P], late: ApiError, deadline: float, request_id: str
) -> StreamingResponse:
    """Return the response that sends pieces as they come.

    Args:
        pieces: to send.
        writing: puts one into its wire form.
        late: what to say where the deadline passes.
        deadline: of the last piece, by ``time.perf_counter``.
        request_id: for the log.
    """
    body = _events(pieces, writing, late, deadline, request_id)
    return StreamingResponse(body, media_type="text/event-stream", headers=HEADERS)


async def _events(
    pieces: Opened[P], writing: Writing[P], late: ApiError, deadline: float, request_id: str
) -> AsyncIterator[bytes]:
    waiting = aiter(pieces)
    try:
        while True:
            async with asyncio.timeout(deadline - time.perf_counter()):
                piece = await anext(waiting)
            yield writing.piece(piece)
    except StopAsyncIteration:
        return
    except TimeoutError:
        yield writing.error(late.body())
    except ApiError as err:
        yield writing.error(err.body())
    except Exception as err:  # noqa: BLE001 (the response has begun: an event is all that can tell; the log has the rest)
        log = structlog.get_logger("mmd.http").bind(request_id=request_id)
        log.error("unhandled_error", error=type(err).__name__, where=place_of(err))  # noqa: TRY400 (may quote)
        failed = ApiError(500, "internal_error", f"the service failed; its log has the reason under {request_id}.")
        yield writing.error(failed.body())
    finally:  # also where the client went away
        await pieces.aclose()


def encode(data: str, kind: str | None = None) -> bytes:
    """Return an event as it goes over the wire.

    Args:
        data: one line; JSON has no line breaks of its own.
        kind: name of the event, if it has one.
    """
    named = f"event: {kind}\n" if kind else ""
    return f"{named}data: {data}\n\n".encode()
