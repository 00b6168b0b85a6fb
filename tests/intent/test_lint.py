"""Faults that a rule base may legally have, and what a hand edit changes."""

from __future__ import annotations

import pytest

from mmd.intent.edits import OtherAnswer, changes, measure_effect, remeasure
from mmd.intent.lint import Finding, lint
from mmd.intent.predicates import parse_predicate
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import UNMEASURED, Rule, RuleStats, measure
from mmd.intent.types import IntentExample
from mmd.schema import Turn

GOOD = measure(10, 9, 100)


def rule(name: str, *lines: str, label: str = "a", stats: RuleStats = GOOD, enabled: bool = True) -> Rule:
    return Rule(name, "t", label, tuple(parse_predicate(line) for line in lines), stats, enabled=enabled)


def said(text: str, label: str = "a", name: str = "d") -> IntentExample:
    return IntentExample(name, "t", label, (Turn("user", text),))


def codes(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(f.where, f.code) for f in findings]


def lint_rules(*rules: Rule) -> list[tuple[str, str]]:
    return codes(lint(RuleBase(rules)))


def test_a_sound_base_has_no_findings() -> None:
    assert lint_rules(rule("r", "user contains fade", "image aspect is tall"), rule("s", "ocr contains refund")) == []


@pytest.mark.parametrize(
    "lines",
    [
        ("user contains fade", "not user contains fade"),
        ("user contains fade", "not any contains FADE"),  # the wide scope contains the narrow one
        ("last_user contains fades", "not user contains fade"),  # and the long word the short one
        ("ocr top contains refund", "not ocr contains refund"),
        ("image aspect is tall", "not image aspect is tall"),
        ("image count is one", "image count is two"),
        ("ask logo is yes", "ask logo is no"),
    ],
)
def test_contradictions_are_errors(lines: tuple[str, ...]) -> None:
    findings = lint(RuleBase((rule("r", *lines),)))
    assert [(f.where, f.code, f.level) for f in findings] == [("r", "contradiction", "error")]


@pytest.mark.parametrize(
    "lines",
    [
        ("any contains fade", "not user contains fade"),  # the agent may have said it
        ("user contains fade", "not user contains fades"),
        ("image aspect is tall", "image aspect is wide"),  # two pictures
        ("user contains fade", "not ocr contains fade"),
    ],
)
def test_what_can_hold_is_no_contradiction(lines: tuple[str, ...]) -> None:
    assert lint_rules(rule("r", *lines)) == []


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("user contains x", "broad-keyword"),
        ('user contains "色"', "broad-keyword"),
        ("user matches /x*/", "matches-everything"),
        ("user matches /价格？/", "normalised-away"),  # the full-width mark becomes ?
        ("not user contains fade", "only-negated"),
    ],
)
def test_conditions_that_are_too_broad_or_never_hold(line: str, code: str) -> None:
    assert lint_rules(rule("r", line)) == [("r", code)]


def test_rules_with_the_same_conditions() -> None:
    first, twin = (
        rule("r1", "user contains fade", "ocr contains refund"),
        rule("r2", "ocr contains Refund", "user contains fade"),
    )
    rival = rule("r3", "user contains fade", "ocr contains refund", label="b")
    assert ("r2", "duplicate") in lint_rules(first, twin)
    assert lint_rules(first, rival) == [("r3", "conflict")]


def test_supersets_without_gain_name_the_better_rule() -> None:
    wide = rule("wide", "user contains fade")
    narrow = rule("narrow", "user contains fade", "image aspect is tall", stats=measure(4, 3, 100))
    findings = lint(RuleBase((wide, narrow)))
    assert codes(findings) == [("narrow", "superset")]
    assert "only adds conditions to wide" in findings[0].message


def test_unmeasured_rules_and_rules_that_cannot_decide_are_noted() -> None:
    base = RuleBase((rule("new", "user contains fade", stats=UNMEASURED), rule("weak", "ocr contains refund")))
    assert codes(lint(base, tau={"t": 0.9})) == [("new", "unmeasured"), ("weak", "below-tau")]


def test_labels_without_rules_are_noted() -> None:
    off = rule("off", "ocr contains refund", label="b", enabled=False)
    base = RuleBase((rule("r", "user contains fade"), off))
    assert codes(lint(base, labels={"t": ["a", "b"]})) == [("t: b", "label-without-rules")]


def test_conditions_that_never_hold_on_the_corpus() -> None:
    base = RuleBase((rule("r", "user contains fade", "ocr contains refund"),))
    findings = lint(base, examples={"t": [said("it fades"), said("hello")]})
    assert codes(findings) == [("r", "never-holds")]
    assert '`ocr contains "refund"` holds on none of 2 examples' in findings[0].message


def test_errors_come_first() -> None:
    rules = (rule("a", "user contains x"), rule("b", "user contains fade", "not user contains fade"))
    assert [f.level for f in lint(RuleBase(rules))] == ["error", "warning"]


# ---------------------------------------------------------------- edits

OLD = RuleBase(
    (rule("keep", "user contains keep"), rule("edit", "user contains fade"), rule("drop", "user contains drop")),
    defaults={"t": "b"},
)
NEW = RuleBase(
    (
        rule("keep", "user contains keep"),
        rule("edit", "user contains fades", label="b"),
        rule("add", "user contains hello", stats=UNMEASURED),
    ),
    defaults={"t": "b"},
)
SAID = [
    said("it fades", "b", "1"),
    said("fade", "a", "2"),
    said("hello", "a", "3"),
    said("hello", "b", "4"),
    said("keep", "a", "5"),
]


def test_changes_name_every_rule_that_differs() -> None:
    found = {change.rule_id: change for change in changes(OLD, NEW)}
    assert {name: change.what for name, change in found.items()} == {
        "add": "added",
        "drop": "removed",
        "edit": "changed",
    }
    assert found["edit"].detail == ('now also `user contains "fades"`; no longer `user contains "fade"`; t: a → t: b')
    assert changes(NEW, NEW) == []


def test_only_new_and_altered_rules_are_measured() -> None:
    measured = remeasure(OLD, NEW, {"t": SAID})
    assert measured.rule("edit").stats == measure(1, 1, 5)  # fires on "it fades", label b
    assert measured.rule("add").stats == measure(2, 1, 5)
    assert measured.rule("keep").stats == GOOD
    assert remeasure(NEW, NEW, {"t": SAID}).rule("edit").stats == GOOD


def test_the_effect_counts_examples_and_right_answers() -> None:
    """Before: 1, 2 by `edit` → a; 3, 4 default b; 5 a. After: 1 b by `edit`; 2 default b; 3, 4 a by `add`; 5 a."""
    effect = measure_effect(OLD, remeasure(OLD, NEW, {"t": SAID}), "t", SAID)
    assert effect.examples == 5
    assert effect.fired_changed == ("1", "2", "3", "4")
    assert effect.answer_changed == (
        OtherAnswer("1", "b", "a", "b"),
        OtherAnswer("2", "a", "a", "b"),
        OtherAnswer("3", "a", "b", "a"),
        OtherAnswer("4", "b", "b", "a"),
    )
    assert (effect.right_before, effect.right_after) == (3, 3)
