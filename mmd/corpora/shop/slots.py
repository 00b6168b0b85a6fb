"""Everything a phrase can ask for: what is true of a product, and what might be asked instead."""

from __future__ import annotations

from mmd.corpora.shop.catalogue import Product, goods
from mmd.corpora.shop.choices import Choices
from mmd.corpora.shop.naming import Naming
from mmd.corpora.shop.wording import Wording

_SAVINGS = (3, 5, 8, 10)


def product_slots(product: Product, choices: Choices, wording: Wording, naming: Naming) -> dict[str, str]:
    """Return the slots of a request about ``product``; what might be asked instead is drawn from ``choices``."""
    word = goods().word
    language, rng = wording.language, choices.rng
    kind = goods().kinds[product.kind]
    other = choices.other_version(product)
    colour2 = choices.colour(product)
    materials = choices.materials(product)
    facts = {key: word(product.attributes.get(key, ""), language) for key in ("material", "colour", "size")}
    return facts | {
        "title": naming.title(product),
        "cat": word(product.category, language),
        "brand": product.attributes.get("brand", ""),
        "capacity": product.attributes.get("capacity", ""),
        "price": naming.money(product.price),
        "it": "it",
        "other": naming.definite(other),
        "other_id": other.id,
        "other_title": naming.title(other),
        "other_material": word(other.attributes.get("material", ""), language),
        "other_price": naming.money(other.price),
        "colour2": word(colour2, language),
        "colour2_key": colour2,
        "material2": word(materials[0], language),
        "material3": word(materials[1], language),
        "size2": rng.choice(kind.sizes),
        "capacity2": rng.choice(kind.capacities or ("",)),
        "number": str(rng.randint(2, 4)),
        "saving": naming.money(rng.choice(_SAVINGS)),
        "usage": wording.fact("usage", product.kind),
        "care": _care(product, wording),
    }


def _care(product: Product, wording: Wording) -> str:
    material = product.attributes.get("material", "")
    known = material if material in goods().chinese else goods().kinds[product.kind].materials[0]
    return wording.fact("care", known)
