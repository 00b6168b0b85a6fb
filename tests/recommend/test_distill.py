"""The dialogue teacher and the student learn, on dialogues that can be learnt by heart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmd.errors import ConfigError
from mmd.recommend.cache import TeacherOutputs, TeacherSpeaker
from mmd.recommend.distill import StudentTask
from mmd.recommend.losses import nll
from mmd.recommend.settings import DistillSettings, StepSettings
from mmd.recommend.teachers import DialogueTask, targets_of
from mmd.recommend.training import Training

STEPS = StepSettings(min_steps=0, epochs=30, batch=6, learning_rate=3e-3, warmup=0.0, patience=0, validate_every=10)


def outputs_of(toy: Any, settings: DistillSettings, seed: int = 9) -> TeacherOutputs:
    backbone, maker = toy.backbone(seed)
    return TeacherOutputs.from_tables([TeacherSpeaker(backbone, toy.ranker, maker, settings)(toy.samples)])


def test_the_dialogue_teachers_loss_is_the_likelihood_of_the_responses(toy: Any):
    backbone, maker = toy.backbone()
    task = DialogueTask(backbone.eval(), maker, toy.samples)
    loss, count = task.loss(task.batch(toy.samples))
    batch = maker(toy.samples)
    log_probs = backbone.logits(batch).log_softmax(-1)
    by_hand = -log_probs.gather(2, batch.target[..., None])[..., 0][batch.target_mask].sum()
    torch.testing.assert_close(loss, by_hand)
    assert count == int(batch.target_mask.sum())


def test_the_judge_is_the_loss_per_token_and_counts_items(toy: Any):
    backbone, maker = toy.backbone()
    task = DialogueTask(backbone.eval(), maker, toy.samples, batch=5)
    with torch.no_grad():
        loss, count = task.loss(task.batch(toy.samples))
        found = task.judge()
    assert found["nll"] == pytest.approx(float(loss) / count, rel=1e-5)
    assert found["score"] == -found["nll"]
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))
    assert 0 <= found["item_r1"] <= 1


def test_the_dialogue_teacher_learns_its_dialogues(toy: Any):
    backbone, maker = toy.backbone()
    loop = Training(DialogueTask(backbone, maker, toy.samples), toy.samples, STEPS, seed=0)
    loop.train()
    assert loop.state.validations[-1]["perplexity"] < 0.5 * math.exp(loop.state.history[0]["loss"])


def test_nothing_held_out_is_not_judged(toy: Any):
    backbone, maker = toy.backbone()
    loop = Training(DialogueTask(backbone, maker, []), toy.samples, STEPS.model_copy(update={"epochs": 2}), seed=0)
    loop.train()
    assert loop.state.validations == []
    last = [p.detach().clone() for p in backbone.parameters()]
    loop.take_best()
    assert all(torch.equal(a, b) for a, b in zip(last, backbone.parameters(), strict=True))


def test_without_distillation_words_and_items_are_learnt_together(toy: Any):
    backbone, maker = toy.backbone()
    task = StudentTask(backbone.eval(), maker, [], DistillSettings(gate="none"), None)
    loss, count = task.loss(task.batch(toy.samples))
    batch = maker(toy.samples)
    items = backbone.item_logits_of_context(batch)
    gold = [(row, item) for row, sample in enumerate(toy.samples) for item in sample.response.items]
    by_hand = sum(-items.log_softmax(1)[row, item] for row, item in gold)
    torch.testing.assert_close(loss, nll(backbone.token_logits(batch), targets_of(batch)) + by_hand)
    assert count == int(batch.target_mask.sum())
    assert len(gold) == 8


def test_pure_nll_is_one_end_of_gamma(toy: Any):
    backbone, maker = toy.backbone()
    settings = DistillSettings(gamma=0.0)
    task = StudentTask(backbone.eval(), maker, [], settings, outputs_of(toy, settings))
    plain = DialogueTask(backbone, maker, [])
    torch.testing.assert_close(task.loss(task.batch(toy.samples))[0], plain.loss(plain.batch(toy.samples))[0])


def test_a_student_comes_close_to_the_teachers_mixture(toy: Any):
    """γ = 1 and the dialogue teacher alone: the student's distributions become the teacher's."""
    settings = DistillSettings(gamma=1.0, teachers="dialogue", top_tokens=1000)
    teacher, maker = toy.backbone(seed=9)
    student, _ = toy.backbone(seed=1)
    batch = maker(toy.samples)

    def distance() -> float:
        with torch.no_grad():
            theta, phi = (m.eval().token_logits(batch).softmax(1) for m in (student, teacher))
        return float((theta - phi).abs().sum(1).mean())

    before = distance()
    loop = Training(StudentTask(student, maker, [], settings, outputs_of(toy, settings)), toy.samples, STEPS, seed=0)
    loop.train()
    assert distance() < 0.5 * before


def test_a_gate_without_teachers_is_refused(toy: Any):
    backbone, maker = toy.backbone()
    with pytest.raises(ConfigError, match="gate=soft"):
        StudentTask(backbone, maker, [], DistillSettings(), None)
