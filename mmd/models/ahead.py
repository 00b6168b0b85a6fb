"""Loading beside training."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

T = TypeVar("T")


def ahead(items: Iterator[T], count: int) -> Generator[T, None, None]:
    """Yield the items of an iterator that a thread works through, up to ``count`` items ahead.

    Decoding of the next batches, and the start of the next pass, then overlap with training.
    """
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield cast("T", item)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
