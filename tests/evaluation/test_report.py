"""The report: complete, self-contained, in any script, and discreet."""

from __future__ import annotations

import io
import re

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
from mmd.evaluation.latency import time_stages
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
    ],
)
def test_gates_are_put_into_words(gate: TaskGate, words: str):
    assert words in gate_words(gate)
