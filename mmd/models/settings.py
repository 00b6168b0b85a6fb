"""Settings of model weights."""

from __future__ import annotations

from pydantic import Field

from mmd.base import Settings


class ModelSettings(Settings):
    """Where weights come from."""

    proposer: str | None = Field(
        default=None,
        description="Language model that proposes rule predicates (a name of mmd.models.resolve); null: mined only.",
    )
    allow_hub: bool = Field(default=False, description="Allow downloads from a model hub at run time.")
