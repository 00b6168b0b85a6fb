"""What a trained retriever must beat on the same pools: BM25, and an encoder as it comes off the shelf.

Both see words only; a response without any scores 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmd.intent.textnorm import normalise
from mmd.retrieval.types import Response

Scores = NDArray[np.float64]
Encoder = Callable[[list[str]], NDArray[np.floating]]
"""Texts → vectors of shape (n_texts, dim)."""
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
_RUN = re.compile(f"[{_CJK}]+|[^\\W_{_CJK}]+")
_FIRST_CJK = "\u3040"


class Ranker(Protocol):
    """Anything that scores responses to a query in words."""

    def all_scores(self, queries: Sequence[str]) -> Scores:
        """Return the scores of all responses, by id, shape (n_queries, n_responses); larger is better."""
        ...


def words_of(text: str) -> list[str]:
    """Return the terms of a text: words, and of Chinese, Japanese and Korean runs the pairs of characters.

    >>> words_of("The red Mug 红色杯")
    ['the', 'red', 'mug', '红色', '色杯']
    """
    terms: list[str] = []
    for run in _RUN.findall(normalise(text)):
        if run[0] < _FIRST_CJK or len(run) == 1:
            terms.append(run)
        else:
            terms += [run[i : i + 2] for i in range(len(run) - 1)]
    return terms


class Bm25Ranker:
    """BM25 (Robertson & Zaragoza 2009; Lucene's variant, k1 1.5, b 0.75) by bm25s, over all responses' words.

    Args:
        responses: id → response; document frequencies are counted over all of them.
    """

    def __init__(self, responses: Mapping[str, Response]) -> None:
        import bm25s

        self._row = {response_id: row for row, response_id in enumerate(sorted(responses))}
        documents = [words_of(responses[response_id].text) for response_id in self._row]
        self._index = bm25s.BM25() if any(documents) else None
        if self._index is not None:
            self._index.index(documents, show_progress=False)

    def all_scores(self, queries: Sequence[str]) -> Scores:
        """Return BM25 of all responses, by id, 0 where no term is shared, shape (n_queries, n_responses)."""
        return np.stack([self._all(query) for query in queries]) if queries else np.zeros((0, len(self._row)))

    def _all(self, query: str) -> Scores:
        """Return the score of every response."""
        known = self._index.vocab_dict if self._index is not None else {}
        terms = [term for term in words_of(query) if term in known]
        if self._index is None or not terms:
            return np.zeros(len(self._row))
        return np.asarray(self._index.get_scores(terms), dtype=np.float64)


class OffTheShelfRanker:
    """Cosine of an encoder's vectors of context and response, nothing trained.

    Args:
        encode: the encoder.
        responses: id → response; those with words are encoded once, here.
    """

    def __init__(self, encode: Encoder, responses: Mapping[str, Response]) -> None:
        self._encode = encode
        self._row = {response_id: row for row, response_id in enumerate(sorted(responses))}
        self._dim = 1  # until something was encoded
        self._vectors = self._unit([responses[response_id].text for response_id in self._row])

    def all_scores(self, queries: Sequence[str]) -> Scores:
        """Return the cosines of all responses, by id, shape (n_queries, n_responses).

        0 for those, and for queries, without words.
        """
        found: Scores = self._unit(queries) @ self._vectors.T
        return found

    def _unit(self, texts: Sequence[str]) -> Scores:
        """Return vectors of length 1, shape (n_texts, dim); zeros for texts without words."""
        spoken = [row for row, text in enumerate(texts) if text.strip()]
        if not spoken:
            return np.zeros((len(texts), self._dim))
        found = np.asarray(self._encode([texts[row] for row in spoken]), dtype=np.float64)
        self._dim = found.shape[1]
        unit = np.zeros((len(texts), self._dim))
        unit[spoken] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        return unit
