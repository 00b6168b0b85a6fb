"""All that is measured of recommending in conversations, row by row, with intervals over conversations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from mmd.evaluation.metrics import Confusion, Interval
from mmd.evaluation.recommend_systems import Ranked, Speaker
from mmd.evaluation.recommending import (
    CUTOFFS,
    GRAMS,
    Denominator,
    DistinctGrams,
    ItemHits,
    gate_auc,
    item_rates,
    perplexity_interval,
    share_interval,
)
from mmd.recommend.replies import Emission
from mmd.recommend.types import MentionSample, Part, ResponseSample
from mmd.recommend.words import split_words
from mmd.retrieval.ranks import recall_interval

Subset = Literal["all", "novel", "novel, open"]
SUBSETS: tuple[Subset, ...] = get_args(Subset)
"""Mentions that are ranked: all; those of items that no prior turn mentions; the same, among such items alone."""
REFERENCES = "right responses"


@dataclass(frozen=True)
class ModuleRow:
    """One ranker on one subset: ``recall`` maps k → R@k; ``n`` mentions."""

    system: str
    subset: Subset
    n: int
    recall: Mapping[int, Interval]


@dataclass(frozen=True)
class SpeakerRow:
    """One speaker.

    Attributes:
        system: its name.
        given_modes: whether the right modes were given.
        items: k → way of counting → ReR, PrR and F1; empty for the right responses.
        novel: the same of items that the context does not mention, named and right alike.
        perplexity: of all tokens of the right responses; None where the speaker did not read them.
        word_perplexity: of their words alone.
        distinct: n → DIST-n by responses and by n-grams.
        words: of a reply on average, items included.
        item_ratio: share of replies that name an item.
        modes: right against decoded mode; None where modes were given.
        ms_per_token: median of replies decoded together (each batch's mean), and alone; None where not measured.
        gate_auc: how well item mass tells the places of items; None without a reading, or without both kinds.
    """

    system: str
    given_modes: bool
    items: Mapping[int, Mapping[Denominator, Mapping[str, Interval]]]
    novel: Mapping[int, Mapping[Denominator, Mapping[str, Interval]]]
    perplexity: Interval | None
    word_perplexity: Interval | None
    distinct: Mapping[int, tuple[float, float]]
    words: float
    item_ratio: Interval
    modes: Confusion | None
    ms_per_token: tuple[float, float | None] | None
    gate_auc: float | None


@dataclass(frozen=True)
class RecommendFindings:
    """All that was measured.

    Attributes:
        split: that was evaluated: ``test`` or ``validation``.
        mentions: of the agent, that modules rank for.
        responses: of the agent, that speakers reply in place of.
        modules: of the first table, by subset, then ranker.
        speakers: of the second, the student first.
        parameters: model → its weights.
    """

    split: str
    mentions: Sequence[MentionSample]
    responses: Sequence[ResponseSample]
    modules: Sequence[ModuleRow]
    speakers: Sequence[SpeakerRow]
    parameters: Mapping[str, int] = field(default_factory=dict)

    @property
    def dialogues(self) -> int:
        """Conversations with a response to evaluate."""
        return len({response.dialogue_id for response in self.responses})

    def module(self, system: str, subset: Subset) -> ModuleRow:
        """Return a row of the first table."""
        return next(row for row in self.modules if (row.system, row.subset) == (system, subset))


def module_rows(
    mentions: Sequence[MentionSample], rankers: Sequence[Ranked], resamples: int, seed: int
) -> list[ModuleRow]:
    """Return R@k of every ranker on every subset.

    Args:
        mentions: that were ranked for.
        rankers: their ranks.
        resamples: bootstrap draws of the intervals, over conversations.
        seed: of the draws; all rankers see the same ones.
    """
    novel = np.array([mention.novel for mention in mentions], dtype=bool)
    dialogues = np.array([mention.dialogue_id for mention in mentions])
    rows = []
    for subset in SUBSETS:
        chosen = np.ones_like(novel) if subset == "all" else novel
        for ranked in rankers:
            ranks = (ranked.open_ranks if subset == "novel, open" else ranked.ranks)[chosen]
            groups = dialogues[chosen].tolist()
            recall = {k: recall_interval(ranks, k, resamples, seed, groups) for k in CUTOFFS}
            rows.append(ModuleRow(ranked.name, subset, len(ranks), recall))
    return rows


def speaker_row(speaker: Speaker, samples: Sequence[ResponseSample], resamples: int, seed: int) -> SpeakerRow:
    """Return what a speaker's replies are worth.

    Args:
        speaker: its replies; without them the right responses are counted: what a person's DIST-n and item ratio are.
        samples: that it answered.
        resamples: bootstrap draws of the intervals, over conversations.
        seed: of the draws.
    """
    replies, reading = speaker.replies, speaker.reading
    groups = [sample.dialogue_id for sample in samples]
    said = [r.parts for r in replies] if replies is not None else [s.response.parts for s in samples]
    words = [part_words(parts) for parts in said]
    named = [float(any(isinstance(part, int) for part in parts)) for parts in said]
    distinct = {n: DistinctGrams.of(words, n) for n in GRAMS}

    def rates(*, novel: bool) -> dict[int, dict[Denominator, dict[str, Interval]]]:
        return {k: item_rates(hits_of(speaker, samples, k, novel=novel), groups, resamples, seed) for k in CUTOFFS}

    golds, decoded = [s.mode for s in samples], [r.mode for r in replies or ()]
    return SpeakerRow(
        system=speaker.name,
        given_modes=speaker.given_modes,
        items=rates(novel=False) if replies is not None else {},
        novel=rates(novel=True) if replies is not None else {},
        perplexity=perplexity_interval(reading.likelihoods, groups, resamples, seed) if reading else None,
        word_perplexity=perplexity_interval(reading.of_words, groups, resamples, seed) if reading else None,
        distinct={n: (grams.by_responses, grams.by_grams) for n, grams in distinct.items()},
        words=sum(map(len, words)) / max(1, len(words)),
        item_ratio=share_interval(named, [1.0] * len(named), groups, resamples, seed),
        modes=Confusion.of(golds, decoded) if replies is not None and not speaker.given_modes else None,
        ms_per_token=_times(speaker),
        gate_auc=_auc(speaker),
    )


def hits_of(speaker: Speaker, samples: Sequence[ResponseSample], k: int, *, novel: bool = False) -> list[ItemHits]:
    """Count every reply's items at one k.

    Args:
        speaker: its replies.
        samples: that it answered.
        k: length of the lists.
        novel: leave items out that the context mentions, right ones, named ones and candidates alike.
    """
    hits = []
    for sample, reply in zip(samples, speaker.replies or (), strict=True):
        known = frozenset(sample.context.items) if novel else frozenset()
        golds = [item for item in sample.response.items if item not in known]
        hits.append(ItemHits.of(golds, [_without(e, known) for e in reply.emissions if e.item not in known], k))
    return hits


def _without(emission: Emission, known: frozenset[int]) -> Emission:
    if known.isdisjoint(emission.top):
        return emission
    kept = [(item, value) for item, value in zip(emission.top, emission.log_probs, strict=True) if item not in known]
    return Emission(emission.item, tuple(item for item, _ in kept), tuple(value for _, value in kept))


def part_words(parts: Sequence[Part]) -> list[str]:
    """Return an utterance as words, lower-cased, an item as one word: the same for every backbone."""
    words: list[str] = []
    for part in parts:
        words += [f"@{part}"] if isinstance(part, int) else split_words(part)
    return words


def _times(speaker: Speaker) -> tuple[float, float | None] | None:
    if not speaker.replies:
        return None
    together = float(np.median([reply.ms_per_token for reply in speaker.replies]))
    return together, float(np.median(speaker.ms_alone)) if speaker.ms_alone else None


def _auc(speaker: Speaker) -> float | None:
    """Return how well the item mass that the speaker sees tells the places of items."""
    if speaker.reading is None:
        return None
    places = [
        (mass, is_item)
        for trace in speaker.reading.traces
        for mass, is_item in zip(trace.masses, trace.is_item, strict=True)
    ]
    return gate_auc([mass for mass, _ in places], [is_item for _, is_item in places])


# ---------------------------------------------------------------- as plain values


def to_json(findings: RecommendFindings) -> dict[str, Any]:
    """Return what was measured as plain values: ``metrics.json`` of the report."""
    return {
        "split": findings.split,
        "dialogues": findings.dialogues,
        "mentions": {"all": len(findings.mentions), "novel": sum(m.novel for m in findings.mentions)},
        "responses": {
            "all": len(findings.responses),
            "that name an item": sum(r.mode == "rec" for r in findings.responses),
        },
        "modules": [
            {
                "system": row.system,
                "subset": row.subset,
                "n": row.n,
                **{f"R@{k}": asdict(value) for k, value in row.recall.items()},
            }
            for row in findings.modules
        ],
        "speakers": [_speaker_json(row) for row in findings.speakers],
        "parameters": dict(findings.parameters),
    }


def _speaker_json(row: SpeakerRow) -> dict[str, Any]:
    return {
        "system": row.system,
        "given_modes": row.given_modes,
        "items": _rates_json(row.items),
        "novel_items": _rates_json(row.novel),
        "perplexity": _interval_json(row.perplexity),
        "word_perplexity": _interval_json(row.word_perplexity),
        **{f"DIST-{n}": {"by_responses": a, "by_grams": b} for n, (a, b) in row.distinct.items()},
        "words": row.words,
        "item_ratio": asdict(row.item_ratio),
        "modes": None
        if row.modes is None
        else [[gold, said, n] for (gold, said), n in sorted(row.modes.counts.items())],
        "mode_accuracy": None if row.modes is None else row.modes.accuracy.value,
        "ms_per_token": None
        if row.ms_per_token is None
        else dict(zip(("batch", "alone"), row.ms_per_token, strict=True)),
        "gate_auc": row.gate_auc,
    }


def _rates_json(rates: Mapping[int, Mapping[Denominator, Mapping[str, Interval]]]) -> dict[str, Any]:
    return {
        by: {f"{name}@{k}": asdict(rates[k][by][name]) for name in next(iter(rates.values()))[by] for k in rates}
        for by in next(iter(rates.values()), {})
    }


def _interval_json(value: Interval | None) -> dict[str, float | None] | None:
    """Return an interval; what JSON has no number for is null."""
    if value is None:
        return None
    return {name: number if math.isfinite(number) else None for name, number in asdict(value).items()}


def headline(findings: RecommendFindings) -> dict[str, float]:
    """Return the scalars of the manifest, of which the summary shows the first: what replies are worth."""
    scalars: dict[str, float] = {}
    for speaker in findings.speakers:
        if speaker.items:
            scalars[f"{speaker.system}, F1@1"] = speaker.items[1]["micro"]["F1"].value
            scalars[f"{speaker.system}, item ratio"] = speaker.item_ratio.value
        if speaker.perplexity and math.isfinite(speaker.perplexity.value):
            scalars[f"{speaker.system}, perplexity"] = speaker.perplexity.value
    for row in findings.modules:
        if row.subset != "novel, open":
            scalars |= {f"{row.system}, {row.subset} R@{k}": value.value for k, value in row.recall.items()}
    return scalars
