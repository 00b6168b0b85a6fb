"""What towers are given: turn vectors, tokens cut at the right end, pictures, and what stands for their absence."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import structlog
import torch

from mmd.errors import ModelError
from mmd.retrieval.inputs import TURN_DECAY, InputMaker, TowerInputs
from mmd.retrieval.types import Query, Response
from mmd.schema import Turn

Make = Callable[..., Any]
BERT = {"text": "tiny-bert", "vision": "none"}


def parts(made: Any, query: Query) -> torch.Tensor:
    """Return a query's three vectors, (3, dim)."""
    vectors: torch.Tensor = made.maker.queries([query]).text.vectors
    return vectors.reshape(3, -1)


def test_a_query_is_its_last_user_turn_the_decayed_sum_and_the_last_agent_turn(make_retriever: Make):
    made = make_retriever()
    query = Query((Turn("user", "first"), Turn("agent", "second"), Turn("user", "third")))
    one, two, three = made.maker.sources.text_vectors(["first", "second", "third"])
    mixed = TURN_DECAY**2 * one + TURN_DECAY * two + three
    got = parts(made, query).numpy()
    np.testing.assert_allclose(got[0], three, atol=1e-6)
    np.testing.assert_allclose(got[1], mixed / np.linalg.norm(mixed), atol=1e-6)
    np.testing.assert_allclose(got[2], two, atol=1e-6)


def test_a_speaker_who_said_nothing_is_a_zero_vector(make_retriever: Make):
    got = parts(make_retriever(), Query((Turn("user", "hello"),)))
    assert got[0].any()
    assert not got[2].any()


def test_a_mention_is_read_as_its_title(make_retriever: Make):
    made = make_retriever()
    maker = InputMaker(made.maker.towers, made.maker.modalities, made.maker.sources, {"12": "Alien (1979)"})
    told, _, _ = maker.queries([Query((Turn("user", "I liked @12"),))]).text.vectors.reshape(3, -1)
    np.testing.assert_allclose(told, made.maker.sources.text_vectors(["I liked Alien (1979)"])[0], atol=1e-6)


def test_a_query_s_picture_is_the_mean_of_the_last_turn_that_has_some(make_retriever: Make):
    made = make_retriever()
    query = Query((Turn("user", "a", ("red",)), Turn("user", "b", ("red", "blue")), Turn("agent", "c")))
    inputs = made.maker.queries([query])
    vectors, _ = made.maker.sources.picture_vectors(["red", "blue"])
    np.testing.assert_allclose(inputs.pictures[0].numpy(), vectors.mean(0), atol=1e-6)
    assert inputs.has_picture.tolist() == [True]


def test_a_picture_without_a_vector_counts_as_none(make_retriever: Make):
    inputs = make_retriever().maker.responses([Response("image:x", "image", "x", "x", "unknown")])
    assert inputs.has_picture.tolist() == [False]
    assert not inputs.pictures.any()


@pytest.mark.parametrize("towers", [{}, {"text": "tiny-bert", "vision": "tiny-vit", "train_vision": "full"}])
def test_has_picture_false_is_no_picture(towers: dict[str, Any], make_retriever: Make, responses: Sequence[Response]):
    """What stands in the row of a missing picture is never read."""
    made = make_retriever("mdr", **towers)
    inputs = made.maker.responses(responses[:2])
    assert inputs.has_picture.tolist() == [False, True]
    noise = torch.randn(inputs.pictures.shape, generator=torch.Generator().manual_seed(0))
    other = TowerInputs(
        inputs.text, torch.where(_wide(inputs), inputs.pictures, noise), inputs.has_picture, inputs.kind
    )
    torch.testing.assert_close(made.retriever.encode_responses(other), made.retriever.encode_responses(inputs))
    gone = TowerInputs(inputs.text, inputs.pictures, torch.tensor([False, False]), inputs.kind)
    bare = made.maker.responses([Response(r.id, r.modality, r.title, r.text) for r in responses[:2]])
    torch.testing.assert_close(made.retriever.encode_responses(gone), made.retriever.encode_responses(bare))


def _wide(inputs: TowerInputs) -> torch.Tensor:
    assert inputs.pictures is not None
    return inputs.has_picture.reshape(-1, *[1] * (inputs.pictures.ndim - 1)).expand(inputs.pictures.shape)


def test_a_response_with_neither_words_nor_picture_has_a_vector_of_unit_length_and_a_finite_gradient(
    make_retriever: Make,
):
    made = make_retriever("mdr")
    out = made.retriever.encode_responses(made.maker.responses([Response("image:x", "image", "", "", None)]))
    assert float(out.norm().detach()) == pytest.approx(1.0, abs=1e-5)
    out[0, 0].backward()
    grads = [p.grad for p in made.retriever.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() and grad.abs().max() < 1e4 for grad in grads)


def test_long_contexts_keep_their_end_and_long_responses_their_beginning(make_retriever: Make):
    maker = make_retriever(**BERT, context_tokens=8, response_tokens=8).maker
    words = " ".join(f"word{i}" for i in range(40))
    query = maker.queries([Query((Turn("user", words),))]).text.tokens["input_ids"][0]
    response = maker.responses([Response("text:x", "text", words, words)]).text.tokens["input_ids"][0]
    assert len(query) == len(response) == 8
    fast = maker.tokenizer.fast
    assert words.endswith(fast.decode(query, skip_special_tokens=True).strip())
    assert words.startswith(fast.decode(response, skip_special_tokens=True).strip())
    assert query[0] == response[0] == fast.convert_tokens_to_ids("[CLS]")
    assert query[-1] == response[-1] == fast.convert_tokens_to_ids("[SEP]")


def test_a_text_that_spells_a_special_token_is_still_text(make_retriever: Make):
    maker = make_retriever(**BERT).maker
    ids = maker.responses([Response("text:x", "text", "", "a [SEP] b [PAD]")]).text.tokens["input_ids"][0].tolist()
    special = maker.tokenizer.fast.all_special_ids
    assert [place for place, token in enumerate(ids) if token in special] == [0, len(ids) - 1]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(pooling: str, make_retriever: Make, queries: Sequence[Query]):
    made = make_retriever("mdr", **BERT, pooling=pooling)
    together = made.retriever.embed_queries(made.maker.queries(queries), "text")
    alone = torch.cat([made.retriever.embed_queries(made.maker.queries([query]), "text") for query in queries])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_rows_drop_the_columns_that_are_padding_in_all_of_them(make_retriever: Make, queries: Sequence[Query]):
    inputs = make_retriever(**BERT).maker.queries(queries)
    short = inputs.rows(torch.tensor([1]))
    assert short.text.tokens["attention_mask"].all()
    assert short.text.tokens["input_ids"].shape[1] < inputs.text.tokens["input_ids"].shape[1]


@pytest.mark.parametrize(
    "towers",
    [
        {"text": "tiny-bert", "vision": "features", "train_text": "frozen"},
        {"text": "tiny-bert", "vision": "tiny-vit", "train_vision": "full"},
    ],
)
def test_a_pickled_maker_makes_the_same_inputs(
    towers: dict[str, Any], make_retriever: Make, queries: Sequence[Query], responses: Sequence[Response]
):
    made = make_retriever("mdr", **towers)
    copy = pickle.loads(pickle.dumps(made.maker))  # noqa: S301 (what a worker is sent)
    asked, found = (maker.queries(queries) for maker in (made.maker, copy))
    assert torch.equal(made.retriever.embed_queries(asked, "text"), made.retriever.embed_queries(found, "text"))
    asked, found = (maker.responses(responses) for maker in (made.maker, copy))
    assert torch.equal(made.retriever.encode_responses(asked), made.retriever.encode_responses(found))


def test_a_response_of_a_modality_that_the_retriever_lacks_is_named(make_retriever: Make):
    with pytest.raises(ModelError, match=r"video:1.*'video'.*text, image"):
        make_retriever().maker.responses([Response("video:1", "video", "a film", "a film")])


def test_a_corrupt_picture_is_named(make_retriever: Make):
    maker = make_retriever("mdr", text="tiny-bert", vision="tiny-vit", train_vision="full").maker
    with pytest.raises(ModelError, match="picture torn: not a decodable picture"):
        maker.queries([Query((Turn("user", "this?", ("torn",)),))])


@pytest.mark.parametrize("vision", ["tiny-vit", "features"])
def test_a_corrupt_picture_has_no_vector_and_spoils_no_other(vision: str, make_retriever: Make):
    sources = make_retriever("mdr", text="tiny-bert", vision=vision).maker.sources
    with structlog.testing.capture_logs() as logs:
        vectors, known = sources.picture_vectors(["red", "torn", "blue", "gone", "torn"])
    assert known.tolist() == [True, False, True, False, False]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), known, atol=1e-6)
    assert [(entry["event"], entry["image_id"]) for entry in logs] == [
        ("picture_unread", "torn"),
        ("picture_unread", "gone"),
    ]


def test_a_row_without_pictures_in_a_batch_of_pixels_is_zero(make_retriever: Make, queries: Sequence[Query]):
    maker = make_retriever("mdr", text="tiny-bert", vision="tiny-vit", train_vision="full").maker
    inputs = maker.queries(queries)
    assert inputs.pictures.shape == (3, 3, 64, 64)
    assert inputs.has_picture.tolist() == [True, False, False]
    assert not inputs.pictures[1:].any()
    none = maker.queries(queries[1:])
    assert none.has_picture.tolist() == [False, False]


def test_no_queries_are_an_empty_batch(make_retriever: Make):
    for towers in ({}, BERT):
        assert len(make_retriever(**towers).maker.queries([])) == 0
