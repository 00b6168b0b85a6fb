"""Draws the pages of a shop's app as customers photograph them: printed text and layout say what page it is.

Pages share words on purpose ("Refund" is also a button of the order page), have several titles each, come in six
themes, and a third of the styles is cropped, so that no single word tells them apart.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw

from mmd.corpora.shop.catalogue import Product, goods
from mmd.corpora.shop.chance import stream
from mmd.corpora.shop.drawing import Colour, font, ink_on, mix, photograph
from mmd.corpora.shop.specs import PictureSpec
from mmd.corpora.shop.wording import phrases

_THEMES: tuple[tuple[Colour, Colour], ...] = (
    # accent, ground
    ((232, 92, 40), (255, 255, 255)),
    ((36, 110, 200), (248, 250, 252)),
    ((24, 140, 96), (255, 255, 255)),
    ((200, 48, 88), (255, 248, 246)),
    ((240, 180, 60), (34, 36, 42)),
    ((120, 84, 190), (246, 244, 250)),
)
_CARRIERS = ("SwiftPost", "BlueVan", "ParcelOne", "NordCargo")
_PLACES = ("Leipzig", "Ghent", "Lyon", "Graz", "Turin", "Bern", "Utrecht", "Malmo")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NAMES = ("Ann", "Li", "Marco", "Sofia", "Jun", "Petra", "Omar", "Wei")


class Sheet:
    """A page under construction; blocks are written downwards from ``y`` (pixels).

    Args:
        side: width in pixels; the height is four thirds of it.
        accent: colour of headers and buttons.
        ground: colour of the paper.
    """

    def __init__(self, side: int, accent: Colour, ground: Colour) -> None:
        self.image = Image.new("RGB", (side, side * 4 // 3), ground)
        self._draw = ImageDraw.Draw(self.image)
        self._side, self._accent, self._ground = side, accent, ground
        self._ink = ink_on(ground)
        self._unit = side / 224  # sizes below are meant for a page 224 px wide
        self.y = 0.0

    def _px(self, size: float) -> int:
        return max(1, round(size * self._unit))

    def _write(self, x: float, words: str, size: float, fill: Colour, anchor: str = "la") -> None:
        place = (self._px(x), round(self.y))
        self._draw.text(place, words, fill=fill, font=font(self._px(size)), anchor=anchor)

    def _fill(self, x0: float, height: float, x1: float, fill: Colour, radius: float = 0) -> None:
        box = (self._px(x0), round(self.y), self._px(x1), round(self.y) + self._px(height))
        self._draw.rounded_rectangle(box, radius=self._px(radius), fill=fill)

    def down(self, size: float) -> None:
        """Leave space."""
        self.y += size * self._unit

    def header(self, title: str) -> None:
        """Write the page's title bar."""
        self._fill(0, 34, 224, self._accent)
        self.down(9)
        self._write(10, f"< {title}", 16, ink_on(self._accent))
        self.down(33)

    def banner(self, words: str, colour: Colour) -> None:
        """Write a coloured strip."""
        self._fill(8, 28, 216, colour, radius=5)
        self.down(7)
        self._write(16, words, 14, ink_on(colour))
        self.down(28)

    def row(self, key: str, value: str) -> None:
        """Write a line: what on the left, how much on the right."""
        self._write(10, key, 13, mix(self._ink, self._ground, 0.35))
        self._write(214, value, 13, self._ink, anchor="ra")
        self.down(20)

    def line(self, words: str, size: float = 13) -> None:
        """Write a paragraph."""
        for part in textwrap.wrap(words, width=max(8, int(410 / size))):
            self._write(10, part, size, self._ink)
            self.down(size + 5)

    def big(self, words: str) -> None:
        """Write a headline."""
        self.line(words, 18)
        self.down(2)

    def rule(self) -> None:
        """Draw a separating line."""
        self._fill(10, 1, 214, mix(self._ground, self._ink, 0.2))
        self.down(8)

    def item(self, product: Product, note: str) -> None:
        """Write a product with its picture, shortened title, price and a note."""
        self.picture(product, 8, 52)
        rest = self.y + 60 * self._unit
        for part in textwrap.wrap(product.title, width=20)[:2]:
            self._write(68, part, 12, self._ink)
            self.down(16)
        self._write(68, f"${product.price}", 14, self._accent)
        self._write(214, note, 12, mix(self._ink, self._ground, 0.3), anchor="ra")
        self.y = rest

    def picture(self, product: Product, x: float, size: float) -> None:
        """Paste a product's picture at the cursor, without moving it."""
        shot = thumbnail(product, self._px(size))
        self.image.paste(shot, (self._px(x), round(self.y)))

    def buttons(self, *words: str) -> None:
        """Write one to three buttons; the last is the main one."""
        width = 204 / len(words)
        for number, word in enumerate(words):
            x = 10 + number * width
            main = number == len(words) - 1
            fill = self._accent if main else mix(self._ground, self._ink, 0.12)
            self._fill(x, 25, x + width - 6, fill, radius=10)
            top = self.y
            self.down(6)
            self._write(x + (width - 6) / 2, word, 12, ink_on(fill), anchor="ma")
            self.y = top
        self.down(33)

    def stars(self, count: int) -> None:
        """Draw a rating of five."""
        for number in range(5):
            fill = (240, 180, 40) if number < count else mix(self._ground, self._ink, 0.15)
            x, y, r = self._px(16 + number * 18), self.y + 8 * self._unit, self._px(7)
            self._draw.regular_polygon((x, y, r), 5, fill=fill)
        self.down(20)

    def steps(self, entries: Sequence[tuple[str, str]], colour: Colour) -> None:
        """Draw a time line, the newest entry first and coloured."""
        for number, (when, what) in enumerate(entries):
            fill = colour if number == 0 else mix(self._ground, self._ink, 0.3)
            x, y, r = self._px(16), round(self.y + 8 * self._unit), self._px(5)
            if number:
                self._draw.line((x, y - self._px(30), x, y), fill=fill, width=self._px(2))
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
            self._write(28, what, 13, self._ink if number == 0 else mix(self._ink, self._ground, 0.3))
            self.down(15)
            self._write(28, when, 10, mix(self._ink, self._ground, 0.45))
            self.down(17)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Draw a table, its first row as header."""
        width = 204 / len(rows[0])
        for number, cells in enumerate(rows):
            if number % 2 == 0:
                self._fill(10, 21, 214, mix(self._ground, self._accent, 0.35 if number == 0 else 0.10))
            self.down(4)
            for column, cell in enumerate(cells):
                self._write(14 + column * width, cell, 12, self._ink)
            self.down(17)
        self.down(6)

    def ticket(self, value: str, terms: str) -> None:
        """Draw a coupon."""
        self._fill(10, 44, 84, self._accent, radius=6)
        self._fill(80, 44, 214, mix(self._ground, self._accent, 0.18), radius=6)
        top = self.y
        self.down(12)
        self._write(47, value, 18, ink_on(self._accent), anchor="ma")
        self.y = top
        for part in textwrap.wrap(terms, width=19)[:2]:
            self.down(7)
            self._write(88, part, 12, self._ink)
            self.down(10)
        self.y = top + 52 * self._unit


@lru_cache(maxsize=512)
def thumbnail(product: Product, size: int) -> Image.Image:
    """Return a product's studio picture, ``size`` px square."""
    return photograph(product, max(size, 32)).resize((size, size), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class PageFacts:
    """What a page is drawn from; ``rng`` invents its numbers."""

    product: Product
    other: Product
    focus: str
    rng: random.Random

    def date(self) -> str:
        """Return an invented day."""
        return f"{self.rng.randint(1, 28)} {self.rng.choice(_MONTHS)}"

    def number(self) -> str:
        """Return an invented order number."""
        return str(self.rng.randint(10**7, 10**8 - 1))


_GREEN: Colour = (206, 236, 210)
_RED: Colour = (246, 206, 200)
_AMBER: Colour = (252, 232, 186)


def _detail(s: Sheet, f: PageFacts) -> None:
    kind = goods().kinds[f.product.kind]
    words = phrases("en")
    if f.focus in ("overview", "stock"):
        s.picture(f.product, 42, 140)
        s.down(144)
        s.line(f.product.title)
        s.big(f"${f.product.price}")
        if f.focus == "stock":
            s.banner(f.rng.choice(("Sold out", "Out of stock", "Not available")), _AMBER)
            s.buttons(f.rng.choice(("Notify me", "Remind me")))
        else:
            s.line(f.rng.choice(("Free returns in 30 days", "Ships today", "4.7 of 5, 212 reviews")), 12)
            s.buttons("Add to cart", "Buy now")
        return
    s.header(f.rng.choice(("Details", "Product details", "About this product")))
    s.item(f.product, "")
    s.rule()
    material = f.product.attributes.get("material", kind.materials[0])
    if f.focus == "material":
        s.big(f.rng.choice(("Material", "Composition", "Made of")))
        s.line(f"{material} {f.rng.choice((100, 95, 80))}%", 16)
        s.line(f.rng.choice(("Tested for harmful substances.", "Sourced with care.", "Certified quality.")))
    elif f.focus == "capacity":
        s.big(f.rng.choice(("Capacity", "Volume", "Holds")))
        s.line(f.product.attributes.get("capacity", kind.capacities[0] if kind.capacities else "1 L"), 22)
        s.line("Measured up to the rim.")
    elif f.focus == "usage":
        s.big(f.rng.choice(("How to use", "Instructions", "Step by step")))
        s.line(words["usage"][kind.name])
    else:
        s.big(f.rng.choice(("Care", "Washing and care", "Care label")))
        s.line(words["care"].get(material, words["care"][kind.materials[0]]))
        s.line(f.rng.choice(("Keep this label.", "Colours may vary.", "Questions? Write to us.")), 11)


def _size_chart(s: Sheet, f: PageFacts) -> None:
    s.header(f.rng.choice(("Size chart", "Size guide", "Find your size")))
    s.item(f.product, "")
    kind = goods().kinds[f.product.kind]
    start = f.rng.randint(22, 46)
    rows = [(size, str(start + 2 * n), str(start + 14 + 3 * n)) for n, size in enumerate(kind.sizes)]
    s.table([("Size", "Width", "Length"), *rows])
    s.line("All measures in cm.", 11)


def _compare(s: Sheet, f: PageFacts) -> None:
    s.header(f.rng.choice(("Compare", "Versions", "Side by side")))
    s.picture(f.product, 12, 92)
    s.picture(f.other, 120, 92)
    s.down(98)
    rows = [("", "A", "B")]
    for name in ("material", "size", "capacity", "colour"):
        pair = [p.attributes.get(name, "-")[:11] for p in (f.product, f.other)]
        if pair != ["-", "-"]:
            rows.append((name, *pair))  # type: ignore[arg-type]  # a pair by construction
    s.table([*rows, ("price", f"${f.product.price}", f"${f.other.price}")])


def _order(s: Sheet, f: PageFacts) -> None:
    s.header(f.rng.choice(("Order details", "My order", "Order placed")))
    pieces = f.rng.randint(2, 4) if f.focus == "short" else f.rng.randint(1, 3)
    s.item(f.product, f"x{pieces}")
    s.row("Order no.", f.number())
    s.row("Ordered", f.date())
    s.row("Total", f"${f.product.price * pieces}")
    if f.focus == "short":
        s.banner(f.rng.choice((f"1 of {pieces} shipped", f"Pieces sent: 1 / {pieces}", "Partly shipped")), _AMBER)
    else:
        s.banner(f.rng.choice(("Being packed", "Completed", "Shipped")), _GREEN)
    s.buttons(*f.rng.choice((("Refund", "Track"), ("Return", "Review"), ("Help", "Buy again"))))


def _payment(s: Sheet, f: PageFacts) -> None:
    s.header(f.rng.choice(("Payment", "Checkout", "Pay")))
    s.big(f"${f.product.price + f.rng.choice((0, 4))}.00")
    s.row("Card", f"**** {f.rng.randint(1000, 9999)}")
    s.row("Order no.", f.number())
    s.row("Coupon", f.rng.choice(("none", "-$3", "-$5")))
    if f.focus == "failed":
        s.banner(f.rng.choice(("Payment failed", "Card declined", "Error 402, try again")), _RED)
        s.buttons("Cancel", "Try again")
    else:
        words, button = f.rng.choice((("Paid", "Done"), ("Choose how to pay", "Pay now"), ("Payment received", "Done")))
        s.banner(words, _GREEN)
        s.buttons(button)


def _tracking(s: Sheet, f: PageFacts) -> None:
    _parcel_head(s, f)
    places = f.rng.sample(_PLACES, k=2)
    newest = f.rng.choice(("Out for delivery", f"Arrived in {places[0]}", "In transit"))
    s.steps(_story(f, newest, f"Left {places[1]}"), (40, 150, 90))
    s.line(f"Expected {f.date()}", 12)


def _exception(s: Sheet, f: PageFacts) -> None:
    _parcel_head(s, f)
    newest = f.rng.choice(
        ("Delivery failed", "Address not found", "Held at customs", "Returning to sender", "Wrong depot", "Delayed")
    )
    s.steps(_story(f, newest, f"Left {f.rng.choice(_PLACES)}"), (214, 60, 50))
    s.banner(f.rng.choice(("Action needed", "Please contact carrier", "No news for 6 days")), _RED)


def _parcel_head(s: Sheet, f: PageFacts) -> None:
    s.header(f.rng.choice(("Tracking", "Your parcel", "Delivery")))
    s.row(f.rng.choice(_CARRIERS), f"TN{f.number()}")
    s.item(f.product, "")


def _story(f: PageFacts, newest: str, before: str) -> list[tuple[str, str]]:
    month, day = f.rng.choice(_MONTHS), f.rng.randint(8, 28)
    days = (day, day - 2, day - 3, day - 4)
    entries = (newest, before, "Picked up", "Order received")
    clocks = [f"{d} {month} {f.rng.randint(6, 21):02d}:{f.rng.randint(0, 59):02d}" for d in days]
    return list(zip(clocks, entries, strict=True))


def _refund(s: Sheet, f: PageFacts) -> None:
    s.header(f.rng.choice(("Refund", "Return and refund", "Money back")))
    s.item(f.product, "x1")
    s.row("Amount", f"${f.product.price}")
    s.row("Requested", f.date())
    s.row("Paid back to", f.rng.choice(("card", "shop account", "bank")))
    s.banner(f.rng.choice(("Under review", "Approved", "Waiting for the return", "Sent to bank")), _AMBER)
    s.buttons("Cancel", f.rng.choice(("Details", "Contact us")))


def _cart(s: Sheet, f: PageFacts) -> None:
    s.header(f.rng.choice(("Cart", "Basket", "My bag")))
    s.item(f.product, "x1")
    s.item(f.other, f"x{f.rng.randint(1, 2)}")
    s.row(f.rng.choice(("Coupon", "Shipping")), f.rng.choice(("-$3", "$4", "free")))
    s.row("Total", f"${f.product.price + f.other.price}")
    s.buttons("Remove", f.rng.choice(("Checkout", "Order", "Pay")))


def _coupon(s: Sheet, f: PageFacts) -> None:
    s.header(f.rng.choice(("Coupons", "My vouchers", "Offers")))
    for _ in range(3):
        terms = f.rng.choice(
            (f"from ${f.rng.choice((30, 50, 80))} on", f"until {f.date()}", "new customers", f"code {f.number()[:5]}")
        )
        s.ticket(f.rng.choice(("-$3", "-$5", "-$8", "-10%", "-15%")), terms)
    s.banner(f.rng.choice(("Expired", "Not valid for this order", "1 ready to use")), _AMBER)


def _review(s: Sheet, f: PageFacts) -> None:
    s.header(f.rng.choice(("Reviews", "Ratings", "What customers say")))
    s.item(f.product, "")
    for words in f.rng.sample(_OPINIONS, k=2):
        s.stars(f.rng.randint(2, 5))
        s.line(words)
        s.line(f"{f.rng.choice(_NAMES)}, {f.date()}", 11)


_OPINIONS = (
    "Exactly as in the picture.",
    "Good material, fast delivery.",
    "The colour faded a little.",
    "Too small for me.",
    "Got a refund without fuss.",
    "My coupon did not work.",
    "Would buy it again.",
    "One was missing in the box.",
)
_PAGES: Mapping[str, Callable[[Sheet, PageFacts], None]] = {
    "detail_page": _detail,
    "size_chart": _size_chart,
    "compare_page": _compare,
    "order_page": _order,
    "payment_page": _payment,
    "logistics_tracking": _tracking,
    "logistics_exception": _exception,
    "refund_page": _refund,
    "cart_page": _cart,
    "coupon_page": _coupon,
    "review_page": _review,
}


def draw_page(spec: PictureSpec, product: Product, other: Product, side: int) -> Image.Image:
    """Return a page, ``side`` px wide; styles 0 … 7 are whole (4/3 as high), the rest lack their upper or lower part.

    Raises:
        KeyError: the scene is no page.
    """
    style = spec["variant"]
    focus = spec.get("focus", "")
    sheet = Sheet(side, *_THEMES[style % len(_THEMES)])
    facts = PageFacts(product, other, focus, stream(style, spec["scene"], product.id, focus))
    sheet.down(0 if style % 2 else 4)
    _PAGES[spec["scene"]](sheet, facts)
    width, height = sheet.image.size
    if style in (8, 9):
        return sheet.image.crop((0, height // 6, width, height))
    if style in (10, 11):
        return sheet.image.crop((0, 0, width, height * 2 // 3))
    return sheet.image
