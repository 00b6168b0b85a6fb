"""The assistant's numbers on four turns, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmd.assistant.gather import Gathered
from mmd.assistant.plan import Plan
from mmd.assistant.policy import Policy
from mmd.assistant.turns import AskedTurn
from mmd.assistant.types import PARTS, AssistantQuery, Evidence
from mmd.evaluation.assistant import measure, systems_of
from mmd.evaluation.metrics import Confusion
from mmd.retrieval.types import Hit
from mmd.schema import Turn
from tests.assistant.parts import hit, student

ABSENT = frozenset({"intent"})


def asked(number: int, right: str, hits: tuple[Hit, ...], mode: str, pool: tuple[Hit, ...]) -> Gathered:
    response = hit(right, 1.0).response
    items = (response.title,) if response.modality == "product" else ()
    query = AssistantQuery("q", (Turn("user", "?"),))
    turn = AskedTurn(f"d{number}#1", f"d{number}", query, (response,), items, text=response.title)
    evidence = Evidence(hits=hits, mode=mode, mode_probability=1.0, absent=ABSENT)  # type: ignore[arg-type]
    return Gathered(turn, evidence, {"gen": student("so", "gen", items=()), "rec": student("the mug")}, pool)


TEXTS = (hit("text:a b", 0.9), hit("text:c", 0.8))
GATHERED = [
    asked(1, "text:a b", TEXTS, "gen", TEXTS),  # right at once
    asked(2, "text:c", TEXTS, "gen", TEXTS[1:]),  # right in its pool only
    asked(3, "product:mug", TEXTS, "rec", ()),  # the student's product
    asked(4, "product:cup", TEXTS, "rec", ()),  # the wrong product
]


def test_the_numbers_of_a_tiny_corpus():
    policy = Policy(plan=Plan(votes={"recommendation": 1.0}))
    findings = measure(policy, GATHERED, "validation", {}, resamples=20, seed=0)
    assert [system.name for system in findings.systems] == ["assistant", "retrieval alone", "student alone"]
    shares = {row.system: {name: share.value for name, share in row.shares.items()} for row in findings.rows}
    assert shares["assistant"] == pytest.approx(
        {
            "right modality": 1.0,
            "right response": 0.5,
            "right response in its pool": 0.75,
            "right item": 0.5,
            "right item shown": 0.5,
            "words F1": (1.0 + 0.0 + 2 / 3 + 0.0) / 4,
            "answered": 1.0,
        }
    )
    assert shares["retrieval alone"]["right modality"] == 0.5
    assert shares["retrieval alone"]["right item"] == 0.0
    assert shares["student alone"]["right response"] == 0.25  # its words are never the right ones
    assert findings.modalities.counts == {("text", "text"): 2, ("product", "product"): 2}


def test_a_turn_on_which_all_parts_failed_is_not_answered():
    failed = replace(GATHERED[0], evidence=Evidence(absent=frozenset(PARTS)), replies={})
    findings = measure(Policy(), [failed, GATHERED[1]], "test", {}, resamples=20, seed=0)
    assert findings.rows[0].shares["answered"].value == 0.5


def test_each_set_of_parts_is_a_system_once():
    assert list(systems_of(frozenset(PARTS))) == [
        "assistant",
        "intent alone",
        "retrieval alone",
        "student alone",
        "without intent",
        "without retrieval",
        "without student",
    ]
    assert list(systems_of(frozenset({"retrieval"}))) == ["assistant"]


def test_intents_are_reported_by_task():
    confusion = Confusion.of(["a", "b"], ["a", "a"])
    findings = measure(Policy(), GATHERED, "test", {"t": confusion}, resamples=20, seed=0)
    assert findings.headline["intent F1"] == pytest.approx(confusion.weighted_f1)
    assert findings.to_json()["intent examples"] == {"t": 2}
