"""The course of a training run."""

from __future__ import annotations

import math
from pathlib import Path

from mmd.models.course import TrainState


def run(values: list[float], patience: int = 0) -> tuple[TrainState, list[bool]]:
    state, better = TrainState(), []
    for step, value in enumerate(values, start=1):
        state.add_step({"step": step, "loss": -value})
        better.append(state.add_validation(step / 10, {"score": value, "other": 0}, by="score", patience=patience))
    return state, better


def test_the_best_is_the_earliest_of_equals():
    state, better = run([0.1, 0.3, 0.3, 0.2])
    assert better == [True, True, False, False]
    assert state.best_step == 2
    assert state.best == {"step": 2, "epoch": 0.2, "score": 0.3, "other": 0}
    assert state.best_value("score") == 0.3
    assert not state.stopped


def test_it_stops_after_so_many_validations_without_a_better_one():
    assert not run([0.3, 0.1, 0.2], patience=3)[0].stopped
    assert run([0.3, 0.1, 0.2, 0.3], patience=3)[0].stopped
    assert not run([0.3, 0.1, 0.2, 0.4], patience=3)[0].stopped


def test_before_the_first_validation_there_is_no_best():
    state = TrainState()
    assert state.best is None
    assert state.best_value("score") == -math.inf


def test_it_comes_back_from_a_checkpoint(tmp_path: Path):
    state, _ = run([0.1, 0.3, 0.2])
    state.save(tmp_path)
    assert TrainState.load(tmp_path) == state
