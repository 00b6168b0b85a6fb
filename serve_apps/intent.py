"""Intent recognition as a deployment: one engine a replica, pictures read one by one, decisions made in batches.

The large model runs in the engine's own process through transformers, on the CPU or on ``serve.gpus_per_replica`` GPUs;
every replica holds its base weights once, whatever adapters pass. Or a vLLM server runs it (``models.mllm_url``), as
:mod:`serve_apps.llm` brings one up; replicas then hold its tokenizer and processor only.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import groupby

from ray import serve
from ray.util.metrics import Counter

from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.errors import RequestError
from mmd.features.settings import FeatureSettings
from mmd.intent.engine import SHAPES, IntentAnswer, IntentEngine, IntentModel, IntentQuery, PreparedQuery
from mmd.models.settings import ModelSettings
from serve_apps.api import ExampleOut, ExamplesResponse, TaskOut, TasksResponse
from serve_apps.examples import pick_examples
from serve_apps.metrics import PartMetrics
from serve_apps.replica import PartStatus, Refs, Refused, Replica, each, sheltered


class IntentRefs(Refs):
    """Which artefacts answer, as ``kind/name@version``; absent: the newest of the corpus. This is ``user_config``."""

    features: str | None = None
    rulebase: str | None = None
    classifier: str | None = None
    adapter: str | None = None
    gate: str | None = None


class _Metrics(PartMetrics):
    """What is counted of the answers."""

    def __init__(self) -> None:
        super().__init__("intent")
        self._predictions = Counter("mmd_intent_predictions", "Predictions by task and arm.", tag_keys=("task", "arm"))

    def record(self, answer: IntentAnswer) -> None:
        """Count one answer."""
        for prediction in answer.predictions:
            self._predictions.inc(tags={"task": prediction.task, "arm": prediction.arm})
        self.record_parts(answer.degraded, answer.timings_ms)


class IntentReplica(Replica[IntentEngine]):
    """Holds one engine a replica; pictures are read request by request, texts and decisions in batches.

    Args:
        store: URI of the artefact store.
        corpus: name of the corpus.
        settings: batching, caches, OCR.
        features: sizes and threads of the extractors.
        models: where base weights come from, and the large model's device and arithmetic.
    """

    def __init__(
        self,
        store: str,
        corpus: str,
        settings: ServeSettings,
        features: FeatureSettings | None = None,
        models: ModelSettings | None = None,
    ) -> None:
        super().__init__("intent", IntentRefs, store, corpus, settings, features, models)
        if settings.gpus_per_replica == 0 and self._models.device == "auto":
            # Without a reservation, whether Ray hides the GPUs depends on its version; nobody else's is taken.
            self._models = self._models.model_copy(update={"device": "cpu"})
        self._examples: tuple[str, tuple[ExampleOut, ...]] = ("", ())  # of which corpus, as reference
        self._metrics = _Metrics()
        self._limit_batches(self._decide)

    def _load(self, refs: dict[str, str]) -> IntentEngine:
        # Late answers of the large model must leave rules and probe the time to answer.
        mllm_timeout_s = min(self._settings.mllm_timeout_s, 0.8 * self._settings.request_timeout_s)
        online = replace(self._online_settings(), mllm_timeout_s=mllm_timeout_s)
        return IntentEngine.from_store(self._store, self._corpus, refs=refs, settings=online)

    def _describe(self, engine: IntentEngine) -> PartStatus:
        return to_status(engine.model)

    @sheltered
    async def answer(self, query: IntentQuery) -> IntentAnswer | Refused:
        """Answer one query, or say why it is not answered."""
        if refusal := self.refusal:
            return refusal
        engine = self.engine
        try:
            engine.tasks_for(query)
        except RequestError as err:
            return Refused(400, "unknown_task" if query.task is not None else "task_required", str(err), "task")
        read = asyncio.to_thread(engine.prepare, query) if query.images else None
        prepared = await read if read else engine.prepare(query)
        answer: IntentAnswer | Exception = await self._decide((engine, prepared))
        if isinstance(answer, Exception):
            raise answer
        self._metrics.record(answer)
        self._log.info(
            "intent_answered",
            request_id=query.dialogue.id,
            turns=len(query.dialogue.turns),
            pictures=len(query.images),
            arms={p.task: p.arm for p in answer.predictions},
            mllm_shares=dict(answer.mllm_shares),
            degraded=answer.degraded,
            timings_ms={stage: round(elapsed, 2) for stage, elapsed in answer.timings_ms.items()},
        )
        return answer

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def _decide(self, entries: list[tuple[IntentEngine, PreparedQuery]]) -> list[IntentAnswer | Exception]:
        """Decide a batch; during a swap it may hold queries prepared for either engine."""
        answers: list[IntentAnswer | Exception] = []
        for _, group in groupby(entries, key=lambda entry: id(entry[0])):
            members = list(group)
            prepared = [entry for _, entry in members]
            answers += await asyncio.to_thread(each, members[0][0].decide, prepared)
        return answers

    async def tasks(self) -> TasksResponse:
        """Return the tasks that are answered."""
        if self.refusal:
            return TasksResponse(tasks=())
        return to_tasks(self.engine.model)

    async def examples(self) -> ExamplesResponse:
        """Return dialogues to try."""
        if self.refusal:
            return ExamplesResponse(examples=())
        wanted = self.engine.model.artifacts["corpus"]
        if self._examples[0] != wanted:
            self._examples = (wanted, await asyncio.to_thread(self._pick_examples, wanted))
        return ExamplesResponse(examples=self._examples[1])

    def _pick_examples(self, corpus: str) -> tuple[ExampleOut, ...]:
        return pick_examples(Corpus(self._store.open(corpus, verify=False)), self._settings.examples)


def to_tasks(model: IntentModel) -> TasksResponse:
    """Return the wire form of a model's tasks."""
    return TasksResponse(
        tasks=tuple(
            TaskOut(name=task, labels=labels, takes=tuple(s for s in SHAPES if s in model.shapes.get(task, ())))
            for task, labels in model.tasks.items()
        )
    )


def to_status(model: IntentModel) -> PartStatus:
    """Return what a model answers with."""
    return PartStatus("intent", artifacts=dict(model.artifacts), degraded=model.degraded)
