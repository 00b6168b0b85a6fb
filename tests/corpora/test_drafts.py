"""Pictures find the turn in which they were sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.corpora.drafts import Draft, content_id, drop_empty, place_images

SAID = st.lists(st.sampled_from(["word", " ", "\n", "<image>"]), max_size=8).map("".join)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<image>", ""),
        ("see <image> here", "see here"),
        ("see<image>here", "see here"),
        ("see <image> <image>", "see"),
        ("see <image>\nand here", "see\nand here"),
        ("see\n  <image> here", "see\nhere"),
        ("<image>\nwhat?", "what?"),
        ("two  spaces <img> stay", "two  spaces <img> stay"),
    ],
)
def test_markers_leave_the_text_without_a_trace(text: str, left: str) -> None:
    draft = Draft("user", text)
    place_images([draft], ["a"] * text.count("<image>"))
    assert draft.text == left


@given(texts=st.lists(st.tuples(st.sampled_from(["user", "agent"]), SAID), min_size=1), names=st.lists(st.text()))
def test_no_picture_is_lost_and_order_is_kept_as_far_as_markers_go(
    texts: list[tuple[str, str]], names: list[str]
) -> None:
    drafts = [Draft("user" if who == "user" else "agent", text) for who, text in texts]
    markers = sum(text.count("<image>") for _, text in texts)
    meta = place_images(drafts, names)
    placed = [name for draft in drafts for name in draft.image_ids]
    assert sorted(placed) == sorted(names)
    assert int(meta.get("images_unplaced", 0)) == max(0, len(names) - markers)
    assert int(meta.get("image_markers_unmatched", 0)) == max(0, markers - len(names))
    assert not any("<image>" in draft.text for draft in drafts)
    if len(names) <= markers:
        assert placed == names


def test_turns_in_which_nothing_was_said_are_dropped_and_counted_by_speaker() -> None:
    kept = [Draft("user", "hi"), Draft("agent", "", ["a"]), Draft("agent", "", item_ids=["i"])]
    empty = [Draft("agent", ""), Draft("user", ""), Draft("agent", "")]
    assert drop_empty([*kept, *empty]) == (kept, {"empty_agent_turns": "2", "empty_user_turns": "1"})


def test_equal_bytes_have_equal_ids() -> None:
    assert content_id(b"a") == content_id(b"a") != content_id(b"b")
    assert content_id(b"") == "e3b0c44298fc1c14"  # the SHA-256 of nothing
