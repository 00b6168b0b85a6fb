"""What /metrics tells, in Prometheus' text form: requests, latencies, and how conversations were answered.

Of this process alone: where several ingress replicas run, each counts its own. Ray exports what the models' replicas
count (:mod:`serve_apps.metrics`) from its own port.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serve_apps.assistant import TurnResult

MEDIA_TYPE = CONTENT_TYPE_LATEST
_BOUNDS_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Telemetry:
    """Counts what one application does; labels have few values, none of which a client can make up."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mmd_http_requests", "Answered requests.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "mmd_http_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ("route",),
            buckets=_BOUNDS_S,
            registry=self._registry,
        )
        self._turns = Counter(
            "mmd_turns", "Answered turns of conversations.", ("speaker", "modality"), registry=self._registry
        )
        self._degraded = Counter(
            "mmd_turns_degraded",
            "Turns answered without a part, or with less than all of it.",
            ("part",),
            registry=self._registry,
        )
        self._stages = Histogram(
            "mmd_turn_stage_seconds",
            "Seconds that a turn waited for a part, or that a stage took.",
            ("stage",),
            buckets=_BOUNDS_S,
            registry=self._registry,
        )

    def request(self, method: str, route: str | None, status: int, elapsed_s: float) -> None:
        """Count a request; ``route`` is the path as the API document writes it, None where there is none."""
        known, where = method if method in _METHODS else "other", route or "none"
        self._requests.labels(known, where, str(status)).inc()
        self._seconds.labels(where).observe(elapsed_s)

    def turn(self, result: TurnResult) -> None:
        """Count a turn of a conversation."""
        reply = result.reply
        self._turns.labels(reply.choice.speaker, reply.choice.modality).inc()
        for part in {problem.partition(":")[0] for problem in reply.degraded}:
            self._degraded.labels(part).inc()
        for stage, elapsed_ms in reply.timings_ms.items():
            if "." not in stage:  # what a part tells of itself its own replica counts
                self._stages.labels(stage).observe(elapsed_ms / 1000)

    def text(self) -> bytes:
        """Return all counts as Prometheus reads them."""
        return generate_latest(self._registry)
