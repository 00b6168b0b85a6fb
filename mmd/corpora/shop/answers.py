"""The shop's gold answers, decided by the catalogue: a sentence, a picture or products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from mmd.corpora.shop.catalogue import Product
from mmd.corpora.shop.choices import Choices
from mmd.corpora.shop.drawing import STUDIO
from mmd.corpora.shop.naming import Naming
from mmd.corpora.shop.pictures import page, photo
from mmd.corpora.shop.recommending import companions, substitute
from mmd.corpora.shop.specs import PictureSpec
from mmd.corpora.shop.wording import Wording

Modality = Literal["text", "image", "product"]


@dataclass(frozen=True)
class Answer:
    """The gold response to a topic, decided by the catalogue."""

    text: str
    modality: Modality = "text"
    pictures: tuple[PictureSpec, ...] = ()
    items: tuple[str, ...] = ()


class Answers:
    """Answers requests of one conversation.

    Args:
        choices: the catalogue, and whether a page is sent or quoted.
        wording: phrases of the conversation's language.
        naming: names of what is offered.
    """

    def __init__(self, choices: Choices, wording: Wording, naming: Naming) -> None:
        self._choices = choices
        self._catalogue = choices.catalogue
        self._wording = wording
        self._naming = naming

    def reply(self, intent: str, product: Product, slots: Mapping[str, str], other: str) -> Answer:
        """Return the gold answer: a sentence unless the intent has an answer of its own.

        Args:
            intent: of the request.
            product: what the request is about.
            slots: what the request could say of it.
            other: id of the product that it is compared with, if it is.
        """
        special: Mapping[str, Callable[[], Answer]] = {
            "ask_size": lambda: self._page("ask_size", product, slots, "size_chart", ""),
            "ask_care": lambda: self._page("ask_care", product, slots, "detail_page", "care"),
            "compare_versions": lambda: self._compare(product, slots, other),
            "ask_colour": lambda: self._colour(product, slots),
            "recommend_set": lambda: self._set(product),
            "stock_restock": lambda: self._stock(product, slots),
        }
        if intent in special:
            return special[intent]()
        return Answer(self._say(intent, slots))

    def recommend(self, product: Product) -> Answer:
        """Return the answer that offers ``product``."""
        return self._offer("recommend_one", product)

    def _page(self, family: str, product: Product, slots: Mapping[str, str], scene: str, focus: str) -> Answer:
        if self._choices.chance(0.25):
            return Answer(self._say(f"{family}_text", slots))
        return Answer(self._say(family, slots), "image", (page(scene, product, 0, focus=focus),))

    def _compare(self, product: Product, slots: Mapping[str, str], other: str) -> Answer:
        if self._choices.chance(0.25):
            return Answer(self._say("compare_versions_text", slots))
        return Answer(self._say("compare_versions", slots), "image", (page("compare_page", product, 0, other=other),))

    def _colour(self, product: Product, slots: Mapping[str, str]) -> Answer:
        wanted = next((p for p in self._catalogue.siblings(product) if p.colour == slots["colour2_key"]), None)
        if wanted is None:
            return Answer(self._say("ask_colour_none", slots))
        return Answer(self._say("ask_colour", slots), "image", (photo(wanted, STUDIO),))

    def _set(self, product: Product) -> Answer:
        return self._offer("recommend_set", *companions(self._catalogue, product))

    def _stock(self, product: Product, slots: Mapping[str, str]) -> Answer:
        if product.in_stock:
            return Answer(self._say("stock_restock_text", slots))
        return self._offer("stock_restock", substitute(self._catalogue, product))

    def _offer(self, family: str, *products: Product) -> Answer:
        text = self._say(family, {"rec_title": self._naming.together(products)})
        return Answer(text, "product", items=tuple(p.id for p in products))

    def _say(self, family: str, slots: Mapping[str, str]) -> str:
        return self._wording.say(family, slots, section="answer")
