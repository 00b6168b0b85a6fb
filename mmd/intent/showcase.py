"""Dialogues to show: a few that are worth reading, chosen the same way wherever they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mmd.intent.engine import IntentQuery
from mmd.schema import Dialogue, Image

_TURNS_SHOWN = 4


def choose_dialogues(dialogues: Sequence[Dialogue], count: int) -> Iterator[Dialogue]:
    """Yield labelled dialogues, one of each task in turn, those of a readable length and with pictures first.

    One that has labels of several tasks comes once.
    """
    by_task: dict[str, list[Dialogue]] = {}
    chosen: set[str] = set()
    for dialogue in sorted(dialogues, key=_readability):
        for task in dialogue.labels:
            by_task.setdefault(task, []).append(dialogue)
    queues = [iter(found) for found in by_task.values()]
    while queues and count > 0:
        queue = queues.pop(0)
        for dialogue in queue:
            if dialogue.id in chosen:
                continue
            chosen.add(dialogue.id)
            yield dialogue
            count -= 1
            queues.append(queue)
            break


def readable_dialogues(dialogues: Sequence[Dialogue], count: int) -> list[Dialogue]:
    """Return dialogues, labelled or not, those of a readable length and with pictures first."""
    return sorted(dialogues, key=_readability)[:count]


def _readability(dialogue: Dialogue) -> tuple[int, bool, str]:
    pictured = any(turn.image_ids for turn in dialogue.turns)
    return abs(len(dialogue.turns) - _TURNS_SHOWN), not pictured, dialogue.id


def picture_ids(dialogues: Sequence[Dialogue]) -> set[str]:
    """Return the ids of all pictures that dialogues name."""
    return {image_id for dialogue in dialogues for turn in dialogue.turns for image_id in turn.image_ids}


def query_of(dialogue: Dialogue, task: str, images: Mapping[str, Image]) -> IntentQuery:
    """Return the question that the service would get for a stored dialogue."""
    named = {i: images[i] for i in picture_ids([dialogue]) if i in images}
    return IntentQuery(dialogue, task=task, images=named)
