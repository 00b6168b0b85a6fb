"""The loop that trains ψ, φ and θ, on a model small enough to follow: one weight vector that learns a plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mmd.errors import ConfigError, ModelError
from mmd.models.engines import PlainEngine
from mmd.recommend.settings import StepSettings
from mmd.recommend.steps import StepPlan
from mmd.recommend.training import Training

Row = tuple[tuple[float, ...], float]
STEPS = StepSettings(min_steps=0, epochs=4, batch=8, learning_rate=0.1, warmup=0.0, weight_decay=0.0, patience=0)


def rows(count: int = 40) -> list[Row]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(count, 3))
    return [(tuple(x.tolist()), float(x @ [1.0, -2.0, 0.5])) for x in inputs]


class Plane:
    """Learns y = w·x; a sample counts as often as its first number is positive, so that units differ."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(3, 1))
        self.judged = 0

    def batch(self, samples: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([x for x, _ in samples]), torch.tensor([y for _, y in samples])

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
        x, y = batch
        counts = 1 + (x[:, 0] > 0).long()
        return (counts * (self.model(x)[:, 0] - y) ** 2).sum(), int(counts.sum())

    def judge(self) -> dict[str, float]:
        self.judged += 1
        assert not self.model.training
        assert not torch.is_grad_enabled()
        x, y = self.batch(rows())
        return {"score": -float(((self.model(x)[:, 0] - y) ** 2).mean())}


class LongPlane(Plane):
    def length(self, sample: Row) -> int:
        return int(100 * abs(sample[0][0]))


def test_a_step_takes_each_sample_once_an_epoch():
    plan = StepPlan(20, StepSettings(min_steps=0, epochs=2, batch=5), seed=3)
    assert plan.total_steps == 8
    for epoch in range(2):
        seen = np.concatenate([plan.step_samples(step) for step in range(4 * epoch, 4 * epoch + 4)])
        assert sorted(seen.tolist()) == list(range(20))
    assert plan.step_samples(0).tolist() != plan.step_samples(4).tolist()


def test_no_sample_is_dropped_where_batches_do_not_divide_epochs():
    plan = StepPlan(7, StepSettings(min_steps=0, epochs=3, batch=3), seed=0)
    seen = np.concatenate([plan.step_samples(step) for step in range(plan.total_steps)])
    assert np.bincount(seen).tolist() == [3] * 7


def test_batches_of_like_lengths_hold_every_sample_and_pad_less():
    lengths = tuple(int(n) for n in np.random.default_rng(0).integers(1, 100, 640))
    settings = StepSettings(min_steps=0, epochs=2.5, batch=10)
    plain, sorted_ = StepPlan(640, settings, 1), StepPlan(640, settings, 1, lengths)
    padding = {}
    for plan in (plain, sorted_):
        steps = [plan.step_samples(step) for step in range(plan.total_steps)]
        assert {len(step) for step in steps} == {10}
        assert set(np.bincount(np.concatenate(steps), minlength=640)) == {2, 3}
        padding[plan] = np.mean([max(lengths[i] for i in step) - np.mean([lengths[i] for i in step]) for step in steps])
    assert padding[sorted_] < 0.1 * padding[plain]
    first = [np.mean([lengths[i] for i in sorted_.step_samples(step)]) for step in range(32)]
    assert first != sorted(first)  # the order of batches tells nothing of their lengths


def test_workers_share_a_step_without_loss_or_overlap():
    plan = StepPlan(20, StepSettings(min_steps=0, batch=7), seed=0)
    shares = [plan.own_samples(2, rank, 3) for rank in range(3)]
    assert sorted(np.concatenate(shares).tolist()) == sorted(plan.step_samples(2).tolist())
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_training_without_samples_says_where_they_come_from():
    with pytest.raises(ConfigError, match="build_graph"):
        Training(Plane(), [], STEPS, 0)


def test_the_loss_is_the_mean_over_units():
    """First step, rate 0.1: the loss reported is that of the untrained plane, weighted by counts."""
    task = Plane()
    loop = Training(task, rows(8), STEPS, seed=5)
    loss, units = task.loss(task.batch(rows(8)))
    loop.train()
    assert loop.state.history[0]["loss"] == pytest.approx(float(loss.detach()) / units, rel=1e-5)


def test_it_learns_and_keeps_the_best_weights():
    task = Plane()
    loop = Training(task, rows(), StepSettings(min_steps=0, epochs=40, batch=8, learning_rate=0.1, patience=0), seed=0)
    reports: list[dict] = []
    loop.train(reports.append)
    loop.take_best()
    assert loop.state.step == 200 == len(reports)
    assert task.judged == 40
    best = loop.state.best
    assert best is not None
    assert best["score"] == max(v["score"] for v in loop.state.validations) > -1e-3
    with torch.no_grad():
        assert task.judge()["score"] == pytest.approx(best["score"], abs=1e-7)


def test_patience_ends_a_run_that_no_longer_improves():
    class Worse(Plane):
        def judge(self) -> dict[str, float]:
            self.judged += 1
            return {"score": -float(self.judged)}

    task = Worse()
    loop = Training(task, rows(), STEPS.model_copy(update={"patience": 2}), seed=0)
    reports: list[dict] = []
    loop.train(reports.append)
    assert loop.state.stopped
    assert reports[-1]["stopped"]
    assert (loop.state.step, loop.state.best_step) == (15, 5)
    before = loop.state.step
    loop.train()
    assert loop.state.step == before


def test_a_start_that_is_judged_is_kept_where_training_only_makes_it_worse(tmp_path: Path):
    class Worse(Plane):
        def judge(self) -> dict[str, float]:
            self.judged += 1
            return {"score": -float(self.judged)}

    task = Worse()
    start = [weight.detach().clone() for weight in task.model.parameters()]
    loop = Training(task, rows(), STEPS, seed=0, judge_start=True)
    loop.train(checkpoint_every=4, on_checkpoint=lambda loop: loop.save(tmp_path))
    assert loop.state.best_step == 0
    assert loop.state.validations[0]["step"] == 0
    resumed = Training(Worse(), rows(), STEPS, seed=0, judge_start=True)
    resumed.resume(tmp_path)
    resumed.train()
    assert [v["step"] for v in resumed.state.validations] == [v["step"] for v in loop.state.validations]
    for one in (loop, resumed):
        one.take_best()
        assert all(torch.equal(a, b) for a, b in zip(start, one.task.model.parameters(), strict=True))


@pytest.mark.parametrize("task", [Plane, LongPlane])
def test_a_resumed_run_equals_an_uninterrupted_one(task: type[Plane], tmp_path: Path):
    whole = Training(task(0.3), rows(), STEPS, seed=4)
    whole.train()

    class Stop(Exception):  # noqa: N818 (no error, a way out of the loop)
        pass

    def stop(loop: Training) -> None:
        loop.save(tmp_path)
        raise Stop

    first = Training(task(0.3), rows(), STEPS, seed=4)
    with pytest.raises(Stop):
        first.train(checkpoint_every=7, on_checkpoint=stop)
    second = Training(task(0.3), rows(), STEPS, seed=4)
    second.resume(tmp_path)
    assert second.state.step == 7
    second.train()
    assert second.state.to_json() == whole.state.to_json()
    for loop in (whole, second):
        loop.take_best()
    for a, b in zip(whole.task.model.parameters(), second.task.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path):
    loop = Training(Plane(), rows(), STEPS, 0)
    loop.save(tmp_path)
    other = Plane()
    other.model = torch.nn.Sequential(torch.nn.Linear(3, 1))
    with pytest.raises(ModelError, match="other weights"):
        Training(other, rows(), STEPS, 0).resume(tmp_path)


def test_divergence_is_told_with_a_way_out():
    task = Plane()
    with torch.no_grad():
        task.model[1].weight.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"diverged in step 1 of 20 .*learning_rate"):
        Training(task, rows(), STEPS, 0, name="dialogue teacher").train()


def test_sharing_a_step_changes_neither_loss_nor_gradient():
    """Two processes by hand: their parts are computed one after the other and their gradients added."""
    task = Plane()
    whole = Training(task, rows(), STEPS, seed=1)
    samples = [whole.samples[i] for i in whole.plan.step_samples(0)]
    loss, units = task.loss(task.batch(samples))
    (loss / units).backward()
    expected = [p.grad.clone() for p in task.model.parameters()]
    task.model.zero_grad()
    parts = [task.loss(task.batch([whole.samples[i] for i in whole.plan.own_samples(0, r, 3)])) for r in range(3)]
    assert sum(count for _, count in parts) == units
    for part, _ in parts:
        (part / units).backward()
    for parameter, right in zip(task.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, right)


def test_the_engine_can_be_given():
    task = Plane()
    loop = Training(task, rows(), STEPS, 0, engine=lambda: PlainEngine(task.model, STEPS))
    loop.train()
    assert loop.state.step == 20
