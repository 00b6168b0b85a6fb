"""How many requests are let in at a time."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps import congestion
from serve_apps.api import ApiError
from serve_apps.congestion import Congestion, Place


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    told = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr("serve_apps.congestion.time", told)
    return now


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in which nobody waits for long."""
    monkeypatch.setattr(congestion, "PATIENCE_S", 0.05)


async def alone(house: Congestion, seconds: float = 0.1, times: int = 10, kind: str = "text") -> None:
    for _ in range(times):
        (await house.enter()).leave(kind, seconds)


async def crowd_of(house: Congestion, count: int) -> list[Place]:
    return [await house.enter() for _ in range(count)]


async def refusal(house: Congestion) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await house.enter()
    return caught.value


# ---------------------------------------------------------------- places


@in_a_loop
async def test_twice_the_least_are_let_in_at_first():
    house = Congestion(slowdown=2.0, least=4)
    assert [place.crowd for place in await crowd_of(house, 8)] == list(range(1, 9))
    waiting = asyncio.ensure_future(house.enter())
    await asyncio.sleep(0)
    assert (house.inside, house.waiting) == (8, 1)
    waiting.cancel()


@in_a_loop
async def test_a_full_house_that_is_still_fast_lets_more_in():
    """A tenth of a place a request that found the house full."""
    house = Congestion(slowdown=2.0, least=4)
    await alone(house)
    for _ in range(11):
        for place in await crowd_of(house, 8):
            place.leave("text", 0.15)
    assert house.places == 9  # 8 + 11 × 0.1; while the first ones leave only one of a crowd of eight has found it full


@in_a_loop
async def test_a_slow_house_lets_fewer_in_once_a_second_but_never_fewer_than_the_least(clock: list[float]):
    """Four times as long as alone: the mean slowdown is 1.6, 2.08 with the second; 2 of 2.08 times as many stay."""
    house = Congestion(slowdown=2.0, least=4)
    await alone(house)
    crowd = await crowd_of(house, 8)
    for place in crowd[2:]:
        place.leave("text", 0.4)
    assert house.places == 7  # 8 × 2 / 2.08 = 7.69, once
    clock[0] += 1.0
    crowd[0].leave("text", 0.4)  # the seventh: the mean is 1 + 3 × (1 − 0.8⁷) = 3.37
    assert house.places == 4  # 7.69 × 2 / 3.37 = 4.56
    for _ in range(20):
        clock[0] += 1.0
        (await house.enter()).leave("text", 0.4)
    assert house.places == 4


@in_a_loop
async def test_places_that_were_lost_to_a_burst_come_back_while_all_is_well():
    house = Congestion(slowdown=2.0, least=4)
    await alone(house)
    for place in await crowd_of(house, 8):
        place.leave("text", 0.4)
    assert house.places < 8
    await alone(house, times=60)
    assert house.places == 8


@in_a_loop
async def test_one_that_took_ages_changes_nothing():
    """Neither what is usual, nor more than a fifth of the way to twice the slowdown that is borne."""
    house = Congestion(slowdown=2.0, least=4)
    await alone(house, times=11)
    (await house.enter()).leave("text", 60.0)  # the mean slowdown: 1 + 0.2 × (4 − 1) = 1.6
    assert house.places == 8
    await alone(house)
    for place in await crowd_of(house, 8):
        place.leave("text", 0.15)
    assert house.places == 8


@in_a_loop
async def test_who_had_company_tells_nothing_of_how_long_it_takes_alone(clock: list[float]):
    """Else a house of two would take what two take together for usual, and let in more and more."""
    house = Congestion(slowdown=2.0, least=2)
    await alone(house)
    for _ in range(150):
        clock[0] += 1.0
        for place in await crowd_of(house, 2):
            place.leave("text", 0.25)
    assert house.places == 2  # 2.5 times as long as alone


@in_a_loop
async def test_who_came_while_another_was_outside_was_not_alone():
    """What that one waits for may be what makes this one slow."""
    house = Congestion(slowdown=2.0, least=4)
    await alone(house)
    first = await house.enter()
    with first.outside():
        for _ in range(20):
            second = await house.enter()
            assert (second.crowd, second.alone) == (1, False)
            second.leave("text", 0.19)
    first.leave()
    assert (await house.enter()).alone


@in_a_loop
async def test_what_is_past_cuts_nothing(clock: list[float]):
    """After a second of slow requests, fast ones find the mean still high."""
    house = Congestion(slowdown=2.0, least=4)
    await alone(house)
    for place in await crowd_of(house, 8):
        place.leave("text", 0.4)
    places = house.places
    for _ in range(3):
        clock[0] += 1.0
        (await house.enter()).leave("text", 0.1)
    assert house.places == places


@in_a_loop
async def test_a_service_that_begins_under_load_grows_where_load_does_not_slow_it():
    """No request is ever alone: the first ten tell what is usual."""
    house = Congestion(slowdown=2.0, least=4)
    for _ in range(200):
        for place in await crowd_of(house, house.places):
            place.leave("text", 0.1)
    assert house.places > 20


@in_a_loop
async def test_kinds_are_compared_with_themselves():
    """A picture takes ten times as long as a text, and slows nothing down."""
    house = Congestion(slowdown=2.0, least=4)
    await alone(house, 0.1)
    await alone(house, 1.0, kind="picture")
    await alone(house, 1.0, times=20, kind="picture")
    assert house.places == 8


@in_a_loop
async def test_before_ten_of_a_kind_were_seen_it_tells_nothing():
    house = Congestion(slowdown=2.0, least=4)
    for seconds in [0.1] * 5 + [9.0] * 4:
        (await house.enter()).leave("text", seconds)
    assert house.places == 8


@in_a_loop
async def test_a_full_queue_behind_lets_fewer_in(clock: list[float]):
    house = Congestion(slowdown=2.0, least=4)
    for _ in range(10):
        clock[0] += 1.0
        (await house.enter()).leave()
        house.refused()
    assert house.places == 4


# ---------------------------------------------------------------- the line


@in_a_loop
async def test_who_finds_the_house_full_is_let_in_as_others_leave_in_order():
    house = Congestion(slowdown=2.0, least=1)
    crowd = await crowd_of(house, 2)
    entered: list[str] = []

    async def visit(name: str) -> None:
        await house.enter()
        entered.append(name)

    waiting = [asyncio.ensure_future(visit(name)) for name in "abc"]
    await asyncio.sleep(0.01)
    assert (entered, house.waiting) == ([], 3)
    for place, there in zip(crowd, (["a"], ["a", "b"]), strict=True):
        place.leave()
        await asyncio.sleep(0.01)
        assert (entered, house.inside) == (there, 2)
    waiting[2].cancel()


@pytest.mark.usefixtures("brief")
@in_a_loop
async def test_who_has_waited_in_vain_is_told_when_to_come_back_and_the_next_ones_at_once():
    """One of three who came within a second was refused."""
    house = Congestion(slowdown=2.0, least=1)
    crowd = await crowd_of(house, 2)
    told = await refusal(house)
    assert (told.status, told.code, told.retry_after_s) == (429, "overloaded", 1)
    assert house.waiting == 0
    hasty = asyncio.ensure_future(house.enter())
    await asyncio.sleep(0)  # at once, not after a wait
    assert hasty.done()
    assert isinstance(hasty.exception(), ApiError)
    crowd[0].leave()
    assert (await house.enter()).crowd == 2  # a place that is free is taken in any case


@in_a_loop
async def test_after_a_second_without_a_refusal_there_is_a_line_again(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
):
    house = Congestion(slowdown=2.0, least=1)
    crowd = await crowd_of(house, 2)
    monkeypatch.setattr(congestion, "PATIENCE_S", 0.01)
    await refusal(house)
    monkeypatch.setattr(congestion, "PATIENCE_S", 5.0)
    clock[0] += 1.01
    waiting = asyncio.ensure_future(house.enter())
    await asyncio.sleep(0.01)
    assert house.waiting == 1
    crowd[0].leave()
    assert (await waiting).crowd == 2


@pytest.mark.usefixtures("brief")
@in_a_loop
async def test_a_refusal_among_many_who_were_let_in_takes_no_line_away(clock: list[float]):
    """One of eight, 12 %; four of eleven, 36 %, do."""
    house = Congestion(slowdown=2.0, least=1)
    for _ in range(5):
        (await house.enter()).leave()
    await crowd_of(house, 2)
    await refusal(house)
    for _ in range(3):
        waiting = asyncio.ensure_future(house.enter())
        await asyncio.sleep(0)
        assert house.waiting == 1
        await asyncio.wait({waiting})
        assert isinstance(waiting.exception(), ApiError)
    hasty = asyncio.ensure_future(house.enter())
    await asyncio.sleep(0)
    assert hasty.done()
    assert isinstance(hasty.exception(), ApiError)
    assert clock == [100.0]


@in_a_loop
async def test_a_line_of_twice_the_first_places_is_full():
    house = Congestion(slowdown=2.0, least=1)
    await crowd_of(house, 2)
    waiting = [asyncio.ensure_future(house.enter()) for _ in range(4)]
    await asyncio.sleep(0)
    await refusal(house)
    assert house.waiting == 4
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert house.waiting == 0


@in_a_loop
async def test_who_goes_away_as_it_is_called_leaves_its_place_to_the_next():
    house = Congestion(slowdown=2.0, least=1)
    crowd = await crowd_of(house, 2)
    first, second = asyncio.ensure_future(house.enter()), asyncio.ensure_future(house.enter())
    await asyncio.sleep(0.01)
    crowd[0].leave()  # calls the first, which does not know it yet
    first.cancel()
    assert (await second).crowd == 2
    assert first.cancelled()


@in_a_loop
async def test_who_waits_for_what_may_never_come_keeps_nobody_out():
    """Two reasons to wait at a time are one; it comes back even where its place is taken."""
    house = Congestion(slowdown=2.0, least=1)
    first, _ = await crowd_of(house, 2)
    with first.outside(), first.outside():
        assert house.inside == 1
        third = await house.enter()
        assert house.inside == 2
    assert house.inside == 3
    first.leave()
    third.leave()
    assert house.inside == 1


class Visitors:
    """Those who ask a house, by where they are; a step is one letter."""

    def __init__(self, now: list[float]) -> None:
        self.house = Congestion(2.0, 2)
        self.inside: list[Place] = []
        self.coming: list[asyncio.Future[Place]] = []
        self.outside: list[tuple[Place, ExitStack]] = []
        self._now = now

    def step(self, what: str, seconds: float | None) -> None:
        """Take a step, if there is somebody who can."""
        if what == "come":
            self.coming.append(asyncio.ensure_future(self.house.enter()))
        elif what == "leave" and self.inside:
            self.inside.pop(0).leave("kind", seconds)
        elif what == "give up" and self.coming:
            self.coming.pop().cancel()
        elif what == "go out" and self.inside:
            stack = ExitStack()
            stack.enter_context(self.inside[-1].outside())
            self.outside.append((self.inside.pop(), stack))
        elif what == "full queue":
            self.house.refused()
        elif what == "time":
            self._now[0] += 0.6
        elif what == "come back":
            self.come_back()

    def come_back(self) -> None:
        """Let one who is outside come in again."""
        for place, stack in self.outside[:1]:
            stack.close()
            self.inside.append(place)
        del self.outside[:1]

    async def settle(self) -> None:
        """Let everybody who can go on do so."""
        for _ in range(4):
            await asyncio.sleep(0)
        done = [one for one in self.coming if one.done()]
        self.coming = [one for one in self.coming if not one.done()]
        self.inside += [one.result() for one in done if not one.cancelled() and one.exception() is None]


STEPS = ("come", "come", "come", "leave", "leave", "give up", "go out", "come back", "full queue", "time")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.floats(0, 60) | st.none()), max_size=200))
def test_whatever_happens_everybody_is_counted_once_and_no_place_stays_empty(steps: list[tuple[str, float | None]]):
    """Who waits, waits for a place that is taken."""
    now = [100.0]

    async def scenario() -> None:
        visitors = Visitors(now)
        house = visitors.house
        for what, seconds in steps:
            visitors.step(what, seconds)
            await visitors.settle()
            assert house.places >= 2
            assert (house.inside, house.waiting) == (len(visitors.inside), len(visitors.coming))
            assert not house.waiting or house.inside >= house.places
        for one in visitors.coming:
            one.cancel()
        await visitors.settle()
        while visitors.outside:
            visitors.come_back()
        for place in visitors.inside:
            place.leave()
        assert (house.inside, house.waiting) == (0, 0)
        assert (await house.enter()).alone

    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    with mock.patch.object(congestion, "time", clock):
        asyncio.run(scenario())
