"""Answering: a dialogue in, the best responses of any modality out; what evaluation and the service both call.

The two-step methods (dr, sdr, sdr-separate) predict which modality is asked for and rank its responses; mdr ranks the
union of all by one cosine, which is the merge of the modalities' own rankings (arXiv 2506.11499); an exact one where no
modality's index is compressed, since a compressed one scores decoded vectors.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ConfigError, RequestError
from mmd.retrieval.types import Hit, Query, Response

if TYPE_CHECKING:
    from torch import Tensor

MAX_K = 1_000
"""Most responses that one question may ask for."""

Ranked = list[tuple[str, float]]
"""Response ids with their scores, the best first; equal scores by id."""


class Inputs(Protocol):
    """A batch of a tower's inputs (:class:`mmd.retrieval.inputs.TowerInputs`)."""

    def rows(self, index: Any) -> Any:  # noqa: ANN401 (the same type)
        """Return some of the rows."""
        ...


class Maker(Protocol):
    """Turns queries and responses into inputs (:class:`mmd.retrieval.inputs.InputMaker`)."""

    def queries(self, queries: Sequence[Query]) -> Any:  # noqa: ANN401 (TowerInputs)
        """Return one row a query."""
        ...

    def responses(self, responses: Sequence[Response]) -> Any:  # noqa: ANN401 (TowerInputs)
        """Return one row a response."""
        ...


class Model(Protocol):
    """What the engine asks of a :class:`mmd.retrieval.methods.Retriever`."""

    spec: Any

    def embed_queries(self, inputs: Any, subtask: str) -> Tensor:  # noqa: ANN401 (TowerInputs)
        """Return unit vectors, shape (n, dim)."""
        ...

    def embed_responses(self, inputs: Any, modality: str) -> Tensor:  # noqa: ANN401 (TowerInputs)
        """Return unit vectors, shape (n, dim)."""
        ...

    def intent_logits(self, inputs: Any) -> Tensor:  # noqa: ANN401 (TowerInputs)
        """Return shape (n, n_modalities)."""
        ...


class Searcher(Protocol):
    """What the engine asks of a :class:`mmd.retrieval.index.ResponseIndex`."""

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[list[list[str]], NDArray[np.float32]]:
        """Return the ids of the k nearest of each row, and their cosines; fewer where there are fewer."""
        ...

    def __len__(self) -> int:
        """Return how many responses it holds."""
        ...


class SecondLook(Protocol):
    """A re-ranker of the first few (:class:`mmd.retrieval.rerank.Reranker`)."""

    depth: int

    def scores(self, query: Query, responses: Sequence[Response]) -> NDArray[np.float32]:
        """Return one score a response, larger is better."""
        ...


@dataclass(frozen=True)
class RetrievalAnswer:
    """The ranked responses of one query.

    Attributes:
        hits: the best first.
        modality: predicted by a two-step method, or asked for; None where mdr ranked all modalities at once.
        intent: modality → probability, in the retriever's order; None for mdr, which has no intent head.
        timings_ms: of the stages ``encode``, ``search`` and, with a re-ranker, ``rerank``; shared by a batch.
    """

    hits: tuple[Hit, ...]
    modality: str | None
    intent: Mapping[str, float] | None
    timings_ms: Mapping[str, float]


@dataclass
class _Timer:
    """Milliseconds by stage."""

    spent_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent_ms[name] = self.spent_ms.get(name, 0.0) + (time.perf_counter() - started) * 1000


class RetrievalEngine:
    """Ranks responses with a trained retriever; nothing in it changes, so that threads may share it.

    Args:
        retriever: the trained towers.
        indices: modality → the index of its responses.
        responses: id → response, of everything the indices hold.
        maker: makes the towers' inputs.
        reranker: looks at the first few again.
        artifacts: role → reference, for answers that name what made them.

    Raises:
        ConfigError: an index is missing for a modality that the retriever knows.
    """

    def __init__(
        self,
        retriever: Model,
        indices: Mapping[str, Searcher],
        responses: Mapping[str, Response],
        maker: Maker,
        reranker: SecondLook | None = None,
        *,
        artifacts: Mapping[str, str] | None = None,
    ) -> None:
        self.retriever, self.indices, self.responses, self.maker = retriever, dict(indices), responses, maker
        self.reranker = reranker
        self.artifacts = dict(artifacts or {})
        self.modalities: tuple[str, ...] = tuple(retriever.spec.modalities)
        if missing := [m for m in self.modalities if m not in self.indices]:
            raise ConfigError(
                f"index: has no responses of modality {', '.join(missing)}, which the retriever was trained on; run "
                "`mmd build_index` for this retriever."
            )

    @property
    def two_steps(self) -> bool:
        """Does the method predict the modality before it ranks?"""
        return str(self.retriever.spec.method) != "mdr"

    def retrieve(
        self, queries: Sequence[Query], k: int = 10, modality: str | None = None, *, each: bool = False
    ) -> list[RetrievalAnswer]:
        """Return the best responses of each query.

        Args:
            queries: dialogues up to the turn that is wanted.
            k: responses a query; where fewer exist, all are given.
            modality: rank only this one instead of the predicted one (or of all of them).
            each: rank every modality, whatever is predicted, and give the k best of each, for a policy to choose from.

        Raises:
            RequestError: a query says and shows nothing, the modality is unknown, or k is out of range.
        """
        self._check(queries, k, modality)
        if not queries:
            return []
        timer = _Timer()
        with timer.stage("encode"):
            inputs = there(self.retriever, self.maker.queries(queries))
            intents = self.intents(inputs) if self.two_steps else None
        plans = [self.modalities] * len(queries) if each else self._plans(len(queries), intents, modality)
        depth = max(k, self.reranker.depth) if self.reranker else k
        cut = self._first_of_each if each else _first
        ranked = [cut(found, depth) for found in self._search(inputs, plans, depth, timer)]
        if self.reranker:
            with timer.stage("rerank"):
                again = self._rerank_each if each else self._rerank
                ranked = [again(q, found) for q, found in zip(queries, ranked, strict=True)]
        return [
            RetrievalAnswer(
                hits=tuple(Hit(self.responses[key], score) for key, score in cut(found, k)),
                modality=plan[0] if len(plan) == 1 else None,
                intent=intents[row] if intents else None,
                timings_ms=timer.spent_ms,
            )
            for row, (found, plan) in enumerate(zip(ranked, plans, strict=True))
        ]

    def intents(self, inputs: Inputs) -> list[dict[str, float]]:
        """Return modality → probability of each row; only of two-step methods."""
        import torch

        with torch.inference_mode():
            shares = self.retriever.intent_logits(inputs).float().softmax(dim=-1).cpu().tolist()
        return [dict(zip(self.modalities, row, strict=True)) for row in shares]

    def _check(self, queries: Sequence[Query], k: int, modality: str | None) -> None:
        if modality is not None and modality not in self.modalities:
            known = ", ".join(self.modalities)
            raise RequestError(f"modality: {str(modality)[:80]!r} is unknown; this retriever ranks {known}.")
        if not 1 <= k <= MAX_K:
            raise RequestError(f"k: {k} responses were asked for; ask for 1 to {MAX_K}.")
        for number, query in enumerate(queries):
            if not has_content(query):
                raise RequestError(
                    f"turns: query {number} says nothing and shows nothing; give at least one turn with words, a "
                    "picture or a product."
                )

    def _plans(
        self, count: int, intents: Sequence[Mapping[str, float]] | None, modality: str | None
    ) -> list[tuple[str, ...]]:
        """Return the modalities that each query is answered from."""
        if modality is not None:
            return [(modality,)] * count
        if intents is None:
            return [self.modalities] * count
        return [(max(self.modalities, key=row.__getitem__),) for row in intents]

    def _search(self, inputs: Inputs, plans: Sequence[tuple[str, ...]], k: int, timer: _Timer) -> list[Ranked]:
        """Ask each modality's index for k responses to the queries that it may answer; join what several found."""
        wanted: dict[str, list[int]] = defaultdict(list)
        for row, plan in enumerate(plans):
            for modality in plan:
                wanted[modality].append(row)
        shared = self.retriever.spec.method != "dr"
        found: list[Ranked] = [[] for _ in plans]
        vectors: NDArray[np.float32] | None = None
        for modality, rows in wanted.items():
            with timer.stage("encode"):
                if shared and vectors is None:  # one context encoder: encode once, whatever is searched
                    vectors = self._embed(inputs, modality)
                here = vectors[rows] if vectors is not None else self._embed(inputs.rows(rows), modality)
            with timer.stage("search"):
                ids, scores = self.indices[modality].search(here, k)
            for row, keys, values in zip(rows, ids, scores, strict=True):
                found[row] += [(key, float(value)) for key, value in zip(keys, values, strict=False)]
        return [sorted(hits, key=by_score) for hits in found]

    def _first_of_each(self, found: Ranked, k: int) -> Ranked:
        """Return the first k of each modality, in order."""
        seen: Counter[str] = Counter()
        kept: Ranked = []
        for key, score in found:
            modality = self.responses[key].modality
            if seen[modality] < k:
                kept.append((key, score))
            seen[modality] += 1
        return kept

    def _embed(self, inputs: Inputs, modality: str) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            vectors: NDArray[np.float32] = self.retriever.embed_queries(inputs, modality).float().cpu().numpy()
        return vectors

    def _rerank_each(self, query: Query, found: Ranked) -> Ranked:
        """Look at the first ``depth`` of every modality again, so that their best scores are of one scale."""
        by_modality: dict[str, Ranked] = defaultdict(list)
        for key, score in found:
            by_modality[self.responses[key].modality].append((key, score))
        return sorted((hit for own in by_modality.values() for hit in self._rerank(query, own)), key=by_score)

    def _rerank(self, query: Query, found: Ranked) -> Ranked:
        """Order the first ``depth`` anew; what lies below keeps its place, and its score stays below theirs."""
        if not self.reranker or not found:
            return found
        head, tail = found[: self.reranker.depth], found[self.reranker.depth :]
        scores = self.reranker.scores(query, [self.responses[key] for key, _ in head])
        again = sorted(((key, float(s)) for (key, _), s in zip(head, scores, strict=True)), key=by_score)
        floor = min((score for _, score in again), default=0.0)
        return again + [(key, floor - 1.0 - place) for place, (key, _) in enumerate(tail)]


def _first(found: Ranked, k: int) -> Ranked:
    return found[:k]


def there(model: Model, inputs: Any) -> Any:  # noqa: ANN401 (TowerInputs)
    """Return inputs on the model's device."""
    weight = next(iter(getattr(model, "parameters", tuple)()), None)
    return inputs if weight is None else inputs.to(weight.device)


def by_score(hit: tuple[str, float]) -> tuple[float, str]:
    """Sort key of rankings: the highest score first, equal scores by id."""
    return -hit[1], hit[0]


def has_content(query: Query) -> bool:
    """Say whether a query has any words, pictures or products to go by."""
    return any(turn.text.strip() or turn.image_ids or turn.item_ids for turn in query.turns)
