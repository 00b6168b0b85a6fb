"""Extractors that engines share while one takes the place of another."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Sequence

from mmd.features.shared import shared


class Encoder:
    """Tells how many use it at once."""

    info = "encoder-1"

    def __init__(self) -> None:
        self.inside = self.most = 0

    def encode(self, inputs: Sequence[str]) -> list[int]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.02)
        self.inside -= 1
        return [len(text) for text in inputs]


def test_who_asks_while_it_is_held_gets_the_same_and_who_asks_later_a_new_one():
    made: list[Encoder] = []

    def make() -> Encoder:
        made.append(Encoder())
        return made[-1]

    first = shared(("text", "a"), make)
    assert shared(("text", "a"), make) is first
    assert shared(("text", "b"), make) is not first
    assert first.info == "encoder-1"
    del first
    gc.collect()
    shared(("text", "a"), make)
    assert len(made) == 3


def test_what_is_not_there_is_looked_for_again():
    assert shared("ocr", lambda: None) is None
    assert shared("ocr", Encoder).info == "encoder-1"


def test_one_thread_at_a_time_encodes():
    own = Encoder()
    encoder = shared("one", lambda: own)
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(encoder.encode(["ab", "c"]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[2, 1]] * 4
    assert own.most == 1
