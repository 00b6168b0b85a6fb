"""What a customer happens to have in mind: products, versions, colours and materials drawn from the catalogue."""

from __future__ import annotations

import random

from mmd.corpora.shop.catalogue import Catalogue, Product, goods
from mmd.corpora.shop.chance import pick

_FEW = 3


class Choices:
    """Draws from the catalogue for one conversation.

    Args:
        catalogue: what is talked about.
        rng: source of every choice.
    """

    def __init__(self, catalogue: Catalogue, rng: random.Random) -> None:
        self.catalogue = catalogue
        self.rng = rng

    def chance(self, share: float) -> bool:
        """Return True in ``share`` of all cases."""
        return self.rng.random() < share

    def few(self, count: int, *key: object) -> int:
        """Draw one of the few numbers below ``count`` that go around for ``key`` in the whole corpus."""
        return pick(self.catalogue.seed, count, *key, self.rng.randrange(_FEW))

    def product(self, trait: str) -> Product:
        """Draw a product, the catalogue's first ones more often: shops have best-sellers."""
        pool = self.catalogue.by_trait.get(trait) or self.catalogue.products
        share = self.rng.random()
        return pool[int(len(pool) * share * share)]

    def sold_out(self) -> Product | None:
        """Draw a product that is not in stock; None if there is none."""
        pool = self.catalogue.sold_out
        return pool[self.rng.randrange(len(pool))] if pool else None

    def other_version(self, product: Product) -> Product:
        """Draw a product to compare this one with."""
        versions = self.catalogue.versions(product) or [p for p in self.catalogue.products if p.id != product.id]
        return versions[self.few(len(versions), "other", product.id)]

    def wanted(self, liked: Product) -> str:
        """Draw the category to be recommended: that of something bought with the liked product."""
        options = [p.category for p in self.catalogue.bought_with(liked) if p.category != liked.category]
        return self.rng.choice(options or [liked.category])

    def colour(self, product: Product) -> str:
        """Draw a colour to ask for, mostly one that there is."""
        offered = sorted({p.colour for p in self.catalogue.siblings(product)})
        if offered and self.chance(0.9):
            return self.rng.choice(offered)
        return self.rng.choice([name for name in goods().colours if name != product.colour])

    def materials(self, product: Product) -> tuple[str, str]:
        """Draw two different materials to ask about; the right one is among them three times in four."""
        known = goods().kinds[product.kind].materials
        right = product.attributes.get("material", known[0])
        others = [name for name in known if name != right] or [right]
        pair = [right, self.rng.choice(others)] if self.chance(0.75) else self.rng.choices(others, k=2)
        if pair[0] == pair[1]:
            pair[1] = right
        self.rng.shuffle(pair)
        return pair[0], pair[1]
