"""Gauges of a sweep for the metrics that Ray exports, which its dashboard and Prometheus show."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

_TAGS = ("id", "sweep", "corpus")


class SweepGauges:
    """``mmd_sweep_trials``, ``mmd_sweep_trials_done``, ``mmd_sweep_best``; without a cluster, nothing.

    Args:
        tags: id, sweep and corpus.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = {name: tags[name] for name in _TAGS}
        self._gauges: dict[str, Any] | None = None

    def set(self, done: int, total: int, best: float | None) -> None:
        """Tell how far the sweep is."""
        ray = sys.modules.get("ray")  # a sweep that has not reached Ray yet need not wait for its import here
        if ray is None or not ray.is_initialized():
            return
        if self._gauges is None:
            from ray.util.metrics import Gauge

            told = {
                "mmd_sweep_trials": "Trials that the sweep has planned.",
                "mmd_sweep_trials_done": "Trials that have ended.",
                "mmd_sweep_best": "Best of the sweep's metric so far, on average over the groups of trials.",
            }
            self._gauges = {name: Gauge(name, description=what, tag_keys=_TAGS) for name, what in told.items()}
        values = {"mmd_sweep_trials": total, "mmd_sweep_trials_done": done, "mmd_sweep_best": best}
        for name, value in values.items():
            if value is not None:
                self._gauges[name].set(float(value), tags=self._tags)
