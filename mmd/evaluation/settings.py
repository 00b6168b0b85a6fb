"""Settings of evaluation and its report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmd.base import Settings


class EvaluationSettings(Settings):
    """What the report measures and shows."""

    examples: int = Field(default=12, ge=0, description="Worked examples shown in the report, over all tasks.")
    show_dialogues: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Put worked examples' words and pictures into the report; auto: only of the built-in simulator, "
        "since reports travel and a private corpus should not.",
    )
    latency_samples: int = Field(default=100, ge=1, description="Single predictions timed for the latency table.")
    bootstrap_resamples: int = Field(default=1_000, ge=10, description="Resamples of the confidence intervals.")
