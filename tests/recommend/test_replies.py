"""The text of a reply: titles in, spaces where a person sets them, spans over titles alone."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.recommend.replies import ItemSpan, put_titles_in
from mmd.recommend.types import Part

TITLES = ("Alien (1979)", "花样年华", "Up", "")


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["have you seen", 0, "?"], "have you seen Alien (1979)?"),
        (["have you seen ", 0, " yet?"], "have you seen Alien (1979) yet?"),
        ([2, 0], "Up Alien (1979)"),
        (["(", 2, ")"], "(Up)"),
        (["看过", 1, "吗"], "看过花样年华吗"),
        ([2], "Up"),
        ([], ""),
        (["a", "b"], "ab"),
    ],
)
def test_titles_stand_where_the_items_are(parts: list[Part], text: str):
    assert put_titles_in(parts, TITLES)[0] == text


@given(st.lists(st.one_of(st.text(max_size=6), st.integers(0, 3)), max_size=6))
def test_every_span_covers_its_title(parts: list[Part]):
    text, spans = put_titles_in(parts, TITLES)
    assert [text[span.start : span.end] for span in spans] == [TITLES[part] for part in parts if isinstance(part, int)]
    assert [span.item for span in spans] == [part for part in parts if isinstance(part, int)]
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))


def test_spans_by_hand():
    assert put_titles_in(["try", 2, "or", 2], TITLES)[1] == (ItemSpan(4, 6, 2), ItemSpan(10, 12, 2))
