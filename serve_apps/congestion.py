"""How many requests are worked on at a time: as many as are not much slower together than each is alone.

Queues of a fixed length let everybody wait as long as a full queue takes. Here those who are let in are answered
almost as fast as ever. How many those are is found by trying: a little more for each that found the house full and was
fast, fewer, at most once a second, where they were slow, in proportion (additive increase, multiplicative decrease).

Who finds the house full waits in a short line: a swap or a burst holds everything up for part of a second, which is no
reason to refuse anybody. Where more is asked than can be answered a line would only make everybody wait, so that there
is none while a good part of those who came within the last second had to be refused. (A line against bursts and none
against overload is the idea of controlled delay: K. Nichols and V. Jacobson, "Controlling Queue Delay", ACM Queue
10(5), 2012. They look at how long it stands; here, where places are few, at what is refused.)
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serve_apps.api import ApiError

RETRY_AFTER_S = 1
PATIENCE_S = 1.0
"""Longest wait in the line, s: as long as who is refused is told to stay away."""
_LATELY_S = 1.0
_STORM = 0.3  # of those who came lately refused, from which on there is no line
_LINE = 2  # times as many as there are places at first
_KNOWN = 10  # requests of a kind until its usual time is known
_KEPT = 101
_WEIGHT = 0.2  # of a request in the mean slowdown
_MORE = 0.1  # of a place for a request that found the house full and was fast
_BACK = 0.05  # for any other that was, up to as many as there were at first
_FEWER = 0.8  # of the places are left where a model's own queue was full
_CUT_S = 1.0  # between cuts


def _recent() -> deque[float]:
    return deque(maxlen=_KEPT)


@dataclass
class _Kind:
    """What requests of a kind took lately, s: those that were alone, and the first ones of all."""

    alone: deque[float] = field(default_factory=_recent)
    first: list[float] = field(default_factory=list)

    def learn(self, seconds: float, *, alone: bool) -> None:
        if alone:
            self.alone.append(seconds)
        if len(self.first) < _KNOWN:
            self.first.append(seconds)

    @property
    def usual(self) -> float | None:
        """Median of those alone, which an outlier does not move; of the first ones while there are too few of them."""
        for times in (self.alone, self.first):
            if len(times) >= _KNOWN:
                return statistics.median(times)
        return None


class Congestion:
    """Lets requests in.

    Args:
        slowdown: times its usual time alone that a request may take on average.
        least: requests at a time that are let in in any case.
    """

    def __init__(self, slowdown: float, least: int) -> None:
        self._slowdown = slowdown
        self._least = float(least)
        self._places = self._first_places = 2.0 * least
        self._inside = 0
        self._present = 0  # those inside, and those who are to come back
        self._entered = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._lately: deque[tuple[float, bool]] = deque()  # when somebody came or had to go, and whether refused
        self._mean_slowdown = 1.0
        self._cut_at = float("-inf")
        self._kinds: dict[Hashable, _Kind] = defaultdict(_Kind)

    @property
    def places(self) -> int:
        """Requests at a time that are let in now."""
        return int(self._places)

    @property
    def inside(self) -> int:
        """Requests that are worked on now."""
        return self._inside

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    async def enter(self) -> Place:
        """Let a request in, at once or within :data:`PATIENCE_S`.

        Raises:
            ApiError: 429, there are too many.
        """
        try:
            if self._line or self._inside >= self.places:
                await self._stand_in_line()  # who has waited has been counted in
            else:
                self.take()
        except ApiError:
            self._note(refused=True)
            raise
        self._note(refused=False)
        self._entered += 1
        self._present += 1
        return Place(self, self._inside, self._entered, alone=self._present == 1)

    async def _stand_in_line(self) -> None:
        if self._stormy() or len(self._line) >= _LINE * self._first_places:
            raise _refusal()
        called = asyncio.get_running_loop().create_future()
        self._line.append(called)
        try:
            await asyncio.wait({called}, timeout=PATIENCE_S)
        except asyncio.CancelledError:  # its client has gone away
            if called.done():
                self.free()
            else:
                self._line.remove(called)
            raise
        if not called.done():
            self._line.remove(called)
            raise _refusal()

    def _note(self, *, refused: bool) -> None:
        self._lately.append((time.monotonic(), refused))
        self._forget()

    def _forget(self) -> None:
        long_ago = time.monotonic() - _LATELY_S
        while self._lately and self._lately[0][0] < long_ago:
            self._lately.popleft()

    def _stormy(self) -> bool:
        """Say whether a good part of those who came lately was refused."""
        self._forget()
        return sum(refused for _, refused in self._lately) > _STORM * len(self._lately)

    def take(self) -> None:
        """Count a request in, whether or not there is a place."""
        self._inside += 1

    def free(self) -> None:
        """Count a request out, and those in that have waited for its place."""
        self._inside -= 1
        self._call()

    def leave(self) -> None:
        """Count a request out that does not come back."""
        self._present -= 1
        self.free()

    def _call(self) -> None:
        while self._line and self._inside < self.places:
            self.take()
            self._line.popleft().set_result(None)

    def learn(self, place: Place, kind: Hashable, seconds: float) -> None:
        """Learn from what a request of a kind took, s, and let more in, or fewer."""
        known = self._kinds[kind]
        known.learn(seconds, alone=place.alone and place.number == self._entered)
        usual = known.usual
        if not usual:
            return
        slowdown = min(seconds / usual, 2 * self._slowdown)  # one that took ages says no more than one that was slow
        self._mean_slowdown += _WEIGHT * (slowdown - self._mean_slowdown)
        if self._mean_slowdown > self._slowdown:
            if slowdown > self._slowdown:  # else what is past weighs, and passes
                self._cut(self._slowdown / self._mean_slowdown)
        elif place.crowd >= self.places:
            self._places += _MORE
        elif self._places < self._first_places:
            self._places += _BACK
        self._call()

    def refused(self) -> None:
        """Learn that a model's own queue was full."""
        self._cut(_FEWER)

    def _cut(self, share: float) -> None:
        """Let a share of as many in, unless there was a cut less than a second ago."""
        now = time.monotonic()
        if now - self._cut_at >= _CUT_S:
            self._places = max(self._least, self._places * share)
            self._cut_at = now


def _refusal() -> ApiError:
    message = f"the service is busy; try again in {RETRY_AFTER_S} s."
    return ApiError(429, "overloaded", message, retry_after_s=RETRY_AFTER_S)


class Place:
    """A request's among those that are worked on.

    Args:
        house: where it is.
        crowd: requests there with it, itself included.
        number: of the request, counted from the first.
        alone: whether nobody else was there, not even to come back.
    """

    def __init__(self, house: Congestion, crowd: int, number: int, *, alone: bool) -> None:
        self.crowd, self.number, self.alone = crowd, number, alone
        self.since = time.perf_counter()
        self._house = house
        self._reasons = 0  # to be outside

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Leave the place to others while the request waits for what may never come; it comes back in any case."""
        self._reasons += 1
        if self._reasons == 1:
            self._house.free()
        try:
            yield
        finally:
            self._reasons -= 1
            if self._reasons == 0:
                self._house.take()

    def leave(self, kind: Hashable = None, seconds: float | None = None) -> None:
        """Give the place up for good.

        Args:
            kind: requests of one kind take about as long as each other.
            seconds: that it took; None where that tells nothing of how busy the service is.
        """
        if seconds is not None:
            self._house.learn(self, kind, seconds)
        self._house.leave()
