"""The registry of response modalities: what a right response of each is, and what it looks like to encoders.

A further modality is one class with the members of :class:`Modality`, passed to :func:`register`; its name can then
stand in ``retrieval.samples.modalities``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from mmd.errors import ConfigError
from mmd.intent.types import has_words
from mmd.retrieval.facts import Facts, with_titles
from mmd.retrieval.types import Response
from mmd.schema import Dialogue, Item, Turn, text_id


class Modality(Protocol):
    """One kind of response. A *key* is its content's name: a text itself, an image id, an item id."""

    @property
    def name(self) -> str:
        """As in settings and in the ids of responses."""
        ...

    @property
    def precedence(self) -> int:
        """Where a turn could be of several modalities and the corpus does not say which, the largest wins."""
        ...

    @property
    def from_catalogue(self) -> bool:
        """Whether every response there is may be offered in either split; else those that a split's dialogues give."""
        ...

    def of_turn(self, turn: Turn, dialogue: Dialogue, index: int, facts: Facts) -> tuple[str, ...]:
        """Return the keys of the right responses that the turn with this 0-based index gives, each once."""
        ...

    def response(self, key: str, facts: Facts) -> Response:
        """Return the response that a key stands for."""
        ...

    def candidates(self, facts: Facts) -> Iterable[str]:
        """Return keys of responses there are beyond those that dialogues give."""
        ...


def response_id(modality: str, key: str) -> str:
    """Return the id of a response: modality and content (a text's is its SHA-256; images and items have theirs)."""
    return f"{modality}:{text_id(key) if modality == 'text' else key}"


class TextModality:
    """What the agent says in words; mentions of items are read as their titles."""

    name = "text"
    precedence = 0
    from_catalogue = False

    def of_turn(self, turn: Turn, dialogue: Dialogue, index: int, facts: Facts) -> tuple[str, ...]:  # noqa: ARG002 (the protocol's)
        """Return the words of an agent turn that has some."""
        if turn.speaker != "agent" or not has_words(turn.text):
            return ()
        return (with_titles(turn.text, facts.titles).strip(),)

    def response(self, key: str, facts: Facts) -> Response:  # noqa: ARG002 (the protocol's)
        """Return the text as it is."""
        return Response(response_id(self.name, key), self.name, title=key, text=key)

    def candidates(self, facts: Facts) -> Iterable[str]:  # noqa: ARG002 (the protocol's)
        """Return nothing: texts are those that were said."""
        return ()


class ImageModality:
    """A picture that somebody in ``image_from`` sends."""

    name = "image"
    precedence = 10
    from_catalogue = False

    def of_turn(self, turn: Turn, dialogue: Dialogue, index: int, facts: Facts) -> tuple[str, ...]:  # noqa: ARG002 (the protocol's)
        """Return the turn's pictures."""
        return tuple(dict.fromkeys(turn.image_ids)) if turn.speaker in facts.settings.image_from else ()

    def response(self, key: str, facts: Facts) -> Response:
        """Return the picture; its text is what ``picture_text`` lets encoders read."""
        return Response(response_id(self.name, key), self.name, facts.caption(key), facts.picture_words(key), key)

    def candidates(self, facts: Facts) -> Iterable[str]:  # noqa: ARG002 (the protocol's)
        """Return nothing: pictures are those that were sent."""
        return ()


class ProductModality:
    """An item of the catalogue that the agent names. Items without words and pictures cannot be told apart: none."""

    name = "product"
    precedence = 20
    from_catalogue = True

    def of_turn(self, turn: Turn, dialogue: Dialogue, index: int, facts: Facts) -> tuple[str, ...]:  # noqa: ARG002 (the protocol's)
        """Return the items of an agent turn that the catalogue knows."""
        if turn.speaker != "agent":
            return ()
        return tuple(i for i in dict.fromkeys(turn.item_ids) if i in facts.items and _is_known(facts.items[i]))

    def response(self, key: str, facts: Facts) -> Response:
        """Return the card: title and attributes in words, and the first picture."""
        item = facts.items[key]
        attributes = (f"{name}: {value}" for name, value in sorted(item.attributes.items()) if value)
        words = ". ".join(part for part in (item.title.strip(), ", ".join(attributes)) if part)
        picture = item.image_ids[0] if item.image_ids else None
        return Response(response_id(self.name, key), self.name, item.title.strip(), words, picture)

    def candidates(self, facts: Facts) -> Iterable[str]:
        """Return the whole catalogue."""
        return (item.id for item in facts.items.values() if _is_known(item))


def _is_known(item: Item) -> bool:
    return bool(item.title.strip() or item.image_ids)


MODALITIES: dict[str, Modality] = {}
"""Name → modality."""


def register(added: Modality) -> None:
    """Add a modality.

    Raises:
        ConfigError: another one has its name.
    """
    if added.name in MODALITIES:
        raise ConfigError(f"modality {added.name!r}: is registered already; give the new one a name of its own.")
    MODALITIES[added.name] = added


def modality(name: str) -> Modality:
    """Return the modality of a name.

    Raises:
        ConfigError: unknown name.
    """
    if name not in MODALITIES:
        raise ConfigError(f"retrieval.samples.modalities: {name!r} is unknown; choose from {', '.join(MODALITIES)}.")
    return MODALITIES[name]


for _built_in in (TextModality(), ImageModality(), ProductModality()):
    register(_built_in)
