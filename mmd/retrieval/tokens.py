"""Tokens of texts and pixels of pictures, as the models of transformers take them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmd.errors import ModelError
from mmd.models.resolve import LOCAL

if TYPE_CHECKING:
    import torch

Side = Literal["left", "right"]
_KEYS = ("input_ids", "attention_mask", "token_type_ids")


class Tokenizer:
    """A tokenizer that cuts long texts at either side; two copies, since transformers keeps the side as its state.

    Args:
        fast: a fast tokenizer of transformers.
    """

    def __init__(self, fast: Any) -> None:  # noqa: ANN401 (duck-typed library object)
        self.fast = fast
        self._sides: dict[Side, Any] = {"left": copy.deepcopy(fast), "right": fast}
        for side, own in self._sides.items():
            own.truncation_side, own.padding_side = side, "right"

    def __call__(self, texts: Sequence[str], limit: int, side: Side) -> dict[str, torch.Tensor]:
        """Return int64 (n, width), padded at the right; special tokens stay when a text is cut."""
        import torch

        if not texts:
            return {key: torch.zeros((0, 1), dtype=torch.int64) for key in _KEYS[:2]}
        found = self._sides[side](
            list(texts),
            padding=True,
            truncation=True,
            max_length=limit,
            split_special_tokens=True,  # what users wrote is text, whatever it spells
            return_tensors="pt",
            verbose=False,
        )
        return {key: found[key] for key in _KEYS if key in found}


def pixels_of(processor: Any, rows: Sequence[tuple[str, bytes] | None]) -> torch.Tensor:  # noqa: ANN401 (duck-typed library object)
    """Return float32 (n, 3, height, width); rows without a picture are zero.

    Args:
        processor: image processor of transformers.
        rows: image id and encoded picture.

    Raises:
        ModelError: a picture cannot be decoded.
    """
    import torch

    from mmd.features.pictures import decode_rgb

    images = []
    for row in rows:
        if row is None:
            continue
        try:
            images.append(decode_rgb(row[1]))
        except ValueError as err:
            raise ModelError(f"picture {row[0]}: {err}; send or ingest it again as PNG, JPEG or WebP.") from err
    if not images:
        return torch.zeros((len(rows), 3, 1, 1))
    found: torch.Tensor = processor(images=images, return_tensors="pt")["pixel_values"].float()
    out = found.new_zeros((len(rows), *found.shape[1:]))
    out[torch.tensor([row is not None for row in rows])] = found
    return out


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a model's folder.

    Raises:
        ModelError: it has none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        fast = AutoTokenizer.from_pretrained(str(folder), **LOCAL)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as err:
        raise ModelError(f"{folder}: has no tokenizer that transformers can load ({err}).") from err
    if fast.pad_token_id is None:
        fast.pad_token = fast.eos_token
    return Tokenizer(fast)


def load_image_processor(folder: Path) -> Any:  # noqa: ANN401 (duck-typed library object)
    """Load the image processor of a model's folder; transformers' PIL ones, which need no torchvision.

    Raises:
        ModelError: it has none.
    """
    from transformers import AutoImageProcessor

    try:
        load: Any = AutoImageProcessor.from_pretrained  # untyped upstream
        return load(str(folder), **LOCAL, backend="pil")
    except (OSError, ValueError, KeyError, TypeError, ImportError) as err:
        raise ModelError(f"{folder}: has no image processor that transformers can load ({err}).") from err
