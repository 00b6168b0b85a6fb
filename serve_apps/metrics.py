"""What a replica exports to Prometheus beside Ray's own request counts and latencies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray.util.metrics import Counter, Histogram

_STAGE_BOUNDS_MS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]


class PartMetrics:
    """Stages and missing parts of the answers of one part of the service.

    Args:
        part: prefix of the names: ``mmd_PART_degraded``, ``mmd_PART_stage_ms``.
    """

    def __init__(self, part: str) -> None:
        self._degraded = Counter(f"mmd_{part}_degraded", "Answers made without a part.", tag_keys=("part",))
        self._stages = Histogram(
            f"mmd_{part}_stage_ms", "Milliseconds of a stage.", boundaries=_STAGE_BOUNDS_MS, tag_keys=("stage",)
        )

    def record_parts(self, degraded: Iterable[str], timings_ms: Mapping[str, float]) -> None:
        """Count one answer.

        Args:
            degraded: its problems, each ``PART: what happened``.
            timings_ms: by stage.
        """
        for problem in degraded:
            self._degraded.inc(tags={"part": problem.partition(":")[0]})
        for stage, elapsed_ms in timings_ms.items():
            self._stages.observe(elapsed_ms, tags={"stage": stage})
