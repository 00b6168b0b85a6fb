"""The second look: untrained it changes nothing, trained it learns what towers cannot tell, saved it is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mmd.artifacts import ArtifactStore
from mmd.retrieval.rerank import (
    PairReader,
    Reranker,
    RerankNet,
    first_responses,
    fit_reranker,
    load_reranker,
    save_reranker,
)
from mmd.retrieval.settings import RerankSettings
from mmd.retrieval.types import Query, Response, Sample, SampleSet
from mmd.schema import Turn

COLOURS = ("red", "blue")


def corpus(count: int = 24) -> SampleSet:
    """Odd questions are answered by texts, even ones by pictures; which one, only training can tell."""
    responses, samples = {}, []
    for number in range(count):
        modality = ("image", "text")[number % 2]
        picture = COLOURS[number // 2 % 2] if modality == "image" else None
        response = Response(f"{modality}:{number}", modality, "", f"answer {number}", picture)
        responses[response.id] = response
        query = Query((Turn("user", f"question {number}"),))
        samples.append(Sample(f"d{number}#1", f"d{number}", "train", query, modality, response.id))
    return SampleSet(tuple(samples), responses, ("text", "image"))


def reader_of(make_retriever: Callable[..., Any], method: str = "mdr", **towers: Any) -> PairReader:
    made = make_retriever(method, **towers)
    return PairReader(made.retriever, made.maker)


@pytest.mark.parametrize("method", ["dr", "sdr", "mdr"])
def test_untrained_it_keeps_the_retrievers_order(make_retriever: Callable[..., Any], method: str):
    given, reader = corpus(), reader_of(make_retriever, method)
    responses = list(given.responses.values())
    features, cosines = reader.read(given.samples[0].query, responses)
    again = Reranker(RerankNet(features.shape[1]), reader, 20).scores(given.samples[0].query, responses)
    np.testing.assert_allclose(again, cosines.numpy(), atol=1e-6)


def test_features_of_a_pair_do_not_depend_on_the_other_pairs(make_retriever: Callable[..., Any]):
    given, reader = corpus(), reader_of(make_retriever)
    responses = list(given.responses.values())[:6]
    together, _ = reader.read(given.samples[0].query, responses)
    alone = torch.cat([reader.read(given.samples[0].query, [r])[0] for r in responses])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_first_responses_are_the_nearest_without_what_is_right_too(make_retriever: Callable[..., Any]):
    given, reader = corpus(), reader_of(make_retriever)
    found = first_responses(reader, given.samples, given, 5, with_gold=True)
    for sample, responses in zip(given.samples, found, strict=True):
        assert sample.response_id in {r.id for r in responses}
        assert len(responses) == 5
        _, cosines = reader.read(sample.query, responses[:-1])
        assert cosines.tolist() == sorted(cosines.tolist(), reverse=True)
    two_steps = first_responses(reader_of(make_retriever, "sdr"), given.samples, given, 5, with_gold=False)
    for sample, responses in zip(given.samples, two_steps, strict=True):
        assert {r.modality for r in responses} == {sample.modality}


def fitted(make_retriever: Callable[..., Any], epochs: float = 40) -> tuple[Reranker, dict[str, float], SampleSet]:
    given, made = corpus(), make_retriever("mdr")
    settings = RerankSettings(depth=24, epochs=epochs, learning_rate=5e-3)
    # Judged on what it learns from: whether it can learn at all is asked here.
    reranker, told = fit_reranker(made.retriever, made.maker, given.samples, given.samples, given, settings, seed=0)
    return reranker, told, given


def test_it_learns_what_the_towers_cannot_tell(make_retriever: Callable[..., Any]):
    _, told, _ = fitted(make_retriever)
    assert told["before"] < 0.4
    assert told["after"] > 0.9


def test_a_re_ranker_that_never_helps_changes_nothing(make_retriever: Callable[..., Any]):
    """Nothing can be learnt about held-out answers that are drawn at random, so the first epochs do not beat epoch 0
    by more than they lose; whichever is kept, it is not worse."""
    given, made = corpus(), make_retriever("mdr")
    settings = RerankSettings(depth=8, epochs=2)
    _, told = fit_reranker(made.retriever, made.maker, given.samples[:12], given.samples[12:], given, settings, seed=0)
    assert told["after"] >= told["before"]


def test_saved_and_loaded_it_scores_the_same(make_retriever: Callable[..., Any], tmp_path: Any):
    reranker, _, given = fitted(make_retriever, epochs=1)
    store = ArtifactStore(str(tmp_path))
    with store.write("retriever", "tiny", settings={}) as writer:
        save_reranker(writer, reranker)
    reader = reranker.reader
    loaded = load_reranker(store.open("retriever/tiny"), reader.retriever, reader.maker)
    assert loaded
    responses = list(given.responses.values())
    query = given.samples[3].query
    assert loaded.scores(query, responses).tolist() == reranker.scores(query, responses).tolist()
    with store.write("retriever", "plain", settings={}) as writer:
        writer.write_json("retriever.json", {})
    assert load_reranker(store.open("retriever/plain"), reader.retriever, reader.maker) is None


def test_with_a_text_model_pairs_are_read_as_one_text(make_retriever: Callable[..., Any]):
    given, reader = corpus(4), reader_of(make_retriever, text="tiny-bert", vision="none")
    features, _ = reader.read(given.samples[0].query, list(given.responses.values()))
    assert features.shape[1] > 4 * 16
    assert torch.isfinite(features).all()
