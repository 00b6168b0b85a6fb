"""Hard negatives, and what validation draws its pools from."""

from __future__ import annotations

import numpy as np

from mmd.retrieval.mining import NONE, banned_rows, hardest
from mmd.retrieval.settings import PoolSettings
from mmd.retrieval.types import Query, Response, Sample
from mmd.retrieval.validation import validation_pools, validation_set
from mmd.schema import Turn


def make_response(name: str, text: str = "", modality: str = "text") -> Response:
    return Response(f"{modality}:{name}", modality, text or name, text or name)


def make_sample(number: int, right: Response, also: tuple[str, ...] = ()) -> Sample:
    query = Query((Turn("user", f"question {number}"),))
    return Sample(f"d{number}#1", f"d{number}", "train", query, right.modality, right.id, also)


def test_the_closest_wrong_responses_are_the_hardest():
    """Cosines of the query with rows 0-3: 1, .8, .6, 0. Row 0 is right; row 1 then 2 are closest."""
    queries = np.array([[1.0, 0.0]], np.float32)
    responses = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], np.float32)
    rows = np.arange(4)
    assert hardest(queries, responses, rows, [frozenset({0})], 2).tolist() == [[1, 2]]
    assert hardest(queries, responses, rows, [frozenset({0, 1})], 1).tolist() == [[2]]
    assert hardest(queries, responses, rows + 10, [frozenset({10})], 2).tolist() == [[11, 12]]


def test_fewer_wrong_responses_than_asked_for_leave_places_empty():
    queries, responses = np.ones((1, 1), np.float32), np.ones((3, 1), np.float32)
    assert hardest(queries, responses, np.arange(3), [frozenset({1})], 4).tolist() == [[0, 2, NONE, NONE]]


def test_mining_equals_sorting_everything():
    rng = np.random.default_rng(0)
    queries, responses = (rng.normal(size=(n, 4)).astype(np.float32) for n in (30, 50))
    banned = [frozenset(rng.choice(50, 3, replace=False).tolist()) for _ in range(30)]
    found = hardest(queries, responses, np.arange(50), banned, 5)
    for row, out in enumerate(banned):
        order = [r for r in np.argsort(-(responses @ queries[row]), kind="stable").tolist() if r not in out]
        assert found[row].tolist() == order[:5]


def test_what_reads_like_a_right_response_is_no_negative():
    responses = [make_response(n, t) for n, t in (("a", "Yes!"), ("b", "yes"), ("c", "no"), ("d", "maybe"))]
    samples = [make_sample(0, responses[0]), make_sample(1, responses[2], also=("text:d", "text:elsewhere"))]
    assert banned_rows(samples, responses)[1] == {2, 3}
    assert {0} <= banned_rows(samples, responses)[0] <= {0, 1}
    assert banned_rows([make_sample(0, make_response("x", "NO"))], [make_response("x", "NO"), responses[2]]) == [{0, 1}]


def test_validation_draws_from_held_out_responses_alone():
    responses = {r.id: r for r in (make_response(f"answer {i}") for i in range(40))}
    held_out = [make_sample(i, response) for i, response in enumerate(list(responses.values())[:12])]
    found = validation_set(held_out, responses, ("text", "image"))
    assert found.modalities == ("text",)
    assert set(found.responses) == {s.response_id for s in held_out}
    for pool in validation_pools(found, PoolSettings(size=10)):
        assert len(pool.candidates) == 10
        assert set(pool.candidates) <= set(found.responses)


def test_few_held_out_responses_make_smaller_pools():
    """12 responses: pools of 50 and 25 are too large, 12 are all there are."""
    responses = {r.id: r for r in (make_response(f"answer {i}") for i in range(12))}
    held_out = validation_set([make_sample(i, r) for i, r in enumerate(responses.values())], responses, ("text",))
    assert {len(pool.candidates) for pool in validation_pools(held_out, PoolSettings(size=50))} == {12}
    one = validation_set([make_sample(0, responses["text:answer 0"])], responses, ("text",))
    assert [pool.candidates for pool in validation_pools(one, PoolSettings())] == [("text:answer 0",)]
