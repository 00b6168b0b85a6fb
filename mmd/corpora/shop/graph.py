"""The shop's item graph: what products are like, and what is bought together."""

from __future__ import annotations

from collections.abc import Iterator

from mmd.corpora.base import Graph
from mmd.corpora.shop.catalogue import Catalogue, Product
from mmd.schema import Entity, ItemLink, Triple

RELATIONS = {
    "category": "has_category",
    "colour": "has_colour",
    "material": "has_material",
    "brand": "has_brand",
    "pattern": "has_pattern",
    "capacity": "has_capacity",
    "room": "used_in",
    "gender": "made_for",
    "season": "worn_in",
    "usage": "suits",
}
"""Attribute → relation. Attributes of a CSV catalogue outside this table are no entities."""
BOUGHT_WITH = "bought_with"
_PRICE_BANDS = (10, 20, 40, 80)


def item_entity(item_id: str) -> str:
    """Return the id of the entity that stands for a product."""
    return f"item:{item_id}"


def build_graph(catalogue: Catalogue) -> Graph:
    """Return items and attribute values as entities, joined by typed triples; the order is fixed."""
    entities: dict[str, Entity] = {}
    triples: list[Triple] = []
    for product in catalogue.products:
        here = item_entity(product.id)
        entities[here] = Entity(here, product.title, "item")
        for relation, entity in _attributes(product):
            entities.setdefault(entity.id, entity)
            triples.append(Triple(here, relation, entity.id))
        triples += [Triple(here, BOUGHT_WITH, item_entity(p.id)) for p in catalogue.bought_with(product)]
    links = tuple(ItemLink(product.id, item_entity(product.id)) for product in catalogue.products)
    return Graph(tuple(entities.values()), tuple(triples), links)


def _attributes(product: Product) -> Iterator[tuple[str, Entity]]:
    for name, relation in RELATIONS.items():
        if value := product.attributes.get(name):
            yield relation, Entity(f"{name}:{value}", value, name)
    band = _price_band(product.price)
    yield "has_price", Entity(f"price:{band}", band, "price")


def _price_band(price: int) -> str:
    below = 0
    for limit in _PRICE_BANDS:
        if price < limit:
            return f"{below}-{limit}"
        below = limit
    return f"{below}+"
