"""Who speaks: how much of the recommendation teacher is in what the student learns at each step of a response.

m_t = Σ_{v ∈ I} P_φ(v | y_<t, x), the mass that the dialogue teacher gives to items, says where a recommendation is due.
It is that of φ as it was trained: a temperature softens what teachers teach, not who speaks.

Source: ConKD (arXiv 2310.18119), gates of the knowledge distillation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmd.recommend.settings import DistillSettings

if TYPE_CHECKING:
    from torch import Tensor

    from mmd.recommend.vocabulary import TokenSpace


def item_mass(probs: Tensor, space: TokenSpace) -> Tensor:
    """Return m_t, the summed probability of all items.

    Args:
        probs: (..., size), distributions over words and items.
        space: which tokens are items.

    Returns:
        Shape (...), in [0, 1].
    """
    return probs[..., space.items].sum(-1).clamp(0.0, 1.0)


def share_of_recommendation(settings: DistillSettings, mass: Tensor) -> Tensor:
    """Return λ_t, the recommendation teacher's share in the teachers' mixture; the dialogue teacher has the rest.

    With one teacher there is nothing to mix: it has everything.

    Args:
        settings: teachers, gate and its threshold (hard) or share (static).
        mass: m_t, any shape.

    Returns:
        Of the shape of ``mass``, in [0, 1].
    """
    import torch

    if settings.teachers != "both":
        return torch.full_like(mass, float(settings.teachers == "recommendation"))
    if settings.gate == "hard":
        return (mass >= settings.eta).to(mass.dtype)
    if settings.gate == "static":
        return torch.full_like(mass, settings.static)
    return mass
