"""Choosing a plan on gathered turns, by hand; the artefact gives the same policy back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mmd.artifacts import ArtifactStore
from mmd.assistant.fits import Answered, Fits
from mmd.assistant.fitting import fit_plan, likelihood, right_responses_share, vote_plans
from mmd.assistant.gather import Gathered, first_of_each
from mmd.assistant.loading import load_policy, open_policy, save_policy
from mmd.assistant.plan import Plan
from mmd.assistant.policy import Policy
from mmd.assistant.settings import AssistantSettings, PolicySweepSettings
from mmd.assistant.turns import AskedTurn
from mmd.assistant.types import AssistantQuery, Evidence
from mmd.errors import ArtifactError
from mmd.retrieval.types import Hit
from mmd.schema import Turn
from tests.assistant.parts import FULL_HITS, TASK, hit, prediction, student

SIZE = (TASK, "ask_size")
COUNTS = {
    Answered((SIZE,), "image", ("image:chart",)): 9,
    Answered(((TASK, "refund"),), "text", ("text:hello",), "hello"): 9,
    Answered((), "product", ("product:mug",)): 2,
}


def asked(right: str, hits: tuple[Hit, ...] = FULL_HITS, label: str = "ask_size") -> Gathered:
    response = hit(right, 1.0).response
    items = (response.title,) if response.modality == "product" else ()
    turn = AskedTurn("d#1", "d", AssistantQuery("d#1", (Turn("user", "?"),)), (response,), items, text=response.title)
    evidence = Evidence((prediction(label, 1.0),), hits, None, "gen", 0.9)
    return Gathered(turn, evidence, {"gen": student("bye", "gen", items=()), "rec": student()})


def test_all_ways_to_share_out_the_votes_are_tried():
    """Steps of a half: three parts alone, three pairs, and equal votes first."""
    plans = list(vote_plans(PolicySweepSettings(step=0.5, temperatures=(0.1,))))
    assert len(plans) == 7
    assert set(plans[0].votes.values()) == {1 / 3}
    assert all(sum(plan.votes.values()) == pytest.approx(1.0) for plan in plans)


def test_likelihood_is_the_mean_log_share_of_the_right_modality():
    policy = Policy(plan=Plan(votes={"recommendation": 1.0}), fits=Fits.of(COUNTS))
    expected = (math.log(0.1) + math.log(0.9 * 0.5)) / 2
    assert likelihood(policy, [asked("product:mug"), asked("text:hello")]) == pytest.approx(expected)


def test_the_part_that_knows_gets_the_votes():
    """Retrieval's best is always a picture, the student never recommends; only the intent tells text from picture."""
    gathered = [asked("image:chart"), asked("text:hello", label="refund")] * 3
    fitted = fit_plan(AssistantSettings(), Fits.of(COUNTS), gathered)
    assert fitted.plan.votes["intent"] == 1.0
    assert fitted.turns == 6


def test_a_filter_is_chosen_where_it_helps_and_else_left_off():
    fits = Fits.of(COUNTS)
    misled = (hit("text:hello", 0.9), hit("text:bye", 0.8))
    assert fit_plan(AssistantSettings(), fits, [asked("text:bye", misled)]).plan.min_seen == 1
    assert fit_plan(AssistantSettings(), fits, [asked("text:hello", misled[:1])]).plan.min_seen == 0


def test_who_answers_in_words_is_who_comes_closer():
    hits = (hit("text:bye now friend", 0.9),)
    assert fit_plan(AssistantSettings(), Fits(), [asked("text:bye", hits)]).plan.words == "student"
    assert fit_plan(AssistantSettings(), Fits(), [asked("text:bye now friend", hits)]).plan.words == "retrieval"


def test_whose_products_are_shown_is_who_is_right_more_often():
    other = (hit("product:cup", 0.9),)
    assert fit_plan(AssistantSettings(), Fits(), [asked("product:cup", other)]).plan.products == "retrieval"
    assert fit_plan(AssistantSettings(), Fits(), [asked("product:mug", other)]).plan.products == "student"


def test_without_turns_the_plan_is_the_default_one():
    assert fit_plan(AssistantSettings(), Fits(), []).plan == Plan()


def test_right_responses_are_counted_within_the_right_modality():
    policy = Policy()
    found = [asked("text:hello"), asked("text:bye"), asked("image:chart"), asked("image:other")]
    assert right_responses_share(policy, found) == 0.5


def test_the_first_of_each_modality_keep_their_order():
    assert [one.response.id for one in first_of_each(FULL_HITS, 1)] == ["image:chart", "text:hello", "product:mug"]


# ---------------------------------------------------------------- the artefact


def test_a_saved_policy_comes_back(tmp_path: Path):
    store, plan = ArtifactStore(str(tmp_path)), Plan(votes={"intent": 1.0}, min_seen=2, words="student")
    with store.write("policy", "x", settings={}) as writer:
        save_policy(writer, plan, COUNTS, {})
    policy, problems, artifacts = open_policy(store, "x")
    assert (policy.plan, policy.fits, problems) == (plan, Fits.of(COUNTS), ())
    assert artifacts["policy"].startswith("policy/x@")


def test_without_an_artefact_the_parts_have_equal_votes(tmp_path: Path):
    policy, problems, artifacts = open_policy(ArtifactStore(str(tmp_path)), "x")
    assert (policy.plan, policy.fits, artifacts) == (Plan(), Fits(), {})
    assert "none was fitted" in problems[0]


def test_a_wanted_version_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(ArtifactError):
        open_policy(ArtifactStore(str(tmp_path)), "x", "policy/x@123")


def test_another_kind_is_refused(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    with store.write("report", "x", settings={}) as writer:
        writer.write_json("a.json", {})
    with pytest.raises(ArtifactError, match="fit_policy"):
        load_policy(store.open("report/x"))
