"""The report: complete, self-contained, in any script, and discreet."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from PIL import Image

from mmd.evaluation.intent import (
    JOINED,
    RULES,
    TaskResult,
    evaluate_task,
    pick_examples,
    summarise,
    to_json,
)
from mmd.evaluation.latency import time_arms, time_mllm, time_stages
from mmd.evaluation.metrics import Fraction
from mmd.evaluation.pictures import PictureEffect
from mmd.evaluation.report import ReportContent, gate_words, render
from mmd.intent.gate import NEVER, Gate, TaskGate
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Predicate, Rule, measure
from mmd.intent.types import IntentExample, Probabilities
from mmd.schema import Turn

LABELS = ("退款页面", "颜色<b>", "delivery")
SAID = ("退款多少", "which colour", "when does it come", "退款")
GOLD = ("退款页面", "颜色<b>", "delivery", "颜色<b>")


class Fixed:
    task = "scene"
    labels = LABELS

    def predict(self, examples: list[IntentExample]) -> list[Probabilities]:
        return [Probabilities(LABELS, (0.1, 0.6, 0.3)) for _ in examples]


def examples() -> list[IntentExample]:
    return [
        IntentExample(f"d{i}", "scene", gold, (Turn("user", said, ("pic",)),))
        for i, (said, gold) in enumerate(zip(SAID, GOLD, strict=True))
    ]


def model(gate: TaskGate | None = None) -> Gate:
    rule = Rule("r1", "scene", LABELS[0], (Predicate("text", "user", "退款"),), measure(20, 19, 100))
    return Gate(
        RuleBase((rule,), {}, {"scene": "delivery"}),
        {"scene": Fixed()},
        {"scene": gate or TaskGate("scene", "override", 0.5)},
    )


def result(gate: TaskGate | None = None) -> TaskResult:
    return evaluate_task(model(gate), "scene", LABELS, examples(), {"vote": TaskGate("scene", "vote", 0.0, 0.5)})


def content(found: TaskResult) -> ReportContent:
    return ReportContent(
        name="tiny",
        results=[found],
        summary=summarise([found], resamples=20, seed=0),
        working_points={"scene": 0.5},
        latency=time_stages(model(), examples(), 3),
        worked=pick_examples([found], 4),
        provenance={"gate": "gate/tiny@1"},
        resamples=20,
    )


class Told:
    """An MLLM that always says delivery, and refund where it is told a rule."""

    task = "scene"
    labels = LABELS
    needs_pictures = False

    def predict(self, examples: list[IntentExample]) -> list[Probabilities]:
        return self.predict_hinted(examples, [""] * len(examples))

    def predict_hinted(self, examples: list[IntentExample], hints: list[str]) -> list[Probabilities]:
        assert len(examples) == len(hints)
        return [Probabilities(LABELS, (0.8, 0.1, 0.1) if hint else (0.1, 0.1, 0.8)) for hint in hints]


PROMPT = TaskGate("scene", "prompt", 0.5, 0.0, 1.0)


def with_mllm() -> Gate:
    return replace(model(PROMPT), mllms={"scene": Told()})


def mllm_result() -> TaskResult:
    return evaluate_task(with_mllm(), "scene", LABELS, examples(), {"prompt": PROMPT})


def picture(ids: object) -> dict[str, bytes]:
    sink = io.BytesIO()
    Image.new("RGBA", (900, 30), "red").save(sink, "PNG")
    return {"pic": sink.getvalue()}


def test_systems_answer_as_worked_out_by_hand():
    """The rule fires on the first (right) and the last (wrong); the classifier always says colour."""
    found = result()
    assert found.systems[RULES] == [LABELS[0], "delivery", "delivery", LABELS[0]]
    assert found.systems[JOINED] == [LABELS[0], LABELS[1], LABELS[1], LABELS[0]]
    assert found.ablations["best of both, by an oracle"] == [LABELS[0], LABELS[1], LABELS[1], LABELS[1]]
    assert {arm: (s.numerator, s.denominator) for arm, s in found.arms.items()} == {
        "classifier": (1, 2),
        "rules": (1, 2),
    }


def test_tau_above_one_equals_the_classifier():
    found = result(TaskGate("scene", "override", NEVER))
    assert found.systems[JOINED] == found.systems["classifier"] == found.ablations["no rule is heard (τ > 1)"]


def test_json_agrees_with_the_results():
    found = result()
    told = to_json(summarise([found], resamples=20, seed=0), [found], {"scene": 0.5})
    task = told["tasks"]["scene"]
    assert task["rules"]["fired"] == {"numerator": 2, "denominator": 4}
    assert task["weighted_f1"][JOINED]["value"] == pytest.approx(found.confusion(JOINED).weighted_f1)
    assert sum(n for *_, n in task["confusion"]) == 4


def test_worked_examples_show_every_kind():
    assert [w.shows for w in pick_examples([result()], 4)] == [
        "rules put it right",
        "rules put it wrong",
        "wrong",
        "right, without rules",
    ]
    assert len(pick_examples([result()], 2)) == 2


def test_the_page_is_self_contained_and_escapes_labels():
    page = render(content(result()), picture)
    assert not re.search(r"""(src|href)=["'](?!data:|\#)""", page)
    assert "颜色&lt;b&gt;" in page
    assert "颜色<b>" not in page
    assert "data:image/jpeg;base64," in page
    assert "退款多少" in page


def test_without_a_picture_source_no_dialogue_is_shown():
    page = render(content(result()))
    assert "退款多少" not in page
    assert "data:image" not in page
    assert "right 19 of 20" in page


def test_equal_results_give_equal_pages():
    once, again = content(result()), content(result())
    assert render(once) == render(ReportContent(**{**vars(again), "latency": once.latency}))


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (TaskGate("t"), "not heard"),
        (TaskGate("t", "override", 0.5), "best rule answers from τ = 0.50"),
        (TaskGate("t", "verdict", 0.5), "together answer"),
        (TaskGate("t", "vote", 0.0, 0.5), "weight 0.5"),
        (TaskGate("t", "vote", 0.0, 0.5, 0.25), "pool of probe and MLLM (its share 0.25)"),
        (TaskGate("t", "prompt", 0.5, 0.0, 1.0), "told the rules"),
        (TaskGate("t", "rules_only"), "rules alone"),
        (TaskGate("t", "mllm_only"), "the MLLM answers"),
        (TaskGate("t", "prompt", NEVER, 0.0, 1.0), "the MLLM answers; rules are not heard"),
    ],
)
def test_gates_are_put_into_words(gate: TaskGate, words: str):
    assert words in gate_words(gate)


# ---------------------------------------------------------------- with an MLLM


def test_systems_with_an_mllm_answer_as_worked_out_by_hand():
    """Told the rule (first and last) the MLLM says refund, right once; else delivery, right once."""
    refund, colour, delivery = LABELS
    found = mllm_result()
    assert list(found.systems) == ["rules", "classifier", "mllm", "pooled", "rules+classifier"]
    assert found.systems["classifier"] == [colour] * 4
    assert found.systems["mllm"] == found.systems["pooled"] == [delivery] * 4
    assert found.systems[JOINED] == [refund, delivery, delivery, refund]
    assert found.ablations["the gate with the probe alone (MLLM share 0)"] == [colour] * 4
    assert found.ablations["best of rules, probe and MLLM, by an oracle"] == [refund, colour, delivery, colour]
    assert {arm: (s.numerator, s.denominator) for arm, s in found.arms.items()} == {
        "classifier": (1, 2),
        "prompt": (1, 2),
    }


def test_evaluation_and_the_gates_own_predictions_agree():
    predicted = with_mllm().predict(examples())
    assert [p.label for p in predicted] == mllm_result().systems[JOINED]
    assert predicted == mllm_result().predictions


def test_a_rule_that_is_not_worth_telling_leaves_the_answer_to_the_mllm_as_the_gate_does():
    """Right 2 of 20 times: its bound reaches τ = 0, but a hint leaves it out."""
    gate = replace(with_mllm(), tasks={"scene": replace(PROMPT, tau=0.0)})
    [rule] = gate.rulebase.rules
    gate = replace(gate, rulebase=RuleBase((replace(rule, stats=measure(20, 2, 100)),), {}, {}), _compiled={})
    predicted = gate.predict(examples())
    assert {p.arm for p in predicted} == {"classifier"}
    assert evaluate_task(gate, "scene", LABELS, examples()).predictions == predicted


def test_gains_are_told_over_each_of_the_gates_parts():
    """Weighted F1: gate (2/3·¼ refund, 0 colour, 2/3·¼ delivery) = 1/3; MLLM ¼ · 2/5; probe ½ · 2·2/(2+4) = 1/3."""
    found = mllm_result()
    summary = summarise([found], resamples=20, seed=0)
    assert found.confusion(JOINED).weighted_f1 == pytest.approx(1 / 3)
    assert summary.gains["mllm"]["scene"].value == pytest.approx(1 / 3 - 1 / 10)
    assert summary.gains["pooled"]["overall"].value == pytest.approx(1 / 3 - 1 / 10)
    assert summary.gains["classifier"]["overall"].value == pytest.approx(0.0)
    assert (summary.tests["scene"].only_first, summary.tests["scene"].only_second) == (1, 0)


def test_a_task_without_an_mllm_leaves_the_mllm_out_of_the_overall_score():
    plain = replace(result(), task="other")
    summary = summarise([mllm_result(), plain], resamples=20, seed=0)
    assert "mllm" in summary.tasks["scene"]
    assert "mllm" not in summary.overall
    assert set(summary.gains["mllm"]) == {"scene"}
    report = replace(content(mllm_result()), results=[mllm_result(), plain], summary=summary)
    assert "probe + MLLM" in render(report)


def test_the_page_shows_how_the_gate_was_chosen():
    found = mllm_result()
    arm = {"task": "scene", "arm": "prompt", "tau": 0.5, "weight": 0.0, "mllm": 1.0}
    scores = {"weighted_f1": 0.75, "cross_fitted_f1": 0.625}
    validation = {
        "curves": {"prompt": [[0.0, 0.7], [0.5, 0.75], [1.0, 0.6], [NEVER, 0.6]]},
        "examples": 40,
        "parts": 5,
        "alone": {"rules": 0.5, "probe": 0.6, "mllm": 0.55},
        "chosen": arm | scores,
        "arms": [arm | scores],
    }
    effect = PictureEffect(Fraction(9, 10), Fraction(1, 10), 0.1, 0.2)
    page = render(replace(content(found), validation={"scene": validation}, pictures={"scene": effect}))
    assert "0.625" in page
    assert "the other 4 of 5 parts" in page
    assert "Does the picture matter?" in page
    assert "the MLLM answers, the MLLM being told the rules where the best reaches τ = 0.50" in page


def test_timings_name_the_stages_that_there_are():
    assert set(time_stages(model(), examples(), 2)) == {"matching", "classifier", "gate", "total"}
    assert set(time_stages(with_mllm(), examples(), 2)) == {"matching", "classifier", "mllm", "gate", "total"}
    assert set(time_mllm(with_mllm(), examples(), 2)) == {"mllm, plain", "mllm, rules told"}
    assert time_mllm(model(), examples(), 2) == {}
    arms = {"prompt": {"scene": PROMPT}, "elsewhere": {"other": TaskGate("other")}}
    assert set(time_arms(with_mllm(), arms, examples(), 2)) == {"prompt"}
