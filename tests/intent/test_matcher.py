"""The matcher says what the reference semantics says, whatever the rules and the dialogue."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmd.errors import RuleError
from mmd.intent import matcher
from mmd.intent.matcher import CompiledRules, ExampleView, truth_table
from mmd.intent.predicates import IMAGE_BUCKETS, Prototype, holds, parse_predicate
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import UNMEASURED, Predicate, Rule, measure
from mmd.intent.types import ImageFacts, IntentExample
from mmd.schema import Item, OcrLine, Turn

WORDS = [
    "red",
    "RED",
    "fade",
    "fades",
    "ade",
    "褪色",
    "会褪色吗",
    "色",
    "Ｒed",
    "ß",
    "ss",
    "é",
    " ",
    "不亮",
    "亮",
    "1",
    "\n",
]
PATTERNS = ["fade", "^red", "red$", "(不|没).{0,2}亮", "[0-9]+", "(a+)+$", r"\bred\b", ".", "^$", "[^r]e", r"\s"]
PROTOTYPES = {
    "p1": Prototype("p1", "last_user", np.array([1, 0], np.float32), 0.5, "fading"),
    "p2": Prototype("p2", "last_user", np.array([0, 1], np.float32), 0.9, "light"),
    "i1": Prototype("i1", "image", np.array([1, 1], np.float32), 0.7, "label"),
    "c1": Prototype("c1", "cluster", np.array([1, 0], np.float32), 0.0, "shoes"),
    "c2": Prototype("c2", "cluster", np.array([0, 1], np.float32), 0.0, "shirts"),
}

text_scopes = st.sampled_from(["last_user", "user", "agent", "any"])
regions = st.sampled_from(["any", "top", "middle", "bottom"])
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=2).map("".join).filter(str.strip)
texts = st.lists(st.sampled_from(WORDS), max_size=4).map("".join)
vectors = st.one_of(
    st.none(), st.tuples(*[st.floats(-1, 1, width=32)] * 2).map(lambda pair: np.array(pair, np.float32))
)


@st.composite
def predicates(draw: st.DrawFn) -> Predicate:
    kind, scope, value = draw(
        st.one_of(
            st.tuples(st.just("text"), text_scopes, words),
            st.tuples(st.just("ocr"), regions, words),
            st.tuples(st.just("regex"), st.one_of(text_scopes, st.just("ocr")), st.sampled_from(PATTERNS)),
            st.sampled_from([("image", a, b) for a, buckets in IMAGE_BUCKETS.items() for b in buckets]),
            st.sampled_from([("image", "cluster", "c1"), ("image", "cluster", "c2")]),
            st.sampled_from([("near", "last_user", "p1"), ("near", "last_user", "p2"), ("near", "image", "i1")]),
            st.tuples(st.just("item"), st.sampled_from(["title", "colour"]), words),
            st.tuples(st.just("ask"), st.just("logo"), st.sampled_from(["yes", "no"])),
        )
    )
    return Predicate(kind, scope, value, draw(st.booleans()))


@st.composite
def rule_bases(draw: st.DrawFn) -> RuleBase:
    conditions = draw(st.lists(st.lists(predicates(), min_size=1, max_size=4), max_size=12))
    stats = st.sampled_from([UNMEASURED, measure(4, 3, 10), measure(9, 9, 10)])
    rules = [
        Rule(f"r{i}", "t", draw(st.sampled_from(["a", "b"])), tuple(c), draw(stats), enabled=draw(st.booleans()))
        for i, c in enumerate(conditions)
    ]
    return RuleBase(tuple(rules), PROTOTYPES)


@st.composite
def images(draw: st.DrawFn) -> ImageFacts:
    height = draw(st.integers(1, 1000))
    lines = []
    for text in draw(st.lists(texts, max_size=3)):
        top = draw(st.integers(0, height))
        lines.append(OcrLine(text, 0.9, (0.0, float(top), 10.0, float(top))))
    return ImageFacts("i", draw(st.integers(1, 1000)), height, tuple(lines), draw(vectors))


@st.composite
def examples(draw: st.DrawFn) -> IntentExample:
    turns = draw(st.lists(st.tuples(st.sampled_from(["user", "agent"]), texts), max_size=4))
    items = st.tuples(texts, texts).map(lambda pair: Item("x", pair[0], {"colour": pair[1]}))
    return IntentExample(
        dialogue_id="d",
        task="t",
        label=None,
        turns=tuple(Turn(speaker, text) for speaker, text in turns),
        images=tuple(draw(st.lists(images(), max_size=3))),
        items=tuple(draw(st.lists(items, max_size=2))),
        last_user_vector=draw(vectors),
        meta=draw(st.sampled_from([{}, {"ask:logo": "yes"}, {"ask:logo": "No"}])),
    )


def by_hand(base: RuleBase, example: IntentExample) -> list[Rule]:
    """Every rule, every predicate, no cleverness."""
    return [r for r in base.of_task("t") if all(holds(p, example, base.prototypes) for p in r.predicates)]


@settings(max_examples=120, deadline=None)
@given(rule_bases(), st.lists(examples(), max_size=3))
def test_fired_rules_equal_the_reference(base: RuleBase, batch: list[IntentExample]) -> None:
    compiled = CompiledRules(base, "t")
    assert [list(fired) for fired in compiled.fired_batch(batch)] == [by_hand(base, e) for e in batch]


@settings(max_examples=80, deadline=None)
@given(st.lists(predicates(), max_size=10), st.lists(examples(), max_size=3))
def test_truth_table_equals_the_reference(conditions: list[Predicate], batch: list[IntentExample]) -> None:
    table = truth_table(conditions, batch, PROTOTYPES)
    assert table.shape == (len(conditions), len(batch))
    assert table.tolist() == [[holds(p, e, PROTOTYPES) for e in batch] for p in conditions]


def rule(rule_id: str, *lines: str, hits: int = 0, support: int = 0, enabled: bool = True) -> Rule:
    stats = measure(support, hits, 100) if support else UNMEASURED
    return Rule(rule_id, "t", "a", tuple(parse_predicate(line) for line in lines), stats, enabled=enabled)


def said(*texts: str) -> IntentExample:
    return IntentExample("d", "t", None, tuple(Turn("user", text) for text in texts))


def fired_ids(rules: list[Rule], example: IntentExample) -> list[str]:
    return [r.id for r in CompiledRules(RuleBase(tuple(rules)), "t").fired(example)]


def test_best_rule_comes_first_by_bound_then_support_then_id() -> None:
    rules = [
        rule("d", "user contains a", hits=2, support=2),
        rule("c", "user contains a", hits=20, support=20),
        rule("b", "user contains a", hits=2, support=2),
        rule("unmeasured", "user contains a"),
    ]
    assert fired_ids(rules, said("a")) == ["c", "b", "d", "unmeasured"]


def test_disabled_rules_and_rules_of_other_tasks_never_fire() -> None:
    other = Rule("other", "u", "a", (parse_predicate("user contains a"),), UNMEASURED)
    assert fired_ids([rule("off", "user contains a", enabled=False), other], said("a")) == []


def test_rules_of_only_negated_conditions_fire_on_an_empty_dialogue() -> None:
    assert fired_ids([rule("r", "not user contains a", "not image aspect is tall")], said()) == ["r"]


def test_a_keyword_is_not_found_across_two_turns() -> None:
    assert fired_ids([rule("r", 'user contains "red fade"')], said("red", "fade")) == []
    assert fired_ids([rule("r", 'user contains "red fade"')], said("red\n fade")) == ["r"]


def test_overlapping_and_nested_keywords_are_all_found() -> None:
    rules = [rule(word, f"user contains {word}") for word in ("fade", "fades", "ade", "desk")]
    assert sorted(fired_ids(rules, said("fadesk"))) == ["ade", "desk", "fade", "fades"]


def test_a_contradiction_never_fires() -> None:
    assert fired_ids([rule("r", "user contains a", "not user contains a")], said("a")) == []


def test_catastrophic_patterns_take_linear_time() -> None:
    """Backtracking engines need 2^50 steps here; the test would time out."""
    rules = [rule(f"r{n}", f"user matches /(a+)+{'b?' * n}$/") for n in range(100)]
    assert fired_ids(rules, said("a" * 5000 + "!")) == []


def test_a_pattern_set_that_runs_out_of_memory_is_searched_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sentinel gone RE2's answer means "failed", not "nothing found"."""
    patterns = matcher.PatternSet([("fade", 3), ("light", 5)])

    class Exhausted:
        def Match(self, _: bytes) -> None:  # noqa: N802 (RE2's name)
            return None

    monkeypatch.setattr(patterns, "_set", Exhausted())
    assert patterns.matches("it fades") == [3]


def test_more_patterns_than_one_set_holds_all_match() -> None:
    count = matcher.PATTERNS_PER_SET * 2 + 1
    rules = [rule(f"r{n:03}", f"user matches /x{n}y/") for n in range(count)]
    assert len(fired_ids(rules, said(" ".join(f"x{n}y" for n in range(count))))) == count


def test_compiled_rules_survive_a_trip_between_processes() -> None:
    """Ray ships them so; the automata are rebuilt on arrival."""
    compiled = CompiledRules(RuleBase((rule("r", "user contains a"),)), "t")
    again = pickle.loads(pickle.dumps(compiled))  # noqa: S301 (made one line above)
    assert [r.id for r in again.fired(said("a"))] == ["r"]


def test_a_prepared_view_gives_the_same_answer_twice() -> None:
    compiled = CompiledRules(RuleBase((rule("r", "user contains a", "not ocr contains b"),)), "t")
    view = ExampleView(said("a"))
    assert compiled.fired_views([view]) == compiled.fired_views([view]) == [compiled.fired(view.example)]


def test_a_prototype_of_another_dimension_is_an_error_with_a_way_out() -> None:
    base = RuleBase((Rule("r", "t", "a", (parse_predicate("last_user is near p1"),), UNMEASURED),), PROTOTYPES)
    example = IntentExample("d", "t", None, (Turn("user", "x"),), last_user_vector=np.ones(3, np.float32))
    with pytest.raises(RuleError, match="2 dimensions, the example's vector 3"):
        CompiledRules(base, "t").fired(example)
