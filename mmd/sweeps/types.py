"""What is recorded of a sweep and of its trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from mmd.base import Settings

SweepName = Literal["rules", "gates", "conkd", "text_fraction"]
Mode = Literal["max", "min"]
Written = Literal["running", "done", "failed", "stopped"]
"""States that a job writes."""
State = Literal["waiting", "running", "done", "failed", "stopped", "interrupted"]
"""Also: waiting to be started by the cluster, and interrupted: it says it runs, and nothing has been heard of it."""
Scalar = str | int | float | bool
LOST_S = 60.0
"""A running sweep writes its record every few seconds; one that has not for so long has been interrupted."""
NOTE_CHARS = 500


class Trial(Settings):
    """One setting, or one search, and what came of it so far."""

    setting: dict[str, Scalar] = Field(description="What is told apart by: setting, or place of the search → value.")
    group: str = Field(default="", description="Trials of one group compete with each other alone, as a task's gates.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Numbers by name, the sweep's metric included.")
    curve: tuple[tuple[float, float], ...] = Field(
        default=(), description="The metric over the sweep's axis: (place, value), in order."
    )
    done: bool = Field(default=True, description="Whether it has ended.")
    at_s: float = Field(default=0.0, ge=0, description="Seconds from the sweep's beginning to its newest report.")


class SweepRecord(Settings):
    """What is known of a sweep without its trials."""

    id: str = Field(description="Begins with the time of its start, so that ids sort by time.")
    sweep: SweepName = Field(description="Which sweep.")
    corpus: str = Field(description="Name of the corpus that it works on.")
    state: Written = Field(description="As the job wrote it last; see :func:`state_at`.")
    metric: str = Field(description="Name of the number in `metrics` that is compared.")
    mode: Mode = Field(description="Whether more or less of it is better.")
    axis: str | None = Field(description="What curves run over; null: there are none.")
    space: dict[str, Any] = Field(description="What is searched: setting → value.")
    settings: str = Field(description="Hash of all settings that the result depends on.")
    total: int = Field(default=0, ge=0, description="Trials planned; 0: not known yet.")
    done: int = Field(default=0, ge=0, description="Trials that have ended.")
    kept: int = Field(default=0, ge=0, description="Trials in trials.json: at most MAX_TRIALS are kept.")
    best: float | None = Field(default=None, description="Best of the metric, on average over the groups of trials.")
    started_unix_s: float = Field(description="Start, seconds since 1970.")
    updated_unix_s: float = Field(description="Newest sign of life.")
    ended_unix_s: float | None = Field(default=None, description="End; null while it runs.")
    job: str | None = Field(default=None, description="Id of the job that was submitted to the cluster, if it was.")
    artifact: str | None = Field(default=None, description="Artefact that it made, kind/name@version.")
    note: str | None = Field(default=None, description="Why it failed, or what else is to be known.")


def state_at(record: SweepRecord, now: float) -> State:
    """Return the state that a record stands for at a time, in seconds since 1970."""
    if record.state == "running" and now - record.updated_unix_s > LOST_S:
        return "interrupted"
    return record.state


def best_of(trials: Iterable[Trial], metric: str, mode: Mode) -> dict[str, Trial]:
    """Return group → its best trial, the earliest of equals; trials without the metric do not count."""
    sign = 1.0 if mode == "max" else -1.0
    found: dict[str, Trial] = {}
    for trial in trials:
        best = found.get(trial.group)
        if metric in trial.metrics and (best is None or sign * (trial.metrics[metric] - best.metrics[metric]) > 0):
            found[trial.group] = trial
    return found


def mean_best(best: Mapping[str, Trial], metric: str) -> float | None:
    """Return the average of the groups' bests; None without any."""
    return sum(trial.metrics[metric] for trial in best.values()) / len(best) if best else None
