"""Settings of the assistant: how much it asks its parts for, and what its policy is chosen from."""

from __future__ import annotations

from pydantic import Field

from mmd.base import Settings


class PolicySweepSettings(Settings):
    """Which policies ``fit_policy`` tries on validation dialogues."""

    step: float = Field(
        default=0.25, gt=0, le=0.5, description="Step in which the parts' votes on the modality are shared out."
    )
    temperatures: tuple[float, ...] = Field(
        default=(0.02, 0.05, 0.1, 0.2),
        min_length=1,
        description="Temperatures at which the best scores of the modalities become retrieval's vote.",
    )
    min_seen: tuple[int, ...] = Field(
        default=(0, 1, 2, 3),
        min_length=1,
        description="How often training must have given a response for the intents that it answered to be believed "
        "complete; 0: every response fits every intent.",
    )


class AssistantSettings(Settings):
    """One turn through intent, retrieval and recommendation."""

    enabled: bool = Field(default=True, description="Whether the pipeline fits a policy and evaluates the assistant.")
    candidates: int = Field(
        default=10, ge=1, le=1_000, description="Responses of each modality that retrieval is asked for a turn."
    )
    cards: int = Field(default=3, ge=1, description="Products that one reply shows at most.")
    sweep: PolicySweepSettings = Field(default_factory=PolicySweepSettings)
