"""Batches: what stands in a row, what is cut, and rows of like length together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.recommend.batches import BatchMaker, bucketed
from mmd.recommend.settings import ConversationSettings
from mmd.recommend.types import Context, LinkedTurn, ResponseSample
from mmd.recommend.words import WordTokenizer

TOKENIZER = WordTokenizer(tuple("abcdefgh"), ("x", "y", "z"))
SPACE = TOKENIZER.space
A, B, C, D, E, F, G, H = range(8, 16)
X, Y, Z = range(16, 19)
USER, AGENT = TOKENIZER.speakers["user"], TOKENIZER.speakers["agent"]


def sample(response: tuple[str | int, ...], *turns: tuple[str | int, ...], entities: tuple[int, ...] = ()):
    speakers = ["user" if i % 2 == 0 else "agent" for i in range(len(turns))]
    said = tuple(LinkedTurn(s, parts, ()) for s, parts in zip(speakers, turns, strict=True))  # type: ignore[arg-type]
    return ResponseSample("d#1", "d", "train", Context(said, entities, ()), LinkedTurn("agent", response, ()))


def test_a_context_reads_oldest_first_with_its_speakers_and_a_response_begins_with_its_mode():
    batch = BatchMaker(TOKENIZER, ConversationSettings())(
        [sample(("a ", 1), ("b", 2), ("c",), entities=(5, 9)), sample(("d",), ("e",))]
    )
    assert batch.context.tolist() == [[USER, B, Z, AGENT, C], [USER, E, 0, 0, 0]]
    assert batch.context_mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert batch.target.tolist() == [[SPACE.rec, A, Y, SPACE.eos], [SPACE.gen, D, SPACE.eos, SPACE.pad]]
    assert batch.target_mask.sum(1).tolist() == [4, 3]
    assert batch.entities.tolist() == [[5, 9], [0, 0]]
    assert batch.entity_mask.tolist() == [[True, True], [False, False]]
    assert batch.gold_items == ((1,), ())
    assert batch.modes == ("rec", "gen")


def test_without_mode_tokens_a_response_begins_with_its_words():
    maker = BatchMaker(TOKENIZER, ConversationSettings(mode_tokens=False))
    assert maker([sample(("a ", 1), ("b",))]).target.tolist() == [[A, Y, SPACE.eos]]


def test_the_right_most_context_and_the_beginning_of_the_response_stay():
    maker = BatchMaker(
        TOKENIZER, ConversationSettings(context_turns=2, context_tokens=8, response_tokens=4, max_entities=2)
    )
    long = sample(("a b c d e", 0), ("a",), ("b c d e f",), ("g h a",), entities=(1, 2, 3))
    batch = maker([long])
    assert batch.context.tolist() == [[C, D, E, F, USER, G, H, A]]
    assert batch.target.tolist() == [[SPACE.rec, A, B, C, D]]  # cut: no end that nobody said
    assert batch.gold_items == ((0,),)  # the item that was cut off is still what was recommended
    assert batch.entities.tolist() == [[2, 3]]


def test_contexts_to_be_answered_have_no_targets():
    batch = BatchMaker(TOKENIZER, ConversationSettings()).contexts([sample((), ("b",)).context])
    assert batch.target.shape == (1, 0)
    assert batch.context.tolist() == [[USER, B]]


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        BatchMaker(TOKENIZER, ConversationSettings())([])


@given(st.lists(st.integers(1, 300), max_size=400), st.integers(1, 9), st.integers(0, 5))
def test_an_order_by_length_takes_each_sample_once(lengths: list[int], batch: int, seed: int):
    order = bucketed(np.array(lengths, dtype=np.int64), batch, seed)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    np.testing.assert_array_equal(order, bucketed(np.array(lengths, dtype=np.int64), batch, seed))


def test_batches_of_like_length_are_mostly_full():
    lengths = np.random.default_rng(0).integers(1, 300, 4000)
    order = bucketed(lengths, 50, 1)
    rows = lengths[order].reshape(-1, 50)
    assert rows.mean() / rows.max(1).mean() > 0.9
    assert abs(np.corrcoef(np.arange(80), rows.mean(1))[0, 1]) < 0.4  # no drift from short to long
