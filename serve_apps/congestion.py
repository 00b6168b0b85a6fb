"""How many requests are worked on at a time: as many as are not much slower together than each is alone.

Queues of a fixed length let everybody wait as long as a full queue takes. Here those who are let in are answered
almost as fast as ever, and the others are told at once to come back. How many those are is found by trying: half a
place more for each that found the house full and was fast, a fifth fewer, at most once a second, where they were slow
(additive increase, multiplicative decrease). A swap or a burst slows a few requests down for part of a second, which is
no reason to refuse anybody; places that were lost to one come back while all is well.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from serve_apps.api import ApiError

RETRY_AFTER_S = 1
_ALONE = 2  # requests at a time up to which one counts as alone
_KNOWN = 10  # requests of a kind until its usual time is known
_KEPT = 101
_WEIGHT = 0.2  # of a request in the mean slowdown
_MORE = 0.5
_FEWER = 0.8
_CUT_S = 1.0  # between cuts
_BACK = 0.05  # of a place that comes back with a request that was fast, up to as many as there were at first


def _recent() -> deque[float]:
    return deque(maxlen=_KEPT)


@dataclass
class _Kind:
    """What requests of a kind took lately, s: those that were alone, and the first ones of all."""

    alone: deque[float] = field(default_factory=_recent)
    first: list[float] = field(default_factory=list)

    def learn(self, seconds: float, crowd: int) -> None:
        if crowd <= _ALONE:
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
        self._mean_slowdown = 1.0
        self._cut_at = float("-inf")
        self._kinds: dict[Hashable, _Kind] = defaultdict(_Kind)

    @property
    def places(self) -> int:
        """Requests at a time that are let in now."""
        return int(self._places)

    def enter(self) -> int:
        """Let a request in; return how many there are with it.

        Raises:
            ApiError: 429, there are too many.
        """
        if self._inside >= self.places:
            message = f"the service is busy; try again in {RETRY_AFTER_S} s."
            raise ApiError(429, "overloaded", message, retry_after_s=RETRY_AFTER_S)
        self._inside += 1
        return self._inside

    def leave(self, crowd: int, kind: Hashable = None, seconds: float | None = None) -> None:
        """Count a request out that was let in.

        Args:
            crowd: what :meth:`enter` returned.
            kind: requests of one kind take about as long as each other.
            seconds: that it took; None where that tells nothing of how busy the service is.
        """
        self._inside -= 1
        if seconds is None:
            return
        known = self._kinds[kind]
        known.learn(seconds, crowd)
        usual = known.usual
        if not usual:
            return
        slowdown = min(seconds / usual, 2 * self._slowdown)  # one that took ages says no more than one that was slow
        self._mean_slowdown += _WEIGHT * (slowdown - self._mean_slowdown)
        if self._mean_slowdown > self._slowdown:
            self._cut()
        elif crowd >= self.places:
            self._places += _MORE
        elif self._places < self._first_places:
            self._places += _BACK

    def refused(self) -> None:
        """Learn that a model's own queue was full."""
        self._cut()

    def _cut(self) -> None:
        """Let fewer in, unless that was done less than a second ago."""
        now = time.monotonic()
        if now - self._cut_at >= _CUT_S:
            self._places = max(self._least, self._places * _FEWER)
            self._cut_at = now
