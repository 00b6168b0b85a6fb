"""A dialogue in the making: utterances as a reader finds them, pictures placed where they were sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mmd.schema import Speaker, Turn

IMAGE_MARKER = "<image>"


@dataclass(slots=True)
class Draft:
    """A turn whose text and pictures are still being collected."""

    speaker: Speaker
    text: str
    image_ids: list[str] = field(default_factory=list)
    item_ids: list[str] = field(default_factory=list)

    def turn(self) -> Turn:
        """Return the finished turn."""
        return Turn(self.speaker, self.text, tuple(self.image_ids), tuple(self.item_ids))

    @property
    def empty(self) -> bool:
        """Whether neither text nor pictures nor items were said."""
        return not (self.text or self.image_ids or self.item_ids)


def place_images(drafts: Sequence[Draft], names: Sequence[str]) -> dict[str, str]:
    """Put each next picture where the next ``<image>`` marker stands, and take the markers out of the texts.

    Pictures without a marker go to the last user turn (the last turn where no user spoke).

    Returns:
        Meta that counts what did not match: ``images_unplaced``, ``image_markers_unmatched``; empty when all did.
    """
    waiting = list(names)
    unmatched = 0
    for draft in drafts:
        for _ in range(draft.text.count(IMAGE_MARKER)):
            if waiting:
                draft.image_ids.append(waiting.pop(0))
            else:
                unmatched += 1
        draft.text = _without_markers(draft.text)
    meta: dict[str, str] = {}
    if unmatched:
        meta["image_markers_unmatched"] = str(unmatched)
    if waiting and drafts:
        users = [draft for draft in drafts if draft.speaker == "user"]
        (users or drafts)[-1].image_ids.extend(waiting)
        meta["images_unplaced"] = str(len(waiting))
    return meta


def _without_markers(text: str) -> str:
    """Take markers out; a space takes their place between words, nothing at the edge of a line."""
    if IMAGE_MARKER not in text:
        return text
    joined: list[str] = []
    for piece in filter(None, (piece.strip(" \t") for piece in text.split(IMAGE_MARKER))):
        if joined and not joined[-1].endswith("\n") and not piece.startswith("\n"):
            joined.append(" ")
        joined.append(piece)
    return "".join(joined).strip()


def drop_empty(drafts: Iterable[Draft]) -> tuple[list[Draft], dict[str, str]]:
    """Drop turns in which nothing was said; the meta counts them by speaker (``empty_agent_turns``, …)."""
    kept: list[Draft] = []
    dropped: dict[str, int] = {}
    for draft in drafts:
        if draft.empty:
            key = f"empty_{draft.speaker}_turns"
            dropped[key] = dropped.get(key, 0) + 1
        else:
            kept.append(draft)
    return kept, {key: str(count) for key, count in dropped.items()}


def content_id(raw: bytes) -> str:
    """Return an id for a record that has none: the first 16 hex digits of the SHA-256 of its bytes."""
    return hashlib.sha256(raw).hexdigest()[:16]
