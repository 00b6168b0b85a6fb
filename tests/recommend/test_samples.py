"""Samples of linked dialogues, counted by hand."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from mmd.recommend.samples import context_of, divide_samples, mention_samples, response_samples
from mmd.recommend.settings import ConversationSettings
from mmd.recommend.types import LinkedDialogue, LinkedTurn, Part
from mmd.schema import Speaker, Split

SETTINGS = ConversationSettings()


def turn(speaker: Speaker, *parts: Part, entities: Iterable[int] = ()) -> LinkedTurn:
    return LinkedTurn(speaker, parts, tuple(entities))


def dialogue(*turns: LinkedTurn, name: str = "d", split: Split = "train") -> LinkedDialogue:
    return LinkedDialogue(name, split, turns)


TALK = dialogue(
    turn("agent", "Hello, ", 9, entities=[109]),  # nothing before it: no sample
    turn("user", "I like ", 1, entities=[101, 7]),
    turn("agent", 2, " and ", 2, " and ", 1, entities=[102, 101]),
    turn("user", 3, entities=[103]),
    turn("agent", "Good.", entities=[7]),
    turn("agent", 3, 4, entities=[103, 104]),
)


def test_responses_are_the_agents_turns_with_something_before_them():
    found = response_samples(TALK, SETTINGS)
    assert [sample.id for sample in found] == ["d#2", "d#4", "d#5"]
    assert [sample.mode for sample in found] == ["rec", "gen", "rec"]
    assert [sample.response.items for sample in found] == [(2, 2, 1), (), (3, 4)]


def test_every_mention_is_a_sample_and_novel_is_what_no_prior_turn_mentions():
    """Item 1 was the user's, item 3 was the user's just before; 2 is named twice in one turn and novel both times."""
    found = mention_samples(TALK, SETTINGS, ("agent",))
    assert [(sample.id, sample.item, sample.novel) for sample in found] == [
        ("d#2.1", 2, True),
        ("d#2.2", 2, True),
        ("d#2.3", 1, False),
        ("d#5.1", 3, False),
        ("d#5.2", 4, True),
    ]


def test_mentions_of_both_speakers_are_samples_unless_one_is_asked_for():
    assert [sample.item for sample in mention_samples(TALK, SETTINGS)] == [1, 2, 2, 1, 3, 3, 4]
    assert [sample.item for sample in mention_samples(TALK, SETTINGS, ("user",))] == [1, 3]


def test_mentions_of_the_same_turn_are_not_in_its_context():
    first = mention_samples(TALK, SETTINGS, ("agent",))[0]
    assert first.context.items == (9, 1)
    assert first.context.entities == (109, 101, 7)
    assert first.context.turns == TALK.turns[:2]


def test_a_context_keeps_all_items_but_only_the_last_turns_and_entities():
    context = context_of(TALK.turns, ConversationSettings(context_turns=2, max_entities=3))
    assert context.turns == TALK.turns[-2:]
    assert context.items == (9, 2, 1, 3, 4)  # 1 was mentioned again after 2
    assert context.entities == (7, 103, 104)  # in order of last mention: 109, 102, 101, 7, 103, 104


def test_a_dialogue_of_one_turn_or_none_has_no_samples():
    for few in (dialogue(), dialogue(turn("agent", 1))):
        assert response_samples(few, SETTINGS) == []
        assert mention_samples(few, SETTINGS) == []


def test_a_context_without_entities_is_a_context():
    found = mention_samples(dialogue(turn("user", "hi"), turn("agent", 1)), SETTINGS)
    assert [sample.context.entities for sample in found] == [()]


def test_parts_are_by_dialogue_and_the_test_split_stays_whole():
    talks = [dialogue(*TALK.turns, name=f"d{i}", split="test" if i % 4 == 0 else "train") for i in range(400)]
    samples = [sample for talk in talks for sample in mention_samples(talk, SETTINGS)]
    parts = divide_samples(samples, 0.2, seed=3)
    train, validation, test = (
        {sample.dialogue_id for sample in part} for part in (parts.train, parts.validation, parts.test)
    )
    assert test == {talk.id for talk in talks if talk.split == "test"}
    assert not train & validation
    assert 30 <= len(validation) <= 90  # 60 expected of 300, four standard deviations around
    assert len(parts.train) + len(parts.validation) + len(parts.test) == len(samples)


@given(st.text(max_size=8), st.integers(0, 99))
def test_what_is_held_out_stays_so_when_more_is_held_out(name: str, seed: int):
    samples = response_samples(dialogue(*TALK.turns, name=name), SETTINGS)
    parts = [divide_samples(samples, share, seed) for share in (0.0, 0.1, 0.4)]
    assert not parts[0].validation
    assert len(parts[1].validation) <= len(parts[2].validation)
