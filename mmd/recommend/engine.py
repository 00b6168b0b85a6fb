"""What a reply means to a client: items by their ids, pieces of text, the likeliest items, an item mass a token.

Everything here works on positions of the item graph on one side and on the corpus's own ids on the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mmd.errors import RequestError
from mmd.recommend.replies import cut, put_titles_in
from mmd.recommend.types import Mode

if TYPE_CHECKING:
    from mmd.recommend.graph import ItemGraph
    from mmd.recommend.replies import Emission, Event, Reply
    from mmd.recommend.vocabulary import Tokenizer
    from mmd.schema import Turn

Vector = NDArray[np.float32]


class UnknownItemError(RequestError):
    """A turn names an item that the student does not know.

    Args:
        item_id: the id.
        turn: index of the turn that names it.
        place: index among the turn's ids.
    """

    def __init__(self, item_id: str, turn: int, place: int) -> None:
        super().__init__(
            f"turn {turn} names item {item_id[:80]!r}, which the item graph does not have; name items by the ids of "
            "the corpus that is served, or leave the id out."
        )
        self.turn = turn
        self.place = place


@dataclass(frozen=True, slots=True)
class RecommendedItem:
    """An item that the student had in mind.

    Attributes:
        id: in the catalogue.
        title: what it is called.
        probability: among the items that could have been named there, in [0, 1].
        named: whether the reply names it.
        image_id: of its picture, if it has one.
    """

    id: str
    title: str
    probability: float
    named: bool
    image_id: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters ``start`` to ``end`` of a reply: words, or the title of the item ``item_id`` with its picture."""

    text: str
    start: int
    end: int
    item_id: str | None = None
    image_id: str | None = None


@dataclass(frozen=True, slots=True)
class TokenMass:
    """A decoded token and the student's own summed item probability there, before any mask, in [0, 1]."""

    token: str
    item_mass: float


@dataclass(frozen=True)
class RecommendAnswer:
    """A reply.

    Attributes:
        text: as a person reads it.
        pieces: words and items in order; their texts joined are ``text``.
        mode: ``rec`` or ``gen``.
        mode_probability: of the mode against the other one, given or not; None where the student has no mode tokens.
        items: the likeliest, likeliest first: at the place of the reply's first item, or, where it names none, those
            that the student would name first if it recommended.
        items_from: which of the two: ``reply`` or ``context``.
        trace: one entry a decoded token, mode and end included.
        timings_ms: of the stages ``link`` and ``generate``; the latter is shared by a batch.
    """

    text: str
    pieces: tuple[Piece, ...]
    mode: Mode
    mode_probability: float | None
    items: tuple[RecommendedItem, ...]
    items_from: Literal["reply", "context"]
    trace: tuple[TokenMass, ...]
    timings_ms: Mapping[str, float]


@dataclass(frozen=True)
class AnswerEvent:
    """A piece of a streamed answer; the texts of all joined are the answer's text.

    Attributes:
        kind: ``mode`` comes first (without mode tokens only where it was given), ``end`` last; ``text`` and ``item`` in
            between.
        mode: of ``mode`` events, with its probability.
        mode_probability: see :class:`RecommendAnswer`.
        piece: of ``text`` and ``item`` events.
        answer: the whole, of the ``end`` event.
    """

    kind: Literal["mode", "text", "item", "end"]
    mode: Mode | None = None
    mode_probability: float | None = None
    piece: Piece | None = None
    answer: RecommendAnswer | None = None


class AnswerMaker:
    """Puts replies into the catalogue's terms.

    Args:
        graph: whose items the replies name.
        tokenizer: that the replies were decoded with.
        images: item id → id of its picture.
    """

    def __init__(self, graph: ItemGraph, tokenizer: Tokenizer, images: Mapping[str, str]) -> None:
        self._graph = graph
        self._tokenizer = tokenizer
        self._images = images
        self._titles = tuple(graph.title(item) for item in range(graph.n_items))

    def answer(
        self, reply: Reply, k: int, timings_ms: Mapping[str, float], of_context: Callable[[], Vector]
    ) -> RecommendAnswer:
        """Return a reply with the ``k`` likeliest items.

        Args:
            reply: of the student.
            k: items wanted.
            timings_ms: of the stages.
            of_context: gives logits of all items, (n_items,): which would be named first; asked where none is named.
        """
        likeliest = _of_reply(reply.emissions[0], k) if reply.emissions else _of_logits(of_context(), k)
        return RecommendAnswer(
            text=reply.text,
            pieces=tuple(self._pieces(reply)),
            mode=reply.mode,
            mode_probability=reply.mode_probability,
            items=tuple(self._item(item, share, named=item in reply.items) for item, share in likeliest),
            items_from="reply" if reply.emissions else "context",
            trace=tuple(self._trace(reply)),
            timings_ms=timings_ms,
        )

    def events(
        self, told: Iterator[Event], k: int, timings_ms: Mapping[str, float], of_context: Callable[[], Vector]
    ) -> Iterator[AnswerEvent]:
        """Yield the pieces of a streamed reply; arguments as of :meth:`answer`, ``generate`` is added to the stages."""
        at = 0
        for event in told:
            if event.kind == "mode":
                if event.mode is not None:
                    yield AnswerEvent("mode", event.mode, event.mode_probability)
            elif event.reply is not None:
                timings = {**timings_ms, "generate": event.reply.ms}
                yield AnswerEvent("end", answer=self.answer(event.reply, k, timings, of_context))
            else:
                named = None if event.emission is None else self._graph.item_ids[event.emission.item]
                piece = self._piece(event.text, at, at + len(event.text), named)
                yield AnswerEvent("text" if named is None else "item", piece=piece)
                at += len(event.text)

    def _pieces(self, reply: Reply) -> Iterator[Piece]:
        for start, end, item in cut(reply.text, reply.spans):
            yield self._piece(reply.text[start:end], start, end, None if item is None else self._graph.item_ids[item])

    def _piece(self, text: str, start: int, end: int, item_id: str | None) -> Piece:
        return Piece(text, start, end, item_id, None if item_id is None else self._images.get(item_id))

    def _item(self, item: int, probability: float, *, named: bool) -> RecommendedItem:
        item_id = self._graph.item_ids[item]
        return RecommendedItem(item_id, self._titles[item], min(1.0, probability), named, self._images.get(item_id))

    def _trace(self, reply: Reply) -> Iterator[TokenMass]:
        """Yield each token as it stands in the text; one that adds nothing to it by what it is."""
        before = ""
        for count, (token, mass) in enumerate(zip(reply.token_ids, reply.item_mass, strict=True), start=1):
            text, _ = put_titles_in(self._tokenizer.decode(reply.token_ids[:count]), self._titles)
            added = text.removeprefix(before).strip() if text.startswith(before) else ""
            yield TokenMass(added or self._name(token), mass)
            before = text

    def _name(self, token: int) -> str:
        """Return a token by itself; control tokens in brackets."""
        space = self._tokenizer.space
        control = {space.rec: "[REC]", space.gen: "[GEN]", space.eos: "[END]"}
        return control.get(token) or self._tokenizer.decode_text([token]).strip() or "␣"


def _of_reply(emission: Emission, k: int) -> list[tuple[int, float]]:
    """Return the likeliest items of a place with their probabilities."""
    return [(item, math.exp(log_prob)) for item, log_prob in zip(emission.top[:k], emission.log_probs, strict=False)]


def _of_logits(logits: Vector, k: int) -> list[tuple[int, float]]:
    """Return the likeliest items with their probabilities; equal ones in the graph's order."""
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return [(int(item), float(shares[item])) for item in np.argsort(-shares, kind="stable")[:k]]


def check_items(turns: Sequence[Turn], graph: ItemGraph) -> None:
    """Refuse items that the graph does not have.

    Raises:
        UnknownItemError: there is one.
    """
    for index, turn in enumerate(turns):
        for place, item_id in enumerate(turn.item_ids):
            if item_id not in graph.item_at:
                raise UnknownItemError(item_id, index, place)
