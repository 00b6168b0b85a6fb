"""The intent application on Ray Serve: HTTP ingress → intent engine.

:func:`build` is the typed builder. Artefacts are swapped without a restart by deploying the same application with
another ``user_config`` (see ``serve_apps/serve_config.yaml``); a swap that cannot be loaded is refused and the old
artefacts go on answering, which ``/readyz`` tells.

The large model runs in the engine's own process through transformers, on the CPU or on ``serve.gpus_per_replica`` GPUs;
every replica holds its base weights once, whatever adapters pass. Serving it by vLLM (``ray.serve.llm``) is not there
yet.
"""

from __future__ import annotations

import asyncio
import gc
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

import structlog
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter, Histogram

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.errors import MmdError, RequestError
from mmd.features.settings import FeatureSettings
from mmd.intent.engine import SHAPES, IntentAnswer, IntentEngine, IntentModel, IntentQuery, PreparedQuery
from mmd.intent.online import OnlineSettings
from mmd.log import configure_logging
from mmd.models.settings import ModelSettings
from serve_apps.api import ApiError, ExampleOut, ExamplesResponse, ReadyResponse, TaskOut, TasksResponse
from serve_apps.examples import pick_examples
from serve_apps.http import create_app, late_answer

RETRY_AFTER_S = 1
_STAGE_BOUNDS_MS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]

T = TypeVar("T")


class ArtifactRefs(BaseModel):
    """Which artefacts answer, as ``kind/name@version``; absent: the newest of the corpus. This is ``user_config``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    features: str | None = None
    rulebase: str | None = None
    classifier: str | None = None
    adapter: str | None = None
    gate: str | None = None

    def given(self) -> dict[str, str]:
        """Return role → reference of those that are set."""
        return {role: ref for role, ref in self.model_dump().items() if ref}


class IntentAppArgs(BaseModel):
    """Arguments of :func:`build`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    store: str = Field(description="Artefact store: absolute path or fsspec URI that every node reaches.")
    corpus: str = Field(default="shop", description="Name of the corpus whose artefacts answer.")
    artifacts: ArtifactRefs = Field(default_factory=ArtifactRefs, description="Versions to start with.")
    serve: ServeSettings = Field(default_factory=ServeSettings, description="Replicas, batching and limits.")
    features: FeatureSettings = Field(default_factory=FeatureSettings, description="Sizes and threads of extractors.")
    models: ModelSettings = Field(
        default_factory=ModelSettings, description="Where base weights come from, device and arithmetic."
    )


def build(args: IntentAppArgs | Mapping[str, Any]) -> serve.Application:
    """Return the application: ingress and intent engine with autoscaling, bounded queues and health checks.

    Args:
        args: a deployment file's ``args`` come as the mapping that YAML makes of them.
    """
    # Serve would validate by the annotation, were it no string (PEP 563).
    args = IntentAppArgs.model_validate(args)
    settings = args.serve
    backpressure = BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S)
    intent = serve.deployment(
        name="intent",
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=max(settings.min_replicas, settings.max_replicas),
            target_ongoing_requests=settings.target_ongoing_requests,
        ),
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=backpressure,
        ray_actor_options={"num_gpus": settings.gpus_per_replica},
        user_config=args.artifacts.model_dump(),
        health_check_period_s=5,
        health_check_timeout_s=30,
    )(IntentReplica).bind(args.store, args.corpus, settings, args.features, args.models)
    # The ingress lets through what the engine may hold and queue, so that the engine's own limit speaks first.
    capacity = settings.max_replicas * settings.max_ongoing_requests + settings.max_queued_requests
    return serve.deployment(
        name="ingress",
        max_ongoing_requests=capacity + settings.max_queued_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=backpressure,
    )(serve.ingress()(Ingress)).bind(intent, settings)


# ---------------------------------------------------------------- the engine's deployment


class _Metrics:
    """What Ray exports to Prometheus beside its own request counts and latencies."""

    def __init__(self) -> None:
        self._predictions = Counter("mmd_intent_predictions", "Predictions by task and arm.", tag_keys=("task", "arm"))
        self._degraded = Counter("mmd_intent_degraded", "Answers made without a part.", tag_keys=("part",))
        self._stages = Histogram(
            "mmd_intent_stage_ms", "Milliseconds of a stage.", boundaries=_STAGE_BOUNDS_MS, tag_keys=("stage",)
        )

    def record(self, answer: IntentAnswer) -> None:
        """Count one answer."""
        for prediction in answer.predictions:
            self._predictions.inc(tags={"task": prediction.task, "arm": prediction.arm})
        for problem in answer.degraded:
            self._degraded.inc(tags={"part": problem.partition(":")[0]})
        for stage, elapsed_ms in answer.timings_ms.items():
            self._stages.observe(elapsed_ms, tags={"stage": stage})


class IntentReplica:
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
        configure_logging(json_lines=True)
        self._log = structlog.get_logger("mmd.intent").bind(corpus=corpus)
        self._store = ArtifactStore(store)
        self._corpus = corpus
        self._settings = settings
        self._features = features or FeatureSettings()
        self._models = models or ModelSettings()
        if settings.gpus_per_replica == 0 and self._models.device == "auto":
            # Without a reservation, whether Ray hides the GPUs depends on its version; nobody else's is taken.
            self._models = self._models.model_copy(update={"device": "cpu"})
        self._engine: IntentEngine | None = None
        self._examples: tuple[str, tuple[ExampleOut, ...]] = ("", ())  # of which corpus, as reference
        self._rejected: str | None = None
        self._metrics = _Metrics()
        batching: Any = self._decide  # @serve.batch adds setters that its type does not tell
        batching.set_max_batch_size(settings.batch_max_size)
        batching.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the artefacts that ``user_config`` names; what cannot be loaded leaves the old ones in place.

        Raises:
            Exception: they cannot be loaded and there are no old ones; an MmdError where the reason is understood.
        """
        started = time.perf_counter()
        try:
            refs = ArtifactRefs.model_validate(user_config).given()
            engine = await asyncio.to_thread(self._load, refs)
        except Exception as err:  # whatever is wrong with the new artefacts is no reason to lose the old ones
            if self._engine is None:
                raise
            understood = isinstance(err, MmdError | ValueError)
            self._rejected = str(err) if understood else f"the artefacts cannot be loaded ({type(err).__name__}: {err})"
            where = None if understood else "".join(traceback.format_tb(err.__traceback__))
            self._log.error(
                "artifacts_rejected", reason=self._rejected, still=self._engine.model.artifacts, where=where
            )
            return
        self._engine, self._rejected = engine, None
        await asyncio.to_thread(gc.collect)  # the old model, once nothing that it answers is under way
        seconds = round(time.perf_counter() - started, 2)
        self._log.info(
            "artifacts_loaded", artifacts=engine.model.artifacts, degraded=engine.model.degraded, seconds=seconds
        )

    def _load(self, refs: dict[str, str]) -> IntentEngine:
        online = OnlineSettings(
            features=self._features,
            models=self._models,
            # Late answers of the large model must leave rules and probe the time to answer.
            mllm_timeout_s=min(self._settings.mllm_timeout_s, 0.8 * self._settings.request_timeout_s),
            run_ocr=self._settings.run_ocr,
            cached_images=self._settings.cached_images,
            cached_texts=self._settings.cached_texts,
        )
        return IntentEngine.from_store(self._store, self._corpus, refs=refs, settings=online)

    @property
    def engine(self) -> IntentEngine:
        """The engine that answers now."""
        if self._engine is None:
            raise RuntimeError("the engine is used before its artefacts are loaded")
        return self._engine

    async def answer(self, query: IntentQuery) -> IntentAnswer | str:
        """Answer one query; a string is the reason why the request itself is at fault."""
        engine = self.engine
        try:
            engine.tasks_for(query)
        except RequestError as err:
            return str(err)
        read = asyncio.to_thread(engine.prepare, query) if query.images else None
        prepared = await read if read else engine.prepare(query)
        answer: IntentAnswer = await self._decide((engine, prepared))
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
    async def _decide(self, entries: list[tuple[IntentEngine, PreparedQuery]]) -> list[IntentAnswer]:
        """Decide a batch; during a swap it may hold queries prepared for either engine."""
        answers: list[IntentAnswer] = []
        for _, group in groupby(entries, key=lambda entry: id(entry[0])):
            members = list(group)
            prepared = [entry for _, entry in members]
            answers += await asyncio.to_thread(members[0][0].decide, prepared)
        return answers

    async def tasks(self) -> TasksResponse:
        """Return the tasks that are answered."""
        return to_tasks(self.engine.model)

    async def examples(self) -> ExamplesResponse:
        """Return dialogues to try."""
        wanted = self.engine.model.artifacts["corpus"]
        if self._examples[0] != wanted:
            self._examples = (wanted, await asyncio.to_thread(self._pick_examples, wanted))
        return ExamplesResponse(examples=self._examples[1])

    def _pick_examples(self, corpus: str) -> tuple[ExampleOut, ...]:
        return pick_examples(Corpus(self._store.open(corpus, verify=False)), self._settings.examples)

    async def status(self) -> ReadyResponse:
        """Return what answers."""
        return to_ready(self.engine.model, self._rejected)

    def check_health(self) -> None:
        """Tell Serve that this replica can answer.

        Raises:
            RuntimeError: no artefacts are loaded; Serve then replaces the replica.
        """
        _ = self.engine


def to_tasks(model: IntentModel) -> TasksResponse:
    """Return the wire form of a model's tasks."""
    return TasksResponse(
        tasks=tuple(
            TaskOut(name=task, labels=labels, takes=tuple(s for s in SHAPES if s in model.shapes.get(task, ())))
            for task, labels in model.tasks.items()
        )
    )


def to_ready(model: IntentModel, rejected_update: str | None = None) -> ReadyResponse:
    """Return the wire form of what serves."""
    return ReadyResponse(
        status="ready", artifacts=model.artifacts, degraded=model.degraded, rejected_update=rejected_update
    )


# ---------------------------------------------------------------- the ingress


class HandleBackend:
    """Reaches the intent deployment; turns Ray's failures into the API's errors.

    Args:
        handle: of :class:`IntentReplica`.
        timeout_s: longest time to an answer.
    """

    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def answer(self, query: IntentQuery) -> IntentAnswer:
        """Answer one query; see :class:`serve_apps.http.IntentBackend`."""
        answer: IntentAnswer | str = await self._call(lambda: self._handle.answer.remote(query))
        if isinstance(answer, str):
            code = "unknown_task" if query.task is not None else "task_required"
            raise ApiError(400, code, answer, "task")
        return answer

    async def tasks(self) -> TasksResponse:
        """Return the tasks."""
        found: TasksResponse = await self._call(self._handle.tasks.remote)
        return found

    async def examples(self) -> ExamplesResponse:
        """Return dialogues to try."""
        found: ExamplesResponse = await self._call(self._handle.examples.remote)
        return found

    async def ready(self) -> ReadyResponse:
        """Return what answers."""
        found: ReadyResponse = await self._call(self._handle.status.remote)
        return found

    async def _call(self, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await ask()
                except RayActorError:  # the replica died while it held the request; answering is repeatable
                    return await ask()
        except TimeoutError:
            raise late_answer(self._timeout_s) from None
        except BackPressureError:
            message = f"too many requests are waiting; try again in {RETRY_AFTER_S} s."
            raise ApiError(429, "overloaded", message, retry_after_s=RETRY_AFTER_S) from None
        except (RayActorError, DeploymentUnavailableError):
            message = "the intent engine is being replaced; try again in a moment."
            raise ApiError(503, "unavailable", message, retry_after_s=RETRY_AFTER_S) from None


class Ingress:
    """Checks requests, asks the engine, serves the pages.

    Args:
        intent: handle of the engine's deployment.
        settings: limits and timeout.
    """

    def __init__(self, intent: DeploymentHandle[Any], settings: ServeSettings) -> None:
        configure_logging(json_lines=True)
        self._backend = HandleBackend(intent, settings.request_timeout_s)
        self._settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Serve calls this once the replica is constructed."""
        return create_app(self._backend, self._settings)


def refs_from(values: Sequence[str]) -> ArtifactRefs:
    """Read ``kind/name@version`` references; the kind says the role.

    Raises:
        RequestError: a reference is of no kind that intent recognition uses.
    """
    refs: dict[str, str] = {}
    for ref in values:
        kind = ref.partition("/")[0]
        if kind not in ArtifactRefs.model_fields:
            roles = ", ".join(ArtifactRefs.model_fields)
            raise RequestError(f"{ref!r}: not an artefact that intent recognition uses; those are {roles}.")
        refs[kind] = ref
    return ArtifactRefs(**refs)
