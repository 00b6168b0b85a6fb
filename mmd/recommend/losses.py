"""What the student is trained on: its references' words and its teachers' distributions.

L = Σ_t (1-γ) L_NLL,t + γ [(1-λ_t) L_dial,t + λ_t L_rec,t], where L_dial,t = -Σ_{V∪I} P_φ log P_θ and
L_rec,t = -Σ_I P_ψ log P_θ. All three are cross-entropies to distributions, so the loss is the cross-entropy to one:
(1-γ) 1[y_t] + γ [(1-λ_t) P_φ + λ_t P_ψ].

Of a teacher only the likeliest tokens are known, and the mass of all others, its tail. The tail is one bucket: the
cross-entropy over (each known token, the rest). Its gradient by the logits differs from that of the full cross-entropy
by at most twice the tail's mass, in L1: both are P_θ minus a target, the targets agree on the known tokens, and in the
tail each is a distribution of that mass.

The temperature is the teachers' alone. The student is decoded at 1, and is pulled to a distribution that is fixed: the
gradient P_θ minus target does not shrink with the temperature, so there is no factor T² to make up for.

Source: ConKD (arXiv 2310.18119); Hinton et al. 2015 for T² where both sides are softened.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmd.recommend.gates import share_of_recommendation
from mmd.recommend.settings import DistillSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SMALL_REST = 1e-3  # below it, 1 minus a sum of float32 probabilities is noise
_LARGE_LOG = 80.0  # the exponential of more is no float32


@dataclass(frozen=True)
class TeacherBatch:
    """What the teachers say at N positions of B responses.

    Attributes:
        tokens: int64 (N, k), φ's likeliest tokens.
        probs: float32 (N, k), what φ gives them; the rest is the tail's.
        mass: float32 (N,), m_t.
        items: int64 (B, j), tokens of ψ's likeliest items.
        item_probs: float32 (B, j); the rest is the tail's.
        rows: int64 (N,), the response of each position.
    """

    tokens: Tensor
    probs: Tensor
    mass: Tensor
    items: Tensor
    item_probs: Tensor
    rows: Tensor

    def to(self, device: torch.device | str) -> TeacherBatch:
        """Return the batch on a device."""
        return TeacherBatch(**{name: value.to(device) for name, value in vars(self).items()})

    def one_hot(self) -> TeacherBatch:
        """Return teachers that say only their likeliest token; who speaks stays as it is."""
        import torch

        def likeliest(ids: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
            best = ids.gather(1, probs.argmax(1, keepdim=True))
            return best, torch.ones_like(best, dtype=probs.dtype)

        tokens, probs = likeliest(self.tokens, self.probs)
        items, item_probs = likeliest(self.items, self.item_probs)
        return replace(self, tokens=tokens, probs=probs, items=items, item_probs=item_probs)


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed negative log-likelihood, in nats.

    Args:
        logits: (N, size).
        targets: int64 (N,).
    """
    from torch.nn import functional

    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def conkd_loss(
    logits: Tensor, targets: Tensor, teachers: TeacherBatch, first_item: int, settings: DistillSettings
) -> Tensor:
    """Return ConKD's loss, summed over positions.

    Args:
        logits: (N, size) of the student, over words and then items.
        targets: int64 (N,), the references' tokens.
        teachers: what they say at these positions.
        first_item: token of the first item; those from it on are items.
        settings: gate, teachers, γ, one-hot.
    """
    said = teachers.one_hot() if settings.one_hot else teachers
    share = share_of_recommendation(settings, said.mass)
    weights = (1 - settings.gamma, settings.gamma * (1 - share), settings.gamma * share)
    loss: Tensor = _mixture_loss().apply(logits.float(), targets, said, weights, first_item)
    return loss


def _mixture_loss() -> Any:  # noqa: ANN401 (a torch.autograd.Function, which only torch's import can name)
    import torch
    from torch.autograd.function import once_differentiable

    class MixtureLoss(torch.autograd.Function):
        """The loss with its gradient written out, so that it costs what an ordinary cross-entropy costs.

        With q = P_θ, a known token's gradient is q minus its share in the target; a tail's mass r spreads over its
        tokens as q does, r q/R, where R is what q gives them together.
        """

        @staticmethod
        def forward(
            ctx: Any,  # noqa: ANN401 (torch's)
            logits: Tensor,
            targets: Tensor,
            said: TeacherBatch,
            weights: tuple[float, Tensor, Tensor],
            first_item: int,
        ) -> Tensor:
            logq = torch.log_softmax(logits, dim=-1)
            of_words, of_dialogue, of_items = weights
            items, item_probs = said.items[said.rows], said.item_probs[said.rows]
            right = logq.gather(1, targets[:, None])[:, 0]
            words = _Known(logq, said.tokens, said.probs, 0)
            ranked = _Known(logq, items, item_probs, first_item)
            loss = -of_words * right.sum() + (of_dialogue * words.loss).sum() + (of_items * ranked.loss).sum()
            ctx.log_probs, ctx.parts = logq, (targets, words, ranked, weights, first_item)
            return loss

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401 (torch's)
            targets, words, ranked, (of_words, of_dialogue, of_items), first_item = ctx.parts
            q = ctx.log_probs.exp_()  # nobody reads the log-probabilities again
            ctx.log_probs = None
            spread, item_spread = of_dialogue * words.spread, of_items * ranked.spread
            known, known_items = q.gather(1, words.ids), q.gather(1, ranked.ids)
            q[:, :first_item] *= (1 - spread)[:, None]
            q[:, first_item:] *= (1 - spread - item_spread)[:, None]
            q.scatter_add_(1, words.ids, spread[:, None] * known - of_dialogue[:, None] * words.probs)
            q.scatter_add_(1, ranked.ids, item_spread[:, None] * known_items - of_items[:, None] * ranked.probs)
            q.scatter_add_(1, targets[:, None], torch.full_like(targets, -of_words, dtype=q.dtype)[:, None])
            return q.mul_(grad), None, None, None, None

    return MixtureLoss


class _Known:
    """A teacher's known tokens under the student, and the bucket of all others.

    Args:
        logq: (N, size), the student's log-probabilities.
        ids: int64 (N, k), the known tokens.
        probs: (N, k), the teacher's.
        start: the teacher speaks of the tokens from here on.

    Attributes:
        loss: (N,), cross-entropy over (each known token, the rest).
        spread: (N,), mass of the teacher's tail by mass that the student gives to it.
    """

    def __init__(self, logq: Tensor, ids: Tensor, probs: Tensor, start: int) -> None:
        self.ids, self.probs = ids, probs.to(logq.dtype)
        known = logq.gather(1, ids)
        tail = (1 - self.probs.sum(1)).clamp_min(0.0)
        log_rest = _log_rest(logq, ids, known, start)
        has_tail = (tail > 0) & log_rest.isfinite()  # else every token is known, and the tail is rounding
        self.spread = (tail * (-log_rest).clamp_max(_LARGE_LOG).exp()).where(has_tail, 0.0)
        self.loss = -(self.probs * known).sum(1) - (tail * log_rest).where(has_tail, 0.0)


def _log_rest(logq: Tensor, ids: Tensor, known: Tensor, start: int) -> Tensor:
    """Return the log of the mass from ``start`` on that is not in known tokens, (N,); -inf where there is none."""
    whole = logq[:, start:].exp().sum(1) if start else 1.0
    rest = whole - known.exp().sum(1)
    log_rest: Tensor = rest.clamp_min(1e-30).log()
    near = (rest < _SMALL_REST).nonzero()[:, 0]
    if len(near):
        others = logq[near].scatter(1, ids[near], float("-inf"))
        log_rest[near] = others[:, start:].logsumexp(1)
    return log_rest
