"""Writes topics: a customer's request and the shop's gold answer to it.

A request is made in words, in words about a picture, or in a picture that the words only point at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mmd.corpora.shop.answers import Answer, Answers
from mmd.corpora.shop.catalogue import Product, goods
from mmd.corpora.shop.choices import Choices
from mmd.corpora.shop.intents import INTENT_KINDS, IntentKind
from mmd.corpora.shop.naming import Naming
from mmd.corpora.shop.pictures import Pictures, can_leak
from mmd.corpora.shop.recommending import suggestion
from mmd.corpora.shop.slots import product_slots
from mmd.corpora.shop.specs import PictureSpec
from mmd.corpora.shop.wording import Wording
from mmd.schema import Speaker

_BY_PICTURE_SHARE = 0.4
_NAMED_WITHOUT_DETAILS = {"ask_material", "ask_capacity", "ask_colour"}
"""Intents whose customers do not name the product by the very thing that they ask for."""


@dataclass
class Message:
    """A turn in the making."""

    speaker: Speaker
    text: str
    pictures: list[PictureSpec] = field(default_factory=list)
    items: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Topic:
    """A request and its answer."""

    intent: str
    request: Message
    answer: Answer
    product: Product
    by_picture: bool
    held_out: bool


class Topics:
    """Writes the topics of one conversation.

    Args:
        choices: the catalogue, and source of every choice.
        wording: phrases of the conversation's language and split.
        pictures: what customers send.
    """

    def __init__(self, choices: Choices, wording: Wording, pictures: Pictures) -> None:
        self._choices = choices
        self._wording = wording
        self._pictures = pictures
        self._naming = Naming(wording, choices.rng)
        self._answers = Answers(choices, wording, self._naming)

    def topic(self, intent: str, product: Product | None = None) -> Topic:
        """Write a topic; ``product`` (when it suits the intent) is the one that was talked about before."""
        kind = INTENT_KINDS[intent]
        if intent == "recommend_one":
            liked = product or self._choices.product("any")
            return self.recommendation(liked, self._choices.wanted(liked), [], again=False)
        known = product is not None and kind.trait in goods().kinds[product.kind].traits | {"any"}
        if product is None or not known:
            product = self._choices.product(kind.trait)
        if kind.point is not None and self._choices.chance(_BY_PICTURE_SHARE):
            return self._pointed(intent, kind, product)
        return self._spoken(intent, kind, product, known=known)

    def recommendation(self, liked: Product, want: str, seen: Sequence[Product], *, again: bool) -> Topic:
        """Write a topic that recommends a product.

        Args:
            liked: a product of the customer's.
            want: category to recommend from.
            seen: products that were recommended already.
            again: whether the customer asks for another one, after the first.
        """
        slots = self._slots(liked) | {"want": self._naming.category(want, liked)}
        slots["liked"], slots["liked_it"] = self._naming.liked(liked)
        colour = ""
        if not again and self._choices.chance(0.3):
            colour = self._choices.rng.choice(self._choices.catalogue.by_category[want]).colour
            slots["want"] = self._naming.coloured(colour, slots["want"])
        line = self._wording.ask("ask", "recommend_again" if again else "recommend_one", slots)
        best = suggestion(self._choices.catalogue, liked, want, colour, exclude=[p.id for p in seen])
        answer = self._answers.recommend(best)
        mentioned = [] if again else [liked.id]
        return Topic("recommend_one", Message("user", line.text, [], mentioned), answer, liked, False, line.held_out)

    def _pointed(self, intent: str, kind: IntentKind, product: Product) -> Topic:
        """Write a request that only its picture decides."""
        if kind.focus == "stock":
            product = self._choices.sold_out() or product
        slots = self._slots(product)
        picture = self._pictures.deciding(intent, product)
        line = self._wording.ask("point", kind.point or "explain", slots)
        return Topic(
            intent,
            Message("user", line.text, [picture]),
            self._answers.reply(intent, product, slots, picture.get("other", "")),
            product,
            by_picture=True,
            held_out=line.held_out,
        )

    def _spoken(self, intent: str, kind: IntentKind, product: Product, *, known: bool) -> Topic:
        """Write a request whose words decide; the product is named, shown, or clear from before."""
        shown = kind.about_item and not known and self._choices.chance(0.5)
        slots = self._slots(product)
        naming = "plain" if intent in _NAMED_WITHOUT_DETAILS else "named"
        slots["it"] = self._naming.it(product, "shown" if shown else naming, known=known)
        if intent == "compare_versions" and not shown and not known:
            slots["it"] = self._naming.definite(product)
        leaks = intent == "report_damage" and can_leak(product) and self._choices.chance(0.4)
        line = self._wording.ask("ask", "report_leak" if leaks else intent, slots)
        mentioned = [product.id] if not shown and not known and slots["it"] in line.text else []
        pictures = self._supporting(intent, kind, product, shown=shown)
        answer = self._answers.reply(intent, product, slots, slots["other_id"])
        if intent == "compare_versions":
            mentioned.append(slots["other_id"])
        return Topic(intent, Message("user", line.text, pictures, mentioned), answer, product, False, line.held_out)

    def _supporting(self, intent: str, kind: IntentKind, product: Product, *, shown: bool) -> list[PictureSpec]:
        """Return what the customer sends along: the product when the words only point at it, a page now and then."""
        chance = self._choices.chance
        if kind.about_item and shown:
            if kind.scene == "damaged_item" and chance(0.6):
                return [self._pictures.deciding(intent, product)]
            return [self._pictures.photo(product)]
        if kind.about_item or not chance(0.35):
            return []
        return [self._pictures.deciding(intent, product) if chance(0.6) else self._pictures.random_page(product)]

    def _slots(self, product: Product) -> dict[str, str]:
        return product_slots(product, self._choices, self._wording, self._naming)
