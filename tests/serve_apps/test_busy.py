"""A service that is busy: who is let in, who is told to come back, and what is answered in any case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mmd.config import ServeSettings
from serve_apps import congestion, presence
from serve_apps.congestion import Congestion
from serve_apps.http import create_app

ASKED = {"turns": [{"speaker": "user", "text": "Where is my refund?"}]}


class Hanging:
    """A backend whose intents take as long as they are told to."""

    def __init__(self, sound: Any) -> None:
        self._sound = sound
        self.let_go = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sound, name)

    async def answer(self, query: Any) -> Any:
        await self.let_go.wait()
        return await self._sound.answer(query)


def test_a_full_house_refuses_and_answers_what_asks_no_model(full_backend: Any, monkeypatch: pytest.MonkeyPatch):
    """Two requests a replica are aimed at, of one replica: four at a time are let in at first, and eight wait."""
    monkeypatch.setattr(congestion, "PATIENCE_S", 60)

    async def scenario() -> None:
        backend = Hanging(full_backend)
        app = create_app(backend, ServeSettings(target_ongoing_requests=2, max_replicas=1))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            inside = [asyncio.create_task(client.post("/v1/intent", json=ASKED)) for _ in range(12)]
            await asyncio.sleep(0.2)
            refused = await client.post("/v1/retrieve", json=ASKED)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["code"] == "overloaded"
            assert (await client.get("/healthz")).status_code == 200
            counted = (await client.get("/metrics")).text
            assert 'mmd_http_requests_total{method="POST",route="/v1/retrieve",status="429"} 1.0' in counted
            backend.let_go.set()
            assert [response.status_code for response in await asyncio.gather(*inside)] == [200] * 12
            assert (await client.post("/v1/retrieve", json=ASKED)).status_code == 200

    asyncio.run(scenario())


def test_clients_that_go_away_leave_their_places_and_the_line(full_backend: Any):
    async def scenario() -> None:
        backend = Hanging(full_backend)
        app = create_app(backend, ServeSettings(target_ongoing_requests=1, max_replicas=1))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            inside = [asyncio.create_task(client.post("/v1/intent", json=ASKED)) for _ in range(6)]
            await asyncio.sleep(0.2)
            for one in inside:
                one.cancel()
            await asyncio.gather(*inside, return_exceptions=True)
            backend.let_go.set()
            assert (await client.post("/v1/intent", json=ASKED)).status_code == 200

    asyncio.run(scenario())


def test_without_a_slowdown_queues_alone_refuse(full_backend: Any):
    async def scenario() -> None:
        backend = Hanging(full_backend)
        app = create_app(backend, ServeSettings(target_ongoing_requests=1, slowdown=0))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            inside = [asyncio.create_task(client.post("/v1/intent", json=ASKED)) for _ in range(20)]
            await asyncio.sleep(0.2)
            backend.let_go.set()
            assert [response.status_code for response in await asyncio.gather(*inside)] == [200] * 20

    asyncio.run(scenario())


class WithoutStudent:
    """A backend whose student never answers, nor gives a sign of life."""

    def __init__(self, sound: Any) -> None:
        self._sound = sound

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sound, name)

    async def recommend(self, _: Any) -> Any:
        await asyncio.sleep(60)

    async def stream(self, _: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(60)
        yield None

    async def reach(self, _: Any) -> None:
        await asyncio.sleep(60)


def test_turns_that_wait_for_a_part_which_is_gone_keep_nobody_out(full_backend: Any, monkeypatch: pytest.MonkeyPatch):
    """Two places and a line of four: five turns wait for the student's sign of life, and others are answered."""
    monkeypatch.setattr(presence, "DOUBT_S", 0.2)
    monkeypatch.setattr(presence, "SIGN_S", 3.0)
    monkeypatch.setattr(congestion, "PATIENCE_S", 60)

    async def scenario() -> None:
        app = create_app(WithoutStudent(full_backend), ServeSettings(target_ongoing_requests=1, max_replicas=1))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            chat = {"messages": [{"role": "user", "content": "Where is my refund?"}]}
            turns = [asyncio.create_task(client.post("/v1/chat/completions", json=chat)) for _ in range(5)]
            await asyncio.sleep(0.2)  # all have come
            assert (await client.post("/v1/intent", json=ASKED)).status_code == 200
            assert not all(turn.done() for turn in turns)
            found = await asyncio.gather(*turns)
            assert [response.status_code for response in found] == [200] * 5
            for response in found:
                [problem] = response.json()["mmd"]["degraded"]
                assert problem.startswith("recommendation: it does not answer now")

    asyncio.run(scenario())


def test_a_turn_that_went_without_a_part_tells_nothing_of_how_busy_the_service_is(
    full_backend: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(presence, "DOUBT_S", 0.05)
    monkeypatch.setattr(presence, "SIGN_S", 0.05)
    learnt: list[str] = []
    monkeypatch.setattr(Congestion, "learn", lambda _house, _place, kind, _seconds: learnt.append(kind[0]))

    async def scenario() -> None:
        app = create_app(WithoutStudent(full_backend), ServeSettings())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            chat = {"messages": [{"role": "user", "content": "Where is my refund?"}]}
            for stream in (False, True):
                answer = await client.post("/v1/chat/completions", json=chat | {"stream": stream})
                assert answer.status_code == 200
                assert "does not answer now" in answer.text
            assert learnt == []
            assert (await client.post("/v1/intent", json=ASKED)).status_code == 200
            assert learnt == ["/v1/intent"]

    asyncio.run(scenario())


def test_who_sends_no_body_takes_no_place(full_backend: Any):
    async def scenario() -> None:
        app = create_app(full_backend, ServeSettings(target_ongoing_requests=1))

        async def trickle() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(60)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            headers = {"content-type": "application/json"}
            idle = [
                asyncio.create_task(client.post("/v1/intent", content=trickle(), headers=headers)) for _ in range(20)
            ]
            await asyncio.sleep(0.2)
            assert (await client.post("/v1/intent", json=ASKED)).status_code == 200
            for one in idle:
                one.cancel()
            await asyncio.gather(*idle, return_exceptions=True)

    asyncio.run(scenario())
