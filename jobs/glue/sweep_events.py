"""A sweep for TensorBoard: the best so far over ended trials, and a run a trial with its settings and its curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.glue.metric_logs import EVENTS_FILE, write_events
from mmd.sweeps.types import Trial

MAX_RUNS = 300
"""Trials that get a run of their own; TensorBoard becomes slow with thousands."""
_HUNDREDTHS = 100  # places between 0 and 1, as τ, become steps; TensorBoard's are whole


class SweepEvents:
    """Writes a sweep's event files.

    Args:
        folder: local, one a sweep.
        metric: that is compared.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self._folder, self._metric = folder, metric
        self._writer: Any = None
        self._runs = 0

    def progress(self, done: int, total: int, best: float | None) -> None:
        """Add how far the sweep is."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = SummaryWriter(str(self._folder))
        self._writer.add_scalar("sweep/done_share", done / total if total else 0.0, done)
        if best is not None:
            self._writer.add_scalar(f"sweep/best_{self._metric}", best, done)
        self._writer.flush()

    def trial(self, trial: Trial) -> None:
        """Write the run of an ended trial, unless there are too many."""
        if self._runs >= MAX_RUNS:
            return
        self._runs += 1
        rows = [(step, {self._metric: value}) for step, value in steps_of(trial.curve)]
        last = (max((step for step, _ in rows), default=0) + (1 if rows else 0), trial.metrics)
        path = self._folder / f"trial-{self._runs:04d}" / EVENTS_FILE
        write_events(path, [*rows, last], hparams=(trial.setting, trial.metrics))

    def close(self) -> None:
        """End the files."""
        if self._writer is not None:
            self._writer.close()


def steps_of(curve: Sequence[tuple[float, float]]) -> list[tuple[int, float]]:
    """Return a curve with whole places: as they are, or in hundredths where one is a fraction."""
    factor = 1 if all(float(place).is_integer() for place, _ in curve) else _HUNDREDTHS
    return [(round(place * factor), value) for place, value in curve]
