"""Losses of retrieval: InfoNCE over a batch with duplicate positives masked, and cross-entropy of the modality.

Source: van den Oord et al. 2018 (InfoNCE); arXiv 2506.11499 (joint loss of MDR, intent loss of DR and SDR).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmd.retrieval.settings import Method

if TYPE_CHECKING:
    import torch


def contrastive_loss(
    queries: torch.Tensor,
    responses: torch.Tensor,
    positives: torch.Tensor,
    mask: torch.Tensor,
    temperature: torch.Tensor | float,
) -> torch.Tensor:
    """Return the mean over queries of -log softmax(cosine / temperature) at the right response.

    Args:
        queries: (b, d), unit length.
        responses: (m, d), unit length.
        positives: int64 (b,), row of each query's right response.
        mask: bool (b, m), what may not be a negative; the right response is always kept.
        temperature: above 0.

    Returns:
        A float32 scalar.
    """
    return contrastive_losses(queries, responses, positives, mask, temperature).mean()


def contrastive_losses(
    queries: torch.Tensor,
    responses: torch.Tensor,
    positives: torch.Tensor,
    mask: torch.Tensor,
    temperature: torch.Tensor | float,
) -> torch.Tensor:
    """Return :func:`contrastive_loss` of each query, float32 (b,)."""
    import torch

    scores = queries.float() @ responses.float().T / temperature  # (b, m)
    out = mask.scatter(1, positives[:, None], False)
    scores = scores.masked_fill(out, float("-inf"))
    return torch.nn.functional.cross_entropy(scores, positives, reduction="none")


def duplicate_mask(
    positives: Sequence[str], also: Sequence[Sequence[str]], responses: Sequence[str] | None = None
) -> torch.Tensor:
    """Return bool (b, m): which responses answer a query as well as its right one does, and are thus no negatives.

    Args:
        positives: the right response's id, one a query.
        also: further right responses' ids, one sequence a query.
        responses: ids of the responses; None: the positives, in order.
    """
    import torch

    ids = list(responses if responses is not None else positives)
    numbers = {response_id: number for number, response_id in enumerate(dict.fromkeys(ids))}
    columns = torch.tensor([numbers[response_id] for response_id in ids], dtype=torch.int64)
    mask = torch.zeros((len(positives), len(ids)), dtype=torch.bool)
    for row, (positive, others) in enumerate(zip(positives, also, strict=True)):
        for response_id in (positive, *others):
            if response_id in numbers:
                mask[row] |= columns == numbers[response_id]
    return mask


def intent_loss(logits: torch.Tensor, targets: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """Return the class-weighted cross-entropy of the modality: the sum of weighted losses over the sum of weights.

    Args:
        logits: (b, n_modalities).
        targets: int64 (b,).
        class_weights: (n_modalities,).
    """
    import torch

    return torch.nn.functional.cross_entropy(logits.float(), targets, weight=class_weights)


def class_weights(counts: Mapping[str, float], modalities: Sequence[str]) -> torch.Tensor:
    """Return weights (n_modalities,) that make every modality count the same: n / (modalities · count); 0 for none."""
    import torch

    total, present = sum(counts.get(m, 0) for m in modalities), sum(counts.get(m, 0) > 0 for m in modalities)
    values = [total / (present * counts[m]) if counts.get(m, 0) else 0.0 for m in modalities]
    return torch.tensor(values, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class BatchLoss:
    """The loss of a batch and its parts; ``intent`` is zero for a method that predicts no modality."""

    total: torch.Tensor
    retrieval: torch.Tensor
    intent: torch.Tensor


def batch_loss(  # noqa: PLR0913 (a batch is what it is: each is told by name)
    method: Method,
    *,
    queries: torch.Tensor,
    responses: torch.Tensor,
    positives: torch.Tensor,
    mask: torch.Tensor,
    query_kinds: torch.Tensor,
    response_kinds: torch.Tensor,
    temperature: torch.Tensor | float,
    logits: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> BatchLoss:
    """Return the loss of a mixed batch.

    DR and SDR rank within a modality, so that negatives are of the query's own: the modalities' mean losses, weighted
    by their counts, over b is then the mean over all queries. MDR ranks everything against everything.

    Args:
        method: of the retriever.
        queries: (b, d).
        responses: (m, d); m may exceed b by hard negatives.
        positives: int64 (b,), row of the right response.
        mask: bool (b, m) of :func:`duplicate_mask`.
        query_kinds: int64 (b,), modality of the right response.
        response_kinds: int64 (m,).
        temperature: above 0.
        logits: (b, n_modalities), None for MDR.
        weights: (n_modalities,) of :func:`class_weights`; None: all 1.
    """
    import torch

    if method != "mdr":
        mask = mask | (query_kinds[:, None] != response_kinds[None, :])
    retrieval = contrastive_loss(queries, responses, positives, mask, temperature)
    if logits is None:
        return BatchLoss(retrieval, retrieval, retrieval.new_zeros(()))
    weights = logits.new_ones(logits.shape[1], dtype=torch.float32) if weights is None else weights.to(logits.device)
    intent = intent_loss(logits, query_kinds, weights)
    return BatchLoss(retrieval + intent, retrieval, intent)
