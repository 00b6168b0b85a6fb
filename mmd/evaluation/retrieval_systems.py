"""What is compared: a trained retriever, BM25 and an encoder off the shelf, asked the same in the same pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmd.errors import CorpusError
from mmd.evaluation.ranking import Drawn, Questions, Scores, stand
from mmd.evaluation.retrieval import System, VectorScorer
from mmd.evaluation.shelf import Encode
from mmd.retrieval.baselines import Bm25Ranker, OffTheShelfRanker, Ranker
from mmd.retrieval.encode import encode_intents, encode_queries, encode_responses
from mmd.retrieval.engine import Maker, Model, by_score
from mmd.retrieval.facts import Facts, turn_words
from mmd.retrieval.pools import PoolKind, Source, make_pools, no_distractors
from mmd.retrieval.settings import PoolSettings
from mmd.retrieval.types import Hit, Pool, Query, Response, Sample, SampleSet

BM25 = "BM25"
LAST_TURN = ", last turn"
KINDS: tuple[PoolKind, ...] = ("union", "half")
_ENCODED_CHARS = 1_000
"""Characters of a context that an encoder off the shelf reads, its end kept: they truncate at the right, if at all."""


def make_questions(given: SampleSet, samples: Sequence[Sample], pools: PoolSettings, source: Source) -> Questions:
    """Draw the pools of samples: ``union`` and ``half``.

    Where the source has too few responses of a modality, those of all splits are drawn from, and where these are too
    few, pools are halved until they suffice; :attr:`Questions.drawn` tells.

    Args:
        given: all samples and responses of the corpus.
        samples: to ask about.
        pools: size and seed.
        source: split whose right responses are distractors.

    Raises:
        CorpusError: there are no samples, or a modality has no two responses.
    """
    if not samples:
        raise CorpusError(
            "there is no sample to evaluate retrieval on: the split has no answer of any of the modalities "
            f"{', '.join(given.modalities) or '(none)'}; give some records the split `test` (docs/data.md)."
        )
    found, drawn = _draw(given, samples, pools, source)
    return Questions.of(samples, given.responses, no_distractors(samples, given), found, drawn)


def _draw(
    given: SampleSet, samples: Sequence[Sample], pools: PoolSettings, source: Source
) -> tuple[dict[str, list[Pool]], Drawn]:
    """Return kind → pools, of the wanted size and source or the nearest there are responses for."""
    size = pools.size
    while True:
        for split in dict.fromkeys((source, "all")):
            try:
                found = {
                    str(kind): make_pools(samples, given, kind, size, pools.seed, split_responses=split)
                    for kind in KINDS
                }
            except CorpusError:
                if size < 4 and split == "all":  # a half of it would be the right response alone
                    raise
            else:
                return found, Drawn(size, pools.size, split, source)
        size //= 2


def retriever_system(name: str, model: Model, maker: Maker, questions: Questions, given: SampleSet) -> System:
    """Encode all questions and responses with a retriever, and rank.

    Args:
        name: what the report calls it.
        model: the retriever.
        maker: of its inputs.
        questions: to ask.
        given: the responses.

    Raises:
        CorpusError: responses have a modality that the retriever does not know.
    """
    layout = questions.layout
    if strange := sorted(set(layout.spans) - set(model.spec.modalities)):
        raise CorpusError(
            f"{name}: knows {', '.join(model.spec.modalities)}, and the corpus has responses of modality "
            f"{', '.join(strange)}; train it on this corpus, or set retrieval.samples.modalities as in its training."
        )
    queries = [sample.query for sample in questions.samples]
    responses = encode_responses(model, maker, [given.responses[key] for key in layout.ids])
    first, *others = layout.spans
    encoded = {first: encode_queries(model, maker, queries, first)}
    own = model.spec.method == "dr"  # the others have one context encoder, whatever is ranked
    encoded |= {m: encode_queries(model, maker, queries, m) if own else encoded[first] for m in others}
    scorer = VectorScorer(layout, encoded, responses)
    predicted = None
    if model.spec.method != "mdr":
        # A modality that the corpus has no response of cannot be asked for.
        known = [number for number, m in enumerate(model.spec.modalities) if m in layout.spans]
        shares = encode_intents(model, maker, queries)[:, known]
        predicted = tuple(model.spec.modalities[known[best]] for best in shares.argmax(1))
    return System(name, scorer, stand(scorer, questions), predicted)


@dataclass(frozen=True)
class WordScorer:
    """A ranker of words, asked with each sample's text."""

    ranker: Ranker
    texts: Sequence[str]

    def scores(self, rows: slice) -> Scores:
        """Return the scores of all responses, by id."""
        return self.ranker.all_scores(self.texts[rows])


def word_systems(questions: Questions, given: SampleSet, facts: Facts, encoders: Mapping[str, Encode]) -> list[System]:
    """Return BM25 and encoders off the shelf, each asked with the whole context and with its last turn alone.

    Args:
        questions: to ask.
        given: the responses.
        facts: puts contexts into words.
        encoders: name → encoder.
    """
    contexts = [context_words(sample.query, facts) for sample in questions.samples]
    asked = {
        "": [" \n".join(lines) for lines in contexts],
        LAST_TURN: [lines[-1] if lines else "" for lines in contexts],
    }
    rankers: dict[str, Ranker] = {BM25: Bm25Ranker(given.responses)}
    rankers |= {name: OffTheShelfRanker(encode, given.responses) for name, encode in encoders.items()}
    return [
        _word_system(name + said, ranker, texts, questions)
        for name, ranker in rankers.items()
        for said, texts in asked.items()
    ]


def _word_system(name: str, ranker: Ranker, texts: Sequence[str], questions: Questions) -> System:
    scorer = WordScorer(ranker, texts if name.startswith(BM25) else [text[-_ENCODED_CHARS:] for text in texts])
    return System(name, scorer, stand(scorer, questions))


def context_words(query: Query, facts: Facts) -> list[str]:
    """Return the turns that say something, oldest first, without speakers, which are no words of the answer."""
    lines = [turn_words(turn, facts.titles, facts.pictures).replace("[picture]", "").strip() for turn in query.turns]
    return [line for line in lines if line]


# ---------------------------------------------------------------- examples


@dataclass(frozen=True)
class Retrieved:
    """A question with its right response and the first that a system found among all responses.

    Attributes:
        sample: asked about.
        gold: its right response.
        rank: of it in the drawn pool; :data:`~mmd.retrieval.ranks.MISS` where the wrong modality was ranked.
        corpus_rank: of it among all responses.
        intent: modality that was predicted; None where the union was ranked.
        hits: found among all responses, the best first.
    """

    sample: Sample
    gold: Response
    rank: int
    corpus_rank: int
    intent: str | None
    hits: tuple[Hit, ...]


def pick_retrieved(
    system: System, questions: Questions, given: SampleSet, count: int, seed: int, shown: int = 5
) -> list[Retrieved]:
    """Return examples of each modality in turn, found at once, found among the first and not found, drawn by seed."""
    pool = next(iter(questions.pools))
    ranks, corpus = system.ranks(questions, pool), system.ranks(questions, "corpus")
    order = np.random.default_rng(seed).permutation(len(ranks)).tolist()
    groups: dict[tuple[str, int], list[int]] = {}
    for row in order:
        outcome = 0 if ranks[row] == 1 else 1 if ranks[row] <= shown else 2
        groups.setdefault((questions.samples[row].modality, outcome), []).append(row)
    turns = [groups[key] for key in sorted(groups, key=lambda key: (key[1], key[0]))]
    longest = max(map(len, turns))
    chosen = [rows[i] for i in range(longest) for rows in turns if i < len(rows)][:count]
    return [
        Retrieved(
            sample=questions.samples[row],
            gold=given.responses[questions.samples[row].response_id],
            rank=int(ranks[row]),
            corpus_rank=int(corpus[row]),
            intent=system.predicted[row] if system.predicted else None,
            hits=best_hits(system, questions, given, row, shown),
        )
        for row in chosen
    ]


def best_hits(system: System, questions: Questions, given: SampleSet, row: int, k: int) -> tuple[Hit, ...]:
    """Return the first responses for one question among all, as the system ranks them."""
    scores = system.scorer.scores(slice(row, row + 1))[0]
    span = questions.layout.spans[system.predicted[row]] if system.predicted else slice(0, len(scores))
    ranked = sorted(zip(questions.layout.ids[span], scores[span].tolist(), strict=True), key=by_score)[:k]
    return tuple(Hit(given.responses[key], score) for key, score in ranked)
