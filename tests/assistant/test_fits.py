"""Which responses fit an intent, counted by hand."""

from __future__ import annotations

import pytest

from mmd.assistant.fits import Answered, Fits

SIZE, REFUND = ("t", "size"), ("t", "refund")
COUNTS = {
    Answered((SIZE,), "image", ("image:chart",)): 3,
    Answered((SIZE,), "text", ("text:a",), "see the chart"): 1,
    Answered((REFUND,), "text", ("text:b",), "it is on its way"): 3,
    Answered((REFUND,), "text", ("text:c",), "two days"): 2,
    Answered((), "text", ("text:d",), "hello"): 1,
}


def test_shares_lean_on_the_average_by_one_answer():
    """Of 10 answers 3 are pictures; of 4 to SIZE 3: (3 + 0.3) / (4 + 1) = 0.66."""
    fits = Fits.of(COUNTS)
    assert fits.answers == 10
    assert fits.base("image") == pytest.approx(0.3)
    assert fits.share(SIZE, "image") == pytest.approx(0.66)
    assert fits.share(SIZE, "text") == pytest.approx((1 + 0.7) / 5)


def test_an_unknown_intent_has_the_average():
    fits = Fits.of(COUNTS)
    assert fits.share(("t", "new"), "image") == pytest.approx(fits.base("image"))


def test_what_was_given_often_enough_and_never_to_an_intent_does_not_fit_it():
    fits = Fits.of(COUNTS)
    assert not fits.fits(SIZE, "text:b", min_seen=3)
    assert fits.fits(SIZE, "text:c", min_seen=3)  # given twice only
    assert fits.fits(REFUND, "text:b", min_seen=3)


@pytest.mark.parametrize(("intent", "response", "min_seen"), [(SIZE, "text:new", 1), (("t", "new"), "text:b", 1)])
def test_unknown_pairs_fit(intent: tuple[str, str], response: str, min_seen: int):
    assert Fits.of(COUNTS).fits(intent, response, min_seen)


def test_without_a_filter_everything_fits():
    assert Fits.of(COUNTS).fits(SIZE, "text:b", min_seen=0)


def test_the_usual_answer_is_the_most_frequent_text():
    assert Fits.of(COUNTS).usual == {SIZE: "see the chart", REFUND: "it is on its way"}


def test_nothing_counted_gives_even_nothing():
    assert Fits().base("text") == 0.0
    assert Fits().share(SIZE, "text") == 0.0


def test_a_response_counts_once_for_a_turn_whatever_other_tasks_recognise_there():
    """Given once, in a turn of which two tasks recognised something: seen once for another intent of either task."""
    counts = {
        Answered((("task", "a"), ("other", "b")), "text", ("text:1",)): 1,
        Answered((("task", "c"),), "text", ("text:2",)): 1,
    }
    assert Fits.of(counts).fits(("task", "c"), "text:1", min_seen=2)
    assert not Fits.of(counts).fits(("task", "c"), "text:1", min_seen=1)


def test_a_turn_that_shows_three_products_is_one_turn():
    """Of two turns with the intent one shows three products, one says a word: half and half."""
    intent = ("task", "a")
    counts = {
        Answered((intent, ("other", "b")), "product", ("product:1", "product:2", "product:3")): 1,
        Answered((intent,), "text", ("text:1",), "hello"): 1,
    }
    fits = Fits.of(counts)
    assert (fits.answers, fits.asked(intent)) == (2, 2)
    assert fits.base("product") == 0.5
    assert fits.share(intent, "product") == pytest.approx((1 + 0.5) / 3)
