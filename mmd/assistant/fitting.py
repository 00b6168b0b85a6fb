"""Choosing a policy's plan on dialogues that no part learnt from; counting how training answered intents.

The votes on the modality are chosen by the mean log-likelihood of the right one, which a few dozen turns decide with
less chance than the share of right answers. Then, with the right modality given: whether hits are filtered by intent
(share of right responses), who answers in words (F1 of words) and whose products are shown (share of right ones). Ties
go to the simpler plan: equal votes, no filter, retrieval's sentences, the student's products.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mmd.assistant.assistant import Assistant
from mmd.assistant.fits import Answered, Fits
from mmd.assistant.gather import Gathered, recognise
from mmd.assistant.judging import overlap
from mmd.assistant.plan import Plan
from mmd.assistant.policy import Policy
from mmd.assistant.settings import AssistantSettings, PolicySweepSettings
from mmd.assistant.turns import AskedTurn
from mmd.assistant.types import PARTS, PRODUCT, TEXT, Part

_FLOOR = 1e-3  # share that a modality is taken to have at least: one sure mistake shall not decide alone
_TOGETHER = 256

T = TypeVar("T")


def count_answers(assistant: Assistant, turns: Sequence[AskedTurn]) -> Counter[Answered]:
    """Count how training answered, the intents being those that are recognised, as they will be."""
    counts: Counter[Answered] = Counter()
    for start in range(0, len(turns), _TOGETHER):
        some = turns[start : start + _TOGETHER]
        for turn, answer in zip(some, recognise(assistant, some), strict=True):
            intents = tuple((one.task, one.label) for one in answer.predictions) if answer else ()
            given = tuple(dict.fromkeys(right.id for right in turn.right))
            text = turn.right[0].title if turn.modality == TEXT else ""
            counts[Answered(intents, turn.modality, given, text)] += 1
    return counts


@dataclass(frozen=True)
class Fitted:
    """A chosen plan, and what the choice rests on.

    Attributes:
        plan: chosen.
        turns: on which it was.
        tried: choice → candidate → score, the better the larger.
    """

    plan: Plan
    turns: int
    tried: Mapping[str, Mapping[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Return it for the artefact."""
        return {"validation_turns": self.turns, "scores": {name: dict(scores) for name, scores in self.tried.items()}}


def fit_plan(settings: AssistantSettings, fits: Fits, gathered: Sequence[Gathered]) -> Fitted:
    """Choose the plan that does best on gathered turns; the default one where there are none."""
    if not gathered:
        return Fitted(Plan(), 0, {})
    tried: dict[str, dict[str, float]] = {}

    def best(
        name: str, candidates: Iterable[Plan], score: Callable[[Policy], float], say: Callable[[Plan], str]
    ) -> Plan:
        scored = [(plan, score(Policy(settings, fits, plan))) for plan in candidates]
        tried[name] = {say(plan): value for plan, value in scored}
        return max(scored, key=lambda pair: pair[1])[0]  # the first of equals

    plan = best("votes", vote_plans(settings.sweep), lambda policy: likelihood(policy, gathered), _votes_words)
    plan = best(
        "min_seen",
        (plan.model_copy(update={"min_seen": seen}) for seen in settings.sweep.min_seen),
        lambda policy: right_responses_share(policy, gathered),
        lambda one: str(one.min_seen),
    )
    for field, options, score in (
        ("words", ("retrieval", "student"), words_score),
        ("products", ("student", "retrieval"), products_score),
    ):
        plan = best(
            field,
            [plan.model_copy(update={field: option}) for option in options],
            lambda policy, score=score: score(policy, gathered),  # type: ignore[misc]
            lambda one, field=field: str(getattr(one, field)),  # type: ignore[misc]
        )
    return Fitted(plan, len(gathered), tried)


def vote_plans(sweep: PolicySweepSettings) -> Iterator[Plan]:
    """Yield all ways to share out the votes, equal ones first, with each temperature."""
    steps = round(1 / sweep.step)
    shares = [
        tuple(count / steps for count in counts)
        for counts in itertools.product(range(steps + 1), repeat=len(PARTS))
        if sum(counts) == steps
    ]
    equal = tuple(1 / len(PARTS) for _ in PARTS)
    for weights in (equal, *shares):
        for temperature in sweep.temperatures:
            votes: dict[Part, float] = dict(zip(PARTS, weights, strict=True))
            yield Plan(votes=votes, temperature=temperature)


def _votes_words(plan: Plan) -> str:
    return ", ".join(f"{part} {plan.votes[part]:.2f}" for part in PARTS) + f", temperature {plan.temperature:g}"


# ---------------------------------------------------------------- scores, the better the larger


def likelihood(policy: Policy, gathered: Sequence[Gathered]) -> float:
    """Return the mean log share that the vote gives to the right modality."""
    total = 0.0
    for found in gathered:
        shares = policy.vote(found.evidence, policy.asked(found.evidence)).shares
        total += math.log(max(shares.get(found.turn.modality, 0.0), _FLOOR))
    return total / len(gathered)


def right_responses_share(policy: Policy, gathered: Sequence[Gathered]) -> float:
    """Return the share of turns whose first hit is right, the modality being given."""
    right = 0
    for found in gathered:
        asked = policy.asked(found.evidence)
        intent = None if asked is None else (asked.task, asked.label)
        hits, _ = policy.candidates(found.evidence, found.turn.modality, intent)
        right += bool(hits) and hits[0].response.id in {response.id for response in found.turn.right}
    return right / len(gathered)


def words_score(policy: Policy, gathered: Sequence[Gathered]) -> float:
    """Return the mean F1 of words of the turns that are answered in words."""
    scores = []
    for found in (one for one in gathered if one.turn.modality == TEXT):
        if policy.plan.words == "student":
            reply = found.replies.get("gen") or found.replies.get(None)
            scores.append(overlap(reply.text, found.turn.text) if reply else 0.0)
            continue
        asked = policy.asked(found.evidence)
        hits, _ = policy.candidates(found.evidence, TEXT, None if asked is None else (asked.task, asked.label))
        scores.append(overlap(hits[0].response.title, found.turn.text) if hits else 0.0)
    return sum(scores) / len(scores) if scores else 0.0


def products_score(policy: Policy, gathered: Sequence[Gathered]) -> float:
    """Return the share of the turns answered by products whose first product is right."""
    scores = []
    for found in (one for one in gathered if one.turn.modality == PRODUCT):
        forced = found.evidence
        asked = policy.asked(forced)
        if policy.plan.products == "student":
            reply = found.replies.get("rec") or found.replies.get(None)
            first = policy.recommended_items(reply)[:1] if reply else []
            scores.append(any(part.item_id in found.turn.items for part in first))
            continue
        hits, _ = policy.candidates(forced, PRODUCT, None if asked is None else (asked.task, asked.label))
        scores.append(bool(hits) and hits[0].response.id in {response.id for response in found.turn.right})
    return sum(scores) / len(scores) if scores else 0.0
