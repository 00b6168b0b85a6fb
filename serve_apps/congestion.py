"""How many requests are worked on at a time: as many as are not much slower together than each is alone.

Queues of a fixed length let everybody wait as long as a full queue takes. Here those who are let in are answered
almost as fast as ever, and the others are told at once to come back. How many those are is not known beforehand, it is
found as TCP finds its window: one more where the last ones were fast, a tenth fewer where they were slow (additive
increase, multiplicative decrease).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from serve_apps.api import ApiError

RETRY_AFTER_S = 1
_ALONE = 2  # requests at a time up to which one counts as alone
_KNOWN = 10  # requests of a kind until its time alone is known
_SLOWLY = 0.05  # weight of a request in the time alone of its kind
_QUICKLY = 0.2  # weight of a request in the slowdown
_MORE = 0.5
_FEWER = 0.9


@dataclass
class _Alone:
    """What a kind of request takes alone, s."""

    seconds: float = 0.0
    seen: int = 0

    def learn(self, seconds: float) -> None:
        self.seen += 1
        self.seconds += max(_SLOWLY, 1 / self.seen) * (seconds - self.seconds)

    @property
    def known(self) -> bool:
        return self.seen >= _KNOWN and self.seconds > 0


class Congestion:
    """Lets requests in.

    Args:
        slowdown: times its time alone that a request may take on average.
        least: requests at a time that are let in in any case.
    """

    def __init__(self, slowdown: float, least: int) -> None:
        self._slowdown = slowdown
        self._least = float(least)
        self._most = 2.0 * least
        self._now = 0
        self._slower = 1.0
        self._alone: dict[Hashable, _Alone] = {}

    @property
    def most(self) -> int:
        """Requests at a time that are let in now."""
        return int(self._most)

    def enter(self) -> int:
        """Let a request in; return how many there are with it.

        Raises:
            ApiError: 429, there are too many.
        """
        if self._now >= int(self._most):
            message = f"the service is busy; try again in {RETRY_AFTER_S} s."
            raise ApiError(429, "overloaded", message, retry_after_s=RETRY_AFTER_S)
        self._now += 1
        return self._now

    def leave(self, crowd: int, kind: Hashable = None, seconds: float | None = None) -> None:
        """Count a request out that was let in.

        Args:
            crowd: what :meth:`enter` returned.
            kind: requests of one kind take about as long as each other.
            seconds: that it took; None where that tells nothing of how busy the service is.
        """
        self._now -= 1
        if seconds is None:
            return
        alone = self._alone.setdefault(kind, _Alone())
        if crowd <= _ALONE:
            alone.learn(seconds)
        if not alone.known:
            return
        self._slower += _QUICKLY * (seconds / alone.seconds - self._slower)
        if self._slower > self._slowdown:
            self._most = max(self._least, self._most * _FEWER)
        elif crowd >= int(self._most):
            self._most += _MORE

    def refused(self) -> None:
        """Learn that a model's own queue was full."""
        self._most = max(self._least, self._most * _FEWER)
