"""What each sweep records of its trials: settings, group, metrics and curve, from what a trial hands over."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from jobs import mine_rules, sweep_conkd, sweep_gates
from jobs.experiments import text_fraction
from mmd.errors import ConfigError
from mmd.evaluation.retrieval import ALL
from mmd.intent.choice import HeldOutTask, plan_slices, slice_answers
from mmd.intent.miner import FoldRule, SearchUnit, UnitResult, result_to_json
from mmd.intent.rules import Predicate
from mmd.intent.settings import GateSettings
from mmd.intent.types import Probabilities


def test_a_search_competes_with_those_of_its_label():
    rules = tuple(
        FoldRule("refund", (Predicate("text", "any", word),), reward, 3, 4, (0, 1))
        for word, reward in (("a", 0.25), ("b", 0.75))
    )
    result = UnitResult(SearchUnit("intent", 1, 4, "refund"), rules, rollouts=30, evaluations=900)
    [trial] = mine_rules.searches_of(result_to_json(result))
    assert trial.setting == {"task": "intent", "label": "refund", "partition": 1, "fold": 4}
    assert trial.group == "intent: refund"
    assert trial.metrics == {"reward": 0.75, "rules": 2, "rollouts": 30, "evaluations": 900}
    empty = UnitResult(SearchUnit("intent", 0, 0, "size"), (), rollouts=30, evaluations=900)
    assert mine_rules.searches_of(result_to_json(empty))[0].metrics["reward"] == 0.0


def test_a_slice_has_weighted_f1_over_tau():
    probes = [Probabilities(("a", "b"), (p, 1 - p)) for p in (0.9, 0.2, 0.6, 0.1)]
    golds = ["a", "b", "b", "b"]
    found = HeldOutTask("intent", list("wxyz"), golds, [()] * 4, probes, np.array([0, 1, 2, 0]), default="b")
    settings = GateSettings(arm="override")
    for number, plan in enumerate(plan_slices(found, settings)):
        result = {"slice": ["intent", number], "answers": sweep_gates.pack(slice_answers(found, plan))}
        [trial] = sweep_gates.slices_of({"intent": found}, settings, result)
        assert trial.group == "intent"
        assert trial.setting == {"task": "intent", "arm": "override", "vote_weight": 0.0, "mllm_share": 0.0}
        # the probe answers a b a b: a 1/2 precise, whole; b whole, 2/3 found: F1 2/3 and 4/5, weighted 1:3
        assert trial.metrics["weighted_f1"] == pytest.approx((2 / 3 + 3 * 4 / 5) / 4)
        assert [tau for tau, _ in trial.curve] == list(plan.taus)


def test_a_student_is_scored_at_every_validation_and_eta_is_the_hard_gates():
    rows = [{"validation": 1.0, "f1": 0.2, "perplexity": 40.0}, {"validation": 2.0, "f1": 0.3, "perplexity": 50.0}]
    point = {"gate": "soft", "eta": 0.3, "gamma": 0.9, "temperature": 1.0}
    result = {"point": point, "score": 0.2, "kept": rows[0], "rows": rows}
    [trial] = sweep_conkd.students_of(40.0, result)
    assert trial.setting == {"gate": "soft", "gamma": 0.9, "temperature": 1.0}
    assert trial.metrics == {"score": 0.2, "validation": 1.0, "f1": 0.2, "perplexity": 40.0}
    assert trial.curve == ((1.0, 0.2), (2.0, pytest.approx(0.24)))  # 0.3, less by 40/50
    [hard] = sweep_conkd.students_of(40.0, result | {"point": point | {"gate": "hard"}})
    assert hard.setting["eta"] == 0.3


def test_a_training_has_its_share_and_its_course():
    told = {"union": {ALL: {"R@1": 0.5}, "text": {"R@1": 0.75}}}
    outcome = {
        "name": "as they come",
        "seed": 1,
        "samples": {ALL: 8, "text": 4},
        "systems": {"mdr": {"recall": told}},
        "validations": [{"epoch": 1.0, "r1": 0.25}, {"epoch": 2.0, "r1": 0.5}],
    }
    [trial] = text_fraction.shares_of({"0.1": 0.1, "as they come": None}, outcome)
    assert trial.setting == {"text_fraction": "as they come", "seed": 1}
    assert trial.metrics == {"R@1": 0.5, "R@1 text": 0.75}
    assert trial.curve == ((1.0, 0.25), (2.0, 0.5))


def test_shares_and_seeds_come_from_the_command_line_the_file_or_the_settings(tmp_path: Path):
    parser = argparse.ArgumentParser()
    text_fraction.add_options(parser)
    plain = text_fraction.settled(vars(parser.parse_args([])))
    assert (plain["seeds"], plain["fractions"]) == (3, [0.1, 0.25, 0.5, 0.75, 0.9])
    path = tmp_path / "space.yaml"
    path.write_text("retrieval: {method: dr, sweep: {fractions: [0.2], seeds: 2}}\n")
    filed = text_fraction.settled(vars(parser.parse_args(["--space", str(path)])))
    assert (filed["seeds"], filed["fractions"]) == (2, [0.2])
    assert 'retrieval.method="dr"' in filed["overrides"]
    given = text_fraction.settled(vars(parser.parse_args(["--space", str(path), "--seeds", "5", "--fractions", "0.4"])))
    assert (given["seeds"], given["fractions"]) == (5, [0.4])
    path.write_text("retrieval: {towers: {dim: 3}}\n")
    with pytest.raises(ConfigError, match=r"retrieval\.towers: no setting"):
        text_fraction.settled(vars(parser.parse_args(["--space", str(path)])))
