"""Every branch of the policy by hand, with each set of parts absent; and for any evidence a reply whose parts exist."""

from __future__ import annotations

from itertools import chain, combinations
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.assistant.fits import Answered, Fits
from mmd.assistant.plan import Plan
from mmd.assistant.policy import Policy, says_something
from mmd.assistant.reasons import is_sorry
from mmd.assistant.settings import AssistantSettings
from mmd.assistant.types import PARTS, AssistantQuery, Evidence, Part
from mmd.errors import UnavailableError
from mmd.evaluation.assistant import without
from mmd.recommend.engine import RecommendAnswer
from mmd.schema import Turn
from tests.assistant.parts import FULL_HITS, TASK, hit, prediction, student

SIZE = (TASK, "ask_size")
FITS = Fits.of(
    {
        Answered((SIZE,), "image", ("image:chart",)): 9,
        Answered((SIZE,), "text", ("text:usual",), "see the chart"): 1,
        Answered(((TASK, "recommend_one"),), "product", ("product:mug",)): 10,
    }
)

BY_INTENT: dict[Part, float] = {"intent": 1.0}


def full(label: str = "ask_size") -> Evidence:
    return Evidence((prediction(label),), FULL_HITS, None, "gen", 0.9)


def test_the_vote_is_the_weighted_mean():
    """Three modalities. Intent with confidence .8; base: image .45, product .5, text .05."""
    policy = Policy(fits=FITS, plan=Plan(votes={"intent": 3.0, "retrieval": 0.0, "recommendation": 1.0}))
    verdict = policy.vote(full(), prediction())
    known = (9 + 0.45) / 11
    assert verdict.votes["intent"]["image"] == pytest.approx(0.8 * known + 0.2 * 0.45)
    assert verdict.votes["recommendation"]["product"] == pytest.approx(0.1)
    assert verdict.votes["recommendation"]["image"] == pytest.approx(0.9 * 0.45 / 0.5)
    for modality, share in verdict.shares.items():
        mean = 0.75 * verdict.votes["intent"][modality] + 0.25 * verdict.votes["recommendation"][modality]
        assert share == pytest.approx(mean)
    assert sum(verdict.shares.values()) == pytest.approx(1.0)


def test_a_picture_is_sent_with_words_of_the_student():
    policy = Policy(fits=FITS)
    evidence = full()
    choice = policy.choose(evidence)
    assert (choice.modality, choice.speaker, choice.mode, choice.wants_items) == ("image", "student", "gen", False)
    parts = policy.compose(choice, evidence, student("here it is", "gen", items=()))
    assert [(part.kind, part.text, part.image_id) for part in parts] == [
        ("text", "here it is", None),
        ("image", "chart", "picture-chart"),
    ]


def test_products_are_the_students_with_its_words():
    policy = Policy(fits=FITS, plan=Plan(votes=BY_INTENT))
    evidence = full("recommend_one")
    choice = policy.choose(evidence)
    assert (choice.modality, choice.speaker, choice.mode, choice.wants_items) == ("product", "student", "rec", True)
    parts = policy.compose(choice, evidence, student(items=("mug", "cup")))
    assert [(part.kind, part.item_id) for part in parts] == [("text", None), ("item", "mug")]


def test_where_the_student_names_nothing_its_likeliest_are_shown():
    policy = Policy(AssistantSettings(cards=2), FITS, Plan(votes=BY_INTENT))
    evidence = full("recommend_one")
    silent = student("let me see", "gen", items=("a", "b", "c"))
    parts = policy.compose(policy.choose(evidence), evidence, silent)
    assert [part.item_id for part in parts] == [None, "a", "b"]


def test_products_can_be_retrievals():
    policy = Policy(fits=FITS, plan=Plan(votes=BY_INTENT, products="retrieval"))
    evidence = full("recommend_one")
    choice = policy.choose(evidence)
    assert (choice.speaker, choice.wants_items, choice.wants_student) == ("retrieval", False, False)
    parts = policy.compose(choice, evidence)
    assert [(part.kind, part.item_id, part.response_id) for part in parts] == [("item", "mug", "product:mug")]


@pytest.mark.parametrize(("words", "said"), [("retrieval", "hello"), ("student", "my own")])
def test_words_are_found_or_made(words: str, said: str):
    policy = Policy(plan=Plan.model_validate({"words": words}))
    evidence = Evidence(hits=(hit("text:hello", 0.7),), mode="gen", mode_probability=1.0)
    choice = policy.choose(evidence)
    assert [part.text for part in policy.compose(choice, evidence, student("my own", "gen", items=()))] == [said]


@pytest.mark.parametrize("said", ["", " ", "...", ". . , !", "？！……"])
def test_where_the_student_has_no_words_others_speak(said: str):
    policy = Policy(plan=Plan.model_validate({"words": "student"}))
    evidence = Evidence(hits=(hit("text:hello", 0.7),), mode="gen", mode_probability=1.0)
    choice = policy.choose(evidence)
    assert choice.speaker == "student"
    assert [part.text for part in policy.compose(choice, evidence, student(said, "gen", items=()))] == ["hello"]


@pytest.mark.parametrize(
    ("text", "something"), [("ok.", True), ("好", True), ("2", True), ("😊", True), ("…!", False), ("\ufffd", False)]
)
def test_letters_numbers_and_picture_signs_say_something(text: str, something: bool):  # noqa: FBT001
    assert says_something(text) is something


@pytest.mark.parametrize(
    ("language", "said"), [("en", "text:hello"), ("zh", "text:在的"), (None, "text:在的")], ids=["en", "zh", "any"]
)
def test_words_are_in_the_customers_language_where_there_are_such(language: Literal["en", "zh"] | None, said: str):
    hits = (hit("text:在的", 0.9), hit("text:hello", 0.7), hit("product:杯", 0.6))
    evidence = Evidence(hits=hits, language=language)
    found, _ = Policy().candidates(evidence, "text", None)
    assert found[0].response.id == said
    assert [one.response.id for one in Policy().candidates(evidence, "product", None)[0]] == ["product:杯"]


def test_words_in_another_language_are_better_than_none():
    evidence = Evidence(hits=(hit("text:在的", 0.9),), language="en")
    assert [one.response.id for one in Policy().candidates(evidence, "text", None)[0]] == ["text:在的"]


def test_the_customers_language_is_that_of_its_last_words():
    turns = (Turn("user", "hello"), Turn("agent", "在的"), Turn("user", "有货吗"), Turn("user", " ", ("picture",)))
    assert AssistantQuery("q", turns).spoken == "zh"
    assert AssistantQuery("q", turns[:2]).spoken == "en"
    assert AssistantQuery("q", turns, language="en").spoken == "en"
    assert AssistantQuery("q", (Turn("user", "", ("picture",)),)).spoken is None


def test_hits_that_never_answered_the_intent_are_passed_over():
    policy = Policy(fits=FITS, plan=Plan(min_seen=5))
    hits = (hit("product:mug", 0.9), hit("product:new", 0.8))
    found, fitting = policy.candidates(Evidence(hits=hits), "product", SIZE)
    assert ([one.response.id for one in found], fitting) == (["product:new"], 1)
    found, fitting = policy.candidates(Evidence(hits=hits[:1]), "product", SIZE)
    assert ([one.response.id for one in found], fitting) == (["product:mug"], 0)  # better than nothing


def test_a_predicted_modality_goes_before_scores():
    evidence = Evidence(hits=(hit("text:a", 0.9), hit("image:b", 0.1)), predicted_modality={"text": 0.2, "image": 0.8})
    choice = Policy().choose(Evidence(evidence.intents, evidence.hits, evidence.predicted_modality, absent=GONE))
    assert choice.modality == "image"


GONE: frozenset[Part] = frozenset({"intent", "recommendation"})


def test_a_student_without_modes_has_no_vote_and_is_given_none():
    policy = Policy()
    evidence = Evidence(hits=(hit("image:b", 0.9),))
    choice = policy.choose(evidence)
    assert set(policy.vote(evidence, None).votes) == {"retrieval"}
    assert choice.mode is None


def test_parts_without_weight_vote_alike_when_they_are_alone():
    policy = Policy(fits=FITS, plan=Plan(votes=BY_INTENT))
    alone = without(full(), frozenset({"intent", "recommendation"}))
    assert policy.choose(alone).modality == "image"


def test_a_mode_in_which_the_student_would_not_speak_is_asked_for():
    evidence = full("recommend_one")
    assert evidence.mode == "gen"
    assert Policy(fits=FITS, plan=Plan(votes=BY_INTENT)).choose(evidence).mode == "rec"


# ---------------------------------------------------------------- absent parts


def test_intent_alone_gives_its_usual_answer():
    policy = Policy(fits=FITS)
    evidence = Evidence((prediction(),), absent=frozenset({"retrieval", "recommendation"}))
    choice = policy.choose(evidence)
    assert (choice.modality, choice.speaker) == ("text", "intent")
    assert [part.text for part in policy.compose(choice, evidence)] == ["see the chart"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_intent_alone_without_a_usual_answer_says_so(language: str):
    policy = Policy()
    evidence = Evidence((prediction(),), absent=frozenset({"retrieval", "recommendation"}))
    (part,) = policy.compose(policy.choose(evidence), evidence, language=language)
    assert is_sorry(part.text)
    assert part.text.isascii() == (language == "en")


def test_retrieval_alone_shows_its_best():
    policy = Policy()
    evidence = Evidence(hits=FULL_HITS, absent=frozenset({"intent", "recommendation"}))
    choice = policy.choose(evidence)
    assert (choice.modality, choice.speaker) == ("image", "retrieval")
    assert [part.response_id for part in policy.compose(choice, evidence)] == ["image:chart"]


@pytest.mark.parametrize(
    ("mode", "modality", "kinds"), [("rec", "product", ["text", "item"]), ("gen", "text", ["text"])]
)
def test_the_student_alone_answers_in_its_mode(mode: str, modality: str, kinds: list[str]):
    policy = Policy()
    answer = student(mode=mode)  # type: ignore[arg-type]
    evidence = Evidence(mode=answer.mode, mode_probability=0.9, absent=frozenset({"intent", "retrieval"}))
    choice = policy.choose(evidence)
    assert (choice.modality, choice.speaker, choice.mode) == (modality, "student", mode)
    assert [part.kind for part in policy.compose(choice, evidence, answer)] == kinds


def test_without_any_part_there_is_no_reply():
    with pytest.raises(UnavailableError, match="neither intent, retrieval nor recommendation"):
        Policy().choose(Evidence(absent=frozenset(PARTS)))


SUBSETS = [frozenset(some) for some in chain.from_iterable(combinations(PARTS, n) for n in range(len(PARTS)))]


@pytest.mark.parametrize("absent", SUBSETS, ids=lambda absent: "-".join(sorted(absent)) or "none")
@pytest.mark.parametrize("label", ["ask_size", "recommend_one", "never seen"])
def test_every_step_has_a_reason_in_both_languages(absent: frozenset[Part], label: str):
    policy = Policy(fits=FITS)
    choice = policy.choose(without(full(label), absent))
    assert [decision.step for decision in choice.decisions] == ["intent", "modality", "speaker", "products"]
    for decision in choice.decisions:
        assert set(decision.reason) == {"en", "zh"}
        assert decision.reason["en"].endswith(".")
        assert decision.reason["zh"].endswith("。")
    if "recommendation" in absent:
        assert not choice.wants_student
    if "retrieval" in absent:
        assert not choice.hits


KEYS = ["text:a", "text:b", "image:c", "product:d", "product:mug", "video:e"]


@given(
    labels=st.lists(st.sampled_from(["ask_size", "recommend_one", "x"]), max_size=2),
    confidence=st.floats(0, 1),
    scores=st.dictionaries(st.sampled_from(KEYS), st.floats(-1, 1), max_size=6),
    predicted=st.none() | st.fixed_dictionaries({"text": st.floats(0, 1), "image": st.floats(0, 1)}),
    mode=st.none() | st.tuples(st.sampled_from(["rec", "gen"]), st.floats(0.5, 1)),
    absent=st.sampled_from(SUBSETS),
    came=st.booleans(),
    plan=st.builds(
        Plan,
        min_seen=st.integers(0, 5),
        words=st.sampled_from(["retrieval", "student"]),
        products=st.sampled_from(["retrieval", "student"]),
        votes=st.fixed_dictionaries({part: st.floats(0, 1) for part in PARTS}),
    ),
)
def test_any_evidence_gives_a_choice_whose_parts_exist(
    labels: list[str],
    confidence: float,
    scores: dict[str, float],
    predicted: dict[str, float] | None,
    mode: tuple[str, float] | None,
    absent: frozenset[Part],
    came: bool,  # noqa: FBT001 (a drawn value)
    plan: Plan,
):
    hits = tuple(hit(key, score) for key, score in sorted(scores.items(), key=lambda pair: -pair[1]))
    drawn, sure = mode or (None, None)
    evidence = without(
        Evidence(tuple(prediction(one, confidence) for one in labels), hits, predicted, drawn, sure),  # type: ignore[arg-type]
        absent,
    )
    policy = Policy(fits=FITS, plan=plan)
    choice = policy.choose(evidence)
    assert choice == policy.choose(evidence)
    assert set(choice.hits) <= set(evidence.hits)
    assert choice.wants_student <= evidence.has("recommendation")
    modalities = {"text", "product"} | {found.response.modality for found in evidence.hits}
    assert choice.modality in modalities
    answer: RecommendAnswer | None = student(items=("d", "mug")) if came and choice.wants_student else None
    parts = policy.compose(choice, evidence, answer)
    assert parts
    ids = {found.response.id for found in evidence.hits}
    known = {"d", "mug"}
    for part in parts:
        assert part.response_id is None or part.response_id in ids
        assert part.kind != "item" or part.item_id in known
