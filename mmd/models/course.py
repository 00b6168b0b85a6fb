"""The course of a training run: its steps, its validations, which was best, and when to stop; of every trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STATE_FILE = "state.json"
"""Where a checkpoint keeps it."""


@dataclass
class TrainState:
    """Where a run stands, and what was measured on the way.

    Attributes:
        step: optimizer steps done.
        history: a row a step: ``step`` (1-based), ``epoch``, ``loss``, ``rate``, ``norm`` (of the gradient before it is
            clipped), and what else the trainer measures.
        validations: ``step``, ``epoch``, and what the trainer judges by.
        best_step: step of the best validation, the earliest of equals; None before the first.
        stopped: whether it ended early.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    stopped: bool = False

    @property
    def best(self) -> dict[str, Any] | None:
        """The best validation; None before the first."""
        return next((v for v in self.validations if v["step"] == self.best_step), None)

    def best_value(self, by: str) -> float:
        """Return what the best validation has of a measure; minus infinity before the first."""
        return -math.inf if self.best is None else float(self.best[by])

    def add_step(self, row: Mapping[str, float]) -> None:
        """Note a step that was made; ``row`` has its 1-based number as ``step``."""
        self.step = int(row["step"])
        self.history.append(dict(row))

    def add_validation(self, epoch: float, found: Mapping[str, Any], by: str, patience: int = 0) -> bool:
        """Note a validation of the weights as they are now.

        Args:
            epoch: passes made, for the record.
            found: what was measured.
            by: the measure that the best has most of.
            patience: validations without a better one after which the run is to stop; 0: never.

        Returns:
            Whether it is the best so far.
        """
        better = float(found[by]) > self.best_value(by)
        if better:
            self.best_step = self.step
        self.validations.append({"step": self.step, "epoch": epoch, **found})
        since = sum(v["step"] > (self.best_step or 0) for v in self.validations)
        self.stopped = 0 < patience <= since
        return better

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainState:
        """Invert :meth:`to_json`."""
        return cls(**value)

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        (folder / STATE_FILE).write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TrainState:
        """Read it from a checkpoint."""
        return cls.from_json(json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
