"""Decoding encoded pictures for the extractors."""

from __future__ import annotations

from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from mmd.corpora.images import open_picture
from mmd.errors import BadRecordError

_BAND_PX = 256


def decode_rgb(data: bytes) -> PillowImage.Image:
    """Decode a picture to RGB at its stored orientation and size; what is transparent becomes white.

    Only as a format that pictures are checked as (:func:`~mmd.corpora.images.check_image`): a file can be two things.

    Raises:
        ValueError: the bytes are no complete picture, or hold more pixels than Pillow's bomb limit.
    """
    try:
        with open_picture(data) as image:
            image.load()
            if image.has_transparency_data:
                return _on_white(image)
            return image if image.mode == "RGB" else image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, PillowImage.DecompressionBombError, BadRecordError) as err:
        raise ValueError(f"not a decodable picture ({err})") from err


def _on_white(image: PillowImage.Image) -> PillowImage.Image:
    """Return a picture on a white ground, RGB; by bands, since the layers of 40 megapixels take 0.6 GB at once."""
    out = PillowImage.new("RGB", image.size)
    for top in range(0, image.height, _BAND_PX):
        band = image.crop((0, top, image.width, min(top + _BAND_PX, image.height))).convert("RGBA")
        white = PillowImage.new("RGBA", band.size, "white")
        out.paste(PillowImage.alpha_composite(white, band).convert("RGB"), (0, top))
    return out
