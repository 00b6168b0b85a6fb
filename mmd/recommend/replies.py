"""What the student says: words and items in order, the text that they make, and the pieces of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mmd.recommend.types import Mode, Part

_NO_SPACE_BEFORE = frozenset(".,;:!?%)]}'’”…、。，；：！？）】》")
_NO_SPACE_AFTER = frozenset("([{‘“（【《、。，；：！？")
_UNSPACED = ((0x2E80, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF))
"""Code points of scripts that set no spaces between words."""


@dataclass(frozen=True, slots=True)
class Emission:
    """An item that a reply names, and what else the student had in mind there.

    Attributes:
        item: position of the item.
        top: the likeliest items at its place, likeliest first; the named one need not be the first of them.
        log_probs: of ``top``, natural logarithms of the shares among items that were allowed there.
    """

    item: int
    top: tuple[int, ...]
    log_probs: tuple[float, ...]

    def first(self, k: int) -> tuple[int, ...]:
        """Return k items: the named one, then the likeliest others."""
        return (self.item, *(item for item in self.top if item != self.item))[:k]


@dataclass(frozen=True, slots=True)
class ItemSpan:
    """Where a text names an item: characters ``start`` to ``end``."""

    start: int
    end: int
    item: int


@dataclass(frozen=True, slots=True)
class Reply:
    """One generated response.

    Attributes:
        mode: the first decoded token; without mode tokens, ``rec`` when an item is named.
        parts: words and items in order.
        emissions: one an item of ``parts``, in order.
        text: the parts as a person reads them, titles put in.
        spans: where ``text`` names items, in order.
        token_ids: all that was decoded, mode and end included.
        ms: time that decoding took; of replies decoded together, each gets its share by tokens.
        item_mass: the student's own summed item probability at each token before any mask, in [0, 1].
        mode_probability: of the mode against the other one, given or decoded; None without mode tokens.
    """

    mode: Mode
    parts: tuple[Part, ...]
    emissions: tuple[Emission, ...]
    text: str
    spans: tuple[ItemSpan, ...]
    token_ids: tuple[int, ...]
    ms: float
    item_mass: tuple[float, ...]
    mode_probability: float | None = None

    @property
    def items(self) -> tuple[int, ...]:
        """Named items in order; no item is named twice."""
        return tuple(emission.item for emission in self.emissions)

    @property
    def tokens(self) -> int:
        """Number of decoded tokens, mode and end included."""
        return len(self.token_ids)

    @property
    def ms_per_token(self) -> float:
        """Milliseconds a decoded token."""
        return self.ms / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """A piece of a streamed reply; the texts of all events joined are the reply's text.

    Attributes:
        kind: ``mode`` comes first, ``end`` last; ``text`` and ``item`` in between.
        text: what to append; an item's is its title.
        mode: of ``mode`` events; None without mode tokens, since it is not known yet.
        mode_probability: of ``mode`` events; see :class:`Reply`.
        emission: of ``item`` events.
        reply: the whole, of the ``end`` event.
    """

    kind: Literal["mode", "text", "item", "end"]
    text: str = ""
    mode: Mode | None = None
    mode_probability: float | None = None
    emission: Emission | None = None
    reply: Reply | None = None


def put_titles_in(parts: Sequence[Part], titles: Sequence[str]) -> tuple[str, tuple[ItemSpan, ...]]:
    """Return the text of an utterance and where it names items.

    Words keep their own spacing; beside a title a space is put in where a person would.

    Args:
        parts: words and item positions.
        titles: of all items, by position.
    """
    text, spans = "", []
    for number, part in enumerate(parts):
        piece = titles[part] if isinstance(part, int) else part
        beside_title = isinstance(part, int) or (number > 0 and isinstance(parts[number - 1], int))
        if beside_title and _needs_space(text, piece):
            text += " "
        if isinstance(part, int):
            spans.append(ItemSpan(len(text), len(text) + len(piece), part))
        text += piece
    return text, tuple(spans)


def cut(text: str, spans: Sequence[ItemSpan]) -> Iterator[tuple[int, int, int | None]]:
    """Yield start, end and item of the pieces of a text: those of spans, and the words between, which have no item."""
    at = 0
    for span in spans:
        if span.start > at:
            yield at, span.start, None
        yield span.start, span.end, span.item
        at = span.end
    if at < len(text):
        yield at, len(text), None


def _needs_space(before: str, after: str) -> bool:
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return False
    if before[-1] in _NO_SPACE_AFTER or after[0] in _NO_SPACE_BEFORE:
        return False
    return not (_unspaced(before[-1]) or _unspaced(after[0]))


def _unspaced(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in _UNSPACED)
