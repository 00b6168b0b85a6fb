"""Decoding encoded pictures for the extractors."""

from __future__ import annotations

import io

from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from mmd.corpora.images import FORMATS


def decode_rgb(data: bytes) -> PillowImage.Image:
    """Decode a picture to RGB at its stored orientation and size; what is transparent becomes white.

    Only as a format that pictures are checked as (:func:`~mmd.corpora.images.check_image`): a file can be two things.

    Raises:
        ValueError: the bytes are no complete picture, or hold more pixels than Pillow's bomb limit.
    """
    try:
        with PillowImage.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.has_transparency_data:
                layered = image.convert("RGBA")
                white = PillowImage.new("RGBA", layered.size, "white")
                return PillowImage.alpha_composite(white, layered).convert("RGB")
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, PillowImage.DecompressionBombError) as err:
        raise ValueError(f"not a decodable picture ({err})") from err
