"""Hidden states of a language model that stays as it is, averaged over the spans of a text.

A text comes in pieces and is tokenised piece by piece, so that the tokens of every span are known exactly, whatever the
tokenizer would merge across their borders. Layers above the one that is asked for are not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ModelError
from mmd.models.mllm import Mllm

if TYPE_CHECKING:
    import torch

Vector = NDArray[np.float32]
_BATCH_TOKENS = 2048  # padding included; larger batches are no faster on CPUs


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text.

    Attributes:
        text: what it says; control tokens that it spells are broken up.
        span: pieces of the same name are averaged together; "" belongs to none.
        limit: tokens that are kept, the first ones; None keeps all.
    """

    text: str
    span: str = ""
    limit: int | None = None


class _Reached(Exception):  # noqa: N818 (no error: it ends a forward pass that has come far enough)
    """The layer that was asked for has answered."""


class SpanStates:
    """Reads hidden states after one layer of a model; safe to call from several threads.

    Models that see pictures are given the text alone.

    Args:
        mllm: the model.
        depth: share of its layers that are run, in (0, 1]; at least one is.

    Raises:
        ModelError: the model has no stacked layers.
    """

    def __init__(self, mllm: Mllm, depth: float) -> None:
        self.mllm = mllm
        layers = getattr(mllm.core.get_decoder(), "layers", None)
        if layers is None or not len(layers):
            raise ModelError(f"model {mllm.name!r}: found no stacked layers; intent.finetune.method=frozen needs them.")
        self.layer = min(len(layers), max(1, round(depth * len(layers))))
        """How many layers are run."""
        self._top = layers[self.layer - 1]

    @property
    def dim(self) -> int:
        """Length of a hidden state."""
        return int(self.mllm.core.get_input_embeddings().weight.shape[1])

    def means(self, texts: Sequence[Sequence[Piece]]) -> list[dict[str, Vector]]:
        """Return span → mean of its tokens' hidden states, float32 (dim,), one mapping a text, in order.

        A span without tokens is left out. Texts of like length share a forward pass.
        """
        rows = [self._tokens(text) for text in texts]
        out: list[dict[str, Vector]] = [{} for _ in rows]
        for batch in _batches([len(ids) for ids, _ in rows]):
            states = self._states([rows[i][0] for i in batch])
            for place, i in enumerate(batch):
                out[i] = {
                    span: states[place, where].float().mean(0).cpu().numpy() for span, where in rows[i][1].items()
                }
        return out

    def _tokens(self, text: Sequence[Piece]) -> tuple[list[int], dict[str, list[int]]]:
        """Return a text's tokens, and each span's positions among them."""
        encoder = self.mllm.encoder
        ids = encoder.start_ids()
        spans: dict[str, list[int]] = {}
        for piece in text:
            tokens = encoder.text_ids(piece.text)[: piece.limit]
            if piece.span and tokens:
                spans.setdefault(piece.span, []).extend(range(len(ids), len(ids) + len(tokens)))
            ids += tokens
        return ids or [encoder.pad_id], spans

    def _states(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return hidden states after the layer, shape (rows, width, dim); those of padding mean nothing."""
        import torch

        width, pad = max(map(len, rows)), self.mllm.encoder.pad_id
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with self.mllm.lock, torch.inference_mode(), _captured(self._top) as found:
            inputs = self.mllm.to_device({"input_ids": ids, "attention_mask": mask})
            with suppress(_Reached):
                self.mllm.core.model(**inputs, use_cache=False)
        return found[0]


@contextmanager
def _captured(layer: Any) -> Iterator[list[torch.Tensor]]:  # noqa: ANN401 (a torch module)
    """Collect a layer's output in a list, and end the forward pass there."""
    found: list[torch.Tensor] = []

    def reached(_module: Any, _inputs: Any, output: Any) -> None:  # noqa: ANN401 (what hooks are given)
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    handle = layer.register_forward_hook(reached)
    try:
        yield found
    finally:
        handle.remove()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield indices in batches of like length, each of ``_BATCH_TOKENS`` with padding, or of one row."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def stack_spans(rows: Sequence[Mapping[str, Vector]], spans: Sequence[str], dim: int) -> dict[str, Vector]:
    """Return span → float32 (n_rows, dim); a row without the span is all zero."""
    return {
        span: np.stack([row.get(span, np.zeros(dim, np.float32)) for row in rows])
        if rows
        else np.zeros((0, dim), np.float32)
        for span in spans
    }
