"""Beam search: several drafts a context, extended together; the best by mean log-probability is the reply.

The mode is settled before beams part, so that a reply's mode does not depend on how its sentence ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmd.recommend.drafts import Draft, Rules, item_masses
from mmd.recommend.types import Mode

if TYPE_CHECKING:
    from torch import Tensor

    from mmd.recommend.backbone import Backbone
    from mmd.recommend.batches import DialogueBatch


def grow_beams(
    backbone: Backbone[Any],
    rules: Rules,
    batch: DialogueBatch,
    drafts: Sequence[Draft],
    gold_modes: Sequence[Mode] | None,
    beams: int,
) -> list[Draft]:
    """Return the best ended draft of each context.

    A context is done when as many drafts of it ended as there are beams, or all of them did; with one beam this is
    greedy decoding.

    Args:
        backbone: that speaks, in eval mode.
        rules: of what may follow.
        batch: of contexts, on the backbone's device.
        drafts: one a context, empty.
        gold_modes: modes that are given instead of decoded.
        beams: drafts a context.
    """
    import torch

    ended: list[list[Draft]] = [[] for _ in drafts]
    with torch.inference_mode():
        state, device = backbone.start(batch), batch.context.device
        live = [(context, draft) for context, draft in enumerate(drafts)]
        tokens = torch.full((len(live),), rules.space.bos, device=device)
        while live:
            logits, state = backbone.step(state, tokens)
            allowed = rules.forbid(logits, [draft for _, draft in live])
            masses = item_masses(logits, rules.space)
            kept: list[tuple[int, int, Draft]] = []  # context, row it grew from, draft
            for context, choices in _continuations(allowed, live, rules, gold_modes, beams).items():
                for row, token, score in choices:
                    draft = rules.extend(live[row][1], token, allowed[row], masses[row], score)
                    if draft.ended:
                        ended[context].append(draft)
                    else:
                        kept.append((context, row, draft))
            kept = [one for one in kept if len(ended[one[0]]) < beams]
            live = [(context, draft) for context, _, draft in kept]
            if live:
                state = state.select(torch.tensor([row for _, row, _ in kept], device=device))
                tokens = torch.tensor([draft.tokens[-1] for _, draft in live], device=device)
    return [max(found, key=lambda draft: draft.quality) for found in ended]


def _continuations(
    allowed: Tensor,
    live: Sequence[tuple[int, Draft]],
    rules: Rules,
    gold_modes: Sequence[Mode] | None,
    beams: int,
) -> dict[int, list[tuple[int, int, float]]]:
    """Return the best continuations of each context: row, token and summed log-probability, best first."""
    # Of what may follow, not of all: else a draft would pay for what it was forbidden to say.
    likeliest = allowed.log_softmax(1).topk(min(beams, allowed.shape[1]), dim=1)
    found: dict[int, list[tuple[int, int, float]]] = {}
    rows = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    for row, ((context, draft), (tokens, log_probs)) in enumerate(zip(live, rows, strict=True)):
        choices = list(zip(tokens, log_probs, strict=True))
        if rules.undecided(draft):
            choices = [(rules.space.mode_token(gold_modes[context]), 0.0)] if gold_modes else choices[:1]
        scored = [(row, token, draft.score + value) for token, value in choices if value > -math.inf]
        found.setdefault(context, []).extend(scored)
    return {context: sorted(choices, key=lambda c: -c[2])[:beams] for context, choices in found.items()}
