"""The rule base as files: readable, strict, and the same after a round trip."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmd.artifacts import ArtifactStore
from mmd.errors import RuleError
from mmd.intent.predicates import Prototype, parse_predicate
from mmd.intent.rulebase import (
    COMPILED_FILE,
    RULES_FILE,
    VECTORS_FILE,
    RuleBase,
    check_labels,
    prune_supersets,
)
from mmd.intent.rules import UNMEASURED, Predicate, Rule, RuleStats, measure
from mmd.intent.textnorm import normalise

FADE = Prototype("fade", "last_user", np.array([0.6, 0.8], np.float32), 0.75, "does it fade")

EXAMPLE = """\
format_version: 1
meta: {corpus: corpus/x@1}
defaults:
  intent: other
prototypes:
  - {name: fade, scope: last_user, threshold: 0.75, words: does it fade}
rules:
  intent:
    fading:
      - id: r1
        if:
          - last_user contains "褪色"
          - not image aspect is tall
        stats: {support: 12, hits: 11, precision: 0.917, wilson_lower: 0.646, coverage: 0.024}
        provenance: {proposer: mined, seed: 3}
      - id: r2
        if: [last_user is near fade]
        enabled: false
        note: 'to be discussed: too broad?'
"""


def read(text: str, labels: dict[str, list[str]] | None = None) -> RuleBase:
    return RuleBase.from_yaml(text, vectors={"fade": FADE.vector}, labels=labels, where="my.yaml")


def test_a_hand_written_base_is_read_as_it_says() -> None:
    base = read(EXAMPLE, {"intent": ["fading", "other"]})
    first, second = base.rules
    assert first.predicates == (
        Predicate("text", "last_user", "褪色"),
        Predicate("image", "aspect", "tall", negated=True),
    )
    assert first.stats == RuleStats(12, 11, 11 / 12, pytest.approx(0.64612, abs=1e-5), 0.024)
    assert first.provenance == {"proposer": "mined", "seed": "3"}
    assert (second.enabled, second.note, second.stats) == (False, "to be discussed: too broad?", UNMEASURED)
    assert base.defaults == {"intent": "other"}
    assert base.prototypes["fade"].threshold == 0.75
    assert [r.id for r in base.of_task("intent")] == ["r1"]


def test_written_form_is_stable_and_ordered_by_task_label_and_strength() -> None:
    text = read(EXAMPLE).to_yaml()
    assert read(text).to_yaml() == text
    condition = (parse_predicate("user contains a"),)
    strong, weak = measure(20, 20, 100), measure(2, 2, 100)
    rules = [
        Rule("x", "t", "b", condition, weak),
        Rule("y", "t", "b", condition, strong),
        Rule("z", "t", "a", condition, weak),
    ]
    assert [r.id for r in RuleBase(tuple(rules)).rules] == ["z", "y", "x"]


# ---------------------------------------------------------------- complaints


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("        note:", "        nots:", r"my.yaml:19: rule: unknown key 'nots'.*Did you mean 'note'"),
        ("- id: r2", "- id: r1", r"my.yaml:16: rule id 'r1' is already used on line 10"),
        ("  intent:\n    fading", "  intend:\n    fading", r"my.yaml:8: unknown task 'intend'.*Did you mean 'intent'"),
        ("    fading:", "    fadin:", r"my.yaml:9: 'fadin' is no label of intent.*Did you mean 'fading'"),
        ("intent: other", "intent: nothing", r"my.yaml:4: 'nothing' is no label of intent"),
        ("hits: 11", "hits: 10", r"my.yaml:14: rule r1: stats: 10 hits of 12 make precision 0.8333"),
        ("hits: 11", "hits: 13", r"my.yaml:14: rule r1: stats: needs 0 <= hits <= support"),
        ("hits: 11", "hits: 11.0", r"my.yaml:14: hits: needs a whole number"),
        ("hits: 11", "hit: 11", r"my.yaml:14: rule r1: stats: unknown key 'hit'.*Did you mean 'hits'"),
        ("hits: 11, ", "", r"my.yaml:14: rule r1: stats: hits missing"),
        ("coverage: 0.024", "coverage: 2", r"my.yaml:14: coverage: needs a number from 0 to 1, has '2'"),
        ("enabled: false", "enabled: 0", r"my.yaml:18: enabled: needs true or false"),
        ("not image aspect is tall", "not image aspect is tal", r"my.yaml:13: rule r1: .*Did you mean 'tall'"),
        ('last_user contains "褪色"', r"user matches /(a)\1/", r"my.yaml:12: rule r1: .*position 4.*backreferences"),
        ("near fade", "near fades", r"my.yaml:17: rule r2: no prototype 'fades'.*Did you mean 'fade'"),
        ("threshold: 0.75", "threshold: 1.5", r"my.yaml:6: threshold: needs a number from -1 to 1"),
        ("scope: last_user,", "scope: first_user,", r"my.yaml:6: unknown prototype scope 'first_user'"),
        ("name: fade,", "name: glow,", r"my.yaml:6: prototype 'glow' has no vector"),
        ("if: [last_user is near fade]", "if: []", r"my.yaml:17: rule r2: has no condition"),
        ("if: [last_user is near fade]", "when: []", r"my.yaml:17: rule: unknown key 'when'; known: id, if"),
        ("        if: [last_user is near fade]\n", "", r"my.yaml:16: rule: if missing"),
        ("format_version: 1", "format_version: 2", r"my.yaml:1: format_version is 2, this mmd reads 1"),
        ("format_version: 1\n", "", r"format_version is None"),
        ("defaults:", "default:", r"my.yaml:3: rule base: unknown key 'default'.*Did you mean 'defaults'"),
        ("      - id: r2", "       - id: r2", r"my.yaml:16: not valid YAML"),
        ("    fading:\n", "    fading: 3\n    x:\n", r"my.yaml:9: rules of intent, fading: needs a list"),
    ],
)
def test_mistakes_are_named_with_file_line_and_way_out(old: str, new: str, complaint: str) -> None:
    assert old in EXAMPLE
    labels = {"intent": ["fading", "other", "x"]}
    with pytest.raises(RuleError, match=f"(?s){complaint}"):
        read(EXAMPLE.replace(old, new), labels)


@pytest.mark.parametrize("text", ["", "- a\n", "3", "a: [", "\t", "rules: {a: {b: [c]}}", "{" * 3000])
def test_what_is_no_rule_base_is_refused(text: str) -> None:
    with pytest.raises(RuleError, match=r"my\.yaml"):
        read(text)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mutilated_base_is_read_or_refused_but_never_crashes(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(EXAMPLE)))
    end = data.draw(st.integers(start, min(len(EXAMPLE), start + 8)))
    patch = data.draw(st.text(alphabet="-:[]{}'\"#&*!|>\n \tab0", max_size=4))
    # Anything but a RuleError fails the test.
    with contextlib.suppress(RuleError):
        read(EXAMPLE[:start] + patch + EXAMPLE[end:])


def test_labels_can_be_checked_later() -> None:
    with pytest.raises(RuleError, match="rule r1: 'fading' is no label of intent"):
        check_labels(read(EXAMPLE), {"intent": ["other"]})
    with pytest.raises(RuleError, match="rule r1: unknown task 'intent'"):
        check_labels(read(EXAMPLE), {"scene": ["other"]})


# ---------------------------------------------------------------- round trips

words = st.text(min_size=1, max_size=8).filter(
    lambda v: normalise(v) != "" and v.strip() != "" and all(not 0xD800 <= ord(c) < 0xE000 for c in v)
)


@st.composite
def bases(draw: st.DrawFn) -> RuleBase:
    rules = []
    for number in range(draw(st.integers(0, 4))):
        support = draw(st.integers(1, 500))
        stats = draw(st.one_of(st.just(UNMEASURED), st.just(measure(support, draw(st.integers(0, support)), 977))))
        conditions = [
            Predicate("text", "user", draw(words), draw(st.booleans())),
            Predicate("item", draw(words), draw(words)),
        ]
        if draw(st.booleans()):
            conditions.append(Predicate("near", "last_user", "fade"))
        provenance = draw(st.dictionaries(words, st.text(alphabet="a:#'\" 0é", max_size=5), max_size=2))
        note = draw(st.text(alphabet="ab: #'\"\n-", max_size=6))
        rules.append(
            Rule(
                f"r{number}", draw(words), draw(words), tuple(conditions), stats, provenance, draw(st.booleans()), note
            )
        )
    return RuleBase(tuple(rules), {"fade": FADE}, draw(st.dictionaries(words, words, max_size=2)), {"corpus": "c"})


@settings(max_examples=100, deadline=None)
@given(bases())
def test_files_read_back_as_the_same_base_with_and_without_the_compiled_form(base: RuleBase) -> None:
    files = base.to_files()
    without = {name: files[name] for name in (RULES_FILE, VECTORS_FILE)}
    for again in (RuleBase.from_files(files), RuleBase.from_files(without)):
        assert again.rules == base.rules
        assert (again.defaults, again.meta) == (base.defaults, base.meta)
        assert again.prototypes["fade"].words == FADE.words
        np.testing.assert_array_equal(again.prototypes["fade"].vector, FADE.vector)
        assert again.to_files() == files


def test_a_hand_edit_goes_before_the_compiled_form(tmp_path: Path) -> None:
    read(EXAMPLE).save_folder(tmp_path)
    file = tmp_path / RULES_FILE
    file.write_text(file.read_text(encoding="utf-8").replace("褪色", "掉色"), encoding="utf-8")
    assert RuleBase.load_path(tmp_path).rule("r1").predicates[0].value == "掉色"
    assert RuleBase.load_path(file).rule("r1").predicates[0].value == "掉色"


def test_a_damaged_compiled_form_is_passed_over_but_damaged_vectors_are_not(tmp_path: Path) -> None:
    base = read(EXAMPLE)
    base.save_folder(tmp_path)
    (tmp_path / COMPILED_FILE).write_text(json.dumps({"format_version": 1}), encoding="utf-8")
    assert RuleBase.load_path(tmp_path).rules == base.rules
    (tmp_path / VECTORS_FILE).write_bytes(b"no tensors")
    with pytest.raises(RuleError, match=r"prototypes\.safetensors beside it is damaged"):
        RuleBase.load_path(tmp_path)


def test_a_base_survives_the_artefact_store(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    base = read(EXAMPLE)
    with store.write("rulebase", "x", settings={}) as writer:
        base.save(writer)
    again = RuleBase.load(store.open("rulebase/x"), labels={"intent": ["fading", "other"]})
    assert again.rules == base.rules


def test_labels_are_checked_when_loading_the_compiled_form_too(tmp_path: Path) -> None:
    read(EXAMPLE).save_folder(tmp_path)
    with pytest.raises(RuleError, match="'fading' is no label of intent"):
        RuleBase.load_path(tmp_path, labels={"intent": ["other"]})


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="No such file"):
        RuleBase.load_path(tmp_path / "none.yaml")
    with pytest.raises(RuleError, match="name a rule base's folder"):
        RuleBase.load_path(tmp_path)
    (tmp_path / RULES_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(RuleError, match="not UTF-8"):
        RuleBase.load_path(tmp_path)


# ---------------------------------------------------------------- checks in memory


def test_bases_refuse_duplicate_ids_empty_rules_and_missing_prototypes() -> None:
    fine = Rule("r", "t", "a", (parse_predicate("user contains a"),), UNMEASURED)
    with pytest.raises(RuleError, match="rule r: the id is used twice"):
        RuleBase((fine, fine))
    with pytest.raises(RuleError, match="rule r: has no condition"):
        RuleBase((Rule("r", "t", "a", (), UNMEASURED),))
    with pytest.raises(RuleError, match=r"rule r: .*no prototype 'fade'"):
        RuleBase((Rule("r", "t", "a", (parse_predicate("last_user is near fade"),), UNMEASURED),))


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(RuleError, match="no rule 'r9'"):
        read(EXAMPLE).rule("r9")


# ---------------------------------------------------------------- pruning

A, B, C = (parse_predicate(f"user contains {word}") for word in ("a", "b", "c"))


def rule(name: str, predicates: tuple[Predicate, ...], hits: int, support: int, label: str = "x") -> Rule:
    return Rule(name, "t", label, predicates, measure(support, hits, 1000))


def test_supersets_that_are_no_better_are_dropped() -> None:
    wide = rule("wide", (A,), 8, 10)
    same = rule("same", (A, B), 8, 10)
    better = rule("better", (A, C), 20, 20)
    chained = rule("chained", (C, B, A), 9, 10)  # below `better`
    other = rule("other", (A, B), 5, 10, label="y")
    assert [r.id for r in prune_supersets([same, better, wide, chained, other])] == ["better", "wide", "other"]


def test_of_equal_conditions_the_strongest_stays() -> None:
    rules = [rule("weak", (A, B), 5, 10), rule("strong", (B, A), 9, 10)]
    assert [r.id for r in prune_supersets(rules)] == ["strong"]


@given(st.lists(st.tuples(st.sets(st.sampled_from([A, B, C]), min_size=1), st.integers(0, 9)), max_size=8))
def test_pruning_keeps_a_rule_at_least_as_good_within_each_one_dropped(drawn: list[tuple[set[Predicate], int]]) -> None:
    rules = [rule(f"r{n}", tuple(sorted(p)), hits, 9) for n, (p, hits) in enumerate(drawn)]
    kept = prune_supersets(rules)
    assert prune_supersets(kept) == kept
    for dropped in set(map(id, rules)) - set(map(id, kept)):
        gone = next(r for r in rules if id(r) == dropped)
        assert any(
            set(r.predicates) <= set(gone.predicates) and r.stats.wilson_lower >= gone.stats.wilson_lower for r in kept
        )


@pytest.mark.parametrize("text", ["[" * 60_000, "- " * 60_000, "a: " + "{b: " * 60_000])
def test_nesting_beyond_reason_is_refused(text: str):
    """libyaml's composer would recurse until the process dies."""
    with pytest.raises(RuleError, match=r"nested more than|not valid YAML"):
        RuleBase.from_yaml(text, where="rules.yaml")
