"""BM25 and encoders off the shelf: scores worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from mmd.retrieval.baselines import Bm25Ranker, OffTheShelfRanker, words_of
from mmd.retrieval.types import Response

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
    (scores,) = Bm25Ranker(RESPONSES).all_scores(["A blue mug"])
    np.testing.assert_allclose(scores, [a, b, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("query", ["", "nothing of that", "…"])
def test_bm25_without_a_shared_term_is_zero(query: str):
    assert Bm25Ranker(RESPONSES).all_scores([query]).tolist() == [[0.0] * 4]


def test_bm25_of_chinese_shares_pairs():
    ((*others, chinese),) = Bm25Ranker(RESPONSES).all_scores(["有红色的吗"]).tolist()
    assert chinese > 0
    assert others == [0.0] * 3


def test_bm25_over_responses_without_words():
    silent = {"x": Response("x", "image", "", "", "p")}
    assert Bm25Ranker(silent).all_scores(["red"]).tolist() == [[0.0]]


def test_cosines_of_an_encoder_and_zero_for_silence():
    """ "red" is (1,0,0); "red mug" (1,0,1) → 1/√2; "blue bowl and blue mug" (0,3,1) → 0."""
    ranker = OffTheShelfRanker(count_letters, {key: RESPONSES[key] for key in "abc"})
    np.testing.assert_allclose(ranker.all_scores(["red", ""]), [[1 / math.sqrt(2), 0, 0], [0, 0, 0]], atol=1e-12)


def test_an_encoder_is_not_asked_where_nothing_is_said():
    ranker = OffTheShelfRanker(count_letters, {"c": RESPONSES["c"]})
    assert ranker.all_scores([""]).tolist() == [[0.0]]


@pytest.mark.parametrize("kind", ["bm25", "encoder"])
def test_nothing_asked_is_no_row(kind: str):
    ranker = Bm25Ranker(RESPONSES) if kind == "bm25" else OffTheShelfRanker(count_letters, RESPONSES)
    assert ranker.all_scores([]).shape == (0, 4)
