"""Recommendation online: dialogues with items by their ids in, replies out, at once or piece by piece."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Generator as Pieces
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmd.errors import RequestError
from mmd.models.threads import torch_threads
from mmd.recommend.engine import AnswerEvent, AnswerMaker, RecommendAnswer, Vector, check_items
from mmd.recommend.replies import Event
from mmd.recommend.samples import context_of
from mmd.recommend.types import Context, Mode
from mmd.schema import Image, Turn

if TYPE_CHECKING:
    from mmd.recommend.generate import Generator
    from mmd.recommend.linking import Linker


@dataclass(frozen=True)
class RecommendQuery:
    """A question to the student.

    Attributes:
        id: of the request; what is drawn by chance depends on it.
        turns: the dialogue, oldest first.
        k: likeliest items that are wanted.
        mode: in which it is to be answered; None: the student decides.
        pictures: how many the turns show; the student sees none of them.
    """

    id: str
    turns: tuple[Turn, ...]
    k: int = 10
    mode: Mode | None = None
    pictures: int = 0


@dataclass(frozen=True)
class PreparedRecommendation:
    """A query whose items and entities have been found.

    Attributes:
        query: itself.
        context: what the student reads.
        link_ms: time that the finding took.
        problems: what of the query is left out, and why.
    """

    query: RecommendQuery
    context: Context
    link_ms: float
    problems: tuple[str, ...]


class OnlineRecommender:
    """A student that answers dialogues; threads may share it, and decode one after another.

    Args:
        generator: decodes with the student.
        linker: finds items and entities in the turns, as it did before training.
        pictures: image id → picture of an item.
        images: item id → id of its picture.
        artifacts: role → reference of what answers.
        threads: CPU threads of the decoding.
        degraded: what was missing at loading, repeated in answers.
    """

    def __init__(
        self,
        generator: Generator,
        linker: Linker,
        *,
        pictures: Mapping[str, Image] | None = None,
        images: Mapping[str, str] | None = None,
        artifacts: Mapping[str, str] | None = None,
        threads: int = 1,
        degraded: tuple[str, ...] = (),
    ) -> None:
        self.pictures = pictures or {}
        self.artifacts = artifacts or {}
        self.degraded = degraded
        self._generator = generator
        self._linker = linker
        self._make = AnswerMaker(linker.graph, generator.tokenizer, images or {})
        self._threads = threads
        self._lock = threading.Lock()  # networks share their caches and torch its threads

    def prepare(self, query: RecommendQuery) -> PreparedRecommendation:
        """Find the items and entities of a dialogue.

        Raises:
            UnknownItemError: a turn names an item that there is not.
            RequestError: no turn has anything to go by.
        """
        started = time.perf_counter()
        if not query.pictures and not any(turn.text.strip() or turn.image_ids or turn.item_ids for turn in query.turns):
            raise RequestError("no turn has text, a picture or a product; there is nothing to answer. Add a turn.")
        check_items(query.turns, self._linker.graph)
        linked = [self._linker.turn(turn) for turn in query.turns]
        context = context_of(linked, self._generator.maker.settings)
        link_ms = (time.perf_counter() - started) * 1000
        return PreparedRecommendation(query, context, link_ms, tuple(self._problems(query)))

    def _problems(self, query: RecommendQuery) -> Iterator[str]:
        if query.pictures:
            yield "pictures: left out, the student reads words and products only"
        if query.mode == "rec" and not self._generator.rules.mode_tokens:
            yield "mode: the student was trained without modes; it may name products, but cannot be told to"

    def answer(self, prepared: Sequence[PreparedRecommendation]) -> list[RecommendAnswer]:
        """Return one answer a query, in order; those whose mode is given are decoded beside the others."""
        answers: dict[int, RecommendAnswer] = {}
        for mode in dict.fromkeys(entry.query.mode for entry in prepared):
            rows = [row for row, entry in enumerate(prepared) if entry.query.mode == mode]
            answers |= zip(rows, self._together([prepared[row] for row in rows], mode), strict=True)
        return [answers[row] for row in range(len(prepared))]

    def _together(self, prepared: Sequence[PreparedRecommendation], mode: Mode | None) -> list[RecommendAnswer]:
        with self._lock, torch_threads(self._threads):
            started = time.perf_counter()
            replies = self._generator.answer(
                [entry.context for entry in prepared],
                [entry.query.id for entry in prepared],
                gold_modes=None if mode is None else [mode] * len(prepared),
            )
            silent = [entry.context for entry, reply in zip(prepared, replies, strict=True) if not reply.items]
            first = iter(self._generator.first_items(silent) if silent else ())
            elapsed_ms = (time.perf_counter() - started) * 1000
        return [
            self._make.answer(
                reply, entry.query.k, {"link": entry.link_ms, "generate": elapsed_ms}, functools.partial(next, first)
            )
            for entry, reply in zip(prepared, replies, strict=True)
        ]

    def stream(self, prepared: PreparedRecommendation) -> Pieces[AnswerEvent]:
        """Yield an answer piece by piece as it is decoded; other queries are answered between the pieces."""
        query = prepared.query
        told = self._generator.stream(prepared.context, query.id, query.mode)
        timings_ms, first = {"link": prepared.link_ms}, functools.partial(self._first_items, prepared.context)
        yield from self._make.events(self._by_turns(told), query.k, timings_ms, first)

    def _first_items(self, context: Context) -> Vector:
        with self._lock, torch_threads(self._threads):
            found: Vector = self._generator.first_items([context])[0]
        return found

    def _by_turns(self, told: Iterator[Event]) -> Iterator[Event]:
        """Take events one by one, the model being free for others in between."""
        while True:
            with self._lock, torch_threads(self._threads):
                event = next(told, None)
            if event is None:
                return
            yield event
