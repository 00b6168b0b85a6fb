"""Vectors of many queries and responses: in batches of similar length, results in the order asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmd.retrieval.engine import Maker, Model, there
from mmd.retrieval.types import Query, Response

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Vectors = NDArray[np.float32]
BATCH = 256


def encode_queries(model: Model, maker: Maker, queries: Sequence[Query], modality: str, batch: int = BATCH) -> Vectors:
    """Return the vectors with which a modality's responses are ranked, float32 (n, dim)."""
    return in_batches(
        queries, query_size, maker.queries, lambda x: model.embed_queries(there(model, x), modality), batch
    )


def encode_intents(model: Model, maker: Maker, queries: Sequence[Query], batch: int = BATCH) -> Vectors:
    """Return each query's probability of each modality, float32 (n, modalities); not of mdr, which has no such head."""
    return in_batches(
        queries, query_size, maker.queries, lambda x: model.intent_logits(there(model, x)).softmax(-1), batch
    )


def encode_responses(model: Model, maker: Maker, responses: Sequence[Response], batch: int = BATCH) -> Vectors:
    """Return the vectors of responses of any modalities, float32 (n, dim)."""
    out: Vectors | None = None
    for modality in dict.fromkeys(response.modality for response in responses):
        rows = [row for row, response in enumerate(responses) if response.modality == modality]
        found = _encode_modality(model, maker, [responses[row] for row in rows], modality, batch)
        out = np.empty((len(responses), found.shape[1]), np.float32) if out is None else out
        out[rows] = found
    return out if out is not None else np.empty((0, 0), np.float32)


def _encode_modality(model: Model, maker: Maker, some: Sequence[Response], modality: str, batch: int) -> Vectors:
    return in_batches(
        some, lambda r: len(r.text), maker.responses, lambda x: model.embed_responses(there(model, x), modality),
        batch,
    )  # fmt: skip


def query_size(query: Query) -> int:
    """Return the characters of a query, by which batches are sorted so that little of them is padding."""
    return sum(len(turn.text) for turn in query.turns)


def in_batches(
    values: Sequence[T],
    size: Callable[[T], int],
    make: Callable[[Sequence[T]], Any],
    embed: Callable[[Any], Tensor],
    batch: int = BATCH,
) -> Vectors:
    """Encode values from the longest to the shortest, so that memory runs out at once or never.

    Args:
        values: what to encode.
        size: of a value; those of a batch are alike.
        make: values → an encoder's inputs.
        embed: inputs → (n, dim).
        batch: values at a time.

    Returns:
        float32 (values, dim), in the values' order.
    """
    import torch

    order = sorted(range(len(values)), key=lambda row: -size(values[row]))
    out: Vectors | None = None
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        inputs = make([values[row] for row in rows])
        with torch.inference_mode():
            found = embed(inputs).float().cpu().numpy()
        out = np.empty((len(values), found.shape[1]), np.float32) if out is None else out
        out[rows] = found
    return out if out is not None else np.empty((0, 0), np.float32)
