"""Held-out firings on disk: with their words, each distinct rule once; files of earlier versions still load."""

from __future__ import annotations

from pathlib import Path

from mmd.artifacts import ArtifactStore
from mmd.intent.firings import HELD_OUT_FILE, HeldOutFiring, HeldOutRule, held_out_firings, load_firings, save_firings
from mmd.intent.miner import mine_task
from mmd.intent.rules import Predicate, measure
from mmd.intent.settings import IntentSettings, PredicateSettings, SearchSettings
from mmd.intent.types import IntentExample
from mmd.schema import Turn


def test_firings_keep_their_rules_words():
    predicates = (Predicate("text", "user", "x"),)
    found = [HeldOutRule(0, "a", predicates, (0,), "it rains"), HeldOutRule(1, "a", predicates, (1, 2), "it rains")]
    rows = held_out_firings(["a", "a", "b"], found, min_precision=0.0, min_support=1)
    assert [f.words for f in rows[0]] == ["it rains"]


def test_a_distinct_rule_is_stored_once(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    often = HeldOutFiring("a", measure(4, 3, 100), "it rains")
    rows = {f"d{i}": (often,) for i in range(20)} | {"other": (HeldOutFiring("b", measure(4, 3, 100)), often)}
    with store.write("rulebase", "tiny", settings={}) as writer:
        save_firings(writer, {"t": rows}, {"t": 100})
    artifact = store.open("rulebase/tiny")
    content = artifact.read_json(HELD_OUT_FILE)["t"]
    assert content["rules"] == [["a", 3, 4, 1.0, "it rains"], ["b", 3, 4, 1.0, ""]]
    assert content["fired"]["other"] == [1, 0]
    assert load_firings(artifact, "t") == rows


def test_a_file_without_words_still_loads(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    with store.write("rulebase", "tiny", settings={}) as writer:
        writer.write_json(HELD_OUT_FILE, {"t": {"examples": 100, "fired": {"d1": [["a", 3, 4, 0.5]], "d2": []}}})
    loaded = load_firings(store.open("rulebase/tiny"), "t")
    assert loaded == {"d1": (HeldOutFiring("a", measure(4, 3, 100)),), "d2": ()}
    assert loaded["d1"][0].stats.weight == 0.5


def test_mining_puts_what_it_found_into_words():
    words = {"refund": "我要退款", "season": "夏天能穿吗"}
    examples = [
        IntentExample(f"d{i:02d}", "t", label, (Turn("user", f"{words[label]}{i % 3}"),))
        for i, label in enumerate(list(words) * 12)
    ]
    settings = IntentSettings(
        folds=2, predicates=PredicateSettings(max_per_label=10), search=SearchSettings(rollouts=20, seeds=1)
    )
    mined = mine_task(examples, settings, seed=0)
    fired = [firing for firings in mined.firings.values() for firing in firings]
    assert fired
    assert all("message contains “" in f.words or "message does not contain “" in f.words for f in fired)
    assert not any("→" in f.words for f in fired)
