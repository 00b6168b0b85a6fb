"""Limit the threads of torch while a model runs."""

from __future__ import annotations

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
