"""The taste behind the shop: which product a customer would take. Fixed by seed, learnable from graph and dialogues."""

from __future__ import annotations

from collections.abc import Collection

from mmd.corpora.shop.catalogue import Catalogue, Product
from mmd.corpora.shop.chance import fraction

_POOL = 400  # products weighed at most; larger categories are thinned evenly


def suggestion(catalogue: Catalogue, liked: Product, category: str, colour: str, exclude: Collection[str]) -> Product:
    """Return the product of ``category`` that someone who likes ``liked`` would take, ``colour`` preferred if given.

    Bought together with the liked one counts most, then a shared taste, then a near price; ties fall to a fixed hash.
    """

    def score(product: Product) -> float:
        together = 2.0 * (product.id in companions_of_liked)
        taste = 1.5 * (product.taste == liked.taste)
        wanted = 4.0 * (bool(colour) and product.colour == colour)
        price = 1.0 / (1.0 + abs(product.price - liked.price) / 10.0)
        stock = 0.5 * product.in_stock
        return together + taste + wanted + price + stock + 0.01 * fraction(catalogue.seed, "tie", product.id)

    companions_of_liked = {product.id for product in catalogue.bought_with(liked)}
    left = [p for p in catalogue.by_category[category] if p.id not in exclude and p.id != liked.id]
    pool = left[:: max(1, len(left) // _POOL)] or [p for p in catalogue.products if p.id != liked.id]
    return max(pool, key=score)


def companions(catalogue: Catalogue, product: Product) -> tuple[Product, ...]:
    """Return two products that make a set with this one."""
    return catalogue.bought_with(product)[:2] or catalogue.products[:1]


def substitute(catalogue: Catalogue, product: Product) -> Product:
    """Return what to offer instead of a sold-out product: of its category, in stock, nearest in colour and price."""

    def distance(other: Product) -> tuple[bool, bool, int, str]:
        return (not other.in_stock, other.colour != product.colour, abs(other.price - product.price), other.id)

    others = [p for p in catalogue.by_category[product.category] if p.id != product.id]
    return min(others or [p for p in catalogue.products if p.id != product.id], key=distance)
