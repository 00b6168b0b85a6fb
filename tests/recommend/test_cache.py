"""What is kept of the teachers, against what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mmd.errors import ArtifactError
from mmd.recommend.cache import OUTPUTS, TeacherOutputs, TeacherSpeaker, by_length
from mmd.recommend.losses import conkd_loss
from mmd.recommend.settings import DistillSettings
from mmd.recommend.teachers import targets_of


def speak(toy: Any, settings: DistillSettings, batch: int = 64) -> pa.Table:
    backbone, maker = toy.backbone()
    return TeacherSpeaker(backbone, toy.ranker, maker, settings, batch)(toy.samples)


def whole_distributions(toy: Any, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both teachers' distributions over all tokens at all positions of all samples."""
    backbone, maker = toy.backbone()
    backbone.eval()
    batch = maker(toy.samples)
    with torch.no_grad():
        phi = (backbone.token_logits(batch) / temperature).softmax(1)
    psi = torch.from_numpy(np.exp(toy.ranker.item_log_probs([s.context for s in toy.samples], temperature)))
    rows = batch.target_mask.nonzero()[:, 0]
    return phi, torch.nn.functional.pad(psi, (backbone.space.first_item, 0))[rows]


def test_the_likeliest_tokens_and_the_item_mass_are_kept(toy: Any):
    outputs = TeacherOutputs.from_tables([speak(toy, DistillSettings(top_tokens=3, top_items=2))])
    phi, psi = whole_distributions(toy)
    backbone, maker = toy.backbone()
    counts = maker(toy.samples).target_mask.sum(1).tolist()
    known = outputs.batch(toy.samples, counts)
    probs, tokens = phi.topk(3, dim=1)
    assert torch.equal(known.tokens, tokens)
    torch.testing.assert_close(known.probs, probs, rtol=3e-3, atol=1e-4)
    assert torch.equal(known.mass, phi[:, backbone.space.items].sum(1))  # exactly: a hard gate must not flip
    torch.testing.assert_close(known.item_probs[known.rows], psi.topk(2, dim=1).values, rtol=3e-3, atol=1e-4)
    assert (known.items >= backbone.space.first_item).all()


@pytest.mark.parametrize("settings", [DistillSettings(top_tokens=4, top_items=3), DistillSettings()])
def test_training_on_the_cache_is_training_on_the_teachers_within_the_bound(toy: Any, settings: DistillSettings):
    """Gradients by the logits: twice the tails, and float16's rounding, 2⁻¹¹ of the entropies."""
    phi, psi = whole_distributions(toy)
    backbone, maker = toy.backbone(seed=5)
    batch = maker(toy.samples)
    outputs = TeacherOutputs.from_tables([speak(toy, settings)])
    known = outputs.batch(toy.samples, batch.target_mask.sum(1).tolist())
    logits = backbone.eval().token_logits(batch).detach().requires_grad_()
    targets = targets_of(batch)
    (gradient,) = torch.autograd.grad(conkd_loss(logits, targets, known, backbone.space.first_item, settings), logits)
    share = known.mass[:, None]
    gold = torch.nn.functional.one_hot(targets, backbone.space.size)
    target = (1 - settings.gamma) * gold + settings.gamma * ((1 - share) * phi + share * psi)
    right = logits.detach().softmax(1) - target
    tail = (1 - share[:, 0]) * (1 - known.probs.sum(1)) + share[:, 0] * (1 - known.item_probs[known.rows].sum(1))
    entropies = -(phi * phi.log()).sum(1) - (psi.clamp_min(1e-30).log() * psi).sum(1)
    bound = settings.gamma * (2 * tail.clamp_min(0) + 2 * 2**-11 * entropies) + 1e-5
    assert ((gradient - right).abs().sum(1) <= bound).all()


def test_the_temperature_softens_what_is_taught_and_not_who_speaks(toy: Any):
    cold, warm = (TeacherOutputs.from_tables([speak(toy, DistillSettings(temperature=t))]) for t in (1.0, 4.0))
    assert np.array_equal(cold.masses, warm.masses)
    phi, _ = whole_distributions(toy, 4.0)
    _, maker = toy.backbone()
    known = warm.batch(toy.samples, maker(toy.samples).target_mask.sum(1).tolist())
    torch.testing.assert_close(known.probs, phi.topk(known.probs.shape[1], dim=1).values, rtol=3e-3, atol=1e-4)


def test_samples_come_back_in_any_order_from_any_batches(toy: Any):
    settings = DistillSettings(top_tokens=3, top_items=2)
    whole = TeacherOutputs.from_tables([speak(toy, settings)])
    backbone, maker = toy.backbone()
    speaker = TeacherSpeaker(backbone, toy.ranker, maker, settings)
    parts = [speaker(part) for part in by_length(toy.samples, maker, 5)]
    pieces = TeacherOutputs.from_tables(reversed(parts))
    chosen = [toy.samples[i] for i in (7, 0, 3)]
    counts = maker(chosen).target_mask.sum(1).tolist()
    one, other = whole.batch(chosen, counts), pieces.batch(chosen, counts)
    for name, tensor in vars(one).items():
        torch.testing.assert_close(vars(other)[name], tensor, atol=2e-4, rtol=2e-3)
    assert one.rows.tolist() == [0] * counts[0] + [1] * counts[1] + [2] * counts[2]


def test_teachers_do_not_change(toy: Any):
    backbone, maker = toy.backbone()
    backbone.train()
    TeacherSpeaker(backbone, toy.ranker, maker, DistillSettings())
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())


def test_what_is_known_sums_to_at_most_one(toy: Any):
    outputs = TeacherOutputs.from_tables([speak(toy, DistillSettings(top_tokens=1000, top_items=1000))])
    _, maker = toy.backbone()
    known = outputs.batch(toy.samples, maker(toy.samples).target_mask.sum(1).tolist())
    assert (known.probs.sum(1) <= 1 + 1e-6).all()
    assert max(outputs.mean_tails) < 1e-3
    assert outputs.nbytes > 0


def test_a_response_of_other_samples_is_refused(toy: Any):
    outputs = TeacherOutputs.from_tables([speak(toy, DistillSettings())])
    with pytest.raises(ArtifactError, match="not asked about it"):
        outputs.batch([replace(toy.samples[0], id="other#1")], [1])
    with pytest.raises(ArtifactError, match=r"spoke of \d+ tokens and the student reads 99"):
        outputs.batch(toy.samples[:1], [99])


def test_no_responses_are_told(toy: Any):
    with pytest.raises(ArtifactError, match="no response"):
        TeacherOutputs.from_tables([OUTPUTS.empty_table()])
