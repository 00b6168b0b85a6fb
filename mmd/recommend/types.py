"""What ConKD works on: linked turns, contexts, and samples of both kinds.

Items and entities are integers here, positions in the item graph's tables (:mod:`mmd.recommend.graph`); only the graph
knows their ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmd.schema import Speaker, Split

Mode = Literal["rec", "gen"]
Part = str | int
"""A piece of an utterance: words, or an item's position."""


@dataclass(frozen=True, slots=True)
class LinkedTurn:
    """A turn in which items and entities are found.

    Attributes:
        speaker: who says it.
        parts: words and items as they follow each other; items that the words do not show come last.
        entities: positions of the entities that it names, items' entities among them, in order of first mention.
    """

    speaker: Speaker
    parts: tuple[Part, ...]
    entities: tuple[int, ...]

    @property
    def items(self) -> tuple[int, ...]:
        """Items in the order of mention, repeats included."""
        return tuple(part for part in self.parts if isinstance(part, int))


@dataclass(frozen=True, slots=True)
class LinkedDialogue:
    """A dialogue with linked turns."""

    id: str
    split: Split
    turns: tuple[LinkedTurn, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """What is known before a turn.

    Attributes:
        turns: the last ``context_turns`` turns, oldest first.
        entities: of all prior turns, without repeats, in order of last mention; the last ``max_entities``.
        items: mentioned in any prior turn, without repeats, in order of last mention.
    """

    turns: tuple[LinkedTurn, ...]
    entities: tuple[int, ...]
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ResponseSample:
    """A turn of the agent with its context: what φ and θ learn to say.

    Attributes:
        id: ``<dialogue>#<turn index>``.
        dialogue_id: of the dialogue.
        split: ``train`` or ``test``.
        context: not empty.
        response: what the agent says.
    """

    id: str
    dialogue_id: str
    split: Split
    context: Context
    response: LinkedTurn

    @property
    def mode(self) -> Mode:
        """``rec`` when the response names an item."""
        return "rec" if self.response.items else "gen"


@dataclass(frozen=True, slots=True)
class MentionSample:
    """One mention of an item with the context of its turn: what ψ learns to rank.

    Attributes:
        id: ``<dialogue>#<turn index>.<k>``, the k-th mention of its turn.
        dialogue_id: of the dialogue.
        split: ``train`` or ``test``.
        speaker: who mentions it; only the agent's are evaluated.
        context: of the turn; mentions of the same turn are not in it.
        item: the right one.
        novel: whether no prior turn mentions the item.
    """

    id: str
    dialogue_id: str
    split: Split
    speaker: Speaker
    context: Context
    item: int
    novel: bool
