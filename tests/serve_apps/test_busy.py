"""A service that is busy: who is let in, who is told to come back, and what is answered in any case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx

from mmd.config import ServeSettings
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


def test_a_full_house_refuses_at_once_and_answers_what_asks_no_model(full_backend: Any):
    """Two requests a replica are aimed at: four at a time are let in in any case, eight at first."""

    async def scenario() -> None:
        backend = Hanging(full_backend)
        app = create_app(backend, ServeSettings(target_ongoing_requests=2))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            inside = [asyncio.create_task(client.post("/v1/intent", json=ASKED)) for _ in range(8)]
            await asyncio.sleep(0.2)
            refused = await client.post("/v1/retrieve", json=ASKED)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["code"] == "overloaded"
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/metrics")).status_code == 200
            backend.let_go.set()
            assert [response.status_code for response in await asyncio.gather(*inside)] == [200] * 8
            assert (await client.post("/v1/retrieve", json=ASKED)).status_code == 200

    asyncio.run(scenario())


def test_a_client_that_goes_away_leaves_its_place(full_backend: Any):
    async def scenario() -> None:
        backend = Hanging(full_backend)
        app = create_app(backend, ServeSettings(target_ongoing_requests=1))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            inside = [asyncio.create_task(client.post("/v1/intent", json=ASKED)) for _ in range(4)]
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
