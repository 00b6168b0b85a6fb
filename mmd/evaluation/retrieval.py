"""What a retriever is worth: recall and reciprocal rank by modality and over all, in pools of several kinds.

A two-step method ranks the modality that it predicts, and a wrong one is a miss at every k; what ranks the union (mdr,
BM25, encoders off the shelf) does so by one score. With *oracle intent* the right modality is ranked, whoever ranks.
Intervals are bootstrapped over dialogues, whose samples are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mmd.evaluation.metrics import Confusion, Interval
from mmd.evaluation.ranking import CORPUS, Counts, Layout, Questions, Scorer, Scores, Standing, expected_recall
from mmd.retrieval.encode import Vectors
from mmd.retrieval.ranks import CUTOFFS, MISS, RankCounts, Ranks, recall_interval
from mmd.retrieval.types import Sample

ALL = "multimodal"
"""Name of the row over samples of all modalities."""
CHANCE = "chance"
CURVE_CUTOFFS = (1, 10)
_CURVE_SIZES = (2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class VectorScorer:
    """Cosines of unit vectors.

    Attributes:
        layout: of the responses.
        queries: modality → vectors with which its responses are ranked, (samples, dim); dr has others for each.
        responses: (responses, dim), in the layout's order.
    """

    layout: Layout
    queries: Mapping[str, Vectors]
    responses: Vectors

    def scores(self, rows: slice) -> Scores:
        """Return cosines, float64 so that equal responses tie wherever they stand."""
        parts = [
            self.queries[modality][rows].astype(np.float64) @ self._exact[span].T
            for modality, span in self.layout.spans.items()
        ]
        return np.concatenate(parts, axis=1)

    @cached_property
    def _exact(self) -> Scores:
        return self.responses.astype(np.float64)


@dataclass(frozen=True)
class System:
    """Something that ranks responses, and where it put the right ones.

    Attributes:
        name: what the report calls it.
        scorer: that ranked.
        standing: of the right responses.
        predicted: the modality that a two-step method predicts for each sample; None: it ranks the union.
    """

    name: str
    scorer: Scorer
    standing: Standing
    predicted: tuple[str, ...] | None = None

    def ranks(self, questions: Questions, pool: str, *, oracle: bool = False) -> Ranks:
        """Return 1-based ranks in a pool; a two-step method that predicts the wrong modality misses.

        Args:
            questions: that were asked.
            pool: ``corpus`` or one of the questions' pools.
            oracle: rank the right modality whatever is predicted.
        """
        if self.predicted is None and not oracle:
            return self.standing.ranks(pool)
        ranks = self.standing.ranks(pool, questions.gold_modality)
        if oracle or self.predicted is None:
            return ranks
        missed: Ranks = np.where(self.right(questions), ranks, MISS)
        return missed

    def right(self, questions: Questions) -> Any:  # noqa: ANN401 (NumPy's booleans)
        """Return whether the predicted modality is right, bool of shape (samples,)."""
        return np.array([p == s.modality for p, s in zip(self.predicted or (), questions.samples, strict=True)])

    def intents(self, questions: Questions, pool: str) -> list[str]:
        """Return the modality that each sample is answered with: predicted, or that of the best in the pool."""
        if self.predicted is not None:
            return list(self.predicted)
        names = list(questions.layout.spans)
        return [names[number] for number in self.standing.first[pool]]


@dataclass(frozen=True)
class Score:
    """Recall of some samples: ``recall`` maps k → share with its interval; ``chance`` k → what guessing reaches."""

    n: int
    recall: Mapping[int, Interval]
    mrr: float
    chance: Mapping[int, float]


@dataclass(frozen=True)
class Row:
    """One line of the table: a system in a pool, by its own choice of modality or by the oracle's."""

    system: str
    pool: str
    oracle: bool
    scores: Mapping[str, Score]
    """:data:`ALL` and each modality → its score."""


@dataclass(frozen=True)
class Curve:
    """Expected recall by the number of responses a modality in a pool: ``recall`` maps k → one value a size."""

    sizes: tuple[int, ...]
    recall: Mapping[int, tuple[float, ...]]


@dataclass(frozen=True)
class Findings:
    """All that was measured.

    Attributes:
        questions: that were asked.
        systems: that answered, the trained retriever first.
        rows: of the table, by pool, then system, then oracle.
        intents: system → how modalities were predicted, true against answered.
        curves: system → its recall by size of the pool.
    """

    questions: Questions
    systems: Sequence[System]
    rows: Sequence[Row]
    intents: Mapping[str, Confusion]
    curves: Mapping[str, Curve]
    pool_sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that occur in the questions, in the layout's order."""
        asked = {sample.modality for sample in self.questions.samples}
        return tuple(m for m in self.questions.layout.spans if m in asked)

    @property
    def subsets(self) -> tuple[str, ...]:
        """The columns of the table: all samples, then each modality where there are several."""
        return (ALL, *self.modalities) if len(self.modalities) > 1 else (ALL,)

    @cached_property
    def _by_key(self) -> dict[tuple[str, str, bool], Row]:
        return {(row.system, row.pool, row.oracle): row for row in self.rows}

    def score(self, system: str, pool: str, subset: str = ALL, *, oracle: bool = False) -> Score:
        """Return one cell of the table."""
        return self._by_key[(system, pool, oracle)].scores[subset]


def summarise(questions: Questions, systems: Sequence[System], *, resamples: int, seed: int) -> Findings:
    """Score all systems in all pools.

    Args:
        questions: that were asked.
        systems: that ranked them.
        resamples: bootstrap draws of the intervals.
        seed: of the draws; all rows see the same ones.
    """
    rows = [
        Row(system.name, pool, oracle, _scores(system, questions, pool, oracle, resamples, seed))
        for pool in (*questions.pools, CORPUS)
        for system in systems
        for oracle in ((False, True) if len(questions.layout.spans) > 1 else (False,))
    ]
    golds, first = [sample.modality for sample in questions.samples], next(iter(questions.pools))
    answered = {system.name: system.intents(questions, first) for system in systems}
    return Findings(
        questions=questions,
        systems=systems,
        rows=rows,
        intents={name: Confusion.of(golds, said) for name, said in answered.items()},
        curves={system.name: curve_of(system, questions) for system in systems},
        pool_sizes={name: max(map(len, pools), default=0) for name, pools in questions.pools.items()}
        | {CORPUS: len(questions.layout.ids)},
    )


def _scores(
    system: System,
    questions: Questions,
    pool: str,
    oracle: bool,  # noqa: FBT001 (private)
    resamples: int,
    seed: int,
) -> dict[str, Score]:
    ranks = system.ranks(questions, pool, oracle=oracle)
    sizes = _candidates(questions, pool, oracle or system.predicted is not None)
    found = {}
    for subset, rows in subsets_of(questions.samples).items():
        dialogues = [questions.samples[row].conversation for row in rows]
        found[subset] = Score(
            n=len(rows),
            recall={k: recall_interval(ranks[rows], k, resamples, seed, dialogues) for k in CUTOFFS},
            mrr=RankCounts.of(ranks[rows]).mrr,
            chance={k: float(np.minimum(1.0, k / sizes[rows]).mean()) for k in CUTOFFS},
        )
    return found


def subsets_of(samples: Sequence[Sample]) -> dict[str, Counts]:
    """Return the rows of all samples and, where there are several modalities, of each."""
    modalities = np.array([sample.modality for sample in samples])
    found = {ALL: np.arange(len(samples))}
    names = sorted(set(modalities.tolist()))
    return found | ({name: np.flatnonzero(modalities == name) for name in names} if len(names) > 1 else {})


def _candidates(questions: Questions, pool: str, one_modality: bool) -> Counts:  # noqa: FBT001 (private)
    """Return how many candidates each sample's right response stands among, itself included."""
    others = questions.distractors(pool)
    counted: Counts = others[np.arange(len(others)), questions.gold_modality] if one_modality else others.sum(1)
    return counted + 1


def curve_of(system: System, questions: Questions) -> Curve:
    """Return a system's expected recall over the number of responses a modality, up to all there are."""
    above, there = system.standing.above[CORPUS], questions.distractors(CORPUS)
    largest = int(max(there.max(), 1)) + 1
    sizes = (*(s for s in _sizes(largest) if s < largest), largest)
    own = np.arange(there.shape[1])[None, :] == questions.gold_modality[:, None]
    recall: dict[int, list[float]] = {k: [] for k in CURVE_CUTOFFS}
    for size in sizes:
        drawn = np.where(own, size - 1, 0 if system.predicted is not None else size)
        for k, values in recall.items():
            expected = expected_recall(above, there, drawn, k)
            values.append(float((expected * system.right(questions)).mean() if system.predicted else expected.mean()))
    return Curve(sizes, {k: tuple(values) for k, values in recall.items()})


def _sizes(largest: int) -> list[int]:
    sizes = list(_CURVE_SIZES)
    while sizes[-1] < largest:
        sizes.append(sizes[-1] * 2 if str(sizes[-1])[0] != "2" else sizes[-1] * 5 // 2)
    return sizes


def to_json(findings: Findings) -> dict[str, Any]:
    """Return what was measured as plain values: ``metrics.json`` of the report."""
    counts = {name: len(rows) for name, rows in subsets_of(findings.questions.samples).items()}
    return {
        "samples": counts,
        "dialogues": len({s.conversation for s in findings.questions.samples}),
        "responses": {m: span.stop - span.start for m, span in findings.questions.layout.spans.items()},
        "pool_sizes": dict(findings.pool_sizes),
        "drawn": asdict(findings.questions.drawn) if findings.questions.drawn else None,
        "rows": [
            {
                "system": row.system,
                "pool": row.pool,
                "oracle_intent": row.oracle,
                "scores": {
                    subset: {
                        "n": score.n,
                        **{f"R@{k}": asdict(value) for k, value in score.recall.items()},
                        "MRR": score.mrr,
                        "chance": {f"R@{k}": value for k, value in score.chance.items()},
                    }
                    for subset, score in row.scores.items()
                },
            }
            for row in findings.rows
        ],
        "intent": {
            name: {
                "weighted_f1": confusion.weighted_f1,
                "per_class": [asdict(score) for score in confusion.per_class],
                "confusion": [[gold, answer, n] for (gold, answer), n in sorted(confusion.counts.items())],
            }
            for name, confusion in findings.intents.items()
        },
        "curves": {
            name: {"sizes": list(curve.sizes), **{f"R@{k}": list(values) for k, values in curve.recall.items()}}
            for name, curve in findings.curves.items()
        },
    }
