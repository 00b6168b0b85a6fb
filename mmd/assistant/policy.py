"""The policy: what a turn is answered with, each step with its reason in words.

Four steps. *Intent*: what the user wants. *Modality*: each part that is there votes with a distribution over the
modalities, intent by how training answered it, retrieval by its best scores, the student by its mode; the weighted mean
of the votes decides. *Speaker*: who says the words. *Products*: whose are shown. Everything is decided before the
student has said a word: of it only the mode is needed, so that a streamed reply can begin at once.

The policy has no model of its own, and works with any of its parts missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from unicodedata import category

from mmd.assistant.fits import Fits, Intent
from mmd.assistant.plan import Plan
from mmd.assistant.reasons import (
    intent_reason,
    modality_reason,
    no_intent_reason,
    products_reason,
    sorry,
    speaker_reason,
)
from mmd.assistant.settings import AssistantSettings
from mmd.assistant.types import (
    PARTS,
    PRODUCT,
    TEXT,
    Choice,
    Decision,
    Evidence,
    Part,
    ProductSource,
    ReplyPart,
    Speaker,
)
from mmd.errors import UnavailableError
from mmd.intent.types import IntentPrediction
from mmd.language import written_in
from mmd.recommend.engine import RecommendAnswer
from mmd.recommend.types import Mode
from mmd.retrieval.types import Hit

Shares = Mapping[str, float]
"""Modality → share; they sum to 1."""


@dataclass(frozen=True)
class Verdict:
    """The vote on the modality.

    Attributes:
        modality: the winner.
        shares: the weighted mean of the votes.
        votes: part → its vote, of parts that had one.
    """

    modality: str
    shares: Shares
    votes: Mapping[Part, Shares]


class Policy:
    """Decides what a turn is answered with; pure and deterministic.

    Args:
        settings: how many products a reply shows.
        fits: how training answered intents; empty: nothing is known.
        plan: weights and thresholds.
    """

    def __init__(
        self, settings: AssistantSettings | None = None, fits: Fits | None = None, plan: Plan | None = None
    ) -> None:
        self.settings = settings or AssistantSettings()
        self.fits = fits or Fits()
        self.plan = plan or Plan()

    # ------------------------------------------------------------ deciding

    def choose(self, evidence: Evidence) -> Choice:
        """Decide what the reply is made of.

        Raises:
            UnavailableError: no part has anything to say.
        """
        if not any(evidence.has(part) for part in PARTS):
            raise UnavailableError("neither intent, retrieval nor recommendation can answer; see what /readyz says.")
        asked = self.asked(evidence)
        intent = None if asked is None else (asked.task, asked.label)
        verdict = self.vote(evidence, asked)
        hits, fitting = self.candidates(evidence, verdict.modality, intent)
        source = self._products(evidence, verdict.modality, hits)
        speaker = self._speaker(evidence, verdict.modality, source, hits)
        return Choice(
            modality=verdict.modality,
            speaker=speaker,
            decisions=(
                self._intent_decision(evidence, asked),
                self._modality_decision(verdict, intent),
                Decision(
                    "speaker",
                    speaker,
                    speaker_reason(speaker, verdict.modality, evidence, self.plan, usual=intent in self.fits.usual),
                ),
                Decision("products", source, products_reason(source, verdict.modality, evidence, fitting)),
            ),
            hits=hits,
            wants_items=source == "student",
            mode=_mode(evidence, speaker, verdict.modality),
        )

    def asked(self, evidence: Evidence) -> IntentPrediction | None:
        """Return the intent that answers are known of best; the first where none is known; None without any."""
        if not evidence.has("intent") or not evidence.intents:
            return None
        return max(evidence.intents, key=lambda found: self.fits.asked((found.task, found.label)))

    def vote(self, evidence: Evidence, asked: IntentPrediction | None) -> Verdict:
        """Let the parts vote on the modality, among those that can be answered in."""
        possible = _possible(evidence)
        votes: dict[Part, Shares] = {}
        if asked is not None and self.fits.asked((asked.task, asked.label)):
            votes["intent"] = self._by_intent(asked, possible)
        if evidence.hits:
            votes["retrieval"] = self._by_retrieval(evidence, possible)
        if evidence.mode is not None and evidence.mode_probability is not None and PRODUCT in possible:
            votes["recommendation"] = self._by_mode(evidence.mode, evidence.mode_probability, possible)
        if votes:
            weights = self._weights(votes)
            shares = {m: sum(weights[part] * vote[m] for part, vote in votes.items()) for m in possible}
        else:
            shares = _normalised({m: self.fits.base(m) for m in possible})
        return Verdict(max(possible, key=lambda m: shares[m]), shares, votes)

    def _weights(self, votes: Mapping[Part, Shares]) -> dict[Part, float]:
        """Return the weights of those that vote, summing to 1; equal ones where none of them has any."""
        return cast("dict[Part, float]", _normalised({part: self.plan.votes[part] for part in votes}))

    def _by_intent(self, asked: IntentPrediction, possible: tuple[str, ...]) -> Shares:
        """Mix how training answered the intent with how it answered any, by the confidence in the intent."""
        known = _normalised({m: self.fits.share((asked.task, asked.label), m) for m in possible})
        base = _normalised({m: self.fits.base(m) for m in possible})
        sure = min(1.0, max(0.0, asked.confidence))
        return {m: sure * known[m] + (1.0 - sure) * base[m] for m in possible}

    def _by_retrieval(self, evidence: Evidence, possible: tuple[str, ...]) -> Shares:
        """Return what the retriever predicts; of one that predicts nothing, a softmax of the modalities' best."""
        if evidence.predicted_modality is not None:
            return _normalised({m: evidence.predicted_modality.get(m, 0.0) for m in possible})
        best: dict[str, float] = {}
        for hit in evidence.hits:
            best[hit.response.modality] = max(hit.score, best.get(hit.response.modality, -math.inf))
        top = max(best.values())
        return _normalised(
            {m: math.exp((best[m] - top) / self.plan.temperature) if m in best else 0.0 for m in possible}
        )

    def _by_mode(self, mode: Mode, probability: float, possible: tuple[str, ...]) -> Shares:
        """Give a product the probability of recommending, and share the rest out as training answers."""
        product = probability if mode == "rec" else 1.0 - probability
        others = _normalised({m: self.fits.base(m) for m in possible if m != PRODUCT})
        return {m: product if m == PRODUCT else (1.0 - product) * others[m] for m in possible}

    def candidates(self, evidence: Evidence, modality: str, intent: Intent | None) -> tuple[tuple[Hit, ...], int]:
        """Return the hits of a modality that fit an intent, all of it where none does, and how many fit.

        Words that the customer can read come before words that fit: of texts in another language none is a candidate
        while there is one in the customer's.
        """
        own = tuple(hit for hit in evidence.hits if hit.response.modality == modality)
        if modality == TEXT and evidence.language is not None:  # titles of products are what they are
            own = tuple(hit for hit in own if written_in(hit.response.title) == evidence.language) or own
        if intent is None:
            return own, len(own)
        fitting = tuple(hit for hit in own if self.fits.fits(intent, hit.response.id, self.plan.min_seen))
        return fitting or own, len(fitting)

    def _products(self, evidence: Evidence, modality: str, hits: tuple[Hit, ...]) -> ProductSource:
        if modality != PRODUCT:
            return "none"
        if not hits:
            return "student"
        return self.plan.products if evidence.has("recommendation") else "retrieval"

    def _speaker(self, evidence: Evidence, modality: str, source: ProductSource, hits: tuple[Hit, ...]) -> Speaker:
        if modality == PRODUCT:
            return "student" if source == "student" else "retrieval"
        if modality == TEXT:
            if hits and (self.plan.words == "retrieval" or not evidence.has("recommendation")):
                return "retrieval"
            return "student" if evidence.has("recommendation") else "intent"
        return "student" if evidence.has("recommendation") else "retrieval"

    # ------------------------------------------------------------ reasons

    def _intent_decision(self, evidence: Evidence, asked: IntentPrediction | None) -> Decision:
        if asked is None:
            return Decision("intent", "none", no_intent_reason(there=evidence.has("intent")))
        return Decision("intent", asked.label, intent_reason(asked), asked.confidence)

    def _modality_decision(self, verdict: Verdict, intent: Intent | None) -> Decision:
        winner = verdict.modality
        counts = None
        if intent is not None and "intent" in verdict.votes:
            counts = (self.fits.by_intent[intent].get(winner, 0), self.fits.asked(intent))
        reason = modality_reason(
            winner, {part: vote[winner] for part, vote in verdict.votes.items()}, counts, len(verdict.shares)
        )
        return Decision("modality", winner, reason, verdict.shares[winner])

    # ------------------------------------------------------------ composing

    def compose(
        self, choice: Choice, evidence: Evidence, recommended: RecommendAnswer | None = None, language: str = "en"
    ) -> tuple[ReplyPart, ...]:
        """Put the reply together; there is at least one part.

        Args:
            choice: what was decided on the evidence.
            evidence: of the parts.
            recommended: the student's answer in the mode of the choice; None where it is not wanted or did not come.
            language: ``en`` or ``zh``, of the sentence that is said where nothing else can be.
        """
        parts = [*self._words(choice, recommended), *self._shown(choice, recommended)]
        if not parts:  # the student said nothing after all
            parts = self._found(tuple(hit for hit in evidence.hits if hit.response.title.strip())[:1])
        return tuple(parts) or (self._usual(evidence, language),)

    def _words(self, choice: Choice, recommended: RecommendAnswer | None) -> list[ReplyPart]:
        if choice.speaker == "student" and recommended is not None and _speaks(recommended):
            return [ReplyPart("text", recommended.text.strip())]
        if choice.modality == TEXT and choice.speaker != "intent":
            return self._found(choice.hits[:1])
        return []

    def _shown(self, choice: Choice, recommended: RecommendAnswer | None) -> list[ReplyPart]:
        if choice.modality == TEXT:
            return []
        if choice.wants_items and recommended is not None:
            return self.recommended_items(recommended)
        return self._found(choice.hits[: self.settings.cards if choice.modality == PRODUCT else 1])

    def recommended_items(self, answer: RecommendAnswer) -> list[ReplyPart]:
        """Return the items that the student names, in its order; the likeliest ones where it names none."""
        known = {item.id: item for item in answer.items}
        named = {piece.item_id: piece.text for piece in answer.pieces if piece.item_id is not None}
        titles = named or {item.id: item.title for item in answer.items}
        return [
            ReplyPart("item", title, item_id=item_id, image_id=known[item_id].image_id if item_id in known else None)
            for item_id, title in list(titles.items())[: self.settings.cards]
        ]

    def _found(self, hits: tuple[Hit, ...]) -> list[ReplyPart]:
        return [_card(hit) for hit in hits]

    def _usual(self, evidence: Evidence, language: str) -> ReplyPart:
        """Return what the intent is usually answered with, or that nothing can be answered."""
        asked = self.asked(evidence)
        usual = "" if asked is None else self.fits.usual.get((asked.task, asked.label), "")
        return ReplyPart("text", usual or sorry(language))


def says_something(text: str) -> bool:
    """Say whether a text has a letter, a number or a picture sign: a student that has seen little may say dots only."""
    told = text.replace("\N{REPLACEMENT CHARACTER}", "")  # of bytes that are no character
    return any(category(char)[0] in "LN" or category(char) == "So" for char in told)


def _speaks(recommended: RecommendAnswer) -> bool:
    names = any(piece.item_id is not None for piece in recommended.pieces)
    return names or says_something(recommended.text)


def _card(hit: Hit) -> ReplyPart:
    found = hit.response
    if found.modality == TEXT:
        return ReplyPart("text", found.title, response_id=found.id)
    if found.modality == PRODUCT:
        item_id = found.id.partition(":")[2]
        return ReplyPart("item", found.title, found.id, item_id=item_id, image_id=found.image_id)
    return ReplyPart("image" if found.image_id else "text", found.title, found.id, image_id=found.image_id)


def _possible(evidence: Evidence) -> tuple[str, ...]:
    """Return the modalities that something can be answered in, text first; never none."""
    found = {hit.response.modality for hit in evidence.hits}
    if evidence.has("recommendation"):
        found |= {TEXT, PRODUCT}
    if not found:
        return (TEXT,)
    return tuple(sorted(found, key=lambda m: (m != TEXT, m)))


def _normalised(values: Mapping[str, float]) -> dict[str, float]:
    """Return values divided by their sum; equal ones where it is 0."""
    total = sum(values.values())
    return {key: value / total if total > 0 else 1.0 / len(values) for key, value in values.items()}


def _mode(evidence: Evidence, speaker: Speaker, modality: str) -> Mode | None:
    """Return the mode that the student shall speak in; None where it does not speak, or knows no modes."""
    if speaker != "student" or evidence.mode is None:
        return None
    return "rec" if modality == PRODUCT else "gen"
