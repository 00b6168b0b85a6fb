"""Calls that may take too long: made in a thread of their own, and given up when their time is over."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class TimedCalls:
    """Makes calls one at a time in one thread and waits for each a limited time, its turn included.

    A call that is given up runs on, since nothing can stop a forward pass. Until it ends, others are refused at once:
    waiting behind it would only make them late too.

    Args:
        timeout_s: longest wait for one call.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._late: Future[Any] | None = None
        # A daemon, so that a call that never ends does not keep the process from ending.
        threading.Thread(target=_work, args=(self._calls,), name="timed-calls", daemon=True).start()
        weakref.finalize(self, self._calls.put, None)  # the thread ends after the calls that wait

    def __call__(self, call: Callable[[], T], *, deadline: float | None = None) -> T:
        """Return the call's result, or raise what it raised.

        Args:
            call: what to do.
            deadline: :func:`time.monotonic` at which the wait ends; None: ``timeout_s`` from now.

        Raises:
            TimeoutError: it took too long, or an earlier call that did is still running.
        """
        if self._late is not None and not self._late.done():
            raise TimeoutError("still busy with an earlier question")
        future: Future[T] = Future()
        self._calls.put((call, future))
        left_s = self.timeout_s if deadline is None else deadline - time.monotonic()
        try:
            return future.result(max(0.0, left_s))
        except TimeoutError:
            if future.done():  # in the very last moment, or the call itself raised this error
                return future.result()
            if not future.cancel():  # it has begun
                self._late = future
            raise TimeoutError(f"no answer within {self.timeout_s:g} s") from None


def _work(calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    """Make the calls in order; holds no reference to their owner, which may go while a call runs on."""
    while (entry := calls.get()) is not None:
        call, future = entry
        if not future.set_running_or_notify_cancel():
            continue
        try:
            result = call()
        except BaseException as err:  # noqa: BLE001 (it belongs to whoever waits)
            future.set_exception(err)
        else:
            future.set_result(result)
        del entry, call, future  # what they hold may be a model that has been replaced
