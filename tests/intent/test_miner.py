"""From examples to a rule base, and who may look at what."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mmd.intent.matcher import CompiledRules
from mmd.intent.miner import (
    FoldMiner,
    SearchUnit,
    assemble,
    in_order,
    join,
    mine_rulebase,
    mine_task,
    plan_units,
    precision_at,
    result_from_json,
    result_to_json,
    run_units,
)
from mmd.intent.settings import IntentSettings, PredicateSettings, SearchSettings
from mmd.intent.types import IntentExample
from mmd.intent.vote import Verdict
from mmd.schema import Turn

WORDS = {"refund": "我要退款", "season": "夏天能穿吗", "size": "多大尺码"}
SETTINGS = IntentSettings(
    folds=3,
    predicates=PredicateSettings(max_per_label=30, max_word_chars=3),
    search=SearchSettings(rollouts=60, seeds=2, rules_per_search=8),
)


def make_examples(n: int = 30, task: str = "intent") -> list[IntentExample]:
    rng = np.random.default_rng(0)
    labels = list(WORDS)
    return [
        IntentExample(
            dialogue_id=f"{task}-{i:02d}",
            task=task,
            label=labels[i % 3],
            turns=(Turn("user", f"{WORDS[labels[i % 3]]}{'啊呢吧'[int(rng.integers(3))]}"), Turn("agent", "好的")),
        )
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def examples() -> list[IntentExample]:
    return make_examples()


def test_the_base_answers_what_it_was_mined_from(examples: list[IntentExample]):
    base = mine_rulebase(examples, SETTINGS, seed=0)
    fired = CompiledRules(base, "intent").fired_batch(examples)
    assert [rules[0].label for rules in fired] == [e.label for e in examples]
    assert all(r.stats.support >= 2 for r in base.rules)


def test_a_fixed_seed_gives_the_same_bytes_whatever_the_order_of_examples(examples: list[IntentExample]):
    assert (
        mine_rulebase(examples, SETTINGS, seed=3).to_yaml() == mine_rulebase(examples[::-1], SETTINGS, seed=3).to_yaml()
    )


def test_searches_in_any_order_give_the_same_base(examples: list[IntentExample]):
    rows = in_order(examples)
    results = list(run_units(rows, plan_units(rows, SETTINGS), SETTINGS, seed=0))
    told = [result_from_json(json.loads(json.dumps(result_to_json(r)))) for r in results]
    assert told == results
    straight, shuffled = assemble(rows, results, SETTINGS), assemble(rows, told[::-1], SETTINGS)
    assert join([straight]).to_yaml() == join([shuffled]).to_yaml()


def poisoned(example: IntentExample) -> IntentExample:
    """Return the example saying something else."""
    return replace(example, turns=(Turn("user", "毒药毒药退款"), Turn("agent", "毒药")))


def test_what_a_search_finds_does_not_depend_on_its_held_out_examples(examples: list[IntentExample]):
    rows = in_order(examples)
    unit = SearchUnit("intent", 0, 1, "refund")
    clean = FoldMiner(rows, 0, 1, SETTINGS, seed=0)
    held = set(clean.held.tolist())
    dirty = FoldMiner([poisoned(e) if i in held else e for i, e in enumerate(rows)], 0, 1, SETTINGS, seed=0)
    assert clean.candidates.predicates == dirty.candidates.predicates
    first, second = clean.run(unit), dirty.run(unit)
    assert [(r.predicates, r.reward, r.hits, r.support) for r in first.rules] == [
        (r.predicates, r.reward, r.hits, r.support) for r in second.rules
    ]
    assert all(set(r.fired) <= held for r in (*first.rules, *second.rules))
    assert [r.fired for r in first.rules] != [r.fired for r in second.rules]  # the evidence does see the poison


def test_an_example_of_the_test_split_is_never_asked_for(examples: list[IntentExample]):
    """Statistics refer to training rows only: evidence counts stay within them."""
    mined = mine_task(examples, SETTINGS, 0)
    assert set(mined.firings) == {e.dialogue_id for e in examples}
    assert all(rule.stats.support <= len(examples) for rule in mined.rules)


def test_statistics_equal_a_recount_of_held_out_firings(examples: list[IntentExample]):
    rows = in_order(examples)
    results = list(run_units(rows, plan_units(rows, SETTINGS), SETTINGS, seed=0))
    mined = assemble(rows, results, SETTINGS)
    for rule in mined.rules[:20]:
        fired = {
            row
            for result in results
            for found in result.rules
            if found.label == rule.label and found.predicates == rule.predicates
            for row in found.fired
        }
        hits = sum(rows[row].label == rule.label for row in fired)
        assert (rule.stats.support, rule.stats.hits) == (len(fired), hits)


def test_two_tasks_are_mined_into_one_base(examples: list[IntentExample]):
    other = [replace(e, task="other", dialogue_id=f"o-{e.dialogue_id}") for e in examples]
    base = mine_rulebase([*examples, *other], SETTINGS, seed=0)
    assert base.tasks == ("intent", "other")
    assert len({rule.id for rule in base.rules}) == len(base.rules)


def test_a_label_with_a_single_example_is_passed_over():
    lone = [*make_examples(12), IntentExample("z", "intent", "rare", (Turn("user", "独一无二"),))]
    assert "rare" not in {rule.label for rule in mine_rulebase(lone, SETTINGS, seed=0).rules}


def test_precision_at_coverage_looks_at_the_surest_share():
    verdicts = [Verdict("a", 3.0), Verdict("a", 2.0), Verdict("b", 1.0), None]
    assert precision_at(["a", "b", "b", "a"], verdicts, 0.25) == 1.0
    assert precision_at(["a", "b", "b", "a"], verdicts, 0.5) == 0.5
