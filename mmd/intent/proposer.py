"""Proposers: which predicates a search works with, and how much each is believed before any rollout.

The mined proposer ranks predicates by information gain and by what the label's name says. The language-model
proposer multiplies in how much likelier a small model finds a keyword after the label's name (METHODS section 1:
"the small MLLM proposes predicates with priors P"). Both see only the examples they are given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmd.intent.mining import Candidates, Truth, information_gain
from mmd.intent.rules import Predicate
from mmd.intent.settings import PredicateSettings
from mmd.intent.textnorm import normalise
from mmd.models.settings import ModelSettings

_CLIP = 6.0  # nats; a small model is sure of little
_SCORED = 30  # keywords of a search that the model is asked about; each takes it a forward pass
_NEGATION_PRIOR = 0.3  # a rule is rarely begun with what is absent


@dataclass(frozen=True, eq=False)
class Proposal:
    """Predicates for one label: ``members`` of shape (n_predicates, n_examples), ``prior`` sums to 1."""

    predicates: tuple[Predicate, ...]
    members: Truth
    prior: NDArray[np.float64]


class Proposer(Protocol):
    """Chooses the predicates of a search. ``name`` goes into rules' provenance."""

    name: str

    def propose(self, label: str, positive: NDArray[np.bool_], candidates: Candidates) -> Proposal:
        """Return predicates and priors for ``label``, whose examples ``positive`` marks among the candidates'."""
        ...


class MinedProposer:
    """Ranks candidates by information gain about the label, raised by affinity with the label's name."""

    name = "mined"

    def __init__(self, settings: PredicateSettings) -> None:
        self.settings = settings

    def propose(self, label: str, positive: NDArray[np.bool_], candidates: Candidates) -> Proposal:
        """Return the best affirmed predicates and the best negated ones."""
        gain = information_gain(candidates.members, positive)
        affinity = np.array([name_affinity(p, label) for p in candidates.predicates])
        own = np.array([_speaks_for(p, label, candidates) for p in candidates.predicates], dtype=np.bool_)
        prior = np.maximum(gain, 0.0) * (1.0 + self.settings.name_affinity * affinity) * own
        chosen = _top_distinct(prior, candidates, self.settings.max_per_label)
        against = _top_distinct(np.maximum(-gain, 0.0), candidates, self.settings.max_negated)
        predicates = [candidates.predicates[i] for i in chosen]
        predicates += [replace(candidates.predicates[i], negated=True) for i in against]
        members = np.concatenate([candidates.members[chosen], ~candidates.members[against]])
        weights = np.concatenate([prior[chosen], _NEGATION_PRIOR * np.maximum(-gain[against], 0.0)])
        total = weights.sum()
        return Proposal(tuple(predicates), members, weights / total if total > 0 else weights)


class Scorer(Protocol):
    """What the language proposer needs of a model; :class:`mmd.models.language.LanguageModel` is one."""

    name: str

    def score(self, prompt: str, continuations: Sequence[str]) -> list[float]:
        """Return log P(continuation | prompt), in nats."""
        ...


class LanguageProposer:
    """Changes keywords' mined prior by how much likelier a small language model finds them after the label's name.

    The model reads "<label>: " and scores the best keywords; the pointwise information of label and keyword,
    log P(keyword | label) − log P(keyword | …), goes into the prior as exp(weight · information), clipped.
    """

    def __init__(self, mined: MinedProposer, model: Scorer, *, weight: float = 0.3) -> None:
        self.mined = mined
        self.model = model
        self.weight = weight
        self.name = f"mined+{model.name}"
        self._known: dict[tuple[str, str], float] = {}

    def propose(self, label: str, positive: NDArray[np.bool_], candidates: Candidates) -> Proposal:
        """Return the mined proposal with the priors of its best keywords changed."""
        proposal = self.mined.propose(label, positive, candidates)
        rows = [i for i, p in enumerate(proposal.predicates) if p.kind in ("text", "ocr") and not p.negated][:_SCORED]
        words = [proposal.predicates[i].value for i in rows]
        after_label, after_nothing = self._log_p(label, words), self._log_p("…", words)
        prior = proposal.prior.copy()
        for row, given, alone in zip(rows, after_label, after_nothing, strict=True):
            prior[row] *= math.exp(self.weight * max(-_CLIP, min(_CLIP, given - alone)))
        total = prior.sum()
        return replace(proposal, prior=prior / total if total > 0 else proposal.prior)

    def _log_p(self, context: str, words: Sequence[str]) -> list[float]:
        unknown = sorted({word for word in words if (context, word) not in self._known})
        if unknown:
            scores = self.model.score(f"{context}: ", unknown)
            self._known.update({(context, word): score for word, score in zip(unknown, scores, strict=True)})
        return [self._known[context, word] for word in words]


def _speaks_for(predicate: Predicate, label: str, candidates: Candidates) -> bool:
    """Say whether an affirmed predicate may speak for the label: a prototype only for whose examples made it."""
    return predicate.kind != "near" or candidates.owners[predicate.value] == label


def _top_distinct(score: NDArray[np.float64], candidates: Candidates, limit: int) -> list[int]:
    """Return the ``limit`` best candidates of positive score, one for each set of examples that they hold on.

    Keywords and prototypes that hold on the same examples are interchangeable to the search, but not on
    new text: up to two of an equal set are kept, of different kinds.
    """
    order = np.lexsort((np.arange(score.size), -score))
    seen: set[tuple[str, bytes]] = set()
    chosen: list[int] = []
    for index in order.tolist():
        if score[index] <= 0.0 or len(chosen) == limit:
            break
        key = (candidates.predicates[index].kind, candidates.members[index].tobytes())
        if key not in seen:
            seen.add(key)
            chosen.append(index)
    return chosen


def name_affinity(predicate: Predicate, label: str) -> float:
    """Return the share of a keyword that stands in the label's name as one piece, in [0, 1]; 0 for other kinds."""
    if predicate.kind not in ("text", "ocr"):
        return 0.0
    word, name = predicate.value, normalise(label)
    pieces = (word[i:j] for i in range(len(word)) for j in range(i + 1, len(word) + 1) if word[i:j] in name)
    longest = max((len(piece) for piece in pieces), default=0)
    if longest < min(2, len(word)):
        return 0.0
    return longest / len(word)


def make_proposer(settings: PredicateSettings, models: ModelSettings) -> Proposer:
    """Return the proposer that the settings name: mined, or a language model's on top of it.

    Raises:
        ModelError: the model that ``models.proposer`` names does not resolve.
    """
    mined = MinedProposer(settings)
    if models.proposer is None:
        return mined
    from mmd.models.language import LanguageModel  # noqa: PLC0415 (loads torch)

    return LanguageProposer(mined, LanguageModel(models.proposer, models))
