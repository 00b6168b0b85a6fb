"""Which settings of distillation are tried, and how one is chosen among them on held-out responses.

What counts of a trial is what ``distill`` would keep of it, the weights of its likeliest validation. Of trials that
talk as well as the dialogue teacher, up to a margin, the one whose replies name items best is chosen; if none does, the
one that comes closest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from mmd.recommend.settings import DistillSettings, SweepSettings

Row = Mapping[str, float]
"""A validation: ``validation`` (1-based), ``epoch``, ``perplexity``, ``f1`` (F1@k of replies) and what else is told."""
TRIED = ("gate", "eta", "gamma", "temperature")


def points_of(sweep: SweepSettings, base: DistillSettings) -> list[dict[str, Any]]:
    """Return the settings under ``recommend.distill`` of each trial; those that a gate does not read are the base's."""
    return list(_points(sweep, base))


def _points(sweep: SweepSettings, base: DistillSettings) -> Iterator[dict[str, Any]]:
    for gate in sweep.gates:
        etas = sweep.etas if gate == "hard" else (base.eta,)
        for eta, gamma, temperature in product(etas, sweep.gammas, sweep.temperatures):
            yield {"gate": gate, "eta": eta, "gamma": gamma, "temperature": temperature}


def score_of(row: Row, limit: float) -> float:
    """Return what a validation is worth: F1, less in proportion where perplexity exceeds the limit."""
    return row["f1"] * min(1.0, limit / row["perplexity"])


@dataclass(frozen=True)
class Trial:
    """One setting and its validations in order; a scheduler may have ended it early.

    Attributes:
        point: its settings under ``recommend.distill``.
        rows: its validations.
    """

    point: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def kept(self) -> Row:
        """The likeliest validation, the earliest of equals."""
        return min(self.rows, key=lambda row: row["perplexity"])

    def to_json(self, limit: float) -> dict[str, Any]:
        """Return point, validations, and what its kept weights are worth."""
        return {"point": dict(self.point), "score": score_of(self.kept, limit), "kept": dict(self.kept)} | {
            "rows": [dict(row) for row in self.rows]
        }


def choose(trials: Sequence[Trial], limit: float) -> Trial:
    """Return the trial that names items best among those within the limit; if there is none, the nearest to it.

    Of equals it is the one that talks best.

    Args:
        trials: at least one.
        limit: perplexity that a student may have.
    """
    within = [trial for trial in trials if trial.kept["perplexity"] <= limit]
    if not within:
        return min(trials, key=lambda trial: trial.kept["perplexity"])
    return max(within, key=lambda trial: (trial.kept["f1"], -trial.kept["perplexity"]))


def by_gate(trials: Sequence[Trial], limit: float) -> dict[str, Trial]:
    """Return gate → its best trial."""
    gates = dict.fromkeys(str(trial.point["gate"]) for trial in trials)
    return {gate: choose([trial for trial in trials if trial.point["gate"] == gate], limit) for gate in gates}
