"""Recommendation as a deployment: one student a replica, replies decoded in batches, or piece by piece."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from typing import TypeVar

from ray import serve
from ray.util.metrics import Counter

from mmd.config import ServeSettings
from mmd.errors import RequestError
from mmd.features.settings import FeatureSettings
from mmd.models.settings import ModelSettings
from mmd.recommend.engine import RecommendAnswer, UnknownItemError
from mmd.recommend.loading import load_online
from mmd.recommend.online import OnlineRecommender, PreparedRecommendation, RecommendQuery
from mmd.recommend.settings import GenerationSettings
from mmd.schema import Image
from serve_apps.answers import RecommendResult, StreamPiece
from serve_apps.metrics import PartMetrics
from serve_apps.replica import PartStatus, Refs, Refused, Replica, each, sheltered, unknown_picture

T = TypeVar("T")


class RecommendRefs(Refs):
    """Which artefact answers, as ``kind/name@version``; absent: the newest student of the corpus, with its graph."""

    student: str | None = None


class _Metrics(PartMetrics):
    """What is counted of the answers."""

    def __init__(self) -> None:
        super().__init__("recommend")
        self._answers = Counter("mmd_recommend_answers", "Replies by mode.", tag_keys=("mode",))
        self._items = Counter("mmd_recommend_items", "Items that replies name.")

    def record(self, result: RecommendResult) -> None:
        """Count one answer."""
        self._answers.inc(tags={"mode": result.answer.mode})
        if named := sum(piece.item_id is not None for piece in result.answer.pieces):
            self._items.inc(named)
        self.record_parts(result.degraded, result.answer.timings_ms)


class RecommendReplica(Replica[OnlineRecommender]):
    """Holds one student a replica.

    Args:
        store: URI of the artefact store.
        corpus: name of the corpus.
        settings: batching.
        features: not read; every replica is made alike.
        models: where base weights come from, and threads.
        generation: how replies are decoded.
    """

    def __init__(
        self,
        store: str,
        corpus: str,
        settings: ServeSettings,
        features: FeatureSettings | None = None,
        models: ModelSettings | None = None,
        generation: GenerationSettings | None = None,
    ) -> None:
        super().__init__("recommendation", RecommendRefs, store, corpus, settings, features, models)
        # No GPU is reserved for it, so none is taken.
        self._models = self._models.model_copy(update={"device": "cpu"})
        self._generation = generation or GenerationSettings()
        self._metrics = _Metrics()
        self._limit_batches(self._decode)

    def _load(self, refs: dict[str, str]) -> OnlineRecommender:
        return load_online(self._store, self._corpus, refs, self._generation, self._models)

    def _describe(self, engine: OnlineRecommender) -> PartStatus:
        return status_of(engine)

    @sheltered
    async def answer(self, query: RecommendQuery) -> RecommendResult | Refused:
        """Answer one query, or say why it is not answered."""
        if refusal := self.refusal:
            return refusal
        engine = self.engine
        prepared = prepare(engine, query)
        if isinstance(prepared, Refused):
            return prepared
        answer: RecommendAnswer | Exception = await self._decode((engine, prepared))
        if isinstance(answer, Exception):
            raise answer
        result = to_result(engine, prepared, answer)
        self._tell(query, result, streamed=False)
        return result

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def _decode(
        self, entries: list[tuple[OnlineRecommender, PreparedRecommendation]]
    ) -> list[RecommendAnswer | Exception]:
        """Decode a batch; during a swap it may hold queries for either engine."""
        groups: dict[int, list[int]] = defaultdict(list)
        for place, (engine, _) in enumerate(entries):
            groups[id(engine)].append(place)
        answers: dict[int, RecommendAnswer | Exception] = {}
        for places in groups.values():
            engine = entries[places[0]][0]
            found = await asyncio.to_thread(each, engine.answer, [entries[place][1] for place in places])
            answers.update(zip(places, found, strict=True))
        return [answers[place] for place in range(len(entries))]

    async def stream(self, query: RecommendQuery) -> AsyncGenerator[StreamPiece | Refused]:
        """Answer one query piece by piece, or say why it is not answered; stops where nobody listens any more."""
        if refusal := self.refusal:
            yield refusal
            return
        try:
            async with aclosing(stream_one(self.engine, query)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, StreamPiece) and piece.result is not None:
                        self._tell(query, piece.result, streamed=True)
                    yield piece
        except Exception as err:  # noqa: BLE001 (Serve would log it with its words, see sheltered)
            yield self.failed(err, query.id)

    def _tell(self, query: RecommendQuery, result: RecommendResult, *, streamed: bool) -> None:
        answer = result.answer
        self._metrics.record(result)
        self._log.info(
            "recommendation_answered",
            request_id=query.id,
            turns=len(query.turns),
            streamed=streamed,
            mode=answer.mode,
            tokens=len(answer.trace),
            items=sum(piece.item_id is not None for piece in answer.pieces),
            degraded=result.degraded,
            timings_ms={stage: round(elapsed, 2) for stage, elapsed in answer.timings_ms.items()},
        )

    @sheltered
    async def picture(self, image_id: str) -> Image | Refused:
        """Return an item's picture."""
        if refusal := self.refusal:
            return refusal
        return self.engine.pictures.get(image_id) or unknown_picture(image_id)


def status_of(engine: OnlineRecommender) -> PartStatus:
    """Return what an engine answers with."""
    return PartStatus("recommendation", artifacts=engine.artifacts, degraded=engine.degraded)


def prepare(engine: OnlineRecommender, query: RecommendQuery) -> PreparedRecommendation | Refused:
    """Read a dialogue, or say what is wrong with it."""
    try:
        return engine.prepare(query)
    except UnknownItemError as err:
        return Refused(400, "unknown_item", str(err), f"turns[{err.turn}].item_ids[{err.place}]")
    except RequestError as err:
        return Refused(400, "invalid_request", str(err))


def to_result(engine: OnlineRecommender, prepared: PreparedRecommendation, answer: RecommendAnswer) -> RecommendResult:
    """Put an answer together with what the service knows of it."""
    return RecommendResult(answer, degraded=(*engine.degraded, *prepared.problems), artifacts=engine.artifacts)


def recommend_one(engine: OnlineRecommender, query: RecommendQuery) -> RecommendResult | Refused:
    """Answer one query on the spot, without batching."""
    prepared = prepare(engine, query)
    if isinstance(prepared, Refused):
        return prepared
    (answer,) = engine.answer([prepared])
    return to_result(engine, prepared, answer)


async def stream_one(engine: OnlineRecommender, query: RecommendQuery) -> AsyncGenerator[StreamPiece | Refused]:
    """Answer one query piece by piece, each decoded in a thread of its own."""
    prepared = prepare(engine, query)
    if isinstance(prepared, Refused):
        yield prepared
        return
    async with aclosing(in_threads(engine.stream(prepared))) as events:
        async for event in events:
            yield StreamPiece(event, None if event.answer is None else to_result(engine, prepared, event.answer))


async def in_threads(steps: Generator[T]) -> AsyncGenerator[T]:
    """Yield what a generator yields, each step taken in a thread.

    Given up, the generator is closed once the step that is under way, which nothing can interrupt, is over.
    """
    step = asyncio.ensure_future(asyncio.to_thread(next, steps, None))
    try:
        while (taken := await asyncio.shield(step)) is not None:
            yield taken
            step = asyncio.ensure_future(asyncio.to_thread(next, steps, None))
    finally:
        step.add_done_callback(lambda _: steps.close())
