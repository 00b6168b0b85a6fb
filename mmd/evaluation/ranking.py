"""Where right responses stand: for each sample, how many candidates of each modality score at least as high.

From these counts follow all ranks: of a union of modalities (their sum), within one modality (its own), and the
expected recall in pools of any size (the hypergeometric distribution), so each score is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmd.errors import CorpusError, ModelError
from mmd.retrieval.pools import Source
from mmd.retrieval.ranks import TIE, Ranks
from mmd.retrieval.types import Pool, Response, Sample

Counts = NDArray[np.int64]
Scores = NDArray[np.float64]
_SCORES = 1 << 24  # scores held at a time
CORPUS = "corpus"
"""The pool of all responses there are; the others are drawn."""
_SOURCE_WORDS: Mapping[Source, str] = {"test": "the test split", "train": "the training split", "all": "all splits"}


class Scorer(Protocol):
    """Anything that scores all responses of a :class:`Layout` for some samples."""

    def scores(self, rows: slice) -> Scores:
        """Return float64 of shape (rows, responses), larger is better."""
        ...


@dataclass(frozen=True)
class Layout:
    """All responses in a fixed order, by id, which keeps those of one modality together.

    Attributes:
        ids: of the responses.
        spans: modality → its columns.
    """

    ids: tuple[str, ...]
    spans: Mapping[str, slice]

    @classmethod
    def of(cls, responses: Mapping[str, Response]) -> Layout:
        """Lay out responses.

        Raises:
            CorpusError: there are none.
        """
        if not responses:
            raise CorpusError("there are no responses to rank; see retrieval.samples.modalities, or add dialogues.")
        ids, spans, start = tuple(sorted(responses)), {}, 0
        for modality, group in groupby(ids, key=lambda key: responses[key].modality):
            spans[modality] = slice(start, start := start + sum(1 for _ in group))
        return cls(ids, spans)

    @property
    def place(self) -> dict[str, int]:
        """Response id → column."""
        return {key: column for column, key in enumerate(self.ids)}

    @property
    def modality_of(self) -> Counts:
        """Column → number of its modality in ``spans``, shape (responses,)."""
        sizes = [span.stop - span.start for span in self.spans.values()]
        return np.repeat(np.arange(len(sizes)), sizes)


@dataclass(frozen=True)
class Drawn:
    """How pools were drawn: where responses are few, smaller or from more splits than was wanted.

    Attributes:
        size: responses a modality in pools of kind ``union``.
        wanted_size: what was asked for.
        source: split whose right responses are distractors; ``all`` for every split.
        wanted_source: what was asked for.
    """

    size: int
    wanted_size: int
    source: Source
    wanted_source: Source

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.size} responses a modality, distractors from {_SOURCE_WORDS[self.source]}"

    @property
    def shortfall(self) -> str:
        """In what the pools are not those that were wanted; "" where they are."""
        parts = []
        if self.size != self.wanted_size:
            parts.append(f"pools hold {self.size} responses a modality instead of {self.wanted_size}")
        if self.source != self.wanted_source:
            parts.append(f"distractors come from {_SOURCE_WORDS[self.source]}, not {_SOURCE_WORDS[self.wanted_source]}")
        return f"Too few responses: {', and '.join(parts)}." if parts else ""


@dataclass(frozen=True)
class Questions:
    """What is asked: samples, their right responses, and the pools that these are ranked in.

    Attributes:
        samples: asked about, in order.
        layout: of all responses.
        golds: column of each right response, shape (samples,).
        banned: columns that are no distractors of a sample (right ones, and those that look the same), one a sample.
        pools: name → columns of each sample's pool.
        drawn: how; None where pools were given.
    """

    samples: tuple[Sample, ...]
    layout: Layout
    golds: Counts
    banned: tuple[Counts, ...]
    pools: Mapping[str, tuple[Counts, ...]]
    drawn: Drawn | None = None

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        responses: Mapping[str, Response],
        banned: Sequence[Sequence[str] | set[str]],
        pools: Mapping[str, Sequence[Pool]],
        drawn: Drawn | None = None,
    ) -> Questions:
        """Turn ids into columns.

        Args:
            samples: to ask about.
            responses: all there are, the catalogue included.
            banned: responses that are no distractors of each sample.
            pools: name → a pool a sample.
            drawn: how the pools were drawn.
        """
        layout = Layout.of(responses)
        place = layout.place
        return cls(
            tuple(samples),
            layout,
            np.array([place[sample.response_id] for sample in samples], dtype=np.int64),
            tuple(_columns(ids, place) for ids in banned),
            {name: tuple(_columns(pool.candidates, place) for pool in made) for name, made in pools.items()},
            drawn,
        )

    @property
    def gold_modality(self) -> Counts:
        """Number of each right response's modality in the layout, shape (samples,)."""
        return self.layout.modality_of[self.golds]

    def distractors(self, pool: str) -> Counts:
        """Return how many distractors of each modality each sample has, shape (samples, modalities)."""
        kinds, width = self.layout.modality_of, len(self.layout.spans)
        if pool == CORPUS:
            whole = np.bincount(kinds, minlength=width)
            return np.stack([whole - np.bincount(kinds[columns], minlength=width) for columns in self.banned])
        counted = np.stack([np.bincount(kinds[columns], minlength=width) for columns in self.pools[pool]])
        counted[np.arange(len(self.samples)), self.gold_modality] -= 1
        return counted


@dataclass(frozen=True)
class Standing:
    """Pool → how many distractors of each modality score at least the right response's score, (samples, modalities).

    ``first`` maps pool → number of the best candidate's modality, shape (samples,).
    """

    above: Mapping[str, Counts]
    first: Mapping[str, Counts]

    def ranks(self, pool: str, modalities: Counts | None = None) -> Ranks:
        """Return 1-based ranks, ties against the right response.

        Args:
            pool: which.
            modalities: number of the one modality that is ranked for each sample; None: the union of all.
        """
        above = self.above[pool]
        ahead = above.sum(1) if modalities is None else above[np.arange(len(above)), modalities]
        ranks: Ranks = ahead + 1
        return ranks


def stand(scorer: Scorer, questions: Questions) -> Standing:
    """Count, for all samples, what stands above the right response in the corpus and in each pool.

    Raises:
        ModelError: a score is not a number.
    """
    kinds, width = questions.layout.modality_of, len(questions.layout.spans)
    starts = [span.start for span in questions.layout.spans.values()]
    shape = (len(questions.samples), width)
    above = {name: np.zeros(shape, np.int64) for name in (CORPUS, *questions.pools)}
    first = {name: np.zeros(shape[0], np.int64) for name in questions.pools}
    for rows in blocks(shape[0], len(questions.layout.ids)):
        scores = finite(scorer.scores(rows))
        golds = questions.golds[rows]
        reach = scores >= scores[np.arange(len(golds)), golds][:, None] - TIE
        for local, row in enumerate(range(rows.start, rows.stop)):
            for name, pools in questions.pools.items():
                columns = pools[row]
                others = columns[reach[local, columns] & (columns != golds[local])]
                above[name][row] = np.bincount(kinds[others], minlength=width)
                first[name][row] = kinds[columns[np.argmax(scores[local, columns])]]
            reach[local, questions.banned[row]] = False
        above[CORPUS][rows] = np.add.reduceat(reach, starts, axis=1, dtype=np.int64)
    return Standing(above, first)


def blocks(count: int, width: int) -> Iterator[slice]:
    """Yield slices of rows of which a matrix of this width fits into memory."""
    step = max(1, _SCORES // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def finite(scores: Scores) -> Scores:
    """Return the scores.

    Raises:
        ModelError: one is not a number: a retriever that diverged would otherwise rank as if by chance.
    """
    if not np.isfinite(scores).all():
        raise ModelError(
            f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not numbers; train the retriever again, "
            "with a lower retrieval.training.learning_rate or dtype=float32."
        )
    return scores


def expected_recall(above: Counts, distractors: Counts, drawn: Counts, k: int) -> Scores:
    """Return each sample's chance of R@k in a pool drawn at random, exactly: no pool needs to be drawn.

    Of a modality's distractors, the number among those drawn that stand above the right response is hypergeometric.

    Args:
        above: distractors that stand above, shape (samples, modalities).
        distractors: that there are, same shape.
        drawn: that are drawn, same shape; where fewer exist, all of them.
        k: at most this rank is a hit.

    Returns:
        float64 in [0, 1], shape (samples,).
    """
    from scipy.stats import hypergeom  # noqa: PLC0415 (slow to import)

    ahead = np.zeros((len(above), k))  # probability of 0 … k - 1 candidates above
    ahead[:, 0] = 1.0
    draws = np.minimum(drawn, distractors)
    for column in range(above.shape[1]):
        there, better, taken = (values[:, [column]] for values in (distractors, above, draws))
        share = np.asarray(hypergeom.pmf(np.arange(k)[None, :], there, better, taken))
        ahead = np.stack([(ahead[:, : n + 1] * share[:, n::-1]).sum(1) for n in range(k)], axis=1)
    total: Scores = np.clip(ahead.sum(1), 0.0, 1.0)
    return total


def _columns(ids: Sequence[str] | set[str], place: Mapping[str, int]) -> Counts:
    return np.array(sorted(place[key] for key in ids if key in place), dtype=np.int64)
