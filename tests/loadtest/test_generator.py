"""Load: requests leave when they are due, everything that comes of them is counted, clients ask again once."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mmd.loadtest.generator import Load, Request


class Service:
    """Does what the body says: ``wait`` seconds, ``fail`` with a status the first time, ``stream`` and ``break``."""

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()
        self.came: list[float] = []

    async def answer(self, request: HttpRequest) -> Response:
        body = await request.json()
        self.came.append(time.perf_counter())
        self.seen[body.get("id", 0)] += 1
        if "fail" in body and (self.seen[body["id"]] == 1 or body.get("always")):
            return JSONResponse({}, body["fail"], headers={"Retry-After": "0"})
        await asyncio.sleep(body.get("wait", 0))
        if body.get("stream"):
            return StreamingResponse(self.words(body), media_type="text/event-stream")
        return JSONResponse({"mmd": {"degraded": body.get("degraded", []), "timings_ms": {"total": 7.0}}})

    async def words(self, body: dict[str, Any]) -> AsyncIterator[str]:
        yield 'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
        await asyncio.sleep(0.05)
        yield 'data: {"choices": [{"delta": {"content": "Yes"}}]}\n\n'
        if not body.get("break"):
            yield 'data: {"choices": [], "mmd": {"degraded": ["intent: gone"], "timings_ms": {}}}\n\n'
            yield "data: [DONE]\n\n"


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    app = Starlette(routes=[Route("/ask", service.answer, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def outcomes_of(url: str) -> Callable[..., Any]:
    def send(*bodies: dict[str, Any], rate: float = 100.0, retries: int = 1) -> Any:
        return Load(url, rate, retries).run([Request("/ask", body) for body in bodies])

    return send


def test_a_slow_answer_delays_no_later_request(outcomes_of: Callable[..., Any], service: Service):
    found = outcomes_of({"wait": 0.5}, {}, {}, rate=20.0)
    assert [round(one.due_s, 6) for one in found] == [0.0, 0.05, 0.1]
    assert all(one.answered for one in found)
    assert service.came[2] - service.came[0] < 0.45  # the last one left before the first was answered
    assert found[0].ms >= 500


def test_one_by_one_each_request_waits_for_the_last_answer(url: str, service: Service):
    asked = [Request("/ask", {"wait": 0.2}), Request("/ask", {}), Request("/ask", {"fail": 400, "id": 1})]
    found = Load(url).one_by_one(asked)
    assert service.came[1] - service.came[0] >= 0.2
    assert [one.status for one in found] == [200, 200, 400]
    assert found[1].due_s >= 0.2
    assert found[1].ms < found[0].ms  # its own time alone


def test_what_the_answer_says_of_itself_is_kept(outcomes_of: Callable[..., Any]):
    [found] = outcomes_of({"degraded": ["retrieval: gone"]})
    assert (found.degraded, found.stages_ms, found.tries) == (("retrieval: gone",), {"total": 7.0}, 1)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_request_is_sent_again_as_often_as_the_client_would(outcomes_of: Callable[..., Any], status: int):
    once, never, always = (
        outcomes_of({"id": 1, "fail": status})[0],
        outcomes_of({"id": 2, "fail": status}, retries=0)[0],
        outcomes_of({"id": 3, "fail": status, "always": True}, retries=2)[0],
    )
    assert (once.answered, once.status, once.tries) == (True, 200, 2)
    assert (never.answered, never.status, never.tries) == (False, status, 1)
    assert (always.answered, always.status, always.tries) == (False, status, 3)
    assert never.refused == (status == 429)


def test_a_request_that_is_wrong_is_not_sent_again(outcomes_of: Callable[..., Any], service: Service):
    [found] = outcomes_of({"id": 1, "fail": 400})
    assert (found.answered, found.refused, found.tries) == (False, False, 1)
    assert service.seen[1] == 1


def test_of_a_stream_the_first_words_are_timed_and_a_broken_one_is_no_answer(outcomes_of: Callable[..., Any]):
    whole, broken = outcomes_of({"stream": True, "id": 1}, {"stream": True, "break": True, "id": 2})
    assert whole.answered
    assert 50 <= whole.first_ms <= whole.ms
    assert whole.degraded == ("intent: gone",)
    assert (broken.answered, broken.status, broken.error, broken.tries) == (False, 200, "broke off", 1)


def test_nobody_there_is_told_by_name():
    [found] = Load("http://127.0.0.1:9", 10.0).run([Request("/ask", {})])
    assert (found.answered, found.status, found.error, found.tries) == (False, 0, "ConnectError", 2)


def test_requests_go_to_all_addresses_in_turn_and_again_to_the_next(url: str):
    """Of four requests to an address where nobody is and the service, the first and third are asked there again."""
    load = Load("http://127.0.0.1:9", 100.0, retries=1, others=[url])
    found = load.run([Request("/ask", {})] * 4)
    assert [one.tries for one in found] == [2, 1, 2, 1]
    assert all(one.answered for one in found)


def test_every_outcome_is_told_as_it_comes(url: str):
    told: list[float] = []
    found = Load(url, 50.0).run(
        [Request("/ask", {"wait": 0.3}), Request("/ask", {})], lambda one: told.append(one.due_s)
    )
    assert told == [found[1].due_s, found[0].due_s]
