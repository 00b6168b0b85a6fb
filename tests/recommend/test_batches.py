"""Batches: what stands in a row, what is cut, and rows of like length together."""

from __future__ import annotations

import pytest

from mmd.recommend.batches import BatchMaker
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


def test_the_length_of_a_sample_grows_with_its_context_and_faster_with_its_response():
    maker = BatchMaker(TOKENIZER, ConversationSettings())
    short, longer, chatty = sample(("a",), ("b",)), sample(("a",), ("b c",)), sample(("a b",), ("b",))
    assert maker.length(short) < maker.length(longer) < maker.length(chatty)
