"""Writes the shop's conversations.

A conversation is a chain of topics; each is answered, except for the last one of a labelled conversation: it ends with
the request whose intent is the label, so that no answer can give it away.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mmd.corpora.settings import Language
from mmd.corpora.shop.catalogue import Catalogue, Product
from mmd.corpora.shop.choices import Choices
from mmd.corpora.shop.intents import INTENT_KINDS, possible_intents
from mmd.corpora.shop.pictures import Pictures
from mmd.corpora.shop.specs import PictureSpec
from mmd.corpora.shop.topics import Message, Topic, Topics
from mmd.corpora.shop.wording import Wording
from mmd.schema import Split

_EARLIER_WEIGHTS = {"ask_size": 6, "ask_colour": 6, "ask_care": 6, "compare_versions": 6, "recommend_set": 5}
_LEAVES_IT = {name for name, kind in INTENT_KINDS.items() if kind.about_item} - {"recommend_one", "recommend_set"}
"""Intents after whose topic "it" is still the product that was asked about."""


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
        self._choices = Choices(catalogue, rng)
        self._wording = Wording(language, split, rng)
        self._pictures = Pictures(self._choices)
        self._topics = Topics(self._choices, self._wording, self._pictures)
        self._answered = False
        self.messages: list[Message] = []
        self.meta: dict[str, str] = {"language": language}

    def conversation(self, intent: str, *, answered: bool) -> Topic:
        """Write earlier topics, then the one of ``intent``; ``answered`` adds its gold answer."""
        if self._choices.chance(0.35):
            self._user(self._wording.say("greet"))
            self._agent(self._wording.say("greet_back"))
        earlier = self._choices.rng.choices((0, 1, 2), (0.68, 0.24, 0.08))[0]
        product: Product | None = None
        for _ in range(earlier):
            topic = self._topics.topic(self._earlier_intent(intent), product)
            self._request(topic)
            self._answer(topic)
            product = topic.product if topic.intent in _LEAVES_IT and self._choices.chance(0.4) else None
        topic = self._topics.topic(intent, product)
        self._request(topic, last=not answered)
        if answered:
            self._answer(topic)
        return topic

    def recommendation(self) -> None:
        """Write two to four rounds of recommending products of one category, each with its gold answer."""
        liked = self._choices.product("any")
        want = self._choices.wanted(liked)
        seen: list[Product] = []
        for number in range(self._choices.rng.randint(2, 4)):
            topic = self._topics.recommendation(liked, want, seen, again=number > 0)
            self._request(topic)
            self._answer(topic)
            seen += [self._catalogue.by_id[item] for item in topic.answer.items]
            if len(seen) >= len(self._catalogue.by_category[want]):
                break

    def picture(self, scene: str) -> None:
        """Write a customer's picture of ``scene`` without a word."""
        self._user("", [self._pictures.scene(scene)])

    def _earlier_intent(self, last: str) -> str:
        """Draw an intent other than the last topic's, so that text, picture and product answers balance."""
        options = [name for name in possible_intents(self._catalogue) if name != last]
        return self._choices.rng.choices(options, [_EARLIER_WEIGHTS.get(name, 1) for name in options])[0]

    def _request(self, topic: Topic, *, last: bool = False) -> None:
        message = topic.request
        if self._answered and message.text and self._choices.chance(0.35):
            self._before(message)
        elif message.pictures and not topic.by_picture and self._choices.chance(0.3):
            self._user("", pictures=message.pictures, items=[])
            self._agent(self._wording.say("on_picture"))
            message.pictures = []
        elif not self.messages and self._choices.chance(0.15):
            self._user(self._wording.typed(self._wording.say("vague")))
            self._agent(self._wording.say("vague_back"))
        if message.text and self._choices.chance(0.15 if last else 0.12):
            self._distract(message)
        if message.text and self._choices.chance(0.15):
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
        pair = (aside, message.text) if self._choices.chance(0.5) else (message.text, aside)
        message.text = self._joined(*pair)

    def _joined(self, first: str, second: str) -> str:
        """Join two sentences as the language does."""
        return f"{first} {second}" if self._language == "en" else f"{first}{second}"

    def _answer(self, topic: Topic) -> None:
        if self._choices.chance(0.12):
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
