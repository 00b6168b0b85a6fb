"""What every model's replica does with questions that it cannot answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmd.config import ServeSettings
from serve_apps.replica import PartStatus, Refs, Refused, Replica, each, sheltered


@dataclass
class Asked:
    id: str
    number: int
    words: str = "my address is 12 Rose Lane"


class Counter(Replica[int]):
    """Divides a dozen."""

    def __init__(self, store: Path) -> None:
        super().__init__("intent", Refs, str(store), "none", ServeSettings())

    def _load(self, _: dict[str, str]) -> int:
        return 12

    def _describe(self, _: int) -> PartStatus:
        return PartStatus("intent")

    @sheltered
    async def answer(self, query: Asked) -> int:
        if query.number == 0:
            raise ZeroDivisionError(query.words)
        return 12 // query.number


def test_what_a_replica_fails_of_is_refused_and_logged_without_its_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Serve logs what leaves a replica as an error, words and all; nothing does."""
    replica = Counter(tmp_path)
    assert asyncio.run(replica.answer(Asked("r1", 4))) == 3
    refused = asyncio.run(replica.answer(Asked("r2", 0)))
    assert isinstance(refused, Refused)
    assert (refused.status, refused.code) == (500, "part_failed")
    assert "ZeroDivisionError" in refused.message
    assert "r2" in refused.message
    captured = capsys.readouterr()
    logged = captured.out + captured.err
    assert "part_failed" in logged
    assert "test_replica.py" in logged  # where
    assert "Rose Lane" not in logged + refused.message


def test_a_request_that_nobody_waits_for_is_given_up(tmp_path: Path):
    """A cancelled call is no failure."""

    class Slow(Counter):
        @sheltered
        async def answer(self, query: Asked) -> int:
            await asyncio.sleep(60)
            return query.number

    async def scenario() -> None:
        asked = asyncio.ensure_future(Slow(tmp_path).answer(Asked("r", 1)))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(scenario())


def test_one_that_cannot_be_answered_spoils_no_other():
    calls: list[list[int]] = []

    def divide(numbers: Sequence[int]) -> list[int]:
        calls.append(list(numbers))
        return [12 // number for number in numbers]

    assert each(divide, [1, 2, 3]) == [12, 6, 4]
    assert calls == [[1, 2, 3]]  # together
    first, failed, last = each(divide, [3, 0, 4])
    assert (first, last) == (4, 3)
    assert isinstance(failed, ZeroDivisionError)
