"""The base of all settings models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, strict settings: unknown keys and ill-typed values are refused, nothing changes after start."""

    model_config = ConfigDict(frozen=True, extra="forbid")
