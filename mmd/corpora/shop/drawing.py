"""Draws products: shape, colour, pattern, printed brand; photographed in a studio or at home, whole or damaged.

Shapes live on a unit square and are drawn at twice the size, then halved, which smooths the edges. Printed text is
Latin and comes from the one font that Pillow itself carries, so that equal settings give equal bytes on every
machine with the same Pillow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFont, UnidentifiedImageError

from mmd.corpora.shop.catalogue import Product, goods
from mmd.corpora.shop.chance import stream
from mmd.errors import BadRecordError

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
STUDIO = 0
"""The view of the catalogue: white ground, upright. Higher views are customers' photographs."""
VIEWS = 5
_GROUNDS: tuple[Colour, ...] = ((222, 205, 180), (198, 212, 222), (206, 216, 196), (226, 214, 220), (186, 180, 172))
_INK: Colour = (38, 38, 42)


@lru_cache(maxsize=64)
def font(size_px: int) -> Font:
    """Return Pillow's own Latin font at a size."""
    return ImageFont.load_default(size_px)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Return ``a`` with ``share`` of ``b`` in it."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def ink_on(ground: Colour) -> Colour:
    """Return dark or light ink, whichever is legible on ``ground``."""
    return _INK if sum(ground) > 360 else (246, 244, 238)


class Brush:
    """Draws on a picture in unit coordinates: (0, 0) is the upper left corner, (1, 1) the lower right one."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)
        self._side = image.width

    def _px(self, points: Sequence[float]) -> list[float]:
        return [round(value * self._side) for value in points]

    def _corners(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = self._px(box)
        return x0, y0, x1, y1

    def box(self, *xyxy: float, fill: Colour, radius: float = 0.0) -> None:
        """Fill a rectangle with rounded corners."""
        self._draw.rounded_rectangle(self._corners(xyxy), radius=radius * self._side, fill=fill)

    def oval(self, *xyxy: float, fill: Colour) -> None:
        """Fill an ellipse."""
        self._draw.ellipse(self._px(xyxy), fill=fill)

    def ring(self, *xyxy: float, fill: Colour, width: float = 0.03) -> None:
        """Draw an ellipse's outline."""
        self._draw.ellipse(self._px(xyxy), outline=fill, width=round(width * self._side))

    def shape(self, *points: float, fill: Colour) -> None:
        """Fill a polygon."""
        self._draw.polygon(self._px(points), fill=fill)

    def stroke(self, *points: float, fill: Colour, width: float = 0.02) -> None:
        """Draw connected lines."""
        self._draw.line(self._px(points), fill=fill, width=max(1, round(width * self._side)), joint="curve")

    def text(self, x: float, y: float, words: str, *, size: float, fill: Colour, middle: bool = False) -> None:
        """Write one line; ``size`` is its height as a share of the picture's edge."""
        anchor = "mm" if middle else "la"
        place = (round(x * self._side), round(y * self._side))
        self._draw.text(place, words, fill=fill, font=font(round(size * self._side)), anchor=anchor)


# ------------------------------------------------------------------------------------------------ shapes
# A shape draws the body in ``body`` colour and its fittings in ``trim``; ``s`` stretches it (0.9 … 1.1).
# The pattern is laid over whatever has the body's colour, so ``trim`` must differ from it.
ShapeDrawer = Callable[[Brush, Colour, Colour, float], None]


def _mug(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.ring(0.60, 0.38, 0.60 + 0.26 * s, 0.68, fill=trim, width=0.045)
    b.box(0.24, 0.58 - 0.30 * s, 0.70, 0.80, fill=body, radius=0.05)
    b.oval(0.24, 0.54 - 0.30 * s, 0.70, 0.62 - 0.30 * s, fill=trim)


def _bottle(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.box(0.43, 0.08, 0.57, 0.18, fill=trim, radius=0.02)
    b.shape(0.43, 0.18, 0.57, 0.18, 0.57 + 0.07 * s, 0.32, 0.43 - 0.07 * s, 0.32, fill=body)
    b.box(0.43 - 0.07 * s, 0.30, 0.57 + 0.07 * s, 0.92, fill=body, radius=0.04)


def _teapot(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.shape(0.20, 0.46, 0.10, 0.36, 0.16, 0.34, 0.34, 0.62, 0.30, 0.70, fill=trim)
    b.ring(0.66, 0.40, 0.90, 0.72, fill=trim, width=0.045)
    b.oval(0.24, 0.60 - 0.26 * s, 0.78, 0.86, fill=body)
    b.oval(0.38, 0.55 - 0.26 * s, 0.64, 0.66 - 0.26 * s, fill=trim)
    b.oval(0.48, 0.50 - 0.26 * s, 0.54, 0.56 - 0.26 * s, fill=trim)


def _lunchbox(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.box(0.14, 0.44, 0.86, 0.44 + 0.34 * s, fill=body, radius=0.06)
    b.box(0.11, 0.36, 0.89, 0.48, fill=trim, radius=0.04)
    b.box(0.22, 0.42, 0.28, 0.54, fill=mix(trim, _INK, 0.3), radius=0.01)
    b.box(0.72, 0.42, 0.78, 0.54, fill=mix(trim, _INK, 0.3), radius=0.01)


def _backpack(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.ring(0.42, 0.08, 0.58, 0.24, fill=trim, width=0.03)
    b.box(0.16, 0.46, 0.26, 0.82, fill=trim, radius=0.05)
    b.box(0.74, 0.46, 0.84, 0.82, fill=trim, radius=0.05)
    b.box(0.50 - 0.27 * s, 0.16, 0.50 + 0.27 * s, 0.90, fill=body, radius=0.14)
    b.box(0.30, 0.58, 0.70, 0.84, fill=trim, radius=0.05)
    b.stroke(0.30, 0.40, 0.70, 0.40, fill=trim, width=0.02)


def _tshirt(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.shape(0.30, 0.20, 0.06, 0.20 + 0.24 * s, 0.18, 0.54, 0.32, 0.42, fill=body)
    b.shape(0.70, 0.20, 0.94, 0.20 + 0.24 * s, 0.82, 0.54, 0.68, 0.42, fill=body)
    b.shape(0.30, 0.20, 0.70, 0.20, 0.70, 0.88, 0.30, 0.88, fill=body)
    b.oval(0.41, 0.15, 0.59, 0.28, fill=trim)


def _dress(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.stroke(0.40, 0.18, 0.38, 0.06, fill=trim, width=0.025)
    b.stroke(0.60, 0.18, 0.62, 0.06, fill=trim, width=0.025)
    b.shape(0.36, 0.14, 0.64, 0.14, 0.60, 0.44, 0.40, 0.44, fill=body)
    b.shape(0.40, 0.44, 0.60, 0.44, 0.50 + 0.34 * s, 0.92, 0.50 - 0.34 * s, 0.92, fill=body)
    b.box(0.39, 0.42, 0.61, 0.47, fill=trim)


def _sneaker(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.shape(0.10, 0.42 - 0.06 * s, 0.34, 0.38, 0.58, 0.56, 0.86, 0.62, 0.92, 0.74, 0.10, 0.74, fill=body)
    b.box(0.07, 0.73, 0.94, 0.82, fill=trim, radius=0.04)
    for step in range(4):
        b.stroke(0.36 + 0.06 * step, 0.54 + 0.02 * step, 0.44 + 0.06 * step, 0.46 + 0.035 * step, fill=trim)


def _cushion(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.shape(0.12, 0.16, 0.50, 0.24, 0.88, 0.16, 0.50 + 0.33 * s, 0.50, 0.88, 0.86, 0.50, 0.79, 0.12, 0.86,
            0.50 - 0.33 * s, 0.50, fill=body)  # fmt: skip
    for x, y in ((0.12, 0.16), (0.88, 0.16), (0.88, 0.86), (0.12, 0.86)):
        b.oval(x - 0.03, y - 0.03, x + 0.03, y + 0.03, fill=trim)


def _towel(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.box(0.20, 0.08, 0.80, 0.12, fill=mix(trim, _INK, 0.5), radius=0.02)
    b.box(0.50 - 0.22 * s, 0.10, 0.50 + 0.22 * s, 0.88, fill=body, radius=0.02)
    b.box(0.50 - 0.22 * s, 0.74, 0.50 + 0.22 * s, 0.79, fill=trim)
    for step in range(9):
        x = 0.50 - 0.21 * s + step * 0.0525 * s
        b.stroke(x, 0.88, x, 0.92, fill=trim, width=0.012)


def _lamp(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.box(0.48, 0.40, 0.52, 0.86, fill=trim)
    b.oval(0.34, 0.82, 0.66, 0.92, fill=trim)
    b.shape(0.38, 0.12, 0.62, 0.12, 0.50 + 0.27 * s, 0.46, 0.50 - 0.27 * s, 0.46, fill=body)


def _umbrella(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.stroke(0.50, 0.12, 0.50, 0.86, fill=trim, width=0.025)
    b.ring(0.50, 0.80, 0.60, 0.92, fill=trim, width=0.022)
    b.shape(0.06, 0.52, 0.16, 0.30, 0.34, 0.17 - 0.02 * s, 0.66, 0.17 - 0.02 * s, 0.84, 0.30, 0.94, 0.52, 0.79, 0.46,
            0.65, 0.53, 0.50, 0.46, 0.35, 0.53, 0.21, 0.46, fill=body)  # fmt: skip


def _cream(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.box(0.42, 0.78, 0.58, 0.92, fill=trim, radius=0.02)
    b.shape(0.50 - 0.20 * s, 0.12, 0.50 + 0.20 * s, 0.12, 0.60, 0.80, 0.40, 0.80, fill=body)
    b.box(0.50 - 0.20 * s, 0.09, 0.50 + 0.20 * s, 0.15, fill=trim)


def _watch(b: Brush, body: Colour, trim: Colour, s: float) -> None:
    b.box(0.40, 0.05, 0.60, 0.95, fill=body, radius=0.04)
    b.oval(0.50 - 0.24 * s, 0.26, 0.50 + 0.24 * s, 0.74, fill=trim)
    b.oval(0.50 - 0.19 * s, 0.31, 0.50 + 0.19 * s, 0.69, fill=(250, 250, 246))
    b.stroke(0.50, 0.50, 0.50, 0.37, fill=_INK, width=0.018)
    b.stroke(0.50, 0.50, 0.60, 0.55, fill=_INK, width=0.018)


_SHAPES: dict[str, tuple[ShapeDrawer, tuple[float, float, float]]] = {
    # kind: drawer, and where its print goes: centre x, centre y, letter height
    "mug": (_mug, (0.47, 0.58, 0.085)),
    "bottle": (_bottle, (0.50, 0.56, 0.065)),
    "teapot": (_teapot, (0.51, 0.64, 0.085)),
    "lunchbox": (_lunchbox, (0.50, 0.64, 0.09)),
    "backpack": (_backpack, (0.50, 0.30, 0.085)),
    "tshirt": (_tshirt, (0.50, 0.46, 0.085)),
    "dress": (_dress, (0.50, 0.28, 0.06)),
    "sneaker": (_sneaker, (0.30, 0.64, 0.075)),
    "cushion": (_cushion, (0.50, 0.50, 0.09)),
    "towel": (_towel, (0.50, 0.42, 0.08)),
    "lamp": (_lamp, (0.50, 0.31, 0.07)),
    "umbrella": (_umbrella, (0.50, 0.34, 0.085)),
    "cream": (_cream, (0.50, 0.36, 0.068)),
    "watch": (_watch, (0.50, 0.60, 0.045)),
}


def _pattern(image: Image.Image, body: Colour, name: str, pitch: float) -> None:
    """Lay a pattern over the pixels that have the body's colour; ``pitch`` is its step in unit coordinates."""
    if name == "plain":
        return
    lighter = mix(body, (255, 255, 255), 0.55) if sum(body) < 560 else mix(body, _INK, 0.35)
    cloth = Image.new("RGB", image.size, body)
    b = Brush(cloth)
    _WEAVES[name](b, lighter, mix(lighter, body, 0.3), pitch)
    image.paste(cloth, mask=_where(image, body))


def _steps(pitch: float) -> range:
    return range(int(1 / pitch) + 2)


def _stripes(b: Brush, colour: Colour, _: Colour, pitch: float) -> None:
    for step in _steps(pitch):
        b.box(0, step * pitch, 1, step * pitch + pitch * 0.4, fill=colour)


def _checks(b: Brush, colour: Colour, second: Colour, pitch: float) -> None:
    _stripes(b, colour, second, pitch)
    for step in _steps(pitch):
        b.box(step * pitch, 0, step * pitch + pitch * 0.3, 1, fill=second)


def _dots(b: Brush, colour: Colour, _: Colour, pitch: float) -> None:
    for row in _steps(pitch):
        for column in _steps(pitch):
            x, y = column * pitch + (row % 2) * pitch / 2, row * pitch
            b.oval(x, y, x + pitch * 0.45, y + pitch * 0.45, fill=colour)


def _zigzags(b: Brush, colour: Colour, _: Colour, pitch: float) -> None:
    for row in _steps(pitch):
        points = [value for c in _steps(pitch) for value in (c * pitch, row * pitch + (c % 2) * pitch * 0.5)]
        b.stroke(*points, fill=colour, width=pitch * 0.22)


_WEAVES: dict[str, Callable[[Brush, Colour, Colour, float], None]] = {
    "striped": _stripes,
    "checked": _checks,
    "dotted": _dots,
    "zigzag": _zigzags,
}


def _where(image: Image.Image, colour: Colour) -> Image.Image:
    """Return a mask of the pixels that have exactly this colour."""
    bands = [
        band.point([255 if value == level else 0 for value in range(256)])
        for band, level in zip(image.split(), colour, strict=True)
    ]
    return Image.composite(
        Image.composite(bands[0], Image.new("L", image.size), bands[1]), Image.new("L", image.size), bands[2]
    )


# ------------------------------------------------------------------------------------------- photographs
@lru_cache(maxsize=256)
def photograph(product: Product, side: int, view: int = STUDIO, damage: str = "") -> Image.Image:
    """Return a picture of a product, ``side`` px square (CSV pictures keep their shape on a white ground).

    Args:
        product: what to draw; a CSV product's picture is read from its file.
        side: edge in pixels.
        view: :data:`STUDIO`, or a customer's photograph (1 … :data:`VIEWS` - 1) with ground, tilt and light.
        damage: ``crack``, ``leak``, ``fade``, or empty.

    Raises:
        BadRecordError: a CSV product's picture cannot be decoded.
    """
    rng = stream(product.look, product.id, view, damage)
    if product.picture is None:
        picture = _draw_product(product, side * 2, view, damage, rng).reduce(2)
    else:
        picture = _fit(open_picture(product.picture), side)
        if damage:
            _damage(picture, damage, rng, (90, 90, 96))
    if view != STUDIO:
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.8, 1.1))
    return picture


def open_picture(path: str) -> Image.Image:
    """Decode a picture file.

    Raises:
        BadRecordError: it is missing, truncated or not a picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise BadRecordError("image_missing", f"{Path(path).name}: not in the catalogue's picture folder") from None
    except UnidentifiedImageError:
        raise BadRecordError("not_an_image", f"{Path(path).name}: not a picture") from None
    except (OSError, ValueError) as error:
        raise BadRecordError("image_truncated", f"{Path(path).name}: {error}") from None


def _fit(picture: Image.Image, side: int) -> Image.Image:
    """Scale a picture into a white square, aspect kept."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(picture.resize(size, Image.Resampling.BICUBIC), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _draw_product(product: Product, side: int, view: int, damage: str, rng: random.Random) -> Image.Image:
    body = goods().colours[product.colour]
    if damage == "fade":
        body = mix(body, (236, 232, 224), 0.35)
    trim = mix(body, _INK, 0.35) if sum(body) > 200 else mix(body, (255, 255, 255), 0.4)
    ground = (255, 255, 255) if view == STUDIO else rng.choice(_GROUNDS)
    image = Image.new("RGB", (side, side), ground)
    if view != STUDIO:
        Brush(image).box(0, 0.78, 1, 1, fill=mix(ground, _INK, 0.18))
    drawer, (x, y, height) = _SHAPES[product.kind]
    drawer(Brush(image), body, trim, 0.9 + 0.2 * (product.look % 64) / 64)
    _pattern(image, body, product.attributes["pattern"], 0.07 + 0.05 * (product.look // 64 % 8) / 8)
    _print(Brush(image), product, body, (x, y, height))
    if damage:
        _damage(image, damage, rng, body)
    if view != STUDIO:
        image = image.rotate(rng.uniform(-14, 14), Image.Resampling.BILINEAR, fillcolor=ground)
    return image


def _print(b: Brush, product: Product, body: Colour, where: tuple[float, float, float]) -> None:
    """Print the brand, and the capacity under it, on a patch that keeps patterned goods legible."""
    x, y, height = where
    lines = [product.attributes["brand"].upper(), product.attributes.get("capacity", "")]
    if product.attributes["pattern"] != "plain":
        half = height * 0.37 * len(lines[0])
        b.box(x - half, y - height * 0.7, x + half, y + height * (1.7 if lines[1] else 0.7), fill=body)
    ink = ink_on(body)
    b.text(x, y, lines[0], size=height, fill=ink, middle=True)
    if lines[1]:
        b.text(x, y + height * 1.1, lines[1], size=height * 0.85, fill=ink, middle=True)


def _damage(image: Image.Image, damage: str, rng: random.Random, body: Colour) -> None:
    b = Brush(image)
    if damage == "crack":
        for _ in range(2):
            x, y = rng.uniform(0.40, 0.58), rng.uniform(0.30, 0.38)
            points = [x, y]
            for _ in range(6):
                x, y = x + rng.uniform(-0.09, 0.09), y + rng.uniform(0.05, 0.09)
                points += [x, y]
            b.stroke(*points, fill=(18, 16, 16), width=0.018)
        b.shape(0.44, 0.36, 0.55, 0.40, 0.47, 0.50, fill=(18, 16, 16))
    elif damage == "leak":
        for _ in range(5):
            x, y = rng.uniform(0.10, 0.70), rng.uniform(0.80, 0.90)
            b.oval(x, y, x + rng.uniform(0.12, 0.28), y + 0.07, fill=(120, 176, 222))
        for _ in range(4):
            x = rng.uniform(0.32, 0.64)
            b.oval(x, 0.66, x + 0.035, 0.78, fill=(134, 188, 230))
    else:
        pale = mix(body, (240, 236, 226), 0.75)
        for _ in range(7):
            x, y, r = rng.uniform(0.28, 0.62), rng.uniform(0.25, 0.72), rng.uniform(0.04, 0.10)
            b.oval(x, y, x + r, y + r * 1.4, fill=pale)


def scenery(side: int, view: int) -> Image.Image:
    """Return a picture that has nothing to do with a shop: a landscape, a pet, a plate, or a greeting card."""
    rng = stream(view, "scenery")
    image = Image.new("RGB", (side * 2, side * 2), mix((150, 190, 232), (244, 196, 160), rng.random()))
    (_landscape, _cat, _meal, _greeting)[view % 4](Brush(image), rng)
    return image.reduce(2)


def _landscape(b: Brush, rng: random.Random) -> None:
    b.oval(0.66, 0.10, 0.84, 0.28, fill=(250, 226, 130))
    for step in range(3):
        peak = rng.uniform(0.3, 0.5)
        b.shape(
            step * 0.3 - 0.1,
            0.8,
            step * 0.3 + 0.2,
            peak,
            step * 0.3 + 0.6,
            0.8,
            fill=mix((90, 120, 130), _INK, 0.2 * step),
        )
    b.box(0, 0.78, 1, 1, fill=mix((92, 150, 82), (180, 160, 90), rng.random()))


def _cat(b: Brush, rng: random.Random) -> None:
    fur = mix((210, 140, 70), (70, 66, 66), rng.random())
    b.oval(0.22, 0.56, 0.78, 1.2, fill=fur)
    b.oval(0.28, 0.24, 0.72, 0.66, fill=fur)
    b.shape(0.30, 0.36, 0.32, 0.12, 0.46, 0.28, fill=fur)
    b.shape(0.70, 0.36, 0.68, 0.12, 0.54, 0.28, fill=fur)
    for x in (0.38, 0.56):
        b.oval(x, 0.38, x + 0.07, 0.46, fill=(230, 220, 120))
    b.shape(0.47, 0.50, 0.53, 0.50, 0.50, 0.54, fill=(210, 110, 120))


def _meal(b: Brush, rng: random.Random) -> None:
    b.oval(0.10, 0.10, 0.90, 0.90, fill=(246, 246, 242))
    for _ in range(14):
        x, y, r = rng.uniform(0.26, 0.62), rng.uniform(0.26, 0.62), rng.uniform(0.05, 0.13)
        colour = rng.choice(((200, 70, 50), (90, 150, 70), (236, 200, 90), (180, 120, 70)))
        b.oval(x, y, x + r, y + r, fill=colour)


def _greeting(b: Brush, rng: random.Random) -> None:
    b.box(0.08, 0.16, 0.92, 0.84, fill=(252, 244, 228), radius=0.04)
    words = rng.choice((("Good", "morning"), ("Happy", "birthday"), ("See you", "soon"), ("Happy", "weekend")))
    b.text(0.50, 0.42, words[0], size=0.14, fill=(190, 80, 70), middle=True)
    b.text(0.50, 0.60, words[1], size=0.14, fill=(190, 80, 70), middle=True)
