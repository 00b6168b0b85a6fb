"""Retrieval as a deployment: one engine over a retriever and an index a replica, queries ranked in batches."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from ray import serve
from ray.util.metrics import Counter

from mmd.config import ServeSettings
from mmd.errors import MmdError, RequestError
from mmd.features.settings import FeatureSettings
from mmd.models.settings import ModelSettings
from mmd.retrieval.engine import RetrievalAnswer
from mmd.retrieval.loading import load_online
from mmd.retrieval.online import OnlineRetrieval, PreparedRetrieval
from mmd.retrieval.pictures import ResponsePictures
from mmd.schema import Image
from serve_apps.answers import RetrievalResult
from serve_apps.limits import RetrievalQuery
from serve_apps.metrics import PartMetrics
from serve_apps.replica import PartStatus, Refs, Refused, Replica, each, sheltered, unknown_picture

Outcome = RetrievalAnswer | Refused | Exception


class Wanted(NamedTuple):
    """What of the responses a query asks for; those that ask for the same are ranked together."""

    k: int
    modality: str | None
    each: bool

    @classmethod
    def of(cls, query: RetrievalQuery) -> Wanted:
        """Return it of a query."""
        return cls(query.k, query.modality, query.each)


class RetrievalRefs(Refs):
    """Which artefacts answer, as ``kind/name@version``; absent: the newest index of the corpus and its retriever."""

    retriever: str | None = None
    index: str | None = None


class _Metrics(PartMetrics):
    """What is counted of the answers."""

    def __init__(self) -> None:
        super().__init__("retrieval")
        self._answers = Counter("mmd_retrieval_answers", "Answers by modality of the best.", tag_keys=("modality",))

    def record(self, result: RetrievalResult) -> None:
        """Count one answer."""
        for hit in result.answer.hits[:1]:
            self._answers.inc(tags={"modality": hit.response.modality})
        self.record_parts(result.degraded, result.answer.timings_ms)


class RetrievalReplica(Replica[OnlineRetrieval]):
    """Holds one engine a replica; pictures are read request by request, queries ranked in batches.

    Args:
        store: URI of the artefact store.
        corpus: name of the corpus.
        settings: batching, caches.
        features: sizes and threads of the extractors.
        models: where base weights come from, device and arithmetic.
    """

    def __init__(
        self,
        store: str,
        corpus: str,
        settings: ServeSettings,
        features: FeatureSettings | None = None,
        models: ModelSettings | None = None,
    ) -> None:
        super().__init__("retrieval", RetrievalRefs, store, corpus, settings, features, models)
        # No GPU is reserved for it, so none is taken.
        self._models = self._models.model_copy(update={"device": "cpu"})
        self._metrics = _Metrics()
        self._limit_batches(self._rank)

    def _load(self, refs: dict[str, str]) -> OnlineRetrieval:
        return load_online(self._store, self._corpus, refs, self._online_settings())

    def _describe(self, engine: OnlineRetrieval) -> PartStatus:
        return status_of(engine)

    @sheltered
    async def answer(self, query: RetrievalQuery) -> RetrievalResult | Refused:
        """Answer one query, or say why it is not answered."""
        if refusal := self.refusal or unknown_modality(self.engine, query.modality):
            return refusal
        engine = self.engine
        read = asyncio.to_thread(engine.prepare, query.query, query.images) if query.images else None
        prepared = await read if read else engine.prepare(query.query, {})
        outcome: Outcome = await self._rank((engine, prepared, query))
        result = to_result(engine, prepared, outcome)
        if isinstance(result, Refused):
            return result
        self._metrics.record(result)
        self._log.info(
            "retrieval_answered",
            request_id=query.id,
            turns=len(query.query.turns),
            pictures=len(query.images),
            hits=len(result.answer.hits),
            modality=result.answer.modality,
            degraded=result.degraded,
            timings_ms={stage: round(elapsed, 2) for stage, elapsed in result.answer.timings_ms.items()},
        )
        return result

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def _rank(self, entries: list[tuple[OnlineRetrieval, PreparedRetrieval, RetrievalQuery]]) -> list[Outcome]:
        """Rank a batch; during a swap it may hold queries for either engine."""
        groups: dict[tuple[int, Wanted], list[int]] = defaultdict(list)
        for place, (engine, _, query) in enumerate(entries):
            groups[id(engine), Wanted.of(query)].append(place)
        outcomes: dict[int, Outcome] = {}
        for (_, wanted), places in groups.items():
            engine = entries[places[0]][0]
            prepared = [entries[place][1] for place in places]
            found = await asyncio.to_thread(rank_each, engine, prepared, wanted)
            outcomes.update(zip(places, found, strict=True))
        return [outcomes[place] for place in range(len(entries))]

    @sheltered
    async def picture(self, image_id: str) -> Image | Refused:
        """Return a response's picture."""
        if refusal := self.refusal:
            return refusal
        return self.engine.pictures.get(image_id) or unknown_picture(image_id)


def status_of(engine: OnlineRetrieval) -> PartStatus:
    """Return what an engine answers with."""
    return PartStatus("retrieval", artifacts=engine.artifacts, degraded=engine.degraded, modalities=engine.modalities)


def unknown_modality(engine: OnlineRetrieval, modality: str | None) -> Refused | None:
    """Refuse a modality that the retriever does not know."""
    if modality is None or modality in engine.modalities:
        return None
    message = f"modality: {modality[:80]!r} is unknown; this service ranks {', '.join(engine.modalities)}."
    return Refused(400, "unknown_modality", message, "modality")


def rank_one(engine: OnlineRetrieval, query: RetrievalQuery) -> RetrievalResult | Refused:
    """Answer one query on the spot, without batching."""
    if refusal := unknown_modality(engine, query.modality):
        return refusal
    prepared = engine.prepare(query.query, query.images)
    (outcome,) = rank_each(engine, [prepared], Wanted.of(query))
    return to_result(engine, prepared, outcome)


def rank_each(engine: OnlineRetrieval, prepared: Sequence[PreparedRetrieval], wanted: Wanted) -> list[Outcome]:
    """Rank several queries together; one that cannot be ranked spoils no other."""

    def rank(some: Sequence[PreparedRetrieval]) -> list[RetrievalAnswer]:
        return list(engine.rank(some, wanted.k, wanted.modality, each=wanted.each))

    return [_understood(outcome) for outcome in each(rank, prepared)]


def _understood(outcome: RetrievalAnswer | Exception) -> Outcome:
    """Turn an error that tells its reason into a refusal."""
    if isinstance(outcome, RequestError):
        return Refused(400, "invalid_request", str(outcome))
    return Refused(503, "unavailable", str(outcome)) if isinstance(outcome, MmdError) else outcome


def to_result(engine: OnlineRetrieval, prepared: PreparedRetrieval, outcome: Outcome) -> RetrievalResult | Refused:
    """Put an answer together with what the service knows of it; a failure that is not understood is raised."""
    if isinstance(outcome, Refused):
        return outcome
    if isinstance(outcome, Exception):
        raise outcome
    return RetrievalResult(
        outcome,
        pictures=shown_pictures(outcome, engine.pictures),
        degraded=(*engine.degraded, *prepared.problems),
        artifacts=engine.artifacts,
    )


def shown_pictures(answer: RetrievalAnswer, pictures: ResponsePictures) -> frozenset[str]:
    """Return the ids of an answer's pictures that are there."""
    named = (hit.response.image_id for hit in answer.hits)
    return frozenset(image_id for image_id in named if image_id is not None and image_id in pictures)
