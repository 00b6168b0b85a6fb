"""Dialogues to try on the page, taken from a corpus that may be shown."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Literal

from mmd.corpora.store import Corpus
from mmd.intent.engine import shape_of
from mmd.schema import Dialogue, Image, Turn
from serve_apps.api import ExampleOut, TurnIn

COUNT = 8
_MAX_IMAGE_BYTES = 200_000


def pick_examples(corpus: Corpus, wanted: Literal["auto", "on", "off"], count: int = COUNT) -> tuple[ExampleOut, ...]:
    """Choose training dialogues with a picture whose shapes and labels differ.

    Args:
        corpus: where they come from.
        wanted: ``auto`` takes a simulated corpus only: other people's data is not for show.
        count: how many at most.
    """
    if wanted == "off" or (wanted == "auto" and not corpus.simulated):
        return ()
    chosen = spread([d for d in corpus.dialogues("train") if any(turn.image_ids for turn in d.turns)], count)
    ids = {image_id for dialogue in chosen for turn in dialogue.turns for image_id in turn.image_ids}
    images = {image.id: image for image in corpus.images(ids)} if ids else {}
    small = {key for key, image in images.items() if len(image.data) <= _MAX_IMAGE_BYTES}
    return tuple(
        _example(dialogue, images)
        for dialogue in chosen
        if all(image_id in small for turn in dialogue.turns for image_id in turn.image_ids)
    )


def spread(dialogues: Iterable[Dialogue], count: int) -> list[Dialogue]:
    """Take dialogues in order, each of a new shape and label, until there are enough."""
    seen: set[tuple[str, str]] = set()
    chosen = []
    for dialogue in dialogues:
        traits = {(shape_of(dialogue), label) for label in dialogue.labels.values()}
        if traits and traits.isdisjoint(seen):
            seen |= traits
            chosen.append(dialogue)
        if len(chosen) == count:
            break
    return chosen


def _example(dialogue: Dialogue, images: Mapping[str, Image]) -> ExampleOut:
    return ExampleOut(id=dialogue.id, turns=turns_in(dialogue.turns, images), labels=dict(dialogue.labels))


def turns_in(turns: Iterable[Turn], images: Mapping[str, Image]) -> tuple[TurnIn, ...]:
    """Return stored turns as a client sends them; ``images`` holds at least the pictures that they name."""
    return tuple(
        TurnIn(
            speaker=turn.speaker,
            text=turn.text,
            images=tuple(data_url(images[image_id]) for image_id in turn.image_ids),
            item_ids=turn.item_ids,
        )
        for turn in turns
    )


def data_url(image: Image) -> str:
    """Return a picture as a data URL."""
    return f"data:{media_type(image)};base64,{base64.b64encode(image.data).decode()}"


def media_type(image: Image) -> str:
    """Return the media type of a stored picture."""
    return "image/jpeg" if image.format in ("JPEG", "MPO") else f"image/{image.format.lower()}"
