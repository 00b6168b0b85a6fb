"""How products are called: by title, by what tells them apart, as someone's own, or just "it"."""

from __future__ import annotations

import random
from collections.abc import Iterable

from mmd.corpora.shop.catalogue import Product, goods
from mmd.corpora.shop.wording import Wording


class Naming:
    """Names products in the language of one conversation.

    Args:
        wording: phrases of that language.
        rng: source of every choice.
    """

    def __init__(self, wording: Wording, rng: random.Random) -> None:
        self._wording = wording
        self._language = wording.language
        self._rng = rng

    def title(self, product: Product) -> str:
        """Return the product's title."""
        return product.title if self._language == "en" else product.title_zh

    def money(self, amount: int) -> str:
        """Return an amount in whole units of the shop's currency."""
        return f"${amount}" if self._language == "en" else str(amount)

    def it(self, product: Product, naming: str, *, known: bool) -> str:
        """Return how the customer refers to the product; ``naming`` is ``shown``, ``named`` or ``plain``."""
        if known:
            return "it" if self._language == "en" else "它"
        if product.picture is not None:
            naming = "row_shown" if naming == "shown" else "row"
        return self._wording.say(naming, self._slots(product), section="naming")

    def definite(self, product: Product) -> str:
        """Return the product by its full title, so that two versions are told apart."""
        if product.picture is not None:
            return self._wording.say("row", self._slots(product), section="naming")
        return f"the {product.title}" if self._language == "en" else product.title_zh

    def category(self, name: str, product: Product) -> str:
        """Return a category to follow "a"; a CSV's categories may be in any number or language and are quoted."""
        if product.picture is None:
            return goods().word(name, self._language)
        return f'product from "{name}"' if self._language == "en" else f"“{name}”"

    def coloured(self, colour: str, category: str) -> str:
        """Return a category, as :meth:`category` names it, in a colour."""
        word = goods().word(colour, self._language)
        return f"{word} {category}" if self._language == "en" else f"{word}{category}"

    def together(self, products: Iterable[Product]) -> str:
        """Return the titles of products that are offered together."""
        joint = " and the " if self._language == "en" else "和"
        return joint.join(map(self.title, products))

    def liked(self, product: Product) -> tuple[str, str]:
        """Return how a liked product is named after "my", and alone."""
        name = self.title(product)
        if product.picture is not None:
            quoted = f'"{name}"' if self._language == "en" else f"“{name}”"
            return quoted, f"my {quoted}" if self._language == "en" else quoted
        if self._language == "en":
            short = f"{product.attributes['brand']} {product.category}"
            return short, self._rng.choice((f"my {short}", f"the {name}"))
        colour = goods().word(product.colour, "zh")
        short = f"{product.attributes['brand']}{colour}{goods().word(product.category, 'zh')}"
        return short, short

    def _slots(self, product: Product) -> dict[str, str]:
        keys = ("colour", "material")
        named = {key: goods().word(product.attributes.get(key, ""), self._language) for key in keys}
        category = goods().word(product.category, self._language)
        return named | {"cat": category, "brand": product.attributes.get("brand", ""), "title": self.title(product)}
