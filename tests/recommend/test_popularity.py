"""Baselines on three dialogues: {0, 1, 1}, {0, 1, 2} and {3}; five items."""

from __future__ import annotations

import numpy as np
import pytest

from mmd.recommend.popularity import Mentions, Scores, echo, item_knn, popularity
from mmd.recommend.types import Context, MentionSample

MENTIONS = Mentions([(0, 1, 1), (0, 1, 2), (3,)], 5)


def after(*items: int) -> list[Context]:
    return [Context((), items, items)]


def order(scores: Scores) -> list[int]:
    return np.argsort(-scores[0], kind="stable").tolist()


def test_popularity_is_the_share_of_mentions_whatever_was_said() -> None:
    scores = popularity(MENTIONS)([*after(), *after(3)])
    np.testing.assert_allclose(scores, np.array([[2, 3, 1, 1, 0]] * 2) / 7, rtol=1e-6)


def test_echo_ranks_the_last_mentioned_first_and_the_rest_by_popularity() -> None:
    assert order(echo(MENTIONS)(after(4, 2))) == [2, 4, 1, 0, 3]


def test_item_knn_counts_dialogues_that_mention_both() -> None:
    """After item 0: item 1 is in 2 of its dialogues, item 2 in one; divided by √((n_i + 10)(n_0 + 1))."""
    scores = item_knn(MENTIONS)(after(0))[0]
    assert scores[1] == pytest.approx(2 / np.sqrt(13 * 3), rel=1e-4)
    assert scores[2] == pytest.approx(1 / np.sqrt(11 * 3), rel=1e-4)
    assert order(item_knn(MENTIONS)(after(0))) == [1, 2, 0, 3, 4]


def test_item_knn_without_known_items_is_popularity() -> None:
    assert order(item_knn(MENTIONS)(after())) == order(popularity(MENTIONS)(after()))
    assert order(item_knn(MENTIONS)(after(4))) == order(popularity(MENTIONS)(after()))


def test_mentions_of_samples_are_those_of_dialogues() -> None:
    """The first turn mentions 4, which is no sample but stands in the contexts; then 1, twice, and 2."""
    samples = [
        MentionSample("a#1.1", "a", "train", "agent", *_context((4,)), 1, novel=True),
        MentionSample("a#2.1", "a", "train", "user", *_context((4, 1)), 1, novel=False),
        MentionSample("a#2.2", "a", "train", "user", *_context((4, 1)), 2, novel=True),
        MentionSample("b#1.1", "b", "train", "agent", *_context(()), 2, novel=True),
    ]
    mentions = Mentions.of_samples(samples, 5)
    assert [sorted(items.tolist()) for items in mentions.dialogues] == [[1, 1, 2, 4], [2]]
    assert mentions.counts.tolist() == [0, 2, 2, 0, 1]


def test_without_mentions_all_are_equal() -> None:
    nothing = Mentions([], 3)
    for baseline in (popularity, echo, item_knn):
        assert baseline(nothing)(after()).tolist() == [[0, 0, 0]]


def _context(items: tuple[int, ...]) -> tuple[Context]:
    return (Context((), items, items),)
