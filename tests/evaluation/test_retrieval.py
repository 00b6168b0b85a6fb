"""Ranks, recall and curves of retrievers, against values worked out by hand and against brute force."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from mmd.errors import CorpusError, ModelError
from mmd.evaluation.ranking import CORPUS, Layout, Questions, Scorer, expected_recall, stand
from mmd.evaluation.retrieval import ALL, Findings, System, VectorScorer, summarise, to_json
from mmd.retrieval.pools import make_pools, no_distractors
from mmd.retrieval.ranks import MISS, rank_all
from mmd.retrieval.types import Query, Response, Sample, SampleSet
from mmd.schema import Turn

RNG = np.random.default_rng(5)


def sample(number: int, response_id: str, also: Sequence[str] = ()) -> Sample:
    query = Query((Turn("user", f"question {number}"),))
    modality = response_id.partition(":")[0]
    return Sample(f"d{number // 2}#{number}", f"d{number // 2}", "test", query, modality, response_id, tuple(also))


def corpus(texts: int = 24, images: int = 16) -> SampleSet:
    """Every response is right for one sample."""
    ids = [f"text:{i:03d}" for i in range(texts)] + [f"image:{i:03d}" for i in range(images)]
    responses = {key: Response(key, key.partition(":")[0], key, key) for key in ids}
    samples = tuple(sample(number, key) for number, key in enumerate(ids))
    return SampleSet(samples, responses, ("text", "image"))


def unit(count: int, dim: int = 6) -> NDArray[np.float32]:
    vectors = RNG.normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ask(given: SampleSet, size: int = 10) -> Questions:
    pools = {"union": make_pools(given.samples, given, "union", size, 0)}
    pools["half"] = make_pools(given.samples, given, "half", size, 0)
    return Questions.of(given.samples, given.responses, no_distractors(given.samples, given), pools)


def scorer(questions: Questions, strength: float = 1.0) -> VectorScorer:
    """Queries lie near their right responses."""
    responses = unit(len(questions.layout.ids))
    queries = strength * responses[questions.golds] + unit(len(questions.samples))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return VectorScorer(questions.layout, dict.fromkeys(questions.layout.spans, queries), responses)


def both(questions: Questions) -> tuple[System, System]:
    """The same vectors as a ranker of the union, and in two steps of which every third takes the wrong modality."""
    made = scorer(questions)
    standing = stand(made, questions)
    other = {"text": "image", "image": "text"}
    said = tuple(other[s.modality] if i % 3 == 0 else s.modality for i, s in enumerate(questions.samples))
    return System("union", made, standing), System("two steps", made, standing, said)


def test_ranks_in_pools_equal_brute_force():
    given = corpus()
    questions, pools = ask(given), make_pools(given.samples, given, "union", 10, 0)
    made = scorer(questions)
    place = questions.layout.place
    columns = [np.array([place[c] for c in pool.candidates]) for pool in pools]
    queries = made.queries["text"]
    union = System("x", made, stand(made, questions)).ranks(questions, "union")
    assert union.tolist() == rank_all(queries, made.responses, columns, questions.golds).tolist()


def test_ranks_in_the_corpus_equal_brute_force_without_what_is_no_distractor():
    """The first two samples share a dialogue turn, so neither is the other's distractor."""
    given = corpus()
    first, second, *rest = given.samples
    samples = (sample(0, first.response_id, [second.response_id]), sample(1, second.response_id), *rest)
    given = SampleSet(samples, given.responses, given.modalities)
    questions = ask(given)
    made = scorer(questions)
    ranks = System("x", made, stand(made, questions)).ranks(questions, CORPUS)
    scores = made.scores(slice(0, len(samples)))
    for row, asked in enumerate(samples):
        others = [c for key, c in questions.layout.place.items() if key not in (asked.response_id, *asked.also)]
        assert ranks[row] == 1 + int((scores[row, others] >= scores[row, questions.golds[row]]).sum())


def test_two_steps_are_never_better_than_with_oracle_intent_and_miss_where_the_intent_is_wrong():
    questions = ask(corpus())
    _, two = both(questions)
    for pool in ("union", "half", CORPUS):
        plain, oracle = two.ranks(questions, pool), two.ranks(questions, pool, oracle=True)
        assert (plain >= oracle).all()
        assert (plain[::3] == MISS).all()
        assert (plain[1::3] == oracle[1::3]).all()


def test_a_union_is_never_easier_than_its_part():
    questions = ask(corpus())
    union, two = both(questions)
    for pool in ("union", "half", CORPUS):
        assert (union.ranks(questions, pool) >= union.ranks(questions, pool, oracle=True)).all()
    assert (union.ranks(questions, "union", oracle=True) == two.ranks(questions, "union", oracle=True)).all()


class Table:
    """Known scores."""

    def __init__(self, scores: list[list[float]]) -> None:
        self.known = np.array(scores)

    def scores(self, rows: slice) -> NDArray[np.float64]:
        return self.known[rows]


def by_hand() -> tuple[Questions, Scorer]:
    """Columns image:a, image:b, text:a, text:b; right are text:a (0.5, a tie with image:b) and image:a (0.9)."""
    ids = ("image:a", "image:b", "text:a", "text:b")
    given = SampleSet(
        (sample(0, "text:a"), sample(2, "image:a")),
        {key: Response(key, key.partition(":")[0], key, key) for key in ids},
        ("text", "image"),
    )
    questions = Questions.of(given.samples, given.responses, [{"text:a"}, {"image:a"}], {})
    return questions, Table([[0.9, 0.5, 0.5, 0.1], [0.9, 0.1, 0.2, 0.3]])


def test_ties_count_against_the_right_response():
    questions, table = by_hand()
    standing = stand(table, questions)
    assert standing.above[CORPUS].tolist() == [[2, 0], [0, 0]]  # images above, texts above
    assert standing.ranks(CORPUS).tolist() == [3, 1]
    assert standing.ranks(CORPUS, questions.gold_modality).tolist() == [1, 1]
    assert questions.distractors(CORPUS).tolist() == [[2, 1], [1, 2]]


def test_expected_recall_by_hand():
    """4 distractors, 1 above: of 2 drawn it is among them half the time; with k = 2 one above does not matter."""
    above, there = np.array([[1]]), np.array([[4]])
    assert expected_recall(above, there, np.array([[2]]), 1) == pytest.approx([0.5])
    assert expected_recall(above, there, np.array([[2]]), 2) == pytest.approx([1.0])
    assert expected_recall(above, there, np.array([[99]]), 1) == pytest.approx([0.0])


def test_expected_recall_over_modalities_by_hand():
    """One of 2 texts and one of 2 images above, one of each drawn: none above 1/4, at most one 3/4."""
    above, there, drawn = np.array([[1, 1]]), np.array([[2, 2]]), np.array([[1, 1]])
    assert expected_recall(above, there, drawn, 1) == pytest.approx([0.25])
    assert expected_recall(above, there, drawn, 2) == pytest.approx([0.75])
    assert expected_recall(above, there, drawn, 3) == pytest.approx([1.0])


def test_a_curve_falls_ends_at_the_corpus_and_agrees_with_drawn_pools():
    given = corpus(60, 60)
    questions = ask(given)
    for system in both(questions):
        findings = summarise(questions, [system], resamples=10, seed=0)
        curve = findings.curves[system.name]
        for k, values in curve.recall.items():
            assert list(values) == sorted(values, reverse=True)
            assert values[-1] == pytest.approx(findings.score(system.name, CORPUS).recall[k].value)
        drawn = []
        for seed in range(40):
            pools = {"union": make_pools(given.samples, given, "union", 10, seed)}
            again = Questions.of(given.samples, given.responses, no_distractors(given.samples, given), pools)
            ranks = System("x", system.scorer, stand(system.scorer, again), system.predicted).ranks(again, "union")
            drawn.append(float((ranks <= 1).mean()))
        assert np.mean(drawn) == pytest.approx(curve.recall[1][curve.sizes.index(10)], abs=0.02)


def test_a_random_scorer_reaches_chance():
    given = corpus(120, 120)
    questions = ask(given)
    made = Table(np.random.default_rng(0).normal(size=(240, 240)).tolist())
    findings = summarise(questions, [System("x", made, stand(made, questions))], resamples=10, seed=0)
    union, oracle = findings.score("x", "union"), findings.score("x", "union", oracle=True)
    assert union.chance[10] == pytest.approx(0.5)
    assert union.recall[10].value == pytest.approx(0.5, abs=0.1)
    assert oracle.chance[1] == pytest.approx(0.1)
    assert oracle.recall[1].value == pytest.approx(0.1, abs=0.06)


def findings() -> Findings:
    questions = ask(corpus())
    return summarise(questions, both(questions), resamples=50, seed=0)


def test_scores_add_up():
    found = findings()
    for row in found.rows:
        parts = [row.scores[m] for m in found.modalities]
        for k in (1, 5, 10):
            mean = sum(p.n * p.recall[k].value for p in parts) / row.scores[ALL].n
            assert row.scores[ALL].recall[k].value == pytest.approx(mean)
        recalls = [row.scores[ALL].recall[k].value for k in (1, 5, 10)]
        assert recalls == sorted(recalls)
        assert recalls[0] <= row.scores[ALL].mrr <= 1


def test_intents_are_scored_for_two_steps_and_by_the_best_response_of_a_union():
    found = findings()
    wrong = len(range(0, 40, 3))
    assert found.intents["two steps"].accuracy.value == pytest.approx(1 - wrong / 40)
    assert 0 < found.intents["union"].weighted_f1 <= 1


def test_findings_are_plain_values():
    told = json.loads(json.dumps(to_json(findings())))
    assert told["samples"] == {"multimodal": 40, "image": 16, "text": 24}
    assert told["pool_sizes"] == {"union": 20, "half": 10, "corpus": 40}
    assert len(told["rows"]) == 3 * 2 * 2


def test_scores_that_are_no_numbers_are_refused():
    questions, table = by_hand()
    assert isinstance(table, Table)
    table.known[0, 0] = np.nan
    with pytest.raises(ModelError, match="1 of 8 scores are not numbers"):
        stand(table, questions)


def test_no_responses_are_refused():
    with pytest.raises(CorpusError, match="no responses"):
        Layout.of({})
