"""The ingress: checks requests, asks the models' deployments, serves the pages."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import FastAPI
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from mmd.artifacts import ArtifactStore
from mmd.assistant.settings import AssistantSettings
from mmd.config import ServeSettings
from mmd.intent.engine import IntentAnswer, IntentQuery
from mmd.log import configure_logging
from mmd.recommend.online import RecommendQuery
from mmd.schema import Image
from serve_apps.answers import RecommendResult, RetrievalResult, StreamPiece, to_ready
from serve_apps.api import ApiError, ExamplesResponse, Part, ReadyResponse, TasksResponse
from serve_apps.asking import late_answer
from serve_apps.assistant import ServedPolicy
from serve_apps.congestion import RETRY_AFTER_S
from serve_apps.http import create_app
from serve_apps.limits import RetrievalQuery
from serve_apps.policy import PolicySeat
from serve_apps.replica import PartStatus, Refused
from serve_apps.sweeps import SweepDesk

_STATUS_S = 2.0  # a probe must not wait for a part that is gone
_STATUS_KEPT_S = 1.0  # anybody may ask, and no question of theirs shall take a place in the models' queues for long

T = TypeVar("T")


class HandleBackend:
    """Reaches the models' deployments; turns Ray's failures into the API's errors (:class:`serve_apps.http.Backend`).

    Args:
        intent: handle of :class:`~serve_apps.intent.IntentReplica`.
        retrieval: handle of :class:`~serve_apps.retrieval.RetrievalReplica`.
        recommendation: handle of :class:`~serve_apps.recommend.RecommendReplica`.
        timeout_s: longest time to an answer.
        seat: holds the policy of conversations.
    """

    def __init__(
        self,
        intent: DeploymentHandle[Any],
        retrieval: DeploymentHandle[Any],
        recommendation: DeploymentHandle[Any],
        timeout_s: float,
        seat: PolicySeat,
    ) -> None:
        self._intent = intent
        self._retrieval = retrieval
        self._recommendation = recommendation
        self._handles: dict[Part, DeploymentHandle[Any]] = {
            "intent": intent,
            "retrieval": retrieval,
            "recommendation": recommendation,
        }
        self._timeout_s = timeout_s
        self._seat = seat
        self._told: tuple[float, ReadyResponse | None] = (0.0, None)
        self._absent: dict[Part, tuple[float, Refused]] = {}  # what an absent part said, and when

    @property
    def policy(self) -> ServedPolicy:
        """What decides now."""
        return self._seat.served

    async def answer(self, query: IntentQuery) -> IntentAnswer:
        """Recognise the intent of one dialogue."""
        return await self._asked("intent", lambda: self._intent.answer.remote(query))

    async def retrieve(self, query: RetrievalQuery) -> RetrievalResult:
        """Rank responses to one dialogue."""
        return await self._asked("retrieval", lambda: self._retrieval.answer.remote(query))

    async def recommend(self, query: RecommendQuery) -> RecommendResult:
        """Reply to one dialogue."""
        return await self._asked("recommendation", lambda: self._recommendation.answer.remote(query))

    async def stream(self, query: RecommendQuery) -> AsyncGenerator[StreamPiece]:
        """Reply to one dialogue piece by piece."""
        self._check_there("recommendation")
        begun = retried = False
        while True:
            with _explained():
                try:
                    async with aclosing(self._pieces(query)) as pieces:
                        async for piece in pieces:
                            begun = True
                            yield piece
                except RayActorError:  # before the first piece, asking again is repeatable
                    if begun or retried:
                        raise
                    retried = True
                    continue
            return

    async def _pieces(self, query: RecommendQuery) -> AsyncGenerator[StreamPiece]:
        pieces: Any = self._recommendation.options(stream=True).stream.remote(query)
        try:
            while True:
                piece: StreamPiece | Refused = await anext(pieces)
                yield self._accepted("recommendation", piece)
        except StopAsyncIteration:
            return
        finally:
            pieces.cancel()  # nothing, once all have come

    async def picture(self, image_id: str) -> Image:
        """Return the picture of a response, or else of a product that can be recommended."""
        found: list[Image | Refused] = []
        failed: ApiError | None = None
        for part in (self._retrieval, self._recommendation):
            try:
                found.append(await self._call(functools.partial(part.picture.remote, image_id)))
            except ApiError as err:  # the other one may have it
                failed = err
                continue
            if not isinstance(found[-1], Refused):
                return found[-1]
        if failed:  # which may have it
            raise failed
        # Of two refusals, "not here" says more than "nothing is served".
        return accepted(min(found, key=lambda image: image.status if isinstance(image, Refused) else 0))

    async def tasks(self) -> TasksResponse:
        """Return the tasks."""
        found: TasksResponse = await self._call(self._intent.tasks.remote)
        return found

    async def examples(self) -> ExamplesResponse:
        """Return dialogues to try."""
        found: ExamplesResponse = await self._call(self._intent.examples.remote)
        return found

    async def ready(self) -> ReadyResponse:
        """Return what answers; asked again within a second, the same.

        Raises:
            ApiError: 503, no part does.
        """
        told_at, told = self._told
        if told is None or time.monotonic() - told_at > _STATUS_KEPT_S:
            parts = await asyncio.gather(*(self._status(part, handle) for part, handle in self._handles.items()))
            told = to_ready([*parts, await self._seat.status()])
            self._told = time.monotonic(), told
        return told

    async def reach(self, part: Part) -> None:
        """Return once a part gives a sign of life.

        Raises:
            ApiError: none comes.
        """
        try:
            await self._call(self._handles[part].status.remote)
        except ApiError as err:
            if err.status != HTTPStatus.TOO_MANY_REQUESTS:  # which is one
                raise

    async def _status(self, part: Part, handle: DeploymentHandle[Any]) -> PartStatus:
        """Return what a part says of itself; that it is there where it has no time to, else that it is not."""
        try:
            async with asyncio.timeout(min(_STATUS_S, self._timeout_s)):
                with _explained():
                    status: PartStatus = await handle.status.remote()
                    return status
        except TimeoutError:
            return PartStatus(part, absent="it does not answer now; try again in a moment.")
        except ApiError as err:
            if err.status == HTTPStatus.TOO_MANY_REQUESTS:
                return PartStatus(part, degraded=(f"{part}: {err}",))
            return PartStatus(part, absent=str(err))

    async def _asked(self, part: Part, ask: Callable[[], Awaitable[T | Refused]]) -> T:
        """Ask a part.

        Raises:
            ApiError: it refuses.
        """
        self._check_there(part)
        return self._accepted(part, await self._call(ask))

    def _check_there(self, part: Part) -> None:
        """Refuse for a part that has just said that it is absent: every turn asks all, and it would say it again.

        Raises:
            ApiError: what it said.
        """
        told_at, refusal = self._absent.get(part, (0.0, None))
        if refusal is not None and time.monotonic() - told_at <= _STATUS_KEPT_S:
            raise refusal.error()

    def _accepted(self, part: Part, answer: T | Refused) -> T:
        """Return a part's answer.

        Raises:
            ApiError: it was refused.
        """
        if isinstance(answer, Refused) and answer.absent:
            self._absent[part] = time.monotonic(), answer
        return accepted(answer)

    async def _call(self, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                with _explained():
                    try:
                        return await _called(ask)
                    except RayActorError:  # the replica died while it held the request; answering is repeatable
                        return await _called(ask)
        except TimeoutError:
            raise late_answer(self._timeout_s) from None


async def _called(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask; where nobody waits for the answer any more, tell the replica so, which giving up alone does not."""
    asked = ask()
    try:
        return await asked
    except asyncio.CancelledError:
        if isinstance(asked, DeploymentResponse):
            asked.cancel()  # type: ignore[no-untyped-call]  # upstream has no annotation
        raise


@contextmanager
def _explained() -> Iterator[None]:
    """Turn Ray's failures into the API's errors."""
    try:
        yield
    except BackPressureError:
        message = f"too many requests are waiting; try again in {RETRY_AFTER_S} s."
        raise ApiError(429, "overloaded", message, retry_after_s=RETRY_AFTER_S) from None
    except (RayActorError, DeploymentUnavailableError):
        message = "a model is being replaced; try again in a moment."
        raise ApiError(503, "unavailable", message, retry_after_s=RETRY_AFTER_S) from None


def accepted(answer: T | Refused) -> T:
    """Return an answer.

    Raises:
        ApiError: it was refused.
    """
    if isinstance(answer, Refused):
        raise answer.error()
    return answer


class Ingress:
    """Checks requests, asks the models, serves the pages.

    Args:
        intent: handle of the deployment that recognises intents.
        retrieval: handle of the deployment that ranks responses.
        recommendation: handle of the deployment that replies and recommends.
        settings: limits and timeout.
        store: URI of the artefact store, for the policy and for sweeps.
        corpus: name of the corpus.
        assistant: settings of conversations.
    """

    def __init__(
        self,
        intent: DeploymentHandle[Any],
        retrieval: DeploymentHandle[Any],
        recommendation: DeploymentHandle[Any],
        settings: ServeSettings,
        store: str,
        corpus: str,
        assistant: AssistantSettings,
    ) -> None:
        configure_logging(json_lines=True)
        self._seat = PolicySeat(store, corpus, settings, assistant)
        self._backend = HandleBackend(intent, retrieval, recommendation, settings.request_timeout_s, self._seat)
        self._settings = settings
        self._store = store

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the policy that ``user_config`` names, see :meth:`~serve_apps.replica.Replica.reconfigure`."""
        await self._seat.reconfigure(user_config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Serve calls this once the replica is constructed."""
        return create_app(self._backend, self._settings, SweepDesk(ArtifactStore(self._store), self._settings))
