"""Replies in the making, and which tokens may come next: where it is decided that no item is ever invented."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mmd.recommend.replies import Emission
from mmd.recommend.types import Mode
from mmd.recommend.vocabulary import TokenSpace

if TYPE_CHECKING:
    from torch import Tensor

TOP_ITEMS = 100
"""Items that are kept of each item's place: the 50 that R@50 looks at, and as many that a context may mention, which
are no candidates among novel items."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A reply so far.

    Attributes:
        key: of the sample; its draws of chance depend on nothing else.
        mode: ``rec`` or ``gen`` once decided or given; None: not yet, or there are no mode tokens to decide by.
        mode_probability: of the mode's token against the other one; None without such a token.
        tokens: decoded ones, mode and end included.
        spoken: how many of them are words or items.
        emissions: one an item.
        masses: item mass at each token.
        score: log-probability of the tokens after the mode; only beams look at it.
        ended: whether the end was decoded or there is no room for more.
    """

    key: str
    mode: Mode | None = None
    mode_probability: float | None = None
    tokens: tuple[int, ...] = ()
    spoken: int = 0
    emissions: tuple[Emission, ...] = ()
    masses: tuple[float, ...] = ()
    score: float = 0.0
    ended: bool = False

    @property
    def quality(self) -> float:
        """Mean log-probability of a token after the mode, by which beams compare drafts of unequal length."""
        said = len(self.tokens) - (self.mode_probability is not None)
        return self.score / max(said, 1)


@dataclass(frozen=True)
class Rules:
    """Which tokens may come next.

    First the mode, if the model has mode tokens; then words, and in ``rec`` mode items; at least one of them before the
    end. No item comes twice in a reply. A token that is neither a word, an item of the graph nor the end never comes.

    Attributes:
        space: the vocabulary.
        mode_tokens: whether replies begin with their mode.
        most_spoken: words and items of a reply.
        no_repeat: no sequence of so many tokens comes twice in a reply; 0: any may.
    """

    space: TokenSpace
    mode_tokens: bool
    most_spoken: int
    no_repeat: int = 0

    def forbid(self, logits: Tensor, drafts: Sequence[Draft]) -> Tensor:
        """Return logits with -inf where a token may not follow a draft, shape (B, size)."""
        space, allowed = self.space, logits.clone()
        # A model without padding of its own pads with its end (GPT-2, SmolLM2), which must stay sayable.
        allowed[:, sorted({*space.silent, space.pad, space.bos} - {space.eos})] = -np.inf
        modes = [space.rec, space.gen]
        undecided = [row for row, draft in enumerate(drafts) if self.undecided(draft)]
        chosen = allowed[undecided][:, modes]
        allowed[:, modes] = -np.inf
        allowed[[row for row, draft in enumerate(drafts) if not draft.spoken], space.eos] = -np.inf
        allowed[[row for row, draft in enumerate(drafts) if draft.mode == "gen"], space.items] = -np.inf
        for row, draft in enumerate(drafts):
            allowed[row, [space.token_of(emission.item) for emission in draft.emissions]] = -np.inf
            allowed[row, self.repeating(draft)] = -np.inf
        for place, row in enumerate(undecided):
            allowed[row] = -np.inf
            allowed[row, modes] = chosen[place]
        return allowed

    def repeating(self, draft: Draft) -> list[int]:
        """Return the tokens that would complete a sequence which the draft already has."""
        length = self.no_repeat
        if not length:
            return []
        tokens = draft.tokens
        last = tokens[len(tokens) - length + 1 :]
        starts = range(len(tokens) - length + 1)
        return [tokens[at + length - 1] for at in starts if tokens[at : at + length - 1] == last]

    def undecided(self, draft: Draft) -> bool:
        """Say whether a draft's next token is its mode."""
        return self.mode_tokens and draft.mode is None

    def extend(self, draft: Draft, token: int, allowed: Tensor, mass: float, score: float = 0.0) -> Draft:
        """Return a draft with a token more.

        Args:
            draft: so far.
            token: that was chosen.
            allowed: logits of its place after :meth:`forbid`, shape (size,).
            mass: item mass of its place.
            score: log-probability of the tokens after the mode, this one included.
        """
        space = self.space
        draft = replace(
            draft,
            tokens=(*draft.tokens, token),
            masses=(*draft.masses, mass),
            score=score,
        )
        if token in (space.rec, space.gen):
            own = float((allowed[token] - allowed[[space.rec, space.gen]].logsumexp(0)).exp())
            return replace(draft, mode="rec" if token == space.rec else "gen", mode_probability=own, score=0.0)
        if token == space.eos:
            return replace(draft, ended=True)
        if space.is_item(token):
            named = emission_of(space.item_at(token), allowed[space.items])
            draft = replace(draft, emissions=(*draft.emissions, named))
        return replace(draft, spoken=draft.spoken + 1, ended=draft.spoken + 1 >= self.most_spoken)


def emission_of(item: int, logits: Tensor) -> Emission:
    """Return an item with the likeliest ones at its place.

    Args:
        item: that is named.
        logits: of all items at its place, -inf where one is not allowed, shape (n_items,).
    """
    log_probs = logits.float().log_softmax(0)
    best, items = log_probs.topk(min(TOP_ITEMS, len(log_probs)))
    kept = int(best.isfinite().sum())
    return Emission(item, tuple(items[:kept].tolist()), tuple(best[:kept].tolist()))


def item_masses(logits: Tensor, space: TokenSpace) -> list[float]:
    """Return the summed item probability of each row of logits before any mask, in [0, 1]."""
    share = logits[:, space.items].logsumexp(1) - logits.logsumexp(1)
    masses: list[float] = share.exp().clamp(max=1.0).tolist()
    return masses


def chance_of(key: str, seed: int) -> np.random.Generator:
    """Return a sample's own source of chance: what it draws does not depend on its neighbours in a batch."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def draw(logits: Tensor, top_p: float, temperature: float, uniforms: Sequence[float]) -> Tensor:
    """Draw a token a row from the nucleus: the fewest likeliest tokens that together reach ``top_p``.

    Args:
        logits: shape (B, size); -inf is never drawn.
        top_p: in (0, 1].
        temperature: above 0.
        uniforms: one number in [0, 1) a row.

    Returns:
        int64 of shape (B,).

    Source: Holtzman et al. 2020.
    """
    import torch

    probs, tokens = (logits.double() / temperature).softmax(1).sort(dim=1, descending=True)
    before = probs.cumsum(1) - probs
    nucleus = probs * (before < top_p)
    reached = nucleus.cumsum(1)
    aim = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * reached[:, -1:]
    place = torch.searchsorted(reached, aim, right=True).clamp(max=logits.shape[1] - 1)
    return tokens.gather(1, place)[:, 0]
