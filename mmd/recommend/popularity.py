"""Baselines of recommending: what is mentioned often, what was mentioned before, and what is mentioned together.

Each is a function from contexts to scores, float32 (n, n_items), larger is better; the same as a recommender's, so that
all are judged alike. Only training mentions are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmd.recommend.types import Context, MentionSample

if TYPE_CHECKING:
    from mmd.recommend.graph import ItemGraph

Scores = NDArray[np.float32]
Scorer = Callable[[Sequence[Context]], Scores]
SHRINK = 10.0
"""Mentions added to those of an item that is suggested, so that one lucky pair is not a likeness."""
_TIES = 1e-3  # popularity decides among equals


class Mentions:
    """What training dialogues mention.

    Args:
        dialogues: the items of each dialogue, repeats included.
        n_items: number of items.
    """

    def __init__(self, dialogues: Iterable[Sequence[int]], n_items: int) -> None:
        self.n_items = n_items
        self.dialogues = [np.array(items, np.int64) for items in dialogues]

    @classmethod
    def of_samples(cls, samples: Iterable[MentionSample], n_items: int) -> Mentions:
        """Return the mentions of samples and of their contexts, dialogue by dialogue.

        An item of a context counts once, a mention that is a sample each time.
        """
        return cls(items_by_dialogue(samples).values(), n_items)

    @cached_property
    def counts(self) -> NDArray[np.float32]:
        """Mentions of each item, (n_items,)."""
        found = np.concatenate(self.dialogues) if self.dialogues else np.empty(0, np.int64)
        return np.bincount(found, minlength=self.n_items).astype(np.float32)

    @cached_property
    def together(self) -> Mapping[int, tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Item → others of the dialogues that mention it, and in how many of these."""
        others: dict[int, list[NDArray[np.int64]]] = {}
        for dialogue in self.dialogues:
            distinct = np.unique(dialogue)
            for item in distinct.tolist():
                others.setdefault(item, []).append(distinct[distinct != item])
        counted = {item: np.unique(np.concatenate(lists), return_counts=True) for item, lists in others.items()}
        return {item: (found, counts.astype(np.float32)) for item, (found, counts) in counted.items()}


def items_by_dialogue(samples: Iterable[MentionSample]) -> dict[str, list[int]]:
    """Return what each dialogue mentions; see :meth:`Mentions.of_samples`."""
    items: dict[str, list[int]] = {}
    before: dict[str, set[int]] = {}
    for sample in samples:
        items.setdefault(sample.dialogue_id, []).append(sample.item)
        before.setdefault(sample.dialogue_id, set()).update(sample.context.items)
    return {dialogue: said + sorted(before[dialogue] - set(said)) for dialogue, said in items.items()}


def popularity(mentions: Mentions) -> Scorer:
    """Return the baseline that recommends what is mentioned most, whatever the context."""

    def score(contexts: Sequence[Context]) -> Scores:
        return np.repeat(_shares(mentions)[None], len(contexts), axis=0)

    return score


def echo(mentions: Mentions) -> Scorer:
    """Return the baseline that repeats the context's items, those mentioned last first, then the popular ones."""

    def score(contexts: Sequence[Context]) -> Scores:
        scores = np.repeat(_shares(mentions)[None], len(contexts), axis=0)
        for row, context in enumerate(contexts):
            scores[row, list(context.items)] += np.arange(2, len(context.items) + 2, dtype=np.float32)
        return scores

    return score


def item_knn(mentions: Mentions) -> Scorer:
    """Return the baseline that recommends what training dialogues mention together with the context's items.

    The likeness of a suggested item i to an item j of the context is ``c_ij / √((n_i + 10)(n_j + 1))``: cosine over
    dialogues, shrunk for rare items (n: mentions, c: dialogues that mention both).
    """
    suggested = 1 / np.sqrt(mentions.counts + SHRINK)

    def score(contexts: Sequence[Context]) -> Scores:
        scores = np.repeat(_TIES**2 * _shares(mentions)[None], len(contexts), axis=0)
        for row, context in enumerate(contexts):
            for item in context.items:
                others, counts = mentions.together.get(item, (np.empty(0, np.int64), np.empty(0, np.float32)))
                scores[row, others] += counts * suggested[others] / np.sqrt(mentions.counts[item] + 1)
        return scores

    return score


def baselines(graph: ItemGraph, samples: Iterable[MentionSample]) -> dict[str, Scorer]:
    """Return the baselines by name.

    Args:
        graph: the item graph.
        samples: training mentions of both speakers.
    """
    mentions = Mentions.of_samples(samples, graph.n_items)
    return {"popularity": popularity(mentions), "echo": echo(mentions), "item-kNN": item_knn(mentions)}


def _shares(mentions: Mentions) -> NDArray[np.float32]:
    """Return each item's share of the mentions, in [0, 1]."""
    shares: NDArray[np.float32] = mentions.counts / max(1.0, float(mentions.counts.sum()))
    return shares
