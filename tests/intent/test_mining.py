"""Mined predicates."""

from __future__ import annotations

import numpy as np
import pytest

from mmd.intent.mining import (
    frequent_keywords,
    information_gain,
    keywords,
    levels,
    make_prototypes,
    mine_candidates,
    representative_keywords,
    truth_matrix,
    whiten,
)
from mmd.intent.predicates import holds
from mmd.intent.settings import PredicateSettings
from mmd.intent.types import ImageFacts, IntentExample
from mmd.schema import Item, OcrLine, Turn


def make_examples(n: int = 30) -> list[IntentExample]:
    """Return dialogues of three labels, told apart by a word, a picture's text, an item and a vector."""
    rng = np.random.default_rng(0)
    words = {"refund": "我要退款 please", "season": "适合夏天穿吗", "size": "what size 尺码"}
    centres = {label: rng.normal(size=8) for label in words}
    examples = []
    for i in range(n):
        label = list(words)[i % 3]
        vector = (centres[label] + 0.7 * rng.normal(size=8)).astype(np.float32)
        picture = (centres[label][::-1] + 0.7 * rng.normal(size=8)).astype(np.float32)
        lines = (OcrLine(f"{label} page {i % 4}", 0.9, (0.0, 5.0, 50.0, 15.0)),) if i % 2 else ()
        examples.append(
            IntentExample(
                dialogue_id=f"d{i:02d}",
                task="intent",
                label=label,
                turns=(Turn("user", "hello"), Turn("agent", "您好"), Turn("user", f"{words[label]} {i % 5}")),
                images=(ImageFacts(f"i{i}", 60, 100 + 40 * (i % 3), lines, picture),),
                items=(Item(f"p{i}", f"blue shirt {i % 2}", {"colour": "red" if i % 3 else "blue"}),),
                last_user_vector=vector,
            )
        )
    return examples


SETTINGS = PredicateSettings()


def test_keywords_are_runs_of_characters_or_of_whole_words():
    assert keywords("红色 dress", 2) == {"红", "色", "红色", "dress", "色 dress"}


def test_keywords_do_not_reach_over_punctuation():
    assert "款吗" not in keywords("退款，吗", 3)


def test_of_nested_keywords_in_the_same_examples_a_short_and_a_long_one_stay():
    where = frequent_keywords([["会生锈"], ["会生锈"], ["别的"]], max_tokens=3, min_support=2)
    assert sorted(representative_keywords(where)) == ["会生", "会生锈"]


def test_truth_of_mined_predicates_equals_the_reference():
    examples = make_examples()
    candidates = mine_candidates(examples, SETTINGS)
    kinds = {(p.kind, p.scope) for p in candidates.predicates}
    assert {
        ("text", "last_user"),
        ("ocr", "any"),
        ("near", "last_user"),
        ("near", "image"),
        ("item", "colour"),
    } <= kinds
    rng = np.random.default_rng(1)
    some = [candidates.predicates[i] for i in rng.choice(len(candidates.predicates), 150, replace=False)]
    truth = truth_matrix(some, candidates.prototypes, examples)
    for row, predicate in zip(truth, some, strict=True):
        assert row.tolist() == [holds(predicate, e, candidates.prototypes) for e in examples], predicate


def test_only_the_given_examples_are_looked_at():
    """What the held-out part says changes nothing that is mined without it."""
    examples = make_examples()
    inside = examples[:24]
    first = mine_candidates(inside, SETTINGS)
    words = {p.value for p in first.predicates if p.kind == "text"}
    assert all(any(word in e.text("any").lower() for e in inside) for word in words)


def test_no_example_is_near_a_prototype_that_it_made():
    examples = make_examples()
    candidates = mine_candidates(examples, SETTINGS)
    rows = {p.value: row for p, row in zip(candidates.predicates, candidates.members, strict=True) if p.kind == "near"}
    own = [(name, row) for name, row in rows.items() if "a picture of d03" in name]
    assert own
    assert not any(row[3] for _, row in own)


def test_prototypes_made_again_from_all_examples_keep_their_names():
    examples = make_examples()
    candidates = mine_candidates(examples[:24], SETTINGS)
    made = make_prototypes(candidates.prototypes, examples, SETTINGS)
    assert set(made) == set(candidates.prototypes)
    again = make_prototypes(candidates.prototypes, examples[:24], SETTINGS)
    name = next(n for n in again if "contrast" in n)
    np.testing.assert_allclose(again[name].vector, candidates.prototypes[name].vector, rtol=1e-5)


def test_levels_are_multiples_that_split_the_scores():
    assert levels(np.array([-1.0, 0.2, 1.1], np.float32), 0.5) == [0.5, 1.0]


def test_whitening_equals_the_inverse_of_the_shrunk_covariance():
    from sklearn.covariance import ledoit_wolf

    residuals = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    covariance, _ = ledoit_wolf(residuals, assume_centered=True)
    directions = np.eye(6, dtype=np.float32)[:2]
    np.testing.assert_allclose(whiten(residuals, directions), directions @ np.linalg.inv(covariance), rtol=1e-3)


def test_information_gain_of_a_perfect_predicate_is_nearly_one_bit():
    """Ten of twenty, all of the label, with half an example added to each cell: 1 − H(0.5/11) = 0.733."""
    positive = np.arange(20) < 10
    gain = information_gain(np.stack([positive, ~positive, np.ones(20, np.bool_)]), positive)
    p = 0.5 / 11
    expected = 1 + p * np.log2(p) + (1 - p) * np.log2(1 - p)
    assert gain[0] == pytest.approx(expected)
    assert gain[1] == pytest.approx(-expected)
    assert abs(gain[2]) < 1e-9
