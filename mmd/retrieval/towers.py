"""Towers: a text and a picture encoder joined into one unit-length vector.

**Where heads start.** Frozen features already rank: a dialogue and its answer, read by the same sentence encoder, lie
closer than chance. With hundreds of samples a head that starts at random unlearns that before it learns anything.
Every head is therefore a fixed projection, the same for queries and responses, plus an update that starts at zero: an
untrained tower ranks by the raw cosine (exactly where the space has as many numbers as the features or more, up to the
error of an orthogonal projection where it has fewer), and training moves on from there.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmd.retrieval.inputs import QUERY_PARTS, TextBatch, TowerInputs

if TYPE_CHECKING:
    from mmd.retrieval.settings import TowerSettings

_PROJECTION_SEED = 20250611
_PART_WEIGHTS = (1.0, 1.0, 0.0)
"""Weights at the start of a query's vectors: last user turn, all turns, last agent turn."""
_PICTURE_WEIGHT = 0.5
"""Weight at the start of a picture against words."""
_KIND_STD = 1e-3
"""Too small to change a ranking, large enough to keep the gradient of a row without any input finite."""


@functools.lru_cache(maxsize=32)  # towers of one size are many, and made anew whenever another retriever is served
def projection(inputs: int, dim: int) -> Tensor:
    """Return float32 (dim, inputs) that keeps cosines: identity padded with zeros, or random orthonormal rows.

    The same for the same sizes, so that queries and responses start in one space.
    """
    if dim >= inputs:
        return torch.eye(dim, inputs)
    generator = torch.Generator().manual_seed(_PROJECTION_SEED)
    square = torch.randn(inputs, dim, generator=generator)
    rows: Tensor = torch.linalg.qr(square).Q.T
    return rows.contiguous() * math.sqrt(inputs / dim)  # keeps lengths on average


class ResidualHead(nn.Module):
    """Frozen vectors → a trained vector: ``skip(x) + second(gelu(first(dropout(x))))``.

    Args:
        parts: vectors side by side in the input.
        width: of one of them.
        dim: of the output.
        hidden: width of the update.
        dropout: before the update.
    """

    def __init__(self, parts: int, width: int, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.skip = nn.Linear(parts * width, dim, bias=False)
        self.first = nn.Linear(parts * width, hidden)
        self.second = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        weights = _PART_WEIGHTS if parts == QUERY_PARTS else (1.0,) * parts
        with torch.no_grad():
            self.skip.weight.copy_(torch.cat([weight * projection(width, dim) for weight in weights], dim=1))
            self.second.weight.zero_()
            self.second.bias.zero_()

    def forward(self, vectors: Tensor) -> Tensor:
        """Return (n, dim) of (n, parts · width)."""
        update: Tensor = self.second(functional.gelu(self.first(self.dropout(vectors))))
        return cast("Tensor", self.skip(vectors)) + update


class TextEncoder(nn.Module):
    """Texts → vectors (n, ``dim``)."""

    dim: int


class VectorText(TextEncoder):
    """A head over frozen sentence vectors.

    Args:
        parts: vectors a text: 3 for queries, 1 for responses.
        width: of one of them.
        settings: sizes of the head.
    """

    def __init__(self, parts: int, width: int, settings: TowerSettings) -> None:
        super().__init__()
        self.dim = settings.dim
        self.head = ResidualHead(parts, width, settings.dim, settings.hidden, settings.dropout)

    def forward(self, text: TextBatch) -> Tensor:
        """Return (n, dim)."""
        if text.vectors is None:
            raise TypeError("VectorText: was given tokens; make inputs with the retriever's own maker")
        return cast("Tensor", self.head(text.vectors))


class TransformerText(TextEncoder):
    """A trained text model, its states pooled to one vector.

    Args:
        model: of transformers; its first output is the last layer's states.
        pooling: ``mean`` over tokens that are no padding, or ``cls``: the first token.
    """

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.dim = int(cast("Any", model).config.hidden_size)
        self.dtype = torch.float32

    def forward(self, text: TextBatch) -> Tensor:
        """Return float32 (n, dim)."""
        if text.tokens is None:
            raise TypeError("TransformerText: was given vectors; make inputs with the retriever's own maker")
        mask = text.tokens["attention_mask"]
        with torch.autocast(mask.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            states = self.model(**text.tokens).last_hidden_state  # (n, width, dim)
        if self.pooling == "cls":
            return cast("Tensor", states[:, 0].float())
        kept = mask[..., None].to(torch.float32)
        return cast("Tensor", (states.float() * kept).sum(1) / kept.sum(1).clamp(min=1.0))


class VisionEncoder(nn.Module):
    """Pictures → vectors (n, ``dim``)."""

    dim: int


class VectorVision(VisionEncoder):
    """A head over frozen picture vectors."""

    def __init__(self, width: int, settings: TowerSettings) -> None:
        super().__init__()
        self.dim = settings.dim
        self.head = ResidualHead(1, width, settings.dim, settings.hidden, settings.dropout)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (n, dim) of (n, width)."""
        return cast("Tensor", self.head(pictures))


class TransformerVision(VisionEncoder):
    """A trained vision model (ResNet, ViT, SigLIP, …): its pooled output, or the mean of its last states.

    Batch normalisation keeps the statistics that it came with: a picture's vector must not depend on its batch, nor a
    GradCache step's second pass on its first.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.dim = vision_width(cast("Any", model).config)
        self.dtype = torch.float32

    def train(self, mode: bool = True) -> TransformerVision:  # noqa: FBT001, FBT002 (torch's signature)
        """Switch dropout on or off."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 (the base of all of them)
                module.eval()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """Return float32 (n, dim) of pixels (n, 3, height, width)."""
        with torch.autocast(pictures.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return pooled_pictures(self.model, pictures)


def pooled_pictures(model: nn.Module, pictures: Tensor) -> Tensor:
    """Return float32 (n, d): the model's pooled output, or the mean of its last states where it pools nothing."""
    found = model(pixel_values=pictures)
    pooled = getattr(found, "pooler_output", None)
    if pooled is not None:
        return cast("Tensor", pooled.float().flatten(1))
    states = found.last_hidden_state.float()
    return cast("Tensor", states.mean(1) if states.ndim == 3 else states.mean((2, 3)))


def vision_width(config: Any) -> int:  # noqa: ANN401 (duck-typed library object)
    """Return the length of a vision model's pooled output."""
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else config.hidden_size)


class Tower(nn.Module):
    """``normalise(Linear([text ; picture]) + kind)``.

    A row without a picture has zeros in its place, whatever the picture encoder would say of them.

    Args:
        text: text encoder.
        vision: picture encoder; None: pictures are not looked at.
        n_kinds: modalities that this tower must tell apart.
        dim: of the output.
    """

    def __init__(self, text: TextEncoder, vision: VisionEncoder | None, n_kinds: int, dim: int) -> None:
        super().__init__()
        self.text = text
        self.vision = vision
        self.join = nn.Linear(text.dim + (vision.dim if vision else 0), dim)
        self.kind = nn.Embedding(n_kinds, dim)
        with torch.no_grad():
            self.join.weight[:, : text.dim] = projection(text.dim, dim)
            if vision:
                self.join.weight[:, text.dim :] = _PICTURE_WEIGHT * projection(vision.dim, dim)
            self.join.bias.zero_()
            self.kind.weight.normal_(std=_KIND_STD)

    def states(self, inputs: TowerInputs) -> Tensor:
        """Return float32 (n, dim) before it is scaled to unit length."""
        parts = [self.text(inputs.text)]
        if self.vision is not None:
            parts.append(self._seen(inputs, parts[0]))
        kinds = inputs.kind if self.kind.num_embeddings > 1 else torch.zeros_like(inputs.kind)
        return cast("Tensor", self.join(torch.cat(parts, dim=1)) + self.kind(kinds))

    def forward(self, inputs: TowerInputs) -> Tensor:
        """Return float32 (n, dim), rows of unit length."""
        return functional.normalize(self.states(inputs), dim=1)

    def _seen(self, inputs: TowerInputs, like: Tensor) -> Tensor:
        """Return the picture vectors (n, vision.dim), zero where there is no picture; only pictures are encoded."""
        if self.vision is None or inputs.pictures is None:
            raise TypeError("Tower: was given no pictures; make inputs with the retriever's own maker")
        out = like.new_zeros((len(inputs), self.vision.dim))
        rows = inputs.has_picture.nonzero()[:, 0]
        if not len(rows):
            return out
        return out.index_copy(0, rows, self.vision(inputs.pictures[rows]).to(out.dtype))
