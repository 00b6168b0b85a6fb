"""What the recommendation teacher reads of a dialogue: entities, words, and who mentioned which items when.

A *mark* says who mentioned something last and how long ago: 0 before the turns that the context keeps, then one number
for each of these turns and speakers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

from mmd.recommend.batches import padded
from mmd.recommend.types import Context, LinkedTurn, MentionSample
from mmd.recommend.words import frequent_words, split_words, turn_words

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmd.recommend.graph import ItemGraph

_CACHED_TURNS = 200_000
_YEAR = re.compile(r"(?:19|20)\d\d")


@dataclass(frozen=True)
class ContextBatch:
    """Contexts side by side; every row padded on the right.

    Attributes:
        entities: int64 (B, n), 0 at padding.
        entity_marks: int64 (B, n).
        entity_mask: bool (B, n), False at padding.
        words: int64 (B, m), 0 at padding: ids of known words, from 1 on.
        word_mask: bool (B, m).
        items: int64 (B, k), 0 at padding: items mentioned before.
        item_marks: int64 (B, k).
        item_mask: bool (B, k).
    """

    entities: Tensor
    entity_marks: Tensor
    entity_mask: Tensor
    words: Tensor
    word_mask: Tensor
    items: Tensor
    item_marks: Tensor
    item_mask: Tensor

    def __len__(self) -> int:
        """Return B."""
        return len(self.entities)

    def to(self, device: torch.device) -> ContextBatch:
        """Return the batch on a device."""
        return ContextBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


class ContextMaker:
    """Makes batches of contexts; a row looks the same in every batch but for its padding.

    Args:
        words: that are known; the k-th has id k + 1.
        turns: last turns of the context whose words are read and whose mentions are told apart.
        max_words: right-most known words that are read.
        max_entities: last entities that are read.
    """

    def __init__(self, words: Sequence[str], turns: int, max_words: int, max_entities: int) -> None:
        self._id_of = {word: place for place, word in enumerate(words, start=1)}
        self._turns, self._max_words, self._max_entities = turns, max_words, max_entities
        self._turn_words = lru_cache(_CACHED_TURNS)(self._known_words)  # a turn stands in several contexts

    def __call__(self, contexts: Sequence[Context]) -> ContextBatch:
        """Return a batch."""
        marks = [self._marks(context) for context in contexts]
        entities = [context.entities[-self._max_entities :] for context in contexts]
        entity_ids, entity_mask = padded(entities, 0)
        items, item_mask = padded([context.items for context in contexts], 0)
        words, word_mask = padded([self._words(context) for context in contexts], 0)
        of_entities = [[of.get(entity, 0) for entity in row] for (of, _), row in zip(marks, entities, strict=True)]
        of_items = [
            [of.get(item, 0) for item in context.items] for (_, of), context in zip(marks, contexts, strict=True)
        ]
        entity_marks, item_marks = padded(of_entities, 0)[0], padded(of_items, 0)[0]
        return ContextBatch(entity_ids, entity_marks, entity_mask, words, word_mask, items, item_marks, item_mask)

    def _marks(self, context: Context) -> tuple[dict[int, int], dict[int, int]]:
        """Return the marks of the entities and items of the last turns; the last mention counts."""
        entities: dict[int, int] = {}
        items: dict[int, int] = {}
        for ago, turn in reversed(list(enumerate(reversed(context.turns[-self._turns :])))):
            mark = mark_of(turn, ago, self._turns)
            entities.update(dict.fromkeys(turn.entities, mark))
            items.update(dict.fromkeys(turn.items, mark))
        return entities, items

    def _words(self, context: Context) -> list[int]:
        if not self._max_words:
            return []
        found = [word for turn in context.turns[-self._turns :] for word in self._turn_words(turn)]
        return found[-self._max_words :]

    def _known_words(self, turn: LinkedTurn) -> tuple[int, ...]:
        return tuple(self._id_of[word] for word in _split(turn) if word in self._id_of)


def mark_of(turn: LinkedTurn, ago: int, turns: int) -> int:
    """Return the mark of what a turn mentions.

    Args:
        turn: of the user or the agent.
        ago: turns between it and the answer, 0 for the last.
        turns: that are told apart.
    """
    return 1 + ago + (turns if turn.speaker == "agent" else 0)


def count_marks(turns: int) -> int:
    """Return how many marks there are when so many turns are told apart."""
    return 1 + 2 * turns


def context_words(samples: Iterable[MentionSample], min_count: int, most: int) -> tuple[str, ...]:
    """Return the words of training samples' contexts, most frequent first, each turn of a dialogue counted once.

    Args:
        samples: those of other splits are passed over.
        min_count: rarer words are left out.
        most: number of words.
    """
    turns = ((s.dialogue_id, turn) for s in samples if s.split == "train" for turn in s.context.turns)
    return frequent_words(turns, min_count, most, _split)


def title_words(graph: ItemGraph) -> tuple[tuple[str, ...], ...]:
    """Return the words of each item's title that another title has, too, and the decade of a year in it.

    >>> title_words(graph)  # doctest: +SKIP (titles "Alien (1979)", "Aliens (1986)", "Alien 3 (1992)", "The Thing")
    (('alien',), (), ('alien',), ())
    """
    titles = [_title_tokens(graph.title(item)) for item in range(graph.n_items)]
    counts = Counter(word for title in titles for word in title)
    return tuple(tuple(word for word in title if counts[word] > 1) for title in titles)


def _title_tokens(title: str) -> tuple[str, ...]:
    words = split_words(title)
    decades = [f"{word[:3]}0s" for word in words if _YEAR.fullmatch(word)]
    return tuple(dict.fromkeys(word for word in [*words, *decades[-1:]] if word[0].isalnum()))


def _split(turn: LinkedTurn) -> list[str]:
    """Return the words of a turn, items and signs left out."""
    return [word for word in turn_words(turn) if word[0].isalnum()]
