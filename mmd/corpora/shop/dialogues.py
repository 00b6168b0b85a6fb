"""Writes the shop's conversations.

A conversation is a chain of topics. A topic is a customer's request (in words, in words about a picture, or in a
picture that the words only point at) and, except for the last one of a labelled conversation, the shop's gold
answer: a sentence, a picture or products, decided by the catalogue. Labelled conversations end with the request whose
intent is the label, so that no answer can give it away.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmd.corpora.settings import Language, ShopSettings
from mmd.corpora.shop.catalogue import Catalogue, Kind, Product, goods
from mmd.corpora.shop.chance import pick, stream
from mmd.corpora.shop.drawing import STUDIO, VIEWS
from mmd.corpora.shop.recommending import companions, substitute, suggestion
from mmd.corpora.shop.specs import INTENTS, SCENES, STYLES, PictureSpec
from mmd.corpora.shop.wording import Wording
from mmd.schema import Speaker, Split

SERVICE_SHARE = 0.08
"""Conversations without label that end with the shop's answer; many of them are recommendations."""
LABEL_NOISE = 0.015
"""Labels that are wrong, as they are in real annotations."""
_BY_PICTURE_SHARE = 0.4
_SCENERY = 64
_SHOTS = 3
_SAVINGS = (3, 5, 8, 10)
_EARLIER_WEIGHTS = {"ask_size": 6, "ask_colour": 6, "ask_care": 6, "compare_versions": 6, "recommend_set": 5}
_NAMED_WITHOUT_DETAILS = {"ask_material", "ask_capacity", "ask_colour"}
"""Intents whose customers do not name the product by the very thing that they ask for."""

Modality = Literal["text", "image", "product"]
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


_LEAVES_IT = {name for name, kind in INTENT_KINDS.items() if kind.about_item} - {"recommend_one", "recommend_set"}
"""Intents after whose topic "it" is still the product that was asked about."""


@dataclass
class Message:
    """A turn in the making."""

    speaker: Speaker
    text: str
    pictures: list[PictureSpec] = field(default_factory=list)
    items: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """The gold response to a topic, decided by the catalogue."""

    text: str
    modality: Modality = "text"
    pictures: tuple[PictureSpec, ...] = ()
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Topic:
    """A request and its answer."""

    intent: str
    request: Message
    answer: Answer
    product: Product
    by_picture: bool
    held_out: bool


class Writer:
    """Writes one conversation.

    Args:
        catalogue: what is talked about.
        language: of the conversation.
        split: decides which phrases may be used.
        rng: source of every choice.
    """

    def __init__(self, catalogue: Catalogue, language: Language, split: Split, rng: random.Random) -> None:
        self._catalogue = catalogue
        self._language: Language = language
        self._rng = rng
        self._wording = Wording(language, split, rng)
        self._answered = False
        self.messages: list[Message] = []
        self.meta: dict[str, str] = {"language": language}

    # -------------------------------------------------------------------------------------- conversation
    def conversation(self, intent: str, *, answered: bool) -> Topic:
        """Write earlier topics, then the one of ``intent``; ``answered`` adds its gold answer."""
        if self._chance(0.35):
            self._user(self._wording.say("greet"))
            self._agent(self._wording.say("greet_back"))
        earlier = self._rng.choices((0, 1, 2), (0.68, 0.24, 0.08))[0]
        product: Product | None = None
        for _ in range(earlier):
            topic = self.topic(self._earlier_intent(intent), product)
            self._request(topic)
            self._answer(topic)
            product = topic.product if topic.intent in _LEAVES_IT and self._chance(0.4) else None
        topic = self.topic(intent, product)
        self._request(topic, last=not answered)
        if answered:
            self._answer(topic)
        return topic

    def recommendation(self) -> None:
        """Write two to four rounds of recommending products of one category, each with its gold answer."""
        liked = self._product("any")
        want = self._wanted(liked)
        seen: list[Product] = []
        for number in range(self._rng.randint(2, 4)):
            topic = self._recommend(liked, want, seen, again=number > 0)
            self._request(topic)
            self._answer(topic)
            seen += [self._catalogue.by_id[item] for item in topic.answer.items]
            if len(seen) >= len(self._catalogue.by_category[want]):
                break

    def _earlier_intent(self, last: str) -> str:
        """Draw an intent other than the last topic's, so that text, picture and product answers balance."""
        options = [name for name in possible_intents(self._catalogue) if name != last]
        return self._rng.choices(options, [_EARLIER_WEIGHTS.get(name, 1) for name in options])[0]

    def _request(self, topic: Topic, *, last: bool = False) -> None:
        message = topic.request
        if self._answered and message.text and self._chance(0.35):
            self._before(message)
        elif message.pictures and not topic.by_picture and self._chance(0.3):
            self._user("", pictures=message.pictures, items=[])
            self._agent(self._wording.say("on_picture"))
            message.pictures = []
        elif not self.messages and self._chance(0.15):
            self._user(self._wording.typed(self._wording.say("vague")))
            self._agent(self._wording.say("vague_back"))
        if message.text and self._chance(0.15 if last else 0.12):
            self._distract(message)
        if message.text and self._chance(0.15):
            message.text = self._joined(message.text, self._wording.say("thanks"))
        message.text = self._wording.typed(message.text)
        self.messages.append(message)

    def _before(self, message: Message) -> None:
        """Put a word of thanks before the request; a capital letter in mid-sentence goes."""
        words = self._wording.say("next")
        mid_sentence = words.rstrip().endswith((",", ":", "And"))
        text = message.text
        if mid_sentence and text[:1].isupper() and not text.startswith(("I ", "I'")):
            text = text[:1].lower() + text[1:]
        message.text = words + text

    def _distract(self, message: Message) -> None:
        """Add a sentence that sounds like another intent."""
        aside = self._wording.say("distract")
        pair = (aside, message.text) if self._chance(0.5) else (message.text, aside)
        message.text = self._joined(*pair)

    def _joined(self, first: str, second: str) -> str:
        """Join two sentences as the language does."""
        return f"{first} {second}" if self._language == "en" else f"{first}{second}"

    def _answer(self, topic: Topic) -> None:
        if self._chance(0.12):
            self._agent(self._wording.say("wait"))
            self._user(self._wording.say("still_there"))
        answer = topic.answer
        number = len(self.messages)
        self._answered = True
        self.messages.append(Message("agent", answer.text, list(answer.pictures), list(answer.items)))
        self.meta[f"response_modality.{number}"] = answer.modality
        self.meta[f"response_about.{number}"] = topic.product.id

    def _user(self, text: str, pictures: Sequence[PictureSpec] = (), items: Sequence[str] = ()) -> None:
        self.messages.append(Message("user", text, list(pictures), list(items)))

    def _agent(self, text: str) -> None:
        self.messages.append(Message("agent", text))

    # --------------------------------------------------------------------------------------------- topics
    def topic(self, intent: str, product: Product | None = None) -> Topic:
        """Write a topic; ``product`` (when it suits the intent) is the one that was talked about before."""
        kind = INTENT_KINDS[intent]
        if intent == "recommend_one":
            liked = product or self._product("any")
            return self._recommend(liked, self._wanted(liked), [], again=False)
        known = product is not None and kind.trait in goods().kinds[product.kind].traits | {"any"}
        if product is None or not known:
            product = self._product(kind.trait)
        if kind.point is not None and self._chance(_BY_PICTURE_SHARE):
            return self._pointed(intent, kind, product)
        return self._spoken(intent, kind, product, known=known)

    def _pointed(self, intent: str, kind: IntentKind, product: Product) -> Topic:
        """Write a request that only its picture decides."""
        if kind.focus == "stock":
            product = self._sold_out() or product
        slots = self._slots(product)
        picture = self._deciding_picture(intent, product)
        line = self._wording.ask("point", kind.point or "explain", slots)
        return Topic(
            intent,
            Message("user", line.text, [picture]),
            self._reply(intent, product, slots, picture.get("other", "")),
            product,
            by_picture=True,
            held_out=line.held_out,
        )

    def _spoken(self, intent: str, kind: IntentKind, product: Product, *, known: bool) -> Topic:
        """Write a request whose words decide; the product is named, shown, or clear from before."""
        shown = kind.about_item and not known and self._chance(0.5)
        slots = self._slots(product)
        naming = "plain" if intent in _NAMED_WITHOUT_DETAILS else "named"
        slots["it"] = self._it(product, "shown" if shown else naming, known=known)
        if intent == "compare_versions" and not shown and not known:
            slots["it"] = self._definite(product)
        family = (
            "report_leak" if intent == "report_damage" and self._can_leak(product) and self._chance(0.4) else intent
        )
        line = self._wording.ask("ask", family, slots)
        mentioned = [product.id] if not shown and not known and slots["it"] in line.text else []
        pictures = self._supporting_pictures(intent, kind, product, shown=shown)
        answer = self._reply(intent, product, slots, slots["other_id"])
        if intent == "compare_versions":
            mentioned.append(slots["other_id"])
        return Topic(intent, Message("user", line.text, pictures, mentioned), answer, product, False, line.held_out)

    def _supporting_pictures(
        self, intent: str, kind: IntentKind, product: Product, *, shown: bool
    ) -> list[PictureSpec]:
        """Return what the customer sends along: the product when the words only point at it, a page now and then."""
        if kind.about_item and shown:
            if kind.scene == "damaged_item" and self._chance(0.6):
                return [self._deciding_picture(intent, product)]
            return [self._photo(product)]
        if kind.about_item or not self._chance(0.35):
            return []
        return [self._deciding_picture(intent, product) if self._chance(0.6) else self._random_page(product)]

    def _recommend(self, liked: Product, want: str, seen: Sequence[Product], *, again: bool) -> Topic:
        slots = self._slots(liked) | {"want": self._category(want, liked)}
        slots["liked"], slots["liked_it"] = self._liked(liked)
        colour = ""
        if not again and self._chance(0.3):
            colour = self._rng.choice(self._catalogue.by_category[want]).colour
            word = goods().word(colour, self._language)
            slots["want"] = f"{word} {slots['want']}" if self._language == "en" else f"{word}{slots['want']}"
        line = self._wording.ask("ask", "recommend_again" if again else "recommend_one", slots)
        best = suggestion(self._catalogue, liked, want, colour, exclude=[p.id for p in seen])
        text = self._wording.say("recommend_one", {"rec_title": self._title(best)}, section="answer")
        mentioned = [] if again else [liked.id]
        answer = Answer(text, "product", items=(best.id,))
        return Topic("recommend_one", Message("user", line.text, [], mentioned), answer, liked, False, line.held_out)

    # -------------------------------------------------------------------------------------------- answers
    def _reply(self, intent: str, product: Product, slots: Mapping[str, str], other: str) -> Answer:
        """Return the gold answer: a sentence unless the intent has an answer of its own."""
        special: Mapping[str, Callable[[], Answer]] = {
            "ask_size": lambda: self._reply_page("ask_size", product, slots, "size_chart", ""),
            "ask_care": lambda: self._reply_page("ask_care", product, slots, "detail_page", "care"),
            "compare_versions": lambda: self._reply_compare(product, slots, other),
            "ask_colour": lambda: self._reply_colour(product, slots),
            "recommend_set": lambda: self._reply_set(product),
            "stock_restock": lambda: self._reply_stock(product, slots),
        }
        if intent in special:
            return special[intent]()
        return Answer(self._wording.say(intent, slots, section="answer"))

    def _reply_page(self, family: str, product: Product, slots: Mapping[str, str], scene: str, focus: str) -> Answer:
        if self._chance(0.25):
            return Answer(self._wording.say(f"{family}_text", slots, section="answer"))
        text = self._wording.say(family, slots, section="answer")
        return Answer(text, "image", (_page(scene, product, 0, focus=focus),))

    def _reply_compare(self, product: Product, slots: Mapping[str, str], other: str) -> Answer:
        if self._chance(0.25):
            return Answer(self._wording.say("compare_versions_text", slots, section="answer"))
        text = self._wording.say("compare_versions", slots, section="answer")
        return Answer(text, "image", (_page("compare_page", product, 0, other=other),))

    def _reply_colour(self, product: Product, slots: Mapping[str, str]) -> Answer:
        wanted = next((p for p in self._catalogue.siblings(product) if p.colour == slots["colour2_key"]), None)
        if wanted is None:
            return Answer(self._wording.say("ask_colour_none", slots, section="answer"))
        text = self._wording.say("ask_colour", slots, section="answer")
        return Answer(text, "image", (_photo(wanted, STUDIO),))

    def _reply_set(self, product: Product) -> Answer:
        chosen = companions(self._catalogue, product)
        joint = " and the " if self._language == "en" else "和"
        text = self._wording.say("recommend_set", {"rec_title": joint.join(map(self._title, chosen))}, section="answer")
        return Answer(text, "product", items=tuple(p.id for p in chosen))

    def _reply_stock(self, product: Product, slots: Mapping[str, str]) -> Answer:
        if product.in_stock:
            return Answer(self._wording.say("stock_restock_text", slots, section="answer"))
        instead = substitute(self._catalogue, product)
        text = self._wording.say("stock_restock", {"rec_title": self._title(instead)}, section="answer")
        return Answer(text, "product", items=(instead.id,))

    # --------------------------------------------------------------------------------------- words, choices
    def _slots(self, product: Product) -> dict[str, str]:
        """Return everything a phrase can ask for: what is true of the product, and what might be asked instead."""
        word = goods().word
        kind = goods().kinds[product.kind]
        other = self._other_version(product)
        colour2 = self._asked_colour(product)
        materials = self._asked_materials(product, kind)
        facts = {key: word(product.attributes.get(key, ""), self._language) for key in ("material", "colour", "size")}
        return facts | {
            "title": self._title(product),
            "cat": word(product.category, self._language),
            "brand": product.attributes.get("brand", ""),
            "capacity": product.attributes.get("capacity", ""),
            "price": self._money(product.price),
            "it": "it",
            "other": self._definite(other),
            "other_id": other.id,
            "other_title": self._title(other),
            "other_material": word(other.attributes.get("material", ""), self._language),
            "other_price": self._money(other.price),
            "colour2": word(colour2, self._language),
            "colour2_key": colour2,
            "material2": word(materials[0], self._language),
            "material3": word(materials[1], self._language),
            "size2": self._rng.choice(kind.sizes),
            "capacity2": self._rng.choice(kind.capacities or ("",)),
            "number": str(self._rng.randint(2, 4)),
            "saving": self._money(self._rng.choice(_SAVINGS)),
            "usage": self._wording.fact("usage", product.kind),
            "care": self._care(product, kind),
        }

    def _care(self, product: Product, kind: Kind) -> str:
        material = product.attributes.get("material", "")
        known = material if material in goods().chinese else kind.materials[0]
        return self._wording.fact("care", known)

    def _asked_materials(self, product: Product, kind: Kind) -> tuple[str, str]:
        """Return two different materials to ask about; the right one is among them three times in four."""
        right = product.attributes.get("material", kind.materials[0])
        others = [name for name in kind.materials if name != right] or [right]
        pair = [right, self._rng.choice(others)] if self._chance(0.75) else self._rng.choices(others, k=2)
        if pair[0] == pair[1]:
            pair[1] = right
        self._rng.shuffle(pair)
        return pair[0], pair[1]

    def _asked_colour(self, product: Product) -> str:
        """Return a colour to ask for, mostly one that there is."""
        offered = sorted({p.colour for p in self._catalogue.siblings(product)})
        if offered and self._chance(0.9):
            return self._rng.choice(offered)
        return self._rng.choice([name for name in goods().colours if name != product.colour])

    def _other_version(self, product: Product) -> Product:
        versions = self._catalogue.versions(product) or [p for p in self._catalogue.products if p.id != product.id]
        return versions[pick(self._catalogue.seed, len(versions), "other", product.id, self._rng.randrange(_SHOTS))]

    def _it(self, product: Product, naming: str, *, known: bool) -> str:
        """Return how the customer refers to the product; ``naming`` is ``shown``, ``named`` or ``plain``."""
        if known:
            return "it" if self._language == "en" else "它"
        if product.picture is not None:
            naming = "row_shown" if naming == "shown" else "row"
        return self._wording.say(naming, self._name_slots(product), section="naming")

    def _definite(self, product: Product) -> str:
        """Return the product by its full title, so that two versions are told apart."""
        if product.picture is not None:
            return self._wording.say("row", self._name_slots(product), section="naming")
        return f"the {product.title}" if self._language == "en" else product.title_zh

    def _name_slots(self, product: Product) -> dict[str, str]:
        keys = ("colour", "material")
        named = {key: goods().word(product.attributes.get(key, ""), self._language) for key in keys}
        category = goods().word(product.category, self._language)
        return named | {"cat": category, "brand": product.attributes.get("brand", ""), "title": self._title(product)}

    def _category(self, name: str, product: Product) -> str:
        """Return a category to follow "a"; a CSV's categories may be in any number or language and are quoted."""
        if product.picture is None:
            return goods().word(name, self._language)
        return f'product from "{name}"' if self._language == "en" else f"“{name}”"

    def _liked(self, product: Product) -> tuple[str, str]:
        """Return how a liked product is named after "my", and alone."""
        name = self._title(product)
        if product.picture is not None:
            quoted = f'"{name}"' if self._language == "en" else f"“{name}”"
            return quoted, f"my {quoted}" if self._language == "en" else quoted
        if self._language == "en":
            short = f"{product.attributes['brand']} {product.category}"
            return short, self._rng.choice((f"my {short}", f"the {name}"))
        colour = goods().word(product.colour, "zh")
        short = f"{product.attributes['brand']}{colour}{goods().word(product.category, 'zh')}"
        return short, short

    def _title(self, product: Product) -> str:
        return product.title if self._language == "en" else product.title_zh

    def _money(self, amount: int) -> str:
        return f"${amount}" if self._language == "en" else str(amount)

    def _product(self, trait: str) -> Product:
        """Draw a product, the catalogue's first ones more often: shops have best-sellers."""
        pool = self._catalogue.by_trait.get(trait) or self._catalogue.products
        share = self._rng.random()
        return pool[int(len(pool) * share * share)]

    def _sold_out(self) -> Product | None:
        pool = self._catalogue.sold_out
        return pool[self._rng.randrange(len(pool))] if pool else None

    def _wanted(self, liked: Product) -> str:
        """Return the category to be recommended: that of something bought with the liked product."""
        options = [p.category for p in self._catalogue.bought_with(liked) if p.category != liked.category]
        return self._rng.choice(options or [liked.category])

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    @staticmethod
    def _can_leak(product: Product) -> bool:
        return "holds" in goods().kinds[product.kind].traits

    # ------------------------------------------------------------------------------------------- pictures
    def _photo(self, product: Product) -> PictureSpec:
        return _photo(product, self._rng.randrange(VIEWS))

    def _random_page(self, product: Product) -> PictureSpec:
        scene = self._rng.choice(("order_page", "cart_page", "logistics_tracking", "review_page"))
        return _page(scene, product, self._style(scene, product))

    def _style(self, scene: str, product: Product) -> int:
        """Draw one of the few screenshots that go around of a product's page."""
        return pick(self._catalogue.seed, STYLES, "style", scene, product.id, self._rng.randrange(_SHOTS))

    def _deciding_picture(self, intent: str, product: Product) -> PictureSpec:
        kind = INTENT_KINDS[intent]
        if kind.scene == "damaged_item":
            return self.damaged(product, kind.focus)
        other = self._other_version(product).id if kind.scene == "compare_page" else ""
        return _page(kind.scene, product, self._style(kind.scene, product), focus=kind.focus, other=other)

    def damaged(self, product: Product, focus: str) -> PictureSpec:
        """Return a customer's photograph of a damaged product; what can leak may leak instead of being cracked."""
        if focus == "crack" and self._can_leak(product) and self._chance(0.5):
            focus = "leak"
        return PictureSpec(
            scene="damaged_item", item=product.id, variant=1 + self._rng.randrange(VIEWS - 1), focus=focus
        )

    def scene(self, scene: str) -> PictureSpec:
        """Return a picture of a scene, as a customer might send it without a word."""
        if scene == "other":
            return PictureSpec(scene=scene, item="", variant=self._rng.randrange(_SCENERY))
        if scene == "damaged_item":
            fading = self._chance(0.4)
            return self.damaged(self._product("dyed" if fading else "any"), "fade" if fading else "crack")
        product = self._product("fits" if scene == "size_chart" else "any")
        if scene == "product_photo":
            return self._photo(product)
        focus = ""
        if scene == "detail_page":
            focus = self._rng.choice(_detail_sections(product))
        if scene == "payment_page" and self._chance(0.5):
            focus = "failed"
        if scene == "order_page" and self._chance(0.3):
            focus = "short"
        other = self._other_version(product).id if scene == "compare_page" else ""
        return _page(scene, product, self._style(scene, product), focus=focus, other=other)


def _detail_sections(product: Product) -> list[str]:
    traits = goods().kinds[product.kind].traits
    sections = ["overview", "overview", "material"]
    sections += ["capacity"] * ("holds" in traits) + ["care"] * ("washed" in traits) + ["usage"] * ("used" in traits)
    return sections if product.in_stock else [*sections, "stock"]


def _photo(product: Product, view: int) -> PictureSpec:
    return PictureSpec(scene="product_photo", item=product.id, variant=view)


def _page(scene: str, product: Product, style: int, *, focus: str = "", other: str = "") -> PictureSpec:
    spec = PictureSpec(scene=scene, item=product.id, variant=style)
    if focus:
        spec["focus"] = focus
    if other:
        spec["other"] = other
    return spec


def possible_intents(catalogue: Catalogue) -> tuple[str, ...]:
    """Return the intents that the catalogue has products for."""
    return tuple(name for name in INTENTS if catalogue.by_trait.get(INTENT_KINDS[name].trait))


def possible_scenes(catalogue: Catalogue) -> tuple[str, ...]:
    """Return the scenes that the catalogue has products for."""
    return tuple(name for name in SCENES if name != "size_chart" or "fits" in catalogue.by_trait)


def write_record(catalogue: Catalogue, settings: ShopSettings, seed: int, index: int, split: Split) -> dict[str, Any]:
    """Write record ``index``; it depends on nothing but the arguments, so any worker can write it alone.

    Returns:
        A JSON object: id, turns (speaker, text, pictures by key, items), pictures (key → specification), labels, meta.
    """
    rng = stream(seed, "record", index)
    language = settings.languages[pick(seed, len(settings.languages), "language", index)]
    writer = Writer(catalogue, language, split, rng)
    role = rng.random()
    if role < settings.picture_share:
        labels = _picture_record(writer, rng)
    elif role < settings.picture_share + SERVICE_SHARE:
        labels = _service_record(writer, rng)
    else:
        labels = _intent_record(writer, rng)
    return _record(f"shop-{index:07d}", writer, labels)


def _picture_record(writer: Writer, rng: random.Random) -> dict[str, str]:
    scenes = possible_scenes(writer._catalogue)  # noqa: SLF001 - same module
    scene = rng.choice(scenes)
    writer.messages.append(Message("user", "", [writer.scene(scene)]))
    return {"image_scene": _noisy(scene, scenes, writer, rng)}


def _service_record(writer: Writer, rng: random.Random) -> dict[str, str]:
    if rng.random() < 0.5:
        writer.recommendation()
    else:
        writer.conversation(rng.choice(possible_intents(writer._catalogue)), answered=True)  # noqa: SLF001 - same module
    return {}


def _intent_record(writer: Writer, rng: random.Random) -> dict[str, str]:
    intents = possible_intents(writer._catalogue)  # noqa: SLF001 - same module
    topic = writer.conversation(rng.choice(intents), answered=False)
    writer.meta["decided_by"] = "picture" if topic.by_picture else "text"
    writer.meta["phrase"] = "held_out" if topic.held_out else "shared"
    return {"dialogue_intent": _noisy(topic.intent, intents, writer, rng)}


def _noisy(label: str, labels: Sequence[str], writer: Writer, rng: random.Random) -> str:
    if rng.random() >= LABEL_NOISE:
        return label
    writer.meta["label_noise"] = "yes"
    return rng.choice([name for name in labels if name != label])


def _record(record_id: str, writer: Writer, labels: Mapping[str, str]) -> dict[str, Any]:
    pictures: dict[str, PictureSpec] = {}
    turns = []
    for message in writer.messages:
        keys = list(_keyed(message.pictures, pictures))
        turns.append({"speaker": message.speaker, "text": message.text, "pictures": keys, "items": message.items})
    return {"id": record_id, "turns": turns, "pictures": pictures, "labels": dict(labels), "meta": writer.meta}


def _keyed(specs: Iterable[PictureSpec], pictures: dict[str, PictureSpec]) -> Iterable[str]:
    """Yield the key of each specification, adding new ones to ``pictures``."""
    for spec in specs:
        key = next((known for known, other in pictures.items() if other == spec), f"picture-{len(pictures)}")
        pictures[key] = spec
        yield key
