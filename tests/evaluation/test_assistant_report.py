"""The assistant's page: its numbers are the findings', its words are escaped, and may be kept out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mmd.assistant.plan import Plan
from mmd.assistant.policy import Policy
from mmd.assistant.types import AssistantQuery
from mmd.evaluation.assistant import measure
from mmd.evaluation.assistant_report import AssistantContent, outcome_of, pick_examples, render_assistant
from mmd.evaluation.metrics import Confusion
from mmd.schema import Turn
from tests.evaluation.test_assistant_systems import GATHERED

HOSTILE = "<script>alert('hi')</script>"


@pytest.fixture
def content() -> Callable[..., AssistantContent]:
    def make(**changes: Any) -> AssistantContent:
        query = AssistantQuery("q", (Turn("user", HOSTILE), Turn("agent", "Yes.", ("p",), ("mug",))))
        gathered = [replace(found, turn=replace(found.turn, query=query)) for found in GATHERED]
        policy = Policy(plan=Plan(votes={"recommendation": 1.0}))
        intents = {"dialogue_intent": Confusion.of(["a", "b"], ["a", "a"])}
        findings = measure(policy, gathered, changes.pop("split", "test"), intents, resamples=20, seed=0)
        told: dict[str, Any] = {
            "name": "tiny",
            "chosen": {"words by": "retrieval"},
            "provenance": {"policy": "policy/tiny@1"},
            "resamples": 20,
            "examples": 4,
            "show": True,
        }
        return AssistantContent(findings=findings, turns=[found.turn for found in gathered], **{**told, **changes})

    return make


def test_every_system_has_its_shares_and_the_best_is_marked(content: Callable[..., AssistantContent]):
    """By hand: the assistant's modality is right of all four, retrieval's alone of two."""
    page = render_assistant(content(), 0)
    rows = re.findall(r"<tr(?: class=\"whole\")?><td>([^<]+)</td><td>(?:<b>)?([\d.]+)", page)
    assert rows[:3] == [("assistant", "1.000"), ("retrieval alone", "0.500"), ("student alone", "1.000")]
    assert '<tr class="whole"><td>assistant</td><td><b>1.000</b>' in page
    assert re.search(r"<tr><td>product</td><td class=\"hit\">2</td><td>0</td></tr>", page)


def test_words_of_dialogues_are_escaped_and_pictures_and_products_counted(content: Callable[..., AssistantContent]):
    page = render_assistant(content(), 0)
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert "[1 picture]" in page
    assert "[1 product]" in page


def test_a_private_corpus_keeps_its_words(content: Callable[..., AssistantContent]):
    page = render_assistant(content(show=False), 0)
    assert "alert" not in page
    assert "evaluation.show_dialogues" in page


def test_a_reader_is_told_on_what_it_was_chosen(content: Callable[..., AssistantContent]):
    assert "Nothing was fitted or chosen on them" in render_assistant(content(), 0)
    assert "the policy was chosen on it" in render_assistant(content(split="validation"), 0)


def test_examples_are_of_every_outcome_in_turn(content: Callable[..., AssistantContent]):
    told = content().findings.systems[0].told
    places = pick_examples(told, 2, seed=0)
    assert {outcome_of(told[place]) for place in places} == {"right", "right modality"}
    assert pick_examples(told, 9, seed=0) != []
    assert pick_examples((), 3, seed=0) == []
