"""Gates and losses, against the formulas written out over whole distributions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmd.recommend.gates import item_mass, share_of_recommendation
from mmd.recommend.losses import TeacherBatch, conkd_loss, nll
from mmd.recommend.settings import DistillSettings, Teachers

N, B, WORDS, ITEMS = 12, 4, 20, 15
SIZE = WORDS + ITEMS
ROWS = torch.arange(N) % B


def teachers(k: int = SIZE, j: int = ITEMS, seed: int = 0) -> tuple[TeacherBatch, Tensor, Tensor]:
    """Return what is known of two random teachers, and their whole distributions (N, SIZE) and (N, SIZE)."""
    generator = torch.Generator().manual_seed(seed)
    phi = (3 * torch.randn(N, SIZE, generator=generator)).softmax(1)
    psi = (3 * torch.randn(B, ITEMS, generator=generator)).softmax(1)
    probs, tokens = phi.topk(k, dim=1)
    item_probs, items = psi.topk(j, dim=1)
    mass = phi[:, WORDS:].sum(1)
    known = TeacherBatch(tokens, probs, mass, items + WORDS, item_probs, ROWS)
    return known, phi, functional.pad(psi, (WORDS, 0))[ROWS]


def student(seed: int = 1, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(N, SIZE, generator=generator)
    return logits.requires_grad_(), torch.randint(SIZE, (N,), generator=generator)


def mixture(phi: Tensor, psi: Tensor, targets: Tensor, settings: DistillSettings) -> Tensor:
    """Return the distribution that the loss is the cross-entropy to, written out."""
    share = share_of_recommendation(settings, phi[:, WORDS:].sum(1))[:, None]
    gold = functional.one_hot(targets, SIZE).float()
    return (1 - settings.gamma) * gold + settings.gamma * ((1 - share) * phi + share * psi)


def by_hand(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * logits.log_softmax(1)).sum()


ARMS = [
    DistillSettings(),
    DistillSettings(gate="hard", eta=0.4),
    DistillSettings(gate="static", static=0.5),
    DistillSettings(teachers="dialogue"),
    DistillSettings(teachers="recommendation"),
    DistillSettings(gamma=0.0),
    DistillSettings(gamma=1.0),
]


def test_the_item_mass_is_the_summed_probability_of_items():
    _, phi, _ = teachers()
    space = SimpleNamespace(items=slice(WORDS, SIZE))
    mass = item_mass(phi, space)  # type: ignore[arg-type]  # a gate looks at nothing else of a token space
    assert torch.equal(mass, phi[:, WORDS:].sum(1).clamp(0, 1))
    assert ((mass >= 0) & (mass <= 1)).all()
    assert torch.equal(share_of_recommendation(DistillSettings(), mass), mass)


def test_the_hard_gate_opens_at_its_threshold():
    mass = torch.tensor([0.0, 0.29, 0.3, 0.31, 1.0])
    share = share_of_recommendation(DistillSettings(gate="hard", eta=0.3), mass)
    assert share.tolist() == [0, 0, 1, 1, 1]
    assert share_of_recommendation(DistillSettings(gate="hard", eta=1.1), mass).sum() == 0
    assert share_of_recommendation(DistillSettings(gate="hard", eta=-0.1), mass).mean() == 1


@pytest.mark.parametrize("eta_and_teacher", [(1.1, "dialogue"), (-0.1, "recommendation")])
def test_a_gate_that_never_or_always_opens_is_a_single_teacher(eta_and_teacher: tuple[float, str]):
    eta, teacher = eta_and_teacher
    known, _, _ = teachers(k=5, j=4)
    logits, targets = student()
    one = conkd_loss(logits, targets, known, WORDS, DistillSettings(gate="hard", eta=eta))
    other = conkd_loss(logits, targets, known, WORDS, DistillSettings.model_validate({"teachers": teacher}))
    assert torch.equal(one, other)


def test_an_even_share_everywhere_is_the_static_gate():
    known, phi, psi = teachers()
    logits, targets = student()
    even = TeacherBatch(**{**vars(known), "mass": torch.full((N,), 0.5)})
    soft = conkd_loss(logits, targets, even, WORDS, DistillSettings())
    static = conkd_loss(logits, targets, known, WORDS, DistillSettings(gate="static", static=0.5))
    assert torch.equal(soft, static)
    settings = DistillSettings(gate="static", static=0.5)
    torch.testing.assert_close(static, by_hand(logits, mixture(phi, psi, targets, settings)))


@pytest.mark.parametrize("settings", ARMS, ids=lambda s: f"{s.gate}-{s.teachers}-{s.gamma}")
def test_the_loss_is_the_cross_entropy_to_the_mixture(settings: DistillSettings):
    """Where every token is known; a position's loss and gradient within 1e-6 of the formula."""
    known, phi, psi = teachers()
    logits, targets = student()
    target = mixture(phi, psi, targets, settings)
    torch.testing.assert_close(target.sum(1), torch.ones(N))
    loss = conkd_loss(logits, targets, known, WORDS, settings)
    right = by_hand(logits, target)
    assert abs(float((loss - right).detach())) / N < 1e-6
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(right, logits)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", ARMS, ids=lambda s: f"{s.gate}-{s.teachers}-{s.gamma}")
def test_the_written_gradient_is_that_of_the_loss_with_tails(settings: DistillSettings):
    """Autograd through the buckets' formula gives the same."""
    known, _, _ = teachers(k=5, j=4)
    logits, targets = student()
    loss = conkd_loss(logits, targets, known, WORDS, settings)
    (gradient,) = torch.autograd.grad(loss, logits)
    share = share_of_recommendation(settings, known.mass)
    q = logits.softmax(1)
    items, item_probs = known.items[ROWS], known.item_probs[ROWS]

    def bucket(ids: Tensor, probs: Tensor, whole: Tensor) -> Tensor:
        top = q.gather(1, ids)
        return -(probs * top.log()).sum(1) - (1 - probs.sum(1)) * (whole - top.sum(1)).log()

    dial, rec = bucket(known.tokens, known.probs, q.sum(1)), bucket(items, item_probs, q[:, WORDS:].sum(1))
    right = (1 - settings.gamma) * nll(logits, targets) + settings.gamma * ((1 - share) * dial + share * rec).sum()
    torch.testing.assert_close(loss, right)
    (expected,) = torch.autograd.grad(right, logits)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_pure_nll_and_pure_distillation_are_the_ends_of_gamma():
    known, phi, psi = teachers()
    logits, targets = student()
    only_words = conkd_loss(logits, targets, known, WORDS, DistillSettings(gamma=0.0))
    torch.testing.assert_close(only_words, nll(logits, targets))
    kd = conkd_loss(logits, targets, known, WORDS, DistillSettings(gamma=1.0))
    share = phi[:, WORDS:].sum(1, keepdim=True)
    torch.testing.assert_close(kd, by_hand(logits, (1 - share) * phi + share * psi))


@pytest.mark.parametrize("teacher", ["dialogue", "recommendation"])
def test_one_hot_teachers_reduce_distillation_to_nll(teacher: Teachers):
    """A teacher's likeliest tokens as references: the same loss, whatever γ; ψ's are items of the contexts."""
    known, phi, psi = teachers(k=5, j=4)
    logits, _ = student()
    likeliest = (phi if teacher == "dialogue" else psi).argmax(1)
    settings = DistillSettings(teachers=teacher, one_hot=True, gamma=0.7)
    loss = conkd_loss(logits, likeliest, known, WORDS, settings)
    torch.testing.assert_close(loss, nll(logits, likeliest))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_teachers_that_know_the_references_reduce_distillation_to_nll(share: float):
    """P_φ is one-hot at words, P_ψ at the gold item of each row: so is the mixture, whoever the gate lets speak."""
    logits, _ = student()
    words, golds = torch.arange(N) % WORDS, WORDS + torch.arange(B)
    sure = TeacherBatch(
        tokens=words[:, None],
        probs=torch.ones(N, 1),
        mass=torch.full((N,), share),
        items=golds[:, None],
        item_probs=torch.ones(B, 1),
        rows=ROWS,
    )
    targets = golds[ROWS] if share else words
    loss = conkd_loss(logits, targets, sure, WORDS, DistillSettings(gamma=0.6))
    torch.testing.assert_close(loss, nll(logits, targets))


def test_one_hot_teachers_leave_the_gate_alone():
    known, _, _ = teachers()
    assert torch.equal(known.one_hot().mass, known.mass)


@pytest.mark.parametrize(("k", "j"), [(1, 1), (4, 3), (10, 8), (SIZE, ITEMS)])
@pytest.mark.parametrize("settings", ARMS[:3], ids=lambda s: s.gate)
def test_a_tail_costs_at_most_twice_its_mass_in_gradient(k: int, j: int, settings: DistillSettings):
    known, phi, psi = teachers(k, j)
    logits, targets = student()
    (gradient,) = torch.autograd.grad(conkd_loss(logits, targets, known, WORDS, settings), logits)
    (right,) = torch.autograd.grad(by_hand(logits, mixture(phi, psi, targets, settings)), logits)
    share = share_of_recommendation(settings, known.mass)
    tails = (1 - share) * (1 - known.probs.sum(1)) + share * (1 - known.item_probs[ROWS].sum(1))
    assert ((gradient - right).abs().sum(1) <= 2 * settings.gamma * tails.clamp_min(0) + 1e-5).all()


@pytest.mark.parametrize("scale", [0.0, 30.0, 300.0])
def test_a_student_that_is_sure_of_itself_gives_finite_numbers(scale: float):
    """The rest's mass under the student is then far below what 1 minus a float32 sum can tell."""
    known, _, _ = teachers(k=3, j=2)
    logits, targets = student(scale=scale)
    loss = conkd_loss(logits, targets, known, WORDS, DistillSettings())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if scale < 100:  # beyond, the tail's probabilities are no float32, and nothing is left to spread over
        torch.testing.assert_close(gradient.sum(1), torch.zeros(N), atol=1e-4, rtol=0)


def test_a_tiny_rest_is_summed_exactly():
    """One known token has nearly everything: the bucket's log is that of the others' own sum."""
    logits = torch.zeros(1, SIZE)
    logits[0, 0] = 40.0
    known = TeacherBatch(
        tokens=torch.tensor([[0]]),
        probs=torch.tensor([[0.5]]),
        mass=torch.zeros(1),
        items=torch.tensor([[WORDS]]),
        item_probs=torch.ones(1, 1),
        rows=torch.tensor([0]),
    )
    loss = conkd_loss(logits, torch.tensor([0]), known, WORDS, DistillSettings(gamma=1.0, teachers="dialogue"))
    rest = float(torch.log(torch.tensor(SIZE - 1.0))) - 40.0
    assert float(loss) == pytest.approx(-0.5 * rest, rel=1e-5)
