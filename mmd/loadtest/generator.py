"""An open loop of requests: each is sent when it is due, so that a slow answer delays no later request.

A closed loop (the next request after the last answer) hides what waiting users feel: the load falls when the service
is slow. Latency is counted from the moment that a request was due ("coordinated omission", G. Tene).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

DONE = "[DONE]"
_EVENT = "data: "
_CONNECTIONS = 512
_LATEST_S = 1.0  # a Retry-After that is longer is not waited for


@dataclass(frozen=True)
class Request:
    """What is sent.

    Attributes:
        path: of the service.
        body: JSON.
    """

    path: str
    body: Mapping[str, Any]

    @property
    def streamed(self) -> bool:
        """Whether the answer comes as server-sent events."""
        return bool(self.body.get("stream"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request.

    Attributes:
        due_s: when it was due, from the start of the load.
        ms: from then to the end of the answer, asking again included.
        status: the last answer's; 0: there was none.
        first_ms: of a stream, from due to the first words.
        tries: how often it was sent.
        error: why there was no answer, or why a stream broke off; empty where all was well.
        degraded: parts that the answer went without.
        stages_ms: what the answer says of its stages.
    """

    due_s: float
    ms: float
    status: int
    first_ms: float | None = None
    tries: int = 1
    error: str = ""
    degraded: tuple[str, ...] = ()
    stages_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def answered(self) -> bool:
        """Whether the whole answer came."""
        return self.status == httpx.codes.OK and not self.error

    @property
    def refused(self) -> bool:
        """Whether the service said that it is busy."""
        return self.status == httpx.codes.TOO_MANY_REQUESTS


@dataclass(frozen=True)
class Load:
    """How requests are sent.

    Attributes:
        url: of the service.
        rate: requests a second, of :meth:`run`.
        retries: how often a request is sent again after no answer, 429 or 5xx, as clients do by default; a stream that
            has begun is not.
        timeout_s: longest wait for an answer.
        headers: of every request.
        others: further addresses of the same service: requests go to all of them in turn, and one that is sent again to
            the next, as behind a load balancer.
    """

    url: str
    rate: float = 1.0
    retries: int = 1
    timeout_s: float = 60.0
    headers: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[str] = ()

    def run(self, requests: Sequence[Request], tell: Callable[[Outcome], None] = lambda _: None) -> list[Outcome]:
        """Send the requests; return their outcomes, in order.

        Args:
            requests: one after the other, ``rate`` a second.
            tell: is told of each outcome as it comes.
        """
        return asyncio.run(self._send(requests, tell))

    def one_by_one(self, requests: Sequence[Request]) -> list[Outcome]:
        """Send each request when the last one was answered, whatever the rate (a closed loop): latency without load."""
        return asyncio.run(self._send_in_turn(requests))

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
        return httpx.AsyncClient(timeout=self.timeout_s, limits=limits, headers=dict(self.headers))

    async def _send_in_turn(self, requests: Sequence[Request]) -> list[Outcome]:
        async with self._client() as client:
            start = time.perf_counter()
            return [
                await self._one(client, one, number, start, time.perf_counter(), lambda _: None)
                for number, one in enumerate(requests)
            ]

    async def _send(self, requests: Sequence[Request], tell: Callable[[Outcome], None]) -> list[Outcome]:
        async with self._client() as client:
            start = time.perf_counter()
            tasks = []
            for number, request in enumerate(requests):
                due = start + number / self.rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.append(asyncio.create_task(self._one(client, request, number, start, due, tell)))
            return list(await asyncio.gather(*tasks))

    async def _one(
        self,
        client: httpx.AsyncClient,
        request: Request,
        number: int,
        start: float,
        due: float,
        tell: Callable[[Outcome], None],
    ) -> Outcome:
        urls = (self.url, *self.others)
        for tries in range(1, self.retries + 2):
            answer = await _ask(client, urls[(number + tries - 1) % len(urls)], request, due)
            if answer.ok or answer.begun or tries > self.retries or not answer.again:
                break
            await asyncio.sleep(min(answer.wait_s, _LATEST_S))
        outcome = Outcome(
            due_s=due - start,
            ms=(time.perf_counter() - due) * 1000,
            status=answer.status,
            first_ms=answer.first_ms,
            tries=tries,
            error=answer.error,
            degraded=tuple(answer.told.get("degraded", ())),
            stages_ms=answer.told.get("timings_ms", {}),
        )
        tell(outcome)
        return outcome


@dataclass
class _Answer:
    """One attempt's answer."""

    status: int = 0
    error: str = ""
    first_ms: float | None = None
    wait_s: float = 0.0
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status == httpx.codes.OK and not self.error

    @property
    def begun(self) -> bool:
        return self.first_ms is not None

    @property
    def again(self) -> bool:
        return self.status in (0, httpx.codes.TOO_MANY_REQUESTS) or httpx.codes.is_server_error(self.status)


async def _ask(client: httpx.AsyncClient, url: str, request: Request, due: float) -> _Answer:
    """Send a request once."""
    answer = _Answer()
    try:
        async with client.stream("POST", f"{url.rstrip('/')}{request.path}", json=dict(request.body)) as response:
            answer.status = response.status_code
            answer.wait_s = _seconds(response.headers.get("Retry-After"))
            if request.streamed and answer.status == httpx.codes.OK:
                await _read_stream(response, answer, due)
            else:
                _read_whole(await response.aread(), answer)
    except httpx.HTTPError as err:
        answer.error = type(err).__name__
        answer.status = answer.status if answer.begun else 0
    return answer


async def _read_stream(response: httpx.Response, answer: _Answer, due: float) -> None:
    answer.error = "broke off"
    async for line in response.aiter_lines():
        data = line.removeprefix(_EVENT)
        if data == DONE:
            answer.error = ""
        elif line.startswith(_EVENT):
            chunk = json.loads(data)
            if answer.first_ms is None and any(_words_of(chunk)):
                answer.first_ms = (time.perf_counter() - due) * 1000
            told = chunk.get("mmd") or {}
            answer.told = told if "timings_ms" in told else answer.told


def _words_of(chunk: Mapping[str, Any]) -> Iterator[str]:
    for choice in chunk.get("choices", ()):
        yield choice.get("delta", {}).get("content") or ""


def _read_whole(body: bytes, answer: _Answer) -> None:
    if answer.status != httpx.codes.OK:
        return
    try:
        found = json.loads(body)
    except ValueError:
        answer.error = "not JSON"
        return
    answer.told = found.get("mmd", found)


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isdecimal() else 0.0
