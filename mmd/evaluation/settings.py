"""Settings of evaluation and its report."""

from __future__ import annotations

from pydantic import Field

from mmd.base import Settings


class EvaluationSettings(Settings):
    """What the report shows."""

    examples: int = Field(default=12, ge=0, description="Worked examples shown in the report.")
    latency_samples: int = Field(default=100, ge=1, description="Single predictions timed for the latency table.")
