"""What one reply is worth against what the agent said: modality, response, products, words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mmd.assistant.reasons import is_sorry
from mmd.assistant.turns import AskedTurn
from mmd.assistant.types import PRODUCT, TEXT, ReplyPart
from mmd.intent.textnorm import normalise
from mmd.recommend.words import split_words


@dataclass(frozen=True, slots=True)
class Verdict:
    """One reply, judged.

    Attributes:
        modality: whether it is of the right one.
        response: whether the first response that it shows is right; the student's words where they are the right ones.
        item: whether the first product that it shows is right; None where the agent named none.
        any_item: whether any is; None where the agent named none.
        words: F1 of its words, in [0, 1].
        answered: whether it says or shows anything of its own.
    """

    modality: bool
    response: bool
    item: bool | None
    any_item: bool | None
    words: float
    answered: bool


def judge(turn: AskedTurn, modality: str, parts: tuple[ReplyPart, ...]) -> Verdict:
    """Judge a reply to a turn; ``modality`` is the one that was chosen."""
    items = [part.item_id for part in parts if part.kind == "item" and part.item_id is not None]
    asked = bool(turn.items)
    return Verdict(
        modality=modality == turn.modality,
        response=_right_response(turn, modality, parts),
        item=bool(items) and items[0] in turn.items if asked else None,
        any_item=any(item in turn.items for item in items) if asked else None,
        words=overlap("\n".join(part.text for part in parts if part.kind == "text"), turn.text),
        answered=not all(is_sorry(part.text) for part in parts if part.kind == "text")
        or any(part.kind != "text" for part in parts),
    )


def _right_response(turn: AskedTurn, modality: str, parts: tuple[ReplyPart, ...]) -> bool:
    """Say whether the first part of the chosen modality is a right response."""
    if modality != turn.modality:
        return False
    kind = {TEXT: "text", PRODUCT: "item"}.get(modality, "image")
    first = next((part for part in parts if part.kind == kind), None)
    if first is None:
        return False
    if first.response_id is not None:
        return first.response_id in {response.id for response in turn.right}
    if kind == "item":
        return first.item_id in turn.items
    return normalise(first.text) in {normalise(response.title) for response in turn.right}


def overlap(said: str, right: str) -> float:
    """Return the F1 of the words that two texts share, counted with repeats; of Chinese, of characters.

    Two texts without words are alike: 1.
    """
    mine, theirs = Counter(_words(said)), Counter(_words(right))
    if not mine and not theirs:
        return 1.0
    shared = sum((mine & theirs).values())
    return 2 * shared / (sum(mine.values()) + sum(theirs.values()))


def _words(text: str) -> list[str]:
    return [word for word in split_words(text) if any(character.isalnum() for character in word)]
