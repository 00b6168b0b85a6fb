"""What a policy may be set to: a few numbers that ``fit_policy`` chooses on validation dialogues."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from mmd.assistant.types import PARTS, Part
from mmd.base import Settings
from mmd.errors import ConfigError


class Plan(Settings):
    """How a policy decides; without a fitted one, the parts have equal votes."""

    votes: dict[Part, float] = Field(
        default_factory=lambda: dict.fromkeys(PARTS, 1.0),
        description="Weight of each part's vote on the modality; shared out anew among the parts that are there.",
    )
    temperature: float = Field(
        default=0.05, gt=0, description="Temperature at which the modalities' best scores become retrieval's vote."
    )
    min_seen: int = Field(
        default=0, ge=0, description="Times that training must have given a response to know all intents that it fits."
    )
    words: Literal["retrieval", "student"] = Field(
        default="retrieval", description="Who answers in words: a found sentence, or one of the student's own."
    )
    products: Literal["retrieval", "student"] = Field(
        default="student", description="Whose products are shown; the student's come with its words."
    )

    @field_validator("votes")
    @classmethod
    def _weights(cls, votes: dict[Part, float]) -> dict[Part, float]:
        if any(weight < 0 for weight in votes.values()):
            raise ConfigError(f"votes: {votes} has a weight below 0; weights are shares.")
        return {part: votes.get(part, 0.0) for part in PARTS}
