"""Waiting for parts that may be gone."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from mmd.assistant.types import Part
from serve_apps import presence
from serve_apps.api import ApiError
from serve_apps.congestion import Congestion
from serve_apps.presence import Presence


class Replica:
    """Answers and gives signs of life while it is there; who asks meanwhile waits."""

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self.answer_s = 0.0
        self.asked = self.reached = self.cancelled = 0

    async def answer(self) -> str:
        self.asked += 1
        try:
            await self.there.wait()
            await asyncio.sleep(self.answer_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "answer"

    async def reach(self, _: Part) -> None:
        self.reached += 1
        await self.there.wait()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "DOUBT_S", 0.05)
    monkeypatch.setattr(presence, "SIGN_S", 0.05)


def test_a_part_that_is_gone_is_waited_for_once_and_comes_back():
    """All who wait give up together, long before the limit; nobody asks it until it gives a sign of life."""

    async def scenario() -> None:
        replica = Replica()
        waiting = Presence(replica.reach)

        async def ask() -> Any:
            return await waiting.answer("intent", replica.answer, 5.0)

        started = time.perf_counter()
        found = await asyncio.gather(*(ask() for _ in range(4)), return_exceptions=True)
        assert [(err.status, err.code) for err in found] == [(503, "unavailable")] * 4
        assert (replica.asked, replica.reached, replica.cancelled) == (4, 1, 4)
        with pytest.raises(ApiError):
            await ask()
        assert replica.asked == 4
        assert time.perf_counter() - started < 2.5
        replica.there.set()
        await asyncio.sleep(0.05)
        assert await ask() == "answer"

    asyncio.run(scenario())


def test_a_part_that_is_slow_but_there_has_its_limit():
    async def scenario() -> None:
        replica = Replica()
        replica.there.set()
        waiting = Presence(replica.reach)
        replica.answer_s = 0.2
        assert await waiting.answer("retrieval", replica.answer, 5.0) == "answer"
        assert replica.reached == 1
        with pytest.raises(TimeoutError):
            await waiting.answer("retrieval", replica.answer, 0.1)
        assert replica.cancelled == 1
        assert await waiting.answer("retrieval", replica.answer, 5.0) == "answer"  # slow is not gone

    asyncio.run(scenario())


def test_a_part_whose_signs_fail_is_gone_until_one_comes():
    async def scenario() -> None:
        signs = [ApiError(503, "unavailable", "a model is being replaced."), RuntimeError("odd")]

        async def reach(_: Part) -> None:
            if signs:
                raise signs.pop(0)

        async def never() -> None:
            await asyncio.sleep(60)

        waiting = Presence(reach)
        with pytest.raises(ApiError, match="does not answer now"):
            await waiting.answer("recommendation", never, 5.0)
        await asyncio.sleep(0.3)
        assert not signs

        async def answer() -> str:
            return "answer"

        assert await waiting.answer("recommendation", answer, 5.0) == "answer"

    asyncio.run(scenario())


def test_what_a_part_raises_is_raised():
    async def fail() -> None:
        raise ApiError(429, "overloaded", "too many requests are waiting.", retry_after_s=1)

    async def reach(_: Part) -> None:
        pytest.fail("it has answered")

    with pytest.raises(ApiError, match="too many"):
        asyncio.run(Presence(reach).answer("intent", fail, 1.0))


def test_a_part_that_is_slow_but_there_keeps_its_turns_inside():
    """Else all would go out, others come in, and all be inside together."""

    async def scenario() -> None:
        replica, house = Replica(), Congestion(slowdown=2.0, least=1)
        replica.there.set()
        replica.answer_s = 0.3
        waiting, most = Presence(replica.reach), 0

        async def turn() -> None:
            nonlocal most
            place = await house.enter()
            most = max(most, house.inside)
            await waiting.answer("retrieval", replica.answer, 5.0, place)
            most = max(most, house.inside)
            place.leave()

        await asyncio.gather(*(turn() for _ in range(5)))
        assert most == house.places == 2

    asyncio.run(scenario())


def test_turns_that_wait_for_a_part_which_is_gone_let_others_in(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(presence, "NEAR_S", 0.02)
    monkeypatch.setattr(presence, "SIGN_S", 0.5)

    async def scenario() -> None:
        replica, house = Replica(), Congestion(slowdown=2.0, least=1)
        waiting = Presence(replica.reach)
        places = [await house.enter() for _ in range(2)]
        turns = [asyncio.ensure_future(waiting.answer("intent", replica.answer, 5.0, place)) for place in places]
        assert (await house.enter()).crowd == 1  # as soon as they doubt
        assert not any(turn.done() for turn in turns)
        await asyncio.wait(turns)
        assert house.inside == 3  # they have come back

    asyncio.run(scenario())
