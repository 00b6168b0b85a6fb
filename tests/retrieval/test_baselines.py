"""BM25 and encoders off the shelf: scores worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from mmd.errors import ConfigError
from mmd.retrieval.baselines import Bm25Ranker, OffTheShelfRanker, rank_pools, words_of
from mmd.retrieval.types import Pool, Response

TEXTS = {"a": "red mug", "b": "blue bowl and blue mug", "c": "", "d": "红色马克杯"}
RESPONSES = {key: Response(key, "text", text, text) for key, text in TEXTS.items()}


def count_letters(texts: list[str]) -> NDArray[np.float32]:
    """Encode a text as how often it has each of the letters r, b and m."""
    assert all(texts)
    return np.array([[text.count(letter) for letter in "rbm"] for text in texts], dtype=np.float32)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The RED mug, 350ml!", ["the", "red", "mug", "350ml"]),
        ("红色杯子", ["红色", "色杯", "杯子"]),
        ("杯", ["杯"]),
        ("买red杯子2个", ["买", "red", "杯子", "2", "个"]),
        ("ひらカナ 한국어", ["ひら", "らカ", "カナ", "한국", "국어"]),
        ("ｆｕｌｌ café", ["full", "café"]),
        ("snake_case…", ["snake", "case"]),
        ("", []),
    ],
)
def test_terms_are_words_and_pairs_of_characters(text: str, terms: list[str]):
    assert words_of(text) == terms


def test_bm25_of_a_shared_word():
    """Lucene's BM25: idf · tf / (tf + k1 (1 − b + b · length / mean length)); 4 texts of 2, 5, 0 and 4 terms."""
    mean = (2 + 5 + 0 + 4) / 4
    idf_mug, idf_blue = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5)), math.log(1 + (4 - 1 + 0.5) / (1 + 0.5))
    a = idf_mug / (1 + 1.5 * (1 - 0.75 + 0.75 * 2 / mean))
    long = 1.5 * (1 - 0.75 + 0.75 * 5 / mean)
    b = idf_mug / (1 + long) + idf_blue * 2 / (2 + long)
    (scores,) = Bm25Ranker(RESPONSES).scores(["A blue mug"], [["b", "a", "c", "d"]])
    np.testing.assert_allclose(scores, [b, a, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("query", ["", "nothing of that", "…"])
def test_bm25_without_a_shared_term_is_zero(query: str):
    assert Bm25Ranker(RESPONSES).scores([query], [["a", "d"]])[0].tolist() == [0.0, 0.0]


def test_bm25_of_chinese_shares_pairs():
    (scores,) = Bm25Ranker(RESPONSES).scores(["有红色的吗"], [["a", "d"]])
    assert scores[1] > scores[0] == 0


def test_bm25_over_responses_without_words():
    silent = {"x": Response("x", "image", "", "", "p")}
    assert Bm25Ranker(silent).scores(["red"], [["x"]])[0].tolist() == [0.0]


def test_cosines_of_an_encoder_and_zero_for_silence():
    """ "red" is (1,0,0); "red mug" (1,0,1) → 1/√2; "blue bowl and blue mug" (0,3,1) → 0."""
    ranker = OffTheShelfRanker(count_letters, {key: RESPONSES[key] for key in "abc"})
    scores = ranker.scores(["red", ""], [["a", "b", "c"], ["a"]])
    np.testing.assert_allclose(scores[0], [1 / math.sqrt(2), 0, 0], atol=1e-12)
    assert scores[1].tolist() == [0.0]


def test_an_encoder_is_not_asked_where_nothing_is_said():
    ranker = OffTheShelfRanker(count_letters, {"c": RESPONSES["c"]})
    assert ranker.scores([""], [["c"]])[0].tolist() == [0.0]


@pytest.mark.parametrize("kind", ["bm25", "encoder"])
def test_all_scores_are_those_of_all_candidates(kind: str):
    ranker = Bm25Ranker(RESPONSES) if kind == "bm25" else OffTheShelfRanker(count_letters, RESPONSES)
    queries = ["blue mug", "红色", ""]
    whole = ranker.all_scores(queries)
    assert whole.shape == (3, 4)
    np.testing.assert_allclose(whole, np.stack(ranker.scores(queries, [sorted(RESPONSES)] * 3)), atol=1e-12)
    assert ranker.all_scores([]).shape == (0, 4)


def test_ranks_of_pools_count_ties_against_the_right_response():
    pools = [Pool("s", ("a", "b", "c"), "b"), Pool("t", ("a", "b", "c"), "c"), Pool("u", ("a", "c", "d"), "a")]
    ranks = rank_pools(Bm25Ranker(RESPONSES), ["blue", "blue", "blue"], pools)
    assert ranks.tolist() == [1, 3, 3]


def test_a_candidate_of_other_samples_is_refused():
    with pytest.raises(ConfigError, match="candidate z: is not among the ranker's responses"):
        Bm25Ranker(RESPONSES).scores(["red"], [["a", "z"]])
