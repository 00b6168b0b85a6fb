"""Frames and slips: what they may do to a dialogue, and what they leave alone."""

from __future__ import annotations

import random

import pytest

from mmd.intent.augment.edits import edit_text, slip
from mmd.intent.augment.frames import reframe
from mmd.intent.augment.guard import Guard
from mmd.intent.augment.phrasebook import language_of, phrases
from mmd.intent.predicates import holds
from mmd.intent.rules import Predicate, Rule, measure
from mmd.intent.types import IntentExample
from mmd.schema import Turn

NOTHING = Guard()
SEEDS = range(200)


def chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 (no secret)


def reframed(*turns: Turn, guard: Guard = NOTHING) -> list[tuple[Turn, ...]]:
    made = [reframe(turns, guard, chance(seed)) for seed in SEEDS]
    return [m for m in made if m is not None]


def slipped(text: str, guard: Guard = NOTHING) -> set[str]:
    made = [edit_text(text, guard, chance(seed)) for seed in SEEDS]
    return {m for m in made if m is not None}


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize("text", ["Where is my parcel?", "我的快递到哪了"])
def test_a_message_is_framed_in_many_ways_and_still_asks_the_same(text: str):
    made = reframed(Turn("user", text))
    assert len(set(made)) > 40
    marks = "?？。. "
    for turns in made:
        said = " ".join(turn.text for turn in turns if turn.speaker == "user").casefold()
        assert text.strip(marks)[3:].casefold() in said.replace("where's", "where is")


def test_greetings_come_before_the_first_turn_and_are_answered_by_the_agent():
    made = [turns for turns in reframed(Turn("user", "Where is my parcel?")) if len(turns) > 1]
    assert made
    assert all(turns[0].speaker == "user" and turns[0].text in phrases("en")["greet"] for turns in made)
    assert {turns[1].text for turns in made if turns[1].speaker == "agent"} <= set(phrases("en")["greet_back"])


def test_who_has_greeted_does_not_greet_again():
    turns = (Turn("user", "你好"), Turn("agent", "在的，您请说。"), Turn("user", "多久发货"))
    for made in reframed(*turns):
        opening = [turn for turn in made if turn.text in phrases("zh")["greet"]]
        assert len(opening) <= 1


def test_a_greeting_with_a_picture_stays():
    turns = (Turn("user", "你好", ("p",)), Turn("agent", "在的"), Turn("user", "这是什么"))
    assert all(any(turn.image_ids == ("p",) for turn in made) for made in reframed(*turns))


def test_turns_in_a_row_may_be_joined_pictures_in_their_order():
    made = reframed(Turn("user", "My bag", ("p",)), Turn("user", "is torn", ("q",), ("i",)))
    joined = [turns[-1] for turns in made if turns[-1].image_ids == ("p", "q")]
    assert joined
    assert all("y bag" in turn.text and "is torn" in turn.text and turn.item_ids == ("i",) for turn in joined)


def test_a_message_is_cut_in_two_only_where_a_rule_says_which_part_asks():
    turn = Turn("user", "I like your shop. Where is my parcel?", ("p",))
    guard = Guard((Predicate("text", "last_user", "parcel"),))
    cut = [m for m in reframed(turn, guard=guard) if any(t.text == "I like your shop." for t in m)]
    assert cut
    assert all(any(t.text == "I like your shop." and t.image_ids == ("p",) for t in m) for m in cut)
    assert not [m for m in reframed(turn) if any(t.text == "I like your shop." for t in m)]


def test_names_keep_their_capital_after_a_courtesy():
    said = {turns[-1].text for turns in reframed(Turn("user", "Norvik mugs leak"))}
    assert not any("norvik" in text for text in said)
    asked = {turns[-1].text for turns in reframed(Turn("user", "Where is it"))}
    assert any(", where is it" in text for text in asked)


def test_thanks_are_said_once():
    for turns in reframed(Turn("user", "多久发货？谢谢")):
        assert turns[-1].text.count("谢") <= 2  # one word of thanks


def test_agents_questions_stay_as_they_are():
    question = "Which colour would you like?"
    made = reframed(Turn("agent", question), Turn("user", "Red"))
    assert all(any(turn.text == question for turn in turns) for turns in made)


def test_a_dialogue_is_chinese_where_anyone_writes_chinese():
    assert language_of([Turn("user", "hello"), Turn("agent", "在的")]) == "zh"
    assert language_of([Turn("user", "hello <http>")]) == "en"


# ---------------------------------------------------------------- slips


def test_slips_by_hand():
    assert slipped("so it is") == {"it is"}  # only the little word may go
    assert slipped("的") == {"", "得", "地"}
    assert slipped("it is") == set()


def test_slips_touch_one_word_each():
    text = "When will the parcel arrive"
    for made in slipped(text):
        changed = [(a, b) for a, b in zip(text.split(), made.split(), strict=False) if a != b]
        assert len(made.split()) < len(text.split()) or len(changed) == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("I ordered 12.50 really", "12.50"),
        ("see <http> please", "<http>"),
        ("it does not really work", "not"),
        ("it doesn't really work", "doesn't"),
        ("这个怎么用不了的呢", "不了"),
        ("买了三件的呢吧", "三"),
        ("please send article AB-1209x again", "AB-1209x"),
    ],
)
def test_numbers_links_and_negations_are_left_alone(text: str, kept: str):
    assert slipped(text)
    assert all(kept in made for made in slipped(text))


def test_a_rules_words_are_left_alone_whatever_their_case():
    guard = Guard((Predicate("text", "user", "parcel arrive"),))
    assert all("Parcel Arrive" in made for made in slipped("When will the Parcel Arrive here", guard))


def test_slips_are_the_customers():
    turns = (Turn("agent", "Which article please"), Turn("user", "The very yellow lamp"))
    for seed in SEEDS:
        made = slip(turns, NOTHING, chance(seed))
        assert made is not None
        assert made[0] == turns[0]
    assert slip((Turn("agent", "Which article please"), Turn("user", "", ("p",))), NOTHING, chance(0)) is None


# ---------------------------------------------------------------- what is guarded


def test_the_guard_holds_what_rules_for_the_own_label_ask_of_words():
    stats = measure(9, 9, 10)
    text, regex, ocr = Predicate("text", "user", "a"), Predicate("regex", "any", "b+"), Predicate("ocr", "any", "Total")
    rules = [
        Rule("other", "t", "y", (Predicate("text", "any", "z"),), stats),
        Rule(
            "own",
            "t",
            "x",
            (text, Predicate("text", "any", "c", negated=True), Predicate("image", "count", "one")),
            stats,
        ),
        Rule("reads", "t", "x", (regex, ocr), stats),
        Rule("reads too", "t", "x", (Predicate("ocr", "any", "until"),), stats),
    ]
    guard = Guard.of(rules, "x")
    assert guard.text == (text, regex)
    assert guard.printed == ("total",)


def test_a_copy_that_loses_a_pattern_is_not_kept():
    pattern = Predicate("regex", "last_user", "wh(ere|en)")
    guard = Guard((pattern,))
    kept = IntentExample("d", "t", "x", (Turn("user", "where"),))
    lost = IntentExample("d", "t", "x", (Turn("user", "were"),))
    assert (
        (guard.keeps(kept), guard.keeps(lost)) == (holds(pattern, kept, {}), holds(pattern, lost, {})) == (True, False)
    )
