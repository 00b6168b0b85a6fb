"""What each intent of the shop needs: products of some trait, and the picture that can decide it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mmd.corpora.shop.catalogue import Catalogue
from mmd.corpora.shop.specs import INTENTS

Trouble = Literal["explain", "trouble"]


@dataclass(frozen=True)
class IntentKind:
    """What an intent needs: products with ``trait``; ``scene`` (and ``focus``) of the picture that can decide it.

    ``point`` names the phrases that go with such a picture; None where words always decide.
    """

    trait: str = "any"
    scene: str = ""
    focus: str = ""
    point: Trouble | None = None
    about_item: bool = True  # a product photo helps; false for orders, money and parcels


INTENT_KINDS: Mapping[str, IntentKind] = {
    "ask_material": IntentKind("any", "detail_page", "material", "explain"),
    "ask_size": IntentKind("fits", "size_chart", "", "explain"),
    "ask_capacity": IntentKind("holds", "detail_page", "capacity", "explain"),
    "ask_usage": IntentKind("used", "detail_page", "usage", "explain"),
    "ask_care": IntentKind("washed", "detail_page", "care", "explain"),
    "ask_colour": IntentKind(),
    "compare_versions": IntentKind("any", "compare_page", "", "explain"),
    "recommend_one": IntentKind(),
    "recommend_set": IntentKind(),
    "stock_restock": IntentKind("any", "detail_page", "stock", "trouble"),
    "quantity_sent": IntentKind("any", "order_page", "short", "trouble", about_item=False),
    "report_damage": IntentKind("any", "damaged_item", "crack", "trouble"),
    "report_fading": IntentKind("dyed", "damaged_item", "fade", "trouble"),
    "refund_status": IntentKind("any", "refund_page", "", "trouble", about_item=False),
    "logistics_status": IntentKind("any", "logistics_tracking", "", "trouble", about_item=False),
    "delivery_problem": IntentKind("any", "logistics_exception", "", "trouble", about_item=False),
    "coupon_use": IntentKind("any", "coupon_page", "", "explain", about_item=False),
    "payment_problem": IntentKind("any", "payment_page", "failed", "trouble", about_item=False),
}


def possible_intents(catalogue: Catalogue) -> tuple[str, ...]:
    """Return the intents that the catalogue has products for."""
    return tuple(name for name in INTENTS if catalogue.by_trait.get(INTENT_KINDS[name].trait))
