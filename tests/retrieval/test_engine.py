"""Answering: which modality is ranked, in what order, and what a bad question is told."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmd.errors import ConfigError, RequestError
from mmd.retrieval.engine import RetrievalEngine
from mmd.retrieval.types import Query, Response
from mmd.schema import Turn

PLANE = {"text:a": (1.0, 0.0), "text:b": (0.0, 1.0), "image:a": (0.6, 0.8), "image:b": (0.0, -1.0)}
RESPONSES = {key: Response(key, key.partition(":")[0], key, key) for key in PLANE}


class Rows:
    """Inputs whose vectors are known: the point that the last turn's words name."""

    def __init__(self, points: torch.Tensor) -> None:
        self.points = points

    def rows(self, index: Any) -> Rows:
        return Rows(self.points[index])


class Points:
    """Makes inputs of "x y" texts."""

    def queries(self, queries: Sequence[Query]) -> Rows:
        return Rows(torch.tensor([[float(v) for v in q.turns[-1].text.split()] for q in queries]))

    def responses(self, responses: Sequence[Response]) -> Rows:
        return Rows(torch.tensor([PLANE[r.id] for r in responses]))


class Compass:
    """A retriever whose towers are the identity; pictures are asked for below the horizon."""

    def __init__(self, method: str) -> None:
        self.spec = SimpleNamespace(method=method, modalities=("text", "image"))
        self.asked: list[str] = []

    def embed_queries(self, inputs: Rows, subtask: str) -> torch.Tensor:
        self.asked.append(subtask)
        return torch.nn.functional.normalize(inputs.points, dim=-1)

    def embed_responses(self, inputs: Rows, modality: str) -> torch.Tensor:  # noqa: ARG002 (one encoder for all)
        return inputs.points

    def intent_logits(self, inputs: Rows) -> torch.Tensor:
        return torch.stack([inputs.points[:, 1], -inputs.points[:, 1]], dim=1)


class Flat:
    """Exact search over the responses of one modality."""

    def __init__(self, modality: str) -> None:
        self.ids = [key for key in PLANE if key.startswith(modality)]
        self.vectors = np.array([PLANE[key] for key in self.ids], dtype=np.float32)

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[list[list[str]], NDArray[np.float32]]:
        scores = vectors @ self.vectors.T
        order = np.argsort(-scores, axis=1)[:, :k]
        return [[self.ids[i] for i in row] for row in order], np.take_along_axis(scores, order, 1)

    def __len__(self) -> int:
        return len(self.ids)


def engine(method: str, **options: Any) -> RetrievalEngine:
    indices = {"text": Flat("text"), "image": Flat("image")}
    return RetrievalEngine(Compass(method), indices, RESPONSES, Points(), **options)


def ask(words: str) -> Query:
    return Query((Turn("user", words),))


def ids(answer: Any) -> list[str]:
    return [hit.response.id for hit in answer.hits]


def test_mdr_ranks_all_modalities_by_one_cosine():
    """From (0.8, 0.6): image:a 0.96, text:a 0.8, text:b 0.6, image:b -0.6."""
    [answer] = engine("mdr").retrieve([ask("0.8 0.6")], k=10)
    assert ids(answer) == ["image:a", "text:a", "text:b", "image:b"]
    assert [hit.score for hit in answer.hits] == pytest.approx([0.96, 0.8, 0.6, -0.6])
    assert answer.intent is None
    assert answer.modality is None


def test_a_two_step_method_ranks_only_the_modality_that_it_predicts():
    above, below = engine("sdr").retrieve([ask("0.8 0.6"), ask("0.8 -0.6")], k=10)
    assert (above.modality, below.modality) == ("text", "image")
    assert ids(above) == ["text:a", "text:b"]
    assert ids(below) == ["image:b", "image:a"]
    assert above.intent
    assert above.intent["text"] == pytest.approx(1 / (1 + np.exp(-1.2)))


@pytest.mark.parametrize("method", ["dr", "sdr", "mdr"])
def test_a_modality_that_is_asked_for_is_ranked_whatever_is_predicted(method: str):
    [answer] = engine(method).retrieve([ask("0.8 0.6")], k=10, modality="image")
    assert ids(answer) == ["image:a", "image:b"]
    assert answer.modality == "image"


def test_dr_encodes_each_query_by_its_own_modality_and_sdr_all_at_once():
    questions = [ask("0.8 0.6"), ask("0.8 -0.6")]
    for method, encoded in (("dr", 2), ("sdr", 1), ("mdr", 1)):
        made = engine(method)
        made.retrieve(questions, k=1)
        assert len(made.retriever.asked) == encoded  # type: ignore[attr-defined]


def test_questions_asked_together_are_answered_as_alone():
    questions = [ask("0.8 0.6"), ask("0.1 -0.6"), ask("-1 0.2")]
    for method in ("dr", "sdr", "mdr"):
        together = engine(method).retrieve(questions, k=3)
        alone = [engine(method).retrieve([q], k=3)[0] for q in questions]
        assert [ids(a) for a in together] == [ids(a) for a in alone]


def test_equal_scores_are_ordered_by_id():
    """(1, 1) lies between text:a and text:b."""
    [answer] = engine("mdr").retrieve([ask("1 1")], k=3, modality="text")
    assert ids(answer) == ["text:a", "text:b"]


def test_bad_questions_are_told_what_is_wrong():
    made = engine("mdr")
    with pytest.raises(RequestError, match=r"'smell' is unknown; this retriever ranks text, image"):
        made.retrieve([ask("1 1")], modality="smell")
    with pytest.raises(RequestError, match="query 1 says nothing and shows nothing"):
        made.retrieve([ask("1 1"), Query((Turn("user", "  "),))])
    with pytest.raises(RequestError, match="query 0 says nothing"):
        made.retrieve([Query(())])
    with pytest.raises(RequestError, match="1 to 1000"):
        made.retrieve([ask("1 1")], k=0)
    assert made.retrieve([]) == []


def test_an_index_without_a_modality_of_the_retriever_is_refused():
    with pytest.raises(ConfigError, match="no responses of modality image"):
        RetrievalEngine(Compass("mdr"), {"text": Flat("text")}, RESPONSES, Points())


class Backwards:
    """A re-ranker that likes late ids."""

    depth = 2

    def scores(self, query: Query, responses: Sequence[Response]) -> NDArray[np.float32]:  # noqa: ARG002 (of any query)
        return np.array([float(ord(r.id[-1])) for r in responses], dtype=np.float32)


def test_a_reranker_orders_the_first_few_and_leaves_the_rest_below():
    plain = ids(engine("mdr").retrieve([ask("1 0.1")])[0])
    [answer] = engine("mdr", reranker=Backwards()).retrieve([ask("1 0.1")])
    assert plain == ["text:a", "image:a", "text:b", "image:b"]
    assert ids(answer) == ["image:a", "text:a", "text:b", "image:b"]  # both of the first end in "a": by id
    scores = [hit.score for hit in answer.hits]
    assert scores == sorted(scores, reverse=True)
    assert "rerank" in answer.timings_ms


def test_every_modality_has_a_second_look_of_its_own_where_each_is_ranked():
    """Two pictures or two texts fit into the look; were it one look over all, a modality could be left below it."""
    [answer] = engine("mdr", reranker=Backwards()).retrieve([ask("1 0.1")], k=2, each=True)
    assert [(hit.response.id, hit.score) for hit in answer.hits] == [
        ("image:b", 98.0),
        ("text:b", 98.0),
        ("image:a", 97.0),
        ("text:a", 97.0),
    ]
