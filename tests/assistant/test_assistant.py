"""A turn in process: the parts asked one by one give the same, and a failing one degrades the reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from mmd.assistant.assistant import Assistant, evidence_of, speaks_otherwise
from mmd.assistant.plan import Plan
from mmd.assistant.policy import Policy
from mmd.assistant.types import AssistantQuery
from mmd.errors import MmdError, ModelError, RequestError, UnavailableError
from mmd.intent.engine import IntentAnswer, IntentQuery
from mmd.recommend.engine import RecommendAnswer
from mmd.recommend.online import PreparedRecommendation, RecommendQuery
from mmd.recommend.types import Context
from mmd.retrieval.engine import RetrievalAnswer
from mmd.retrieval.online import PreparedRetrieval
from mmd.retrieval.types import Query
from mmd.schema import Image, Turn
from tests.assistant.parts import FULL_HITS, prediction, student

QUERY = AssistantQuery("q", (Turn("user", "what size?"),))
INTENT = IntentAnswer((prediction(),), {}, {}, (), {"decide": 1.0}, {"gate": "gate/x@1"})
FOUND = RetrievalAnswer(FULL_HITS, None, None, {"search": 2.0})


class Recogniser:
    def answer(self, queries: Sequence[IntentQuery]) -> list[IntentAnswer]:
        return [INTENT for _ in queries]


class Finder:
    degraded: tuple[str, ...] = ()
    artifacts: Mapping[str, str] = {"index": "index/x@1"}

    def __init__(self, error: MmdError | None = None) -> None:
        self.error = error
        self.asked: list[bool] = []

    def prepare(self, query: Query, images: Mapping[str, Image]) -> PreparedRetrieval:  # noqa: ARG002 (the protocol's)
        return PreparedRetrieval(query, {}, (), 0.0)

    def rank(
        self, prepared: Sequence[PreparedRetrieval], k: int, modality: str | None = None, *, each: bool = False
    ) -> list[RetrievalAnswer]:
        assert (k, modality) == (10, None)
        if self.error:
            raise self.error
        self.asked.append(each)
        return [FOUND for _ in prepared]


class Student:
    degraded: tuple[str, ...] = ()
    artifacts: Mapping[str, str] = {"student": "student/x@1"}

    def __init__(self) -> None:
        self.modes: list[str | None] = []

    def prepare(self, query: RecommendQuery) -> PreparedRecommendation:
        return PreparedRecommendation(query, Context((), (), ()), 0.0, ())

    def answer(self, prepared: Sequence[PreparedRecommendation]) -> list[RecommendAnswer]:
        self.modes += [entry.query.mode for entry in prepared]
        return [student(mode=entry.query.mode or "rec", text=f"in {entry.query.mode} mug") for entry in prepared]


def test_a_turn_is_its_parts_asked_one_by_one():
    policy, finder, speaker = Policy(), Finder(), Student()
    reply = Assistant(policy, intent=Recogniser(), retrieval=finder, recommendation=speaker).answer(QUERY)
    evidence = evidence_of(INTENT, FOUND, student(text="in None mug"), frozenset())
    choice = policy.choose(evidence)
    assert reply.choice == choice
    assert speaks_otherwise(choice, evidence)
    assert reply.parts == policy.compose(choice, evidence, student(mode="gen", text="in gen mug"))
    assert (finder.asked, speaker.modes) == ([True], [None, "gen"])
    assert reply.artifacts == {"gate": "gate/x@1", "index": "index/x@1", "student": "student/x@1"}
    assert {"intent.decide", "retrieval.search", "policy", "recommendation.again"} <= set(reply.timings_ms)
    assert reply.degraded == ()


def test_a_student_in_the_wanted_mode_is_asked_once():
    speaker = Student()
    policy = Policy(plan=Plan(votes={"recommendation": 1.0}))
    Assistant(policy, recommendation=speaker, retrieval=Finder()).answer(QUERY)
    assert speaker.modes == [None]


def test_a_part_that_fails_is_named_and_the_turn_goes_on():
    assistant = Assistant(
        Policy(), intent=Recogniser(), retrieval=Finder(ModelError("texts cannot be read")), recommendation=Student()
    )
    reply = assistant.answer(QUERY)
    assert reply.degraded == ("retrieval: texts cannot be read",)
    assert reply.choice.modality == "product"
    assert reply.hits == ()
    assert reply.parts


def test_parts_that_are_not_there_say_why():
    reply = Assistant(Policy(), intent=Recogniser(), missing={"retrieval": "no index"}).answer(QUERY)
    assert reply.degraded == ("retrieval: no index", "recommendation: not there")
    assert reply.choice.speaker == "intent"


def test_no_part_at_all_is_an_error():
    with pytest.raises(UnavailableError):
        Assistant(Policy()).answer(QUERY)


def test_a_dialogue_that_says_nothing_is_refused():
    with pytest.raises(RequestError, match="nothing to answer"):
        Assistant(Policy(), intent=Recogniser()).answer(AssistantQuery("q", (Turn("user", " "),)))


def test_a_reply_of_pictures_alone_reads_as_its_titles():
    reply = Assistant(Policy(), retrieval=Finder()).answer(QUERY)
    assert reply.text == "chart"
