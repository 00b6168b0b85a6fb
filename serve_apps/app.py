"""The application on Ray Serve: HTTP ingress → intents, retrieval and recommendation, each a deployment of its own.

The ingress joins the three to conversations by a policy, an artefact that is swapped as theirs are.

:func:`build` is the typed builder. Artefacts are swapped without a restart by deploying the same application with
another ``user_config`` (see ``serve_apps/serve_config.yaml``); a swap that cannot be loaded is refused and the old
artefacts go on answering, which ``/readyz`` tells. A part whose artefacts were never made is absent; the others answer
without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from mmd.assistant.settings import AssistantSettings
from mmd.config import ServeSettings
from mmd.errors import RequestError
from mmd.features.settings import FeatureSettings
from mmd.models.settings import ModelSettings
from mmd.recommend.settings import GenerationSettings
from serve_apps.congestion import RETRY_AFTER_S
from serve_apps.ingress import Ingress
from serve_apps.intent import IntentRefs, IntentReplica
from serve_apps.policy import PolicyRefs
from serve_apps.recommend import RecommendRefs, RecommendReplica
from serve_apps.replica import Refs
from serve_apps.retrieval import RetrievalRefs, RetrievalReplica


class AppArgs(BaseModel):
    """Arguments of :func:`build`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    store: str = Field(description="Artefact store: absolute path or fsspec URI that every node reaches.")
    corpus: str = Field(default="shop", description="Name of the corpus whose artefacts answer.")
    intent: IntentRefs = Field(default_factory=IntentRefs, description="Versions that recognise intents at first.")
    retrieval: RetrievalRefs = Field(default_factory=RetrievalRefs, description="Versions that retrieve at first.")
    recommendation: RecommendRefs = Field(default_factory=RecommendRefs, description="Student that replies at first.")
    policy: PolicyRefs = Field(default_factory=PolicyRefs, description="Policy that conversations begin with.")
    assistant: AssistantSettings = Field(default_factory=AssistantSettings, description="What a reply is made of.")
    serve: ServeSettings = Field(default_factory=ServeSettings, description="Replicas, batching and limits.")
    features: FeatureSettings = Field(default_factory=FeatureSettings, description="Sizes and threads of extractors.")
    models: ModelSettings = Field(
        default_factory=ModelSettings, description="Where base weights come from, device and arithmetic."
    )
    generation: GenerationSettings = Field(
        default_factory=GenerationSettings, description="How the student's replies are decoded."
    )


def build(args: AppArgs | Mapping[str, Any]) -> serve.Application:
    """Return the application: ingress and models with autoscaling, bounded queues and health checks.

    Args:
        args: a deployment file's ``args`` come as the mapping that YAML makes of them.
    """
    # Serve would validate by the annotation, were it no string (PEP 563).
    args = AppArgs.model_validate(args)
    settings = args.serve
    what = (args.store, args.corpus, settings, args.features, args.models)
    intent = _deployment("intent", IntentReplica, settings, args.intent, settings.gpus_per_replica).bind(*what)
    retrieval = _deployment("retrieval", RetrievalReplica, settings, args.retrieval, 0.0).bind(*what)
    student = _deployment("recommendation", RecommendReplica, settings, args.recommendation, 0.0)
    recommendation = student.bind(*what, args.generation)
    # The ingress lets through what the models may hold and queue, so that a model's own limit speaks first.
    capacity = 3 * (settings.max_replicas * settings.max_ongoing_requests + settings.max_queued_requests)
    return serve.deployment(
        name="ingress",
        num_replicas=settings.min_replicas,
        **_per_node(settings),
        max_ongoing_requests=capacity + settings.max_queued_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=_backpressure(),
        user_config=args.policy.model_dump(),
        graceful_shutdown_timeout_s=drain_s(settings),
    )(serve.ingress()(Ingress)).bind(
        intent, retrieval, recommendation, settings, args.store, args.corpus, args.assistant
    )


def _deployment(name: str, replica: type, settings: ServeSettings, refs: Refs, gpus: float) -> serve.Deployment:
    """Return the deployment of a model."""
    return serve.deployment(
        name=name,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=max(settings.min_replicas, settings.max_replicas),
            target_ongoing_requests=settings.target_ongoing_requests,
        ),
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=_backpressure(),
        **_per_node(settings),
        ray_actor_options={"num_gpus": gpus},
        user_config=refs.model_dump(),
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=drain_s(settings),
    )(replica)


def drain_s(settings: ServeSettings) -> float:
    """Return how long a replica that is to go, s, may take to finish what it has begun: as long as anybody waits."""
    return settings.request_timeout_s + 5


def _per_node(settings: ServeSettings) -> dict[str, Any]:
    """Return the bound of replicas a node as Serve wants it: not even named where there is none."""
    bound = settings.max_replicas_per_node
    return {} if bound is None else {"max_replicas_per_node": bound}


def _backpressure() -> BackpressureConfig:
    return BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S)


def refs_from(values: Sequence[str]) -> tuple[IntentRefs, RetrievalRefs, RecommendRefs, PolicyRefs]:
    """Read ``kind/name@version`` references; the kind says the role.

    Raises:
        RequestError: a reference is of no kind that the service uses.
    """
    refs: dict[str, str] = {}
    models = (IntentRefs, RetrievalRefs, RecommendRefs, PolicyRefs)
    known = [kind for model in models for kind in model.model_fields]
    for ref in values:
        kind = ref.partition("/")[0]
        if kind not in known:
            raise RequestError(f"{ref!r}: not an artefact that the service uses; those are {', '.join(known)}.")
        refs[kind] = ref
    own = [{kind: ref for kind, ref in refs.items() if kind in model.model_fields} for model in models]
    intent, retrieval, student, policy = own
    return IntentRefs(**intent), RetrievalRefs(**retrieval), RecommendRefs(**student), PolicyRefs(**policy)
