"""Text and vision models that stay as they are: extractors like those of featurize, named after a model's files.

One text or picture at a time: a vector then never depends, bit for bit, on what else was in its batch, and an index
built by a job holds what the service computes. Each is encoded once, since sources remember vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmd.features.vision import normalise
from mmd.models.resolve import LOCAL
from mmd.models.settings import ModelSettings
from mmd.retrieval.bases import folder_hash, load_text, load_vision, model_folder
from mmd.retrieval.settings import TowerSettings


class FrozenText:
    """Sentence vectors of a text model, pooled as ``towers.pooling`` says.

    Args:
        towers: model, pooling, and the tokens that are read of a text (``context_tokens``, its beginning).
        models: where weights come from, and threads.

    Raises:
        ModelError: the model is not here, or has no folder that transformers reads.
    """

    def __init__(self, towers: TowerSettings, models: ModelSettings) -> None:
        self._towers, self._threads = towers, models.threads
        self._folder = model_folder(towers.text, models)
        self.name = _name(towers.text, self._folder, towers.pooling, f"{towers.context_tokens}t")
        self.dim = int(_config(self._folder).hidden_size)

    @cached_property
    def _encoder(self) -> Any:  # noqa: ANN401 (a torch module)
        from mmd.retrieval.towers import TransformerText

        return TransformerText(load_text(self._folder), self._towers.pooling).eval()

    @cached_property
    def _tokenizer(self) -> Any:  # noqa: ANN401 (duck-typed library object)
        from mmd.retrieval.tokens import load_tokenizer

        return load_tokenizer(self._folder)

    def warm(self) -> None:
        """Load the weights now."""
        _ = self._encoder, self._tokenizer

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 (n_texts, dim), rows L2-normalised."""
        import torch

        from mmd.models.threads import torch_threads
        from mmd.retrieval.inputs import TextBatch

        out = np.empty((len(texts), self.dim), np.float32)
        with torch.inference_mode(), torch_threads(self._threads):
            for row, text in enumerate(texts):
                tokens = self._tokenizer([text], self._towers.context_tokens, "right")
                out[row] = self._encoder(TextBatch(tokens=tokens))[0].numpy()
        return normalise(out)


class FrozenVision:
    """Picture vectors of a vision model: its pooled output.

    Args:
        towers: the model.
        models: where weights come from, and threads.

    Raises:
        ModelError: the model is not here, or has no folder that transformers reads.
    """

    def __init__(self, towers: TowerSettings, models: ModelSettings) -> None:
        from mmd.retrieval.towers import vision_width

        self._threads = models.threads
        self._folder = model_folder(towers.vision, models)
        self.name = _name(towers.vision, self._folder)
        self.dim = vision_width(_config(self._folder))

    @cached_property
    def _encoder(self) -> Any:  # noqa: ANN401 (a torch module)
        return load_vision(self._folder).eval()

    @cached_property
    def _processor(self) -> Any:  # noqa: ANN401 (duck-typed library object)
        from mmd.retrieval.tokens import load_image_processor

        return load_image_processor(self._folder)

    def warm(self) -> None:
        """Load the weights now."""
        _ = self._encoder, self._processor

    def encode(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Return float32 (n_images, dim), rows L2-normalised.

        Raises:
            ValueError: a picture cannot be decoded.
        """
        import torch

        from mmd.features.pictures import decode_rgb
        from mmd.models.threads import torch_threads
        from mmd.retrieval.towers import pooled_pictures

        out = np.empty((len(images), self.dim), np.float32)
        with torch.inference_mode(), torch_threads(self._threads):
            for row, data in enumerate(images):
                pixels = self._processor(images=[decode_rgb(data)], return_tensors="pt")["pixel_values"]
                out[row] = pooled_pictures(self._encoder, pixels.float())[0].numpy()
        return normalise(out)


def _config(folder: Path) -> Any:  # noqa: ANN401 (duck-typed library object)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder), **LOCAL)
    return getattr(config, "vision_config", config)


def _name(model: str, folder: Path, *details: str) -> str:
    """Return a name that other files of the same model's name do not have; a path would mean nothing elsewhere."""
    return "-".join([Path(model).name, folder_hash(folder)[:12], *details])
