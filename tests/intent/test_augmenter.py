"""Augmentation: what copies keep, what rules drop, and that chance is only the seed's."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmd.intent.augment import Augmenter, augment, content_key
from mmd.intent.augment.originals import held_out_hints, make_originals
from mmd.intent.firings import HeldOutFiring
from mmd.intent.folds import assign_folds
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Predicate, Prototype, Rule, measure
from mmd.intent.samples import ORIGINAL, Sample
from mmd.intent.settings import AugmentSettings
from mmd.intent.types import ImageFacts, IntentExample
from mmd.schema import OcrLine, Turn, image_id

EMPTY = RuleBase(())
PRECISE = measure(10, 10, 100)


def picture(shade: int = 200) -> ImageFacts:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 80), (shade, 90, 40)).save(buffer, "PNG")
    data = buffer.getvalue()
    line = OcrLine("total 42", 0.9, (8.0, 30.0, 50.0, 42.0))
    return ImageFacts(image_id(data), 64, 80, (line,), np.ones(3, np.float32), data)


def sample(
    name: str, text: str, *, label: str = "refund", pictures: Sequence[ImageFacts] = (), fold: int = 1
) -> Sample:
    turns = (Turn("agent", "Welcome, how are you?"), Turn("user", text, tuple(p.image_id for p in pictures)))
    vector = np.ones(2, np.float32)
    example = IntentExample(name, "intent", label, turns, tuple(pictures), last_user_vector=vector)
    return Sample(name, name, ORIGINAL, fold, "a hint", example)


def rule(name: str, label: str, *predicates: Predicate, stats: Any = PRECISE) -> Rule:
    return Rule(name, "intent", label, predicates, stats)


def says(word: str, scope: str = "any") -> Predicate:
    return Predicate("text", scope, word)


TEXTS = ("When do I get my 30 dollars back, please?", "我要退款，什么时候到账？", "Please help me with order 8812 now")


def some_samples() -> list[Sample]:
    plain = [sample(f"d{i}", text, fold=i) for i, text in enumerate(TEXTS)]
    return [*plain, sample("d3", "What is this?", pictures=[picture()]), sample("d4", "", pictures=[picture(100)])]


def test_copies_keep_task_label_parent_fold_and_hint():
    made = augment(some_samples(), EMPTY, AugmentSettings(copies=4), seed=0)
    parents = {s.id: s for s in some_samples()}
    copies = [s for s in made.samples if s.made_by != ORIGINAL]
    assert len(copies) > 15
    for copy in copies:
        parent = parents[copy.parent_id]
        assert (copy.fold, copy.hint) == (parent.fold, parent.hint)
        assert (copy.example.task, copy.example.label) == (parent.example.task, parent.example.label)
        assert copy.example.dialogue_id == parent.id
    assert len({s.id for s in made.samples}) == len(made.samples)


def test_each_original_is_followed_by_its_copies_unchanged():
    samples = some_samples()
    made = augment(samples, EMPTY, AugmentSettings(copies=2), seed=0).samples
    assert [s for s in made if s.made_by == ORIGINAL] == samples  # the same objects
    assert [s.parent_id for s in made] == sorted(s.parent_id for s in made)


def test_no_copies_means_originals_only():
    made = augment(some_samples(), EMPTY, AugmentSettings(copies=0), seed=0)
    assert contents(made.samples) == contents(some_samples())
    assert made.counts.to_json()["intent"] == {"originals": 5, "copies": {}, "dropped": {}, "dropped by rule": {}}


def contents(samples: Sequence[Sample]) -> list[str]:
    return [content_key(s.example) for s in samples]


def test_the_seed_decides_everything():
    first, again, other = (augment(some_samples(), EMPTY, AugmentSettings(), seed).samples for seed in (3, 3, 4))
    assert contents(first) == contents(again)
    assert [s.id for s in first] == [s.id for s in again]
    assert set(contents(first)) & set(contents(other)) == set(contents(some_samples()))


def test_a_family_does_not_depend_on_the_others():
    samples = some_samples()
    together = augment(samples, EMPTY, AugmentSettings(), seed=0).samples
    augmenter = Augmenter(EMPTY, AugmentSettings(), 0, known=frozenset(contents(samples)))
    alone = [s for one in reversed(samples) for s in augmenter.family(one).samples]
    assert sorted(contents(together)) == sorted(contents(alone))


def test_no_sample_is_another_ones_double():
    samples = [*some_samples(), sample("double", "Hello")]
    made = augment(samples, EMPTY, AugmentSettings(copies=8), seed=0)
    assert len(set(contents(made.samples))) == len(made.samples)


def test_what_cannot_be_varied_is_counted_not_copied():
    made = augment([sample("d", "42")], EMPTY, AugmentSettings(methods=("edit",), copies=2), seed=0)
    assert len(made.samples) == 1
    assert made.counts.to_json()["intent"]["dropped"] == {"nothing to change": 2}


def test_pictures_change_with_words_and_turns_name_the_new_ones():
    made = augment([sample("d", "What is this?", pictures=[picture()])], EMPTY, AugmentSettings(), seed=0)
    for copy in made.samples[1:]:
        (image,) = copy.example.images
        assert image.data is not None
        assert image.image_id == image_id(image.data) != picture().image_id
        assert copy.example.turns[-1].image_ids == (image.image_id,)
        assert "picture" in copy.made_by


def test_copies_have_no_vectors_of_other_words():
    made = augment([sample("d", "What is this?", pictures=[picture()])], EMPTY, AugmentSettings(), seed=0)
    for copy in made.samples[1:]:
        assert copy.example.last_user_vector is None
        assert all(image.vector is None for image in copy.example.images)


# ---------------------------------------------------------------- rules filter


@pytest.fixture
def greeting_rule() -> Rule:
    """Fires on what frames add: a greeting by the customer means `chat`."""
    return rule(
        "greets", "chat", Predicate("regex", "user", "hello|hi|hey|good|excuse|sorry|help|thank|cheers|question")
    )


def test_a_copy_that_a_precise_rule_contradicts_is_dropped_and_counted(greeting_rule: Rule):
    samples = [sample(f"d{i}", "Where is the money for order 77?") for i in range(12)]
    settings = AugmentSettings(methods=("frame",), copies=3)
    free = augment(samples, EMPTY, settings, seed=0)
    made = augment(samples, RuleBase((greeting_rule,)), settings, seed=0)
    dropped = made.counts.to_json()["intent"]["dropped by rule"]
    assert dropped["greets"] > 5
    assert made.counts.to_json()["intent"]["dropped"]["contradicts a rule"] == dropped["greets"]
    kept = set(contents(made.samples))
    assert kept < set(contents(free.samples))
    assert len(free.samples) - len(made.samples) == dropped["greets"]


def test_only_precise_and_well_supported_rules_may_drop(greeting_rule: Rule):
    settings = AugmentSettings(methods=("frame",), filter_precision=0.9, filter_support=5)
    for stats in (measure(100, 80, 100), measure(4, 4, 100)):
        base = RuleBase((replace(greeting_rule, stats=stats),))
        made = augment([sample("d", "Where is the money?")], base, settings, seed=0)
        assert not made.counts.contradicted


def test_a_rule_that_fired_on_the_parent_already_drops_nothing(greeting_rule: Rule):
    samples = [sample(f"d{i}", "Hello, where is the money for order 77?") for i in range(6)]
    made = augment(samples, RuleBase((greeting_rule,)), AugmentSettings(methods=("frame",)), seed=0)
    assert not made.counts.contradicted


def test_a_precise_rule_for_the_own_label_outweighs_one_for_another(greeting_rule: Rule):
    base = RuleBase((greeting_rule, rule("pays", "refund", says("money"))))
    samples = [sample(f"d{i}", "Where is the money for order 77?") for i in range(6)]
    made = augment(samples, base, AugmentSettings(methods=("frame",)), seed=0)
    assert not made.counts.contradicted


def test_near_conditions_stay_as_they_are_for_the_parent():
    near = Predicate("near", "last_user", "p")
    prototypes = {"p": Prototype("p", "last_user", np.ones(2, np.float32), 0.9, "money")}
    base = RuleBase((rule("near", "chat", near, says("e")),), prototypes)
    made = augment([sample("d", "Where is the money?")], base, AugmentSettings(), seed=0)
    assert len(made.samples) == 4


# ---------------------------------------------------------------- rules spare


WORDS = st.sampled_from(
    ["when", "do", "you", "send", "the", "money", "please", "30", "<http>", "really", "我要", "退款", "什么时候", "吗"]
)


@settings(max_examples=60)
@given(st.lists(WORDS, min_size=3, max_size=12), st.data(), st.integers(0, 10**6))
def test_the_words_of_a_fired_rule_survive_every_method(words: list[str], data: st.DataObject, seed: int):
    text = " ".join(words)
    kept = data.draw(st.sampled_from(words))
    base = RuleBase((rule("r", "refund", says(kept, "user")),))
    made = augment([sample("d", text)], base, AugmentSettings(methods=("frame", "edit"), copies=4), seed)
    for copy in made.samples:
        said = [turn.text.casefold() for turn in copy.example.turns if turn.speaker == "user"]
        assert any(kept in text for text in said)


@settings(max_examples=60)
@given(st.lists(WORDS, min_size=3, max_size=12), st.integers(0, 10**6))
def test_numbers_and_links_survive_edits(words: list[str], seed: int):
    made = augment([sample("d", " ".join(words))], EMPTY, AugmentSettings(methods=("edit",), copies=4), seed)
    for copy in made.samples:
        said = copy.example.turns[-1].text
        assert [said.count(token) for token in ("30", "<http>")] == [words.count(token) for token in ("30", "<http>")]


@settings(max_examples=60)
@given(st.lists(WORDS, min_size=1, max_size=8), st.integers(0, 10**6))
def test_every_turn_of_a_copy_was_said_by_who_said_it(words: list[str], seed: int):
    """The agent's words never turn up among the customer's, nor the other way round."""
    turns = (Turn("user", "zebra"), Turn("agent", "yak gnu"), Turn("user", " ".join(words)))
    parent = replace(sample("d", "x"), example=IntentExample("d", "intent", "refund", turns))
    for copy in augment([parent], EMPTY, AugmentSettings(methods=("frame",), copies=4), seed).samples:
        for turn in copy.example.turns:
            assert turn.speaker == "agent" or "yak" not in turn.text
            assert turn.speaker == "user" or "zebra" not in turn.text


# ---------------------------------------------------------------- a paraphraser


class Parrot:
    """A language model that gives the answers it was told to."""

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def chat(self, messages: Sequence[str], max_new_tokens: int = 48) -> list[str]:  # noqa: ARG002 (the model's signature)
        self.asked += messages
        return [self.answers[len(self.asked) % len(self.answers)] for _ in messages]


def test_a_paraphrase_is_taken_from_the_model():
    parrot = Parrot(["“When will order 77 be repaid?”\nI hope this helps."])
    settings = AugmentSettings(methods=("paraphrase",), copies=1)
    made = augment([sample("d", "Where is the money for order 77?")], EMPTY, settings, 0, paraphraser=parrot)
    assert [s.example.turns[-1].text for s in made.samples[1:]] == ["When will order 77 be repaid?"]
    assert made.samples[1].made_by == "paraphrase"


@pytest.mark.parametrize(
    "answer", ["", "Sure", "Where is the money for order 78?", "退款什么时候到账呀 77", "x 77 " * 40]
)
def test_an_answer_that_is_no_paraphrase_is_not_taken(answer: str):
    settings = AugmentSettings(methods=("paraphrase",), copies=1)
    parent = sample("d", "Where is the money for order 77?")
    made = augment([parent], EMPTY, settings, 0, paraphraser=Parrot([answer]))
    assert len(made.samples) == 1
    assert made.counts.dropped.total() == 1


# ---------------------------------------------------------------- originals


def test_originals_lie_in_the_folds_of_probe_and_gate():
    examples = [sample(f"d{i}", "x", label="ab"[i % 2]).example for i in range(20)]
    originals = make_originals(examples, {"d3": "told"}, folds=5, seed=7)
    expected = assign_folds([e.dialogue_id for e in examples], [str(e.label) for e in examples], 5, 7)
    assert [s.fold for s in originals] == expected.tolist()
    assert [s.hint for s in originals if s.hint] == ["told"]
    assert all(s.id == s.parent_id == s.example.dialogue_id and s.made_by == ORIGINAL for s in originals)


def test_hints_are_held_out_firings_else_the_bases_own():
    base = RuleBase((rule("r", "refund", says("money")),))
    examples = [sample("d0", "my money").example, sample("d1", "hello").example]
    held_out = {"d0": (HeldOutFiring("chat", measure(4, 3, 9), "it rains"),)}
    assert held_out_hints(held_out, base, examples, 3) == {"d0": "chat (3 of 4): it rains", "d1": ""}
    assert held_out_hints(None, base, examples, 3) == {
        "d0": "refund (10 of 10): a message contains “money”",
        "d1": "",
    }
