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
    cache_dir: str = Field(
        default="~/.cache/mmd",
        description="Folder for weights that mmd assembles or converts once, so that later loads take seconds.",
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of one loaded model.")
