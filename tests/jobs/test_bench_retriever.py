"""The benchmark against sentence-transformers: both sides do the same work."""

from __future__ import annotations

import pytest

from jobs.bench import retriever
from mmd.retrieval.facts import context_text


def test_both_sides_read_the_same_words():
    pairs = retriever.draw_pairs(["ab", "cd", "ef"], 20, context=6, response=3, seed=1)
    samples, responses = retriever.as_samples(pairs)
    assert [context_text(sample.query) for sample in samples] == [[context] for context, _ in pairs]
    assert [responses[sample.response_id].text for sample in samples] == [response for _, response in pairs]


def test_pairs_have_the_lengths_asked_for():
    """A gamma variable of mean m, cut to whole words, plus 1: on average m + 0.5, and the speaker's name."""
    pairs = retriever.draw_pairs(["ab", "cd"], 4000, context=40, response=12, seed=0)
    contexts, responses = zip(*((len(c.split()), len(r.split())) for c, r in pairs), strict=True)
    assert sum(contexts) / len(pairs) == pytest.approx(41.5, rel=0.05)
    assert sum(responses) / len(pairs) == pytest.approx(12.5, rel=0.05)


@pytest.mark.slow
def test_both_trainers_are_timed_in_turn():
    pytest.importorskip("sentence_transformers")
    options = {"model": "tiny-bert", "batch": 8, "steps": 2, "repeats": 2, "context": 10, "response": 5}
    found = retriever.run({**options, "tokens": 32, "threads": 1, "dtype": "float32"})
    rates = found["examples_per_s"]
    assert all(rates[side]["min"] > 0 for side in ("mmd", "sentence-transformers"))
    assert found["ratio"]["min"] <= found["ratio"]["median"] <= found["ratio"]["max"]
