"""The student's words as they come: its mode first, pieces in between, all that it had in mind last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import structlog

from mmd.assistant.policy import says_something
from mmd.assistant.types import Part
from mmd.recommend.engine import Piece
from mmd.recommend.online import RecommendQuery
from mmd.recommend.types import Mode
from serve_apps.answers import RecommendResult, StreamPiece
from serve_apps.api import ApiError
from serve_apps.failures import note_failure
from serve_apps.recommend_routes import Recommending

_log = structlog.get_logger("mmd.assistant")


@dataclass(frozen=True, slots=True)
class Said:
    """Words of a streamed reply; of a product with its id, title and picture."""

    text: str
    item_id: str | None = None
    title: str = ""
    image_id: str | None = None


class StudentSpeech:
    """One stream of the student's, which may be begun anew in another mode before anything was said.

    Args:
        student: whose.
    """

    def __init__(self, student: Recommending) -> None:
        self._student = student
        self._pieces: AsyncGenerator[StreamPiece] | None = None
        self._first: StreamPiece | None = None
        self._result: RecommendResult | None = None
        self._failure: ApiError | None = None

    async def open(self, query: RecommendQuery) -> tuple[Mode, float | None] | None:
        """Begin; return the mode with its probability, None where the student has no modes.

        Raises:
            ApiError: the student does not answer.
        """
        await self.aclose()
        self._pieces = self._student.stream(query)
        first = await anext(self._pieces)
        if first.event.kind == "mode" and first.event.mode is not None:
            return first.event.mode, first.event.mode_probability
        self._first = first
        return None

    async def words(self, request_id: str, limit_s: float) -> AsyncGenerator[Said]:
        """Yield the words; white space around the whole is left out, and all of what has no word in it.

        Args:
            request_id: for the log.
            limit_s: longest wait for each of them.

        Raises:
            Exception: the student breaks off in the middle of them. Before the first of them nothing is raised: another
                part may speak instead.
        """
        spoken, held = False, ""  # held: what may be the end, or all that comes
        try:
            while (piece := await self._next_within(limit_s)) is not None:
                if piece.event.piece is None:
                    continue
                held += piece.event.piece.text
                if not spoken:
                    held = held.lstrip()
                text = held.rstrip()
                if text and (spoken or piece.event.piece.item_id is not None or says_something(text)):
                    spoken, held = True, held[len(text) :]
                    yield _said(text, piece.event.piece)
        except ApiError as err:
            if spoken:
                raise
            self._failure = err
        except Exception as err:
            self._failure = failure_of("recommendation", err, request_id)
            if spoken:
                raise

    async def result(self) -> RecommendResult:
        """Return the whole answer, once the stream has ended.

        Raises:
            ApiError: it did not come to its end.
        """
        if self._failure is not None:
            raise self._failure
        while await self._next() is not None:
            pass
        if self._result is None:
            raise ApiError(503, "part_failed", "the student broke off.")
        return self._result

    async def _next_within(self, limit_s: float) -> StreamPiece | None:
        try:
            async with asyncio.timeout(limit_s):
                return await self._next()
        except TimeoutError:
            raise ApiError(504, "timeout", f"no word within {limit_s:g} s; try again.") from None

    async def _next(self) -> StreamPiece | None:
        """Return the next piece; None behind the last."""
        piece: StreamPiece | None
        if self._first is not None:
            piece, self._first = self._first, None
        elif self._pieces is None:
            return None
        else:
            piece = await anext(self._pieces, None)
        if piece is not None and piece.result is not None:
            self._result = piece.result
        return piece

    async def aclose(self) -> None:
        """Tell the student that no more is wanted."""
        if self._pieces is not None:
            await self._pieces.aclose()
        self._pieces = self._first = self._result = self._failure = None


def failure_of(part: Part, err: Exception, request_id: str) -> ApiError:
    """Log what a part failed of, without what it said, which may quote the dialogue; return what the caller is told."""
    return ApiError(503, "part_failed", note_failure(_log, part, err, request_id))


def _said(text: str, piece: Piece) -> Said:
    return Said(text, piece.item_id, piece.text.strip(), piece.image_id)
