"""Counts of what training dialogues mention together, beside the trained network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmd.artifacts import ArtifactStore
from mmd.recommend.comentions import CoMentions, membership
from mmd.recommend.popularity import Mentions, item_knn, items_by_dialogue
from mmd.recommend.recommender import build_recommender, item_log_probs, load_recommender, save_recommender
from mmd.recommend.recommender_task import RecommenderTask
from mmd.recommend.settings import ConversationSettings, RecommenderSettings
from mmd.recommend.types import Context, LinkedTurn, MentionSample
from tests.recommend.conftest import N_ITEMS, toy_graph

DIALOGUES = [(0, 1, 1), (0, 1, 2), (3,)]
SETTINGS = RecommenderSettings(dim=8, words=False, dropout=0.0)


def items(*rows: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, rows))
    padded = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    mask = torch.tensor([[k < len(row) for k in range(length)] for row in rows])
    return padded, mask


def of(*said: int) -> Context:
    return Context((LinkedTurn("user", ("x",), said),), said, said)


def mention(dialogue: str, said: tuple[int, ...], item: int, at: int = 1) -> MentionSample:
    return MentionSample(f"{dialogue}#{at}.1", dialogue, "train", "agent", of(*said), item, novel=item not in said)


def test_by_hand():
    """n = (2, 3, 1, 1); 0 and 1 stand together in two dialogues, 2 with each of them in one."""
    found = CoMentions.of(Mentions(DIALOGUES, 5))(*items((0, 2), (3,), ()))
    to_0, to_1, to_2 = 1 / (12 * 2) ** 0.5, 2 / (13 * 3) ** 0.5 + 1 / (13 * 2) ** 0.5, 1 / (11 * 3) ** 0.5
    expected = np.log1p(10 * np.array([to_0, to_1, to_2, 0, 0]))
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    assert not found[1:].any()


def test_ranks_as_the_item_knn_baseline_does():
    rng = np.random.default_rng(0)
    mentions = Mentions([tuple(rng.choice(40, 6, replace=False).tolist()) for _ in range(30)], 40)
    contexts = [of(*rng.choice(40, 3, replace=False).tolist()) for _ in range(8)]
    ours = CoMentions.of(mentions)(*items(*(context.items for context in contexts))).numpy()
    theirs = item_knn(mentions)(contexts)
    np.testing.assert_allclose(np.expm1(ours) / 10, theirs, atol=2e-6)  # popularity, which decides ties there, is less


def test_of_its_own_dialogue_nothing_is_counted():
    """As though the dialogue had not been there, but for how often its items are mentioned in all."""
    whole, without = CoMentions.of(Mentions(DIALOGUES, 5)), CoMentions.of(Mentions([*DIALOGUES[:1], *DIALOGUES[2:]], 5))
    without.counts = whole.counts
    said = items((0, 2), (1,), (3,))
    own = membership([(0, 1, 2)] * 3, 5)
    torch.testing.assert_close(whole(*said, own), without(*said))
    torch.testing.assert_close(whole(*said, membership([(), (), ()], 5)), whole(*said))


def test_what_no_dialogue_mentions_together_says_nothing():
    assert not CoMentions.of(Mentions([], 5))(*items((0, 2), (4,))).any()


def test_pairs_that_hold_out_alike_get_weight_and_come_back_from_disk(tmp_path: Path):
    """Training says nothing of words; held-out mentions follow the pairs of training: their weight is above zero."""
    train = [mention(f"d{n}", (n % 4,), 7 - n % 4) for n in range(12)]
    held = [mention(f"h{n}", (n % 4,), 7 - n % 4) for n in range(40)]
    model = build_recommender(toy_graph(), train, SETTINGS, ConversationSettings(min_word_count=1), 0)
    task = RecommenderTask(model, train, held, SETTINGS, 0)
    before = item_log_probs(model.eval(), task.maker, [s.context for s in held])
    task.finish()
    assert float(model.calibration[2]) > 0.3
    after = task.scores([s.context for s in held])
    golds = [s.item for s in held]
    assert (after[np.arange(40), golds] > before[np.arange(40), golds]).all()
    store = ArtifactStore(str(tmp_path))
    with store.write("teacher", "toy", settings={}) as writer:
        save_recommender(writer, model)
    loaded = load_recommender(store.open("teacher/toy"), toy_graph())
    np.testing.assert_allclose(loaded.item_log_probs([s.context for s in held]), after, atol=1e-6)


def test_a_training_context_is_not_told_what_its_dialogue_says_next():
    """Items 2 and 6 are mentioned together in one dialogue alone: asked about it, the pair counts for nothing."""
    train = [mention("a", (2,), 6), *(mention(f"d{n}", (0,), 1) for n in range(5))]
    model = build_recommender(toy_graph(), train, SETTINGS, ConversationSettings(min_word_count=1), 0).eval()
    model.calibration = torch.tensor([1.0, 0.0, 1.0])
    maker, own = model.spec.maker(), items_by_dialogue(train)
    assert sorted(own["a"]) == [2, 6]
    told, elsewhere = (item_log_probs(model, maker, [of(2)], own=known)[0] for known in ([own["a"]], [()]))
    model.calibration = torch.tensor([1.0, 0.0, 0.0])
    network = item_log_probs(model, maker, [of(2)])[0]
    np.testing.assert_allclose(told, network, atol=1e-6)
    assert elsewhere[6] > network[6] + 0.1
    assert np.exp(elsewhere).sum() == pytest.approx(1, abs=1e-5)
    assert elsewhere.shape == (N_ITEMS,)
