"""Limit the threads of torch while a model runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run the ``with`` on ``count`` CPU threads of torch; the limit before comes back afterwards.

    Many workers on one machine each taking every core run slower than one thread each.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def worker_threads(threads: int, workers: int) -> int:
    """Return the CPU threads of each of some workers of one machine.

    Args:
        threads: what the settings say; 0: the cores shared out.
        workers: how many there are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return threads or max(1, cores // workers)
