"""Priors of predicates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mmd.intent.mining import Candidates
from mmd.intent.proposer import LanguageProposer, MinedProposer, name_affinity
from mmd.intent.rules import Predicate
from mmd.intent.settings import PredicateSettings

POSITIVE = np.array([True] * 4 + [False] * 8)


def candidates() -> Candidates:
    predicates = (
        Predicate("text", "user", "退款"),
        Predicate("text", "user", "你好"),
        Predicate("text", "user", "快递"),
        Predicate("near", "last_user", "物流 (text centre) +1.0σ"),
    )
    members = np.array(
        [
            [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        ],
        dtype=np.bool_,
    )
    return Candidates(predicates, {}, {"物流 (text centre) +1.0σ": "物流"}, members)


def test_the_informative_keyword_comes_first_and_what_speaks_against_is_negated():
    proposal = MinedProposer(PredicateSettings()).propose("退款页面", POSITIVE, candidates())
    assert proposal.predicates[0].value == "退款"
    assert Predicate("text", "user", "快递", negated=True) in proposal.predicates
    assert proposal.prior.sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(proposal.members[0], candidates().members[0])


def test_a_prototype_speaks_only_for_the_label_that_made_it():
    values = {
        p.value for p in MinedProposer(PredicateSettings()).propose("退款页面", POSITIVE, candidates()).predicates
    }
    assert "物流 (text centre) +1.0σ" not in values


@pytest.mark.parametrize(
    ("word", "share"), [("退款", 1.0), ("退款吗", 2 / 3), ("页", 1.0), ("退货款", 0.0), ("你好", 0.0)]
)
def test_affinity_is_the_share_of_a_keyword_inside_the_labels_name(word: str, share: float):
    assert name_affinity(Predicate("ocr", "any", word), "退款页面") == pytest.approx(share)


class Biased:
    """Finds one keyword likely after the label's name."""

    name = "biased"

    def score(self, prompt: str, continuations: Sequence[str]) -> list[float]:
        return [0.0 if prompt.startswith("退款") and word == "你好" else -5.0 for word in continuations]


def test_a_language_model_shifts_the_prior_and_nothing_else():
    mined = MinedProposer(PredicateSettings())
    plain = mined.propose("退款页面", POSITIVE, candidates())
    shifted = LanguageProposer(mined, Biased()).propose("退款页面", POSITIVE, candidates())
    row = [p.value for p in plain.predicates].index("你好")
    assert shifted.predicates == plain.predicates
    assert shifted.prior[row] > plain.prior[row]
    assert shifted.prior.sum() == pytest.approx(1.0)
