"""How many requests are let in at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.api import ApiError
from serve_apps.congestion import Congestion


def alone(congestion: Congestion, seconds: float = 0.1, times: int = 10, kind: str = "text") -> None:
    for _ in range(times):
        congestion.leave(congestion.enter(), kind, seconds)


def crowd_of(congestion: Congestion, count: int) -> list[int]:
    return [congestion.enter() for _ in range(count)]


def test_twice_the_least_are_let_in_at_first_and_the_next_is_told_when_to_come_back():
    congestion = Congestion(slowdown=2.5, least=4)
    crowds = crowd_of(congestion, 8)
    with pytest.raises(ApiError) as caught:
        congestion.enter()
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (429, "overloaded", 1)
    congestion.leave(crowds.pop())
    assert congestion.enter() == 8


def test_a_full_house_that_is_still_fast_lets_more_in():
    """Half a place a request that found the house full."""
    congestion = Congestion(slowdown=2.5, least=4)
    alone(congestion)
    for crowd in crowd_of(congestion, 8):
        congestion.leave(crowd, "text", 0.15)
    assert congestion.places == 8  # only the eighth found it full: 8.5
    for crowd in crowd_of(congestion, 8):
        congestion.leave(crowd, "text", 0.15)
    assert congestion.places == 9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("serve_apps.congestion.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_slow_house_lets_fewer_in_once_a_second_but_never_fewer_than_the_least(clock: list[float]):
    """Four times as long as alone: the mean slowdown is 1.6, 2.08, 2.46, 2.77 with the fourth."""
    congestion = Congestion(slowdown=2.5, least=4)
    alone(congestion)
    for crowd in crowd_of(congestion, 8)[2:]:
        congestion.leave(crowd, "text", 0.4)
    assert congestion.places == 6  # 8 × 0.8, once
    clock[0] += 1.0
    congestion.leave(8, "text", 0.4)
    assert congestion.places == 5  # 6.4 × 0.8
    for _ in range(20):
        clock[0] += 1.0
        congestion.leave(7, "text", 0.4)
    assert congestion.places == 4


def test_places_that_were_lost_to_a_burst_come_back_while_all_is_well(clock: list[float]):
    congestion = Congestion(slowdown=2.5, least=4)
    alone(congestion)
    for _ in range(8):
        congestion.leave(congestion.enter() + 3, "text", 0.4)
    assert congestion.places == 6
    alone(congestion, times=60)
    assert congestion.places == 8


def test_one_that_took_ages_changes_nothing():
    """Neither what is usual, nor more than a fifth of the way to twice the slowdown that is borne."""
    congestion = Congestion(slowdown=2.5, least=4)
    alone(congestion, times=11)
    congestion.leave(congestion.enter(), "text", 60.0)  # the mean slowdown: 1 + 0.2 × (5 − 1) = 1.8
    assert congestion.places == 8
    alone(congestion)
    for crowd in crowd_of(congestion, 8):
        congestion.leave(crowd, "text", 0.15)
    assert congestion.places == 8


def test_a_service_that_begins_under_load_grows_where_load_does_not_slow_it():
    """No request is ever alone: the first ten tell what is usual."""
    congestion = Congestion(slowdown=2.5, least=4)
    for _ in range(40):
        for crowd in crowd_of(congestion, congestion.places):
            congestion.leave(crowd, "text", 0.1)
    assert congestion.places > 20


def test_kinds_are_compared_with_themselves():
    """A picture takes ten times as long as a text, and slows nothing down."""
    congestion = Congestion(slowdown=2.5, least=4)
    alone(congestion, 0.1)
    alone(congestion, 1.0, kind="picture")
    for _ in range(20):
        congestion.leave(congestion.enter(), "picture", 1.0)
    assert congestion.places == 8


def test_before_ten_of_a_kind_were_seen_it_tells_nothing():
    congestion = Congestion(slowdown=2.5, least=4)
    for seconds in [0.1] * 5 + [9.0] * 4:
        congestion.leave(8, "text", seconds)
    assert congestion.places == 8


def test_a_full_queue_behind_lets_fewer_in(clock: list[float]):
    congestion = Congestion(slowdown=2.5, least=4)
    for _ in range(10):
        clock[0] += 1.0
        congestion.leave(congestion.enter())
        congestion.refused()
    assert congestion.places == 4


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 60) | st.none(), st.sampled_from("ab")), max_size=200),
    st.integers(1, 8),
)
def test_whatever_happens_the_least_are_let_in_and_everybody_who_left_is_gone(
    steps: list[tuple[bool, float | None, str]], least: int
):
    congestion, inside = Congestion(2.5, least), []
    for enters, seconds, kind in steps:
        if enters:
            try:
                inside.append(congestion.enter())
            except ApiError:
                assert len(inside) >= least
        elif inside:
            congestion.leave(inside.pop(), kind, seconds)
        assert congestion.places >= least
    for crowd in inside:
        congestion.leave(crowd)
    assert congestion.enter() == 1
