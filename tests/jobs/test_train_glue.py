"""What stands around Ray Train: interrupts, and a Ray that does not start."""

from __future__ import annotations

import signal
import sys

import pytest

from jobs.glue.cluster import busy_machine
from jobs.glue.train import own_interrupts
from mmd.errors import MmdError


def test_an_aborted_training_is_an_interrupt_and_leaves_the_handler_as_it_was():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), own_interrupts():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Ray Train puts in a handler of its own
        sys.exit(0)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_training_leaves_the_handler_as_it_was():
    before = signal.getsignal(signal.SIGINT)
    with own_interrupts():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_ray_that_gives_up_starting_is_told_with_the_way_out():
    with pytest.raises(MmdError, match="very busy"), busy_machine():
        raise Exception("The current node timed out during startup. …")  # noqa: TRY002 (what Ray raises)
    with pytest.raises(ValueError, match="other"), busy_machine():
        raise ValueError("other")
