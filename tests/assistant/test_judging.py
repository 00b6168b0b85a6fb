"""What a reply is worth, by hand."""

from __future__ import annotations

import pytest

from mmd.assistant.judging import judge, overlap
from mmd.assistant.turns import AskedTurn
from mmd.assistant.types import AssistantQuery, ReplyPart
from mmd.schema import Turn
from tests.assistant.parts import hit

QUERY = AssistantQuery("d#1", (Turn("user", "hi"),))
TEXT = AskedTurn("d#1", "d", QUERY, (hit("text:Hello there", 1).response,), (), "Hello there")
PRODUCT = AskedTurn("d#1", "d", QUERY, (hit("product:mug", 1).response,), ("mug",), "the mug")


@pytest.mark.parametrize(
    ("said", "right", "f1"),
    [("a b c", "a b d", 2 / 3), ("", "", 1.0), ("", "a", 0.0), ("A, b!", "a b", 1.0), ("有货", "没有货", 0.8)],
)
def test_words_are_compared_with_repeats_and_chinese_by_characters(said: str, right: str, f1: float):
    assert overlap(said, right) == pytest.approx(f1)


def test_the_students_very_words_are_right():
    verdict = judge(TEXT, "text", (ReplyPart("text", "hello  THERE"),))
    assert (verdict.modality, verdict.response, verdict.item, verdict.answered) == (True, True, None, True)


def test_another_sentence_is_wrong_however_alike():
    verdict = judge(TEXT, "text", (ReplyPart("text", "hello", response_id="text:hello"),))
    assert not verdict.response
    assert verdict.words == pytest.approx(2 / 3)


def test_products_count_by_the_first_and_by_any():
    parts = (
        ReplyPart("text", "look"),
        ReplyPart("item", "cup", item_id="cup"),
        ReplyPart("item", "mug", item_id="mug"),
    )
    verdict = judge(PRODUCT, "product", parts)
    assert (verdict.modality, verdict.response, verdict.item, verdict.any_item) == (True, False, False, True)


def test_the_wrong_modality_is_never_the_right_response():
    assert not judge(TEXT, "image", (ReplyPart("text", "hello there"),)).response


def test_an_apology_is_no_answer():
    sorry = ReplyPart("text", "I cannot answer that right now. Please try again in a moment.")
    assert not judge(TEXT, "text", (sorry,)).answered
