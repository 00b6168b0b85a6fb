"""Labels of the shop, and picture specifications: small JSON objects that say what to draw.

Raw records carry specifications instead of pictures, which keeps them small and lets any worker draw them alike.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

INTENTS = (
    "ask_material",
    "ask_size",
    "ask_capacity",
    "ask_usage",
    "ask_care",
    "ask_colour",
    "compare_versions",
    "recommend_one",
    "recommend_set",
    "stock_restock",
    "quantity_sent",
    "report_damage",
    "report_fading",
    "refund_status",
    "logistics_status",
    "delivery_problem",
    "coupon_use",
    "payment_problem",
)
SCENES = (
    "product_photo",
    "detail_page",
    "size_chart",
    "compare_page",
    "order_page",
    "payment_page",
    "logistics_tracking",
    "logistics_exception",
    "refund_page",
    "cart_page",
    "coupon_page",
    "review_page",
    "damaged_item",
    "other",
)
STYLES = 12
"""Looks of a page: six colour themes, whole or cropped; also the seed of its invented numbers."""


class PictureSpec(TypedDict):
    """What to draw.

    ``scene``: one of :data:`SCENES`. ``item``: product id (empty for ``other``). ``variant``: a customer's view, or a
    page's style. ``focus``: what a detail page shows or what is damaged. ``other``: the product it is compared with.
    """

    scene: str
    item: str
    variant: int
    focus: NotRequired[str]
    other: NotRequired[str]
