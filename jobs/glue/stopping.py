"""SIGTERM, with which containers and schedulers stop a program, ends a job the way Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Sigterm:
    """A handler that does what Ctrl-C would do just then, and remembers that it was SIGTERM.

    Ray Train aborts its run at Ctrl-C; a shell's background job has Ctrl-C switched off, but not SIGTERM.
    """

    def __init__(self) -> None:
        self.received = False

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        """Hand the signal on.

        Raises:
            KeyboardInterrupt: or what the handler of Ctrl-C raises.
        """
        self.received = True
        on_interrupt = signal.getsignal(signal.SIGINT)
        if callable(on_interrupt):
            on_interrupt(signal.SIGINT, frame)
        raise KeyboardInterrupt


@contextmanager
def sigterm_as_interrupt() -> Iterator[Sigterm]:
    """Let SIGTERM raise :class:`KeyboardInterrupt` while the ``with`` runs; yield what tells whether it came."""
    handler = Sigterm()
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield handler
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield handler
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep a :class:`Sigterm` while Ray starts, which puts a native handler in its place that dumps the stack."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if isinstance(before, Sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
