"""Method `picture`: transforms under which a person reads the same picture and the same text in it.

Cut or shifted edges, scale, hue, saturation, brightness, contrast and JPEG quality change; nothing is mirrored or
rotated, since that would make text unreadable. OCR lines move with their pixels, and those cut off are left out.
One affine map does the geometry and one matrix the colours, so that a picture takes a few milliseconds.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image as PillowImage

from mmd.features.pictures import decode_rgb
from mmd.intent.settings import PictureSettings
from mmd.intent.types import ImageFacts
from mmd.schema import OcrLine, image_id

Keeps = Callable[[ImageFacts, ImageFacts], bool]
Box = tuple[float, float, float, float]
Row = tuple[float, float, float]
Rows = tuple[Row, Row, Row]
Matrix = tuple[float, float, float, float, float, float, float, float, float, float, float, float]

_LEAST_TEXT = 0.7  # share of a picture's recognised characters that stay in it
_LEAST_WIDTH, _LEAST_HEIGHT = 0.98, 0.7  # visible share of a line from which it can still be read
_READABLE_PX = 10.0  # height of a line of text below which a picture is not made smaller
_TRIES = 3
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Window:
    """What is shown of a picture, in its pixels; edges outside it show its border's colour."""

    left: int
    top: int
    right: int
    bottom: int
    scale: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the result, px."""
        width, height = self.right - self.left, self.bottom - self.top
        return max(1, round(width * self.scale)), max(1, round(height * self.scale))


def transform_picture(image: ImageFacts, settings: PictureSettings, keeps: Keeps, rng: random.Random) -> ImageFacts:
    """Return the picture seen a little differently, as JPEG, with its OCR lines moved along.

    Args:
        image: with its bytes.
        settings: how far each transform goes.
        keeps: says of a picture before and after whether what must be read in it still can be; cuts are made smaller
            until it does.
        rng: source of every choice.

    Raises:
        ValueError: the bytes are missing or no picture.
    """
    if image.data is None:
        raise ValueError(f"picture {image.image_id}: its bytes are needed to transform it")
    pixels = decode_rgb(image.data)
    window, shown = _choose_window(image, pixels.size, settings, keeps, rng)
    pixels = _cut(pixels, window).convert("RGB", colour_matrix(settings, rng))
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=rng.randint(settings.jpeg_quality_min, settings.jpeg_quality_max))
    data = buffer.getvalue()
    return replace(shown, image_id=image_id(data), data=data, vector=image.vector)


# ---------------------------------------------------------------- geometry


def _choose_window(
    image: ImageFacts, size: tuple[int, int], settings: PictureSettings, keeps: Keeps, rng: random.Random
) -> tuple[Window, ImageFacts]:
    """Return a window through which the text can be read, and the facts of what it shows."""
    edges = [_edge(limit, rng) for limit in (settings.crop_side, settings.crop_vertical) for _ in range(2)]
    scale = _scale(image, settings, rng)
    for attempt in range(_TRIES):
        # Later tries cut less; what lies beyond the border costs no text and stays.
        shares = [share / 2**attempt if share > 0 else share for share in edges]
        window = _window(size, shares, scale)
        shown = see(image, window)
        if _chars(shown) >= _LEAST_TEXT * _chars(image) and keeps(image, shown):
            return window, shown
    window = _window(size, [min(0.0, share) for share in edges], scale)
    return window, see(image, window)


def _edge(limit: float, rng: random.Random) -> float:
    """Draw the share cut off at one edge; negative adds border, at most half as much."""
    return rng.uniform(-limit / 2, limit)


def _window(size: tuple[int, int], shares: list[float], scale: float) -> Window:
    """Return the window of the shares cut off left, right, top and bottom; at least one pixel is left."""
    (width, height), (left, right, top, bottom) = size, shares
    x0, y0 = round(left * width), round(top * height)
    x1, y1 = width - round(right * width), height - round(bottom * height)
    return Window(x0, y0, max(x0 + 1, x1), max(y0 + 1, y1), scale)


def _scale(image: ImageFacts, settings: PictureSettings, rng: random.Random) -> float:
    heights = sorted(line.box[3] - line.box[1] for line in image.ocr)
    scale = rng.uniform(settings.scale_min, settings.scale_max)
    if heights and scale < 1 and heights[len(heights) // 2] * scale < _READABLE_PX:
        return min(1.0, _READABLE_PX / max(1.0, heights[len(heights) // 2]))
    return scale


def see(image: ImageFacts, window: Window) -> ImageFacts:
    """Return the facts of what a window shows: size, and the lines that are not cut off, in its pixels."""
    width, height = window.size
    x_scale, y_scale = width / (window.right - window.left), height / (window.bottom - window.top)
    lines = []
    for line in image.ocr:
        x0, y0, x1, y1 = line.box
        box = ((x0 - window.left) * x_scale, (y0 - window.top) * y_scale)
        moved: Box = (*box, (x1 - window.left) * x_scale, (y1 - window.top) * y_scale)
        clipped = _clip(moved, width, height)
        if _visible(moved, clipped):
            lines.append(OcrLine(line.text, line.score, clipped))
    return ImageFacts(image_id="", width=width, height=height, ocr=tuple(lines))


def _clip(box: Box, width: int, height: int) -> Box:
    def inside(value: float, limit: int) -> float:
        return min(max(value, 0.0), float(limit))

    return inside(box[0], width), inside(box[1], height), inside(box[2], width), inside(box[3], height)


def _visible(box: Box, clipped: Box) -> bool:
    """Say whether a line of which this part is inside the picture can still be read."""
    shown_x, shown_y = clipped[2] - clipped[0], clipped[3] - clipped[1]
    whole_x, whole_y = box[2] - box[0], box[3] - box[1]
    return shown_x > 0 and shown_y > 0 and shown_x >= _LEAST_WIDTH * whole_x and shown_y >= _LEAST_HEIGHT * whole_y


def _chars(image: ImageFacts) -> int:
    return sum(len(line.text) for line in image.ocr)


def _cut(pixels: PillowImage.Image, window: Window) -> PillowImage.Image:
    """Return what the window shows, at its size."""
    width, height = window.right - window.left, window.bottom - window.top
    canvas = PillowImage.new("RGB", (width, height), _border(pixels))
    canvas.paste(pixels, (-window.left, -window.top))
    if window.size == (width, height):
        return canvas
    return canvas.resize(window.size, PillowImage.Resampling.BICUBIC)


def _border(pixels: PillowImage.Image) -> tuple[int, int, int]:
    """Return the commonest colour of the corners; of four different ones the first."""
    right, bottom = pixels.width - 1, pixels.height - 1
    corners = [_colour_at(pixels, at) for at in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
    return max(corners, key=corners.count)


def _colour_at(pixels: PillowImage.Image, at: tuple[int, int]) -> tuple[int, int, int]:
    colour = pixels.getpixel(at)
    if not isinstance(colour, tuple):  # one number or nothing: a picture that is not RGB
        raise TypeError(f"a picture of mode {pixels.mode} reached the augmenter; convert it to RGB first")
    red, green, blue = colour[:3]
    return int(red), int(green), int(blue)


# ---------------------------------------------------------------- colour


def colour_matrix(settings: PictureSettings, rng: random.Random) -> Matrix:
    """Draw a change of hue, saturation, contrast and brightness as one affine map of RGB, 3 x 4 row by row.

    Hue turns about the grey axis as in SVG's feColorMatrix, so that grey stays grey and text keeps its contrast.
    """
    turn = math.radians(rng.uniform(-settings.hue_degrees, settings.hue_degrees))
    saturation = 1 + rng.uniform(-settings.saturation, settings.saturation)
    contrast = 1 + rng.uniform(-settings.contrast, settings.contrast)
    brightness = rng.uniform(-settings.brightness, settings.brightness)
    # Contrast turns about mid-grey: 128 stays, then brightness moves all of it.
    offset = 128 * (1 - contrast) + 255 * brightness
    red, green, blue = (_scaled(row, contrast) for row in _times(_saturate(saturation), _turn_hue(turn)))
    return (*red, offset, *green, offset, *blue, offset)


def _scaled(row: Row, factor: float) -> Row:
    return row[0] * factor, row[1] * factor, row[2] * factor


def _saturate(amount: float) -> Rows:
    red, green, blue = ((1 - amount) * weight for weight in _LUMA)
    return (red + amount, green, blue), (red, green + amount, blue), (red, green, blue + amount)


def _turn_hue(angle: float) -> Rows:
    """Return the rotation of hue by an angle in radians. Source: SVG 1.1, feColorMatrix type hueRotate."""
    c, s = math.cos(angle), math.sin(angle)
    return (
        (0.213 + c * 0.787 - s * 0.213, 0.715 - c * 0.715 - s * 0.715, 0.072 - c * 0.072 + s * 0.928),
        (0.213 - c * 0.213 + s * 0.143, 0.715 + c * 0.285 + s * 0.140, 0.072 - c * 0.072 - s * 0.283),
        (0.213 - c * 0.213 - s * 0.787, 0.715 - c * 0.715 + s * 0.715, 0.072 + c * 0.928 + s * 0.072),
    )


def _times(a: Rows, b: Rows) -> Rows:
    """Return the matrix product."""

    def row(left: Row) -> Row:
        red, green, blue = (sum(left[k] * b[k][column] for k in range(3)) for column in range(3))
        return red, green, blue

    return row(a[0]), row(a[1]), row(a[2])
