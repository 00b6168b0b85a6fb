"""The report on retrieval: complete, self-contained and discreet; and what the retriever is compared with."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mmd.errors import CorpusError
from mmd.evaluation.ranking import Drawn, Questions
from mmd.evaluation.retrieval import System, summarise
from mmd.evaluation.retrieval_report import (
    RetrievalContent,
    headline,
    render_retrieval,
    rerank_words,
    retrieval_table,
)
from mmd.evaluation.retrieval_systems import (
    best_hits,
    context_words,
    make_questions,
    pick_retrieved,
    retriever_system,
    word_systems,
)
from mmd.evaluation.shelf import shelf_encoders
from mmd.features.settings import FeatureSettings
from mmd.models.settings import ModelSettings
from mmd.retrieval.facts import Facts
from mmd.retrieval.ranks import MISS
from mmd.retrieval.rerank import Reranked
from mmd.retrieval.settings import PoolSettings, SampleSettings, TowerSettings
from mmd.retrieval.types import Query, Response, Sample, SampleSet
from mmd.schema import Item, Turn

WORDS = ("red", "blue", "green", "black", "white", "grey", "pink", "teal", "gold", "brown", "plum", "sand")
RERANKED = Reranked(depth=20, before=0.5, after=0.625, within=0.75)
FACTS = Facts(SampleSettings(), {"7": Item("7", "Alien <1979>")}, {"image:pic3": "x"}, {})


def given(words: Sequence[str] = WORDS) -> SampleSet:
    """Half of the colours are asked for in words, half as pictures; who asks names the colour."""
    responses, samples = {}, []
    for number, word in enumerate(words):
        modality = "text" if number % 2 else "image"
        response = Response(f"{modality}:{word}", modality, f"<b>{word}</b>", f"the {word} one", f"pic{number}")
        responses[response.id] = response
        turns = (Turn("user", f"something {word}, please", (f"pic{number}",)),)
        samples.append(Sample(f"d{number}#1", f"d{number}", "test", Query(turns), modality, response.id))
    return SampleSet(tuple(samples), responses, ("text", "image"))


class Inputs:
    def __init__(self, points: torch.Tensor) -> None:
        self.points = points

    def rows(self, index: Any) -> Inputs:
        return Inputs(self.points[index])


class Maker:
    """One axis a colour; what is said lies on the axis of the colour that it names."""

    def queries(self, queries: Sequence[Query]) -> Inputs:
        return self._of([q.turns[-1].text for q in queries])

    def responses(self, responses: Sequence[Response]) -> Inputs:
        return self._of([r.text for r in responses])

    def _of(self, texts: Sequence[str]) -> Inputs:
        return Inputs(torch.tensor([[float(word in text) for word in WORDS] for text in texts]))


class Perfect:
    """Finds every colour; dr's and sdr's intent is right but for the first colour."""

    def __init__(self, method: str = "mdr", modalities: tuple[str, ...] = ("text", "image")) -> None:
        self.spec = SimpleNamespace(method=method, modalities=modalities)

    def embed_queries(self, inputs: Inputs, subtask: str) -> torch.Tensor:  # noqa: ARG002 (one encoder)
        return inputs.points

    embed_responses = embed_queries

    def intent_logits(self, inputs: Inputs) -> torch.Tensor:
        text = inputs.points[:, 1::2].sum(1) + inputs.points[:, 0]
        return torch.stack([text, 1 - text], dim=1)


def asked(some: SampleSet, size: int = 4) -> Questions:
    return make_questions(some, some.samples, PoolSettings(size=size), "test")


def content(method: str = "mdr") -> RetrievalContent:
    some = given()
    questions = asked(some)
    system = retriever_system(method, Perfect(method), Maker(), questions, some)
    findings = summarise(questions, [system, *word_systems(questions, some, FACTS, {})], resamples=20, seed=0)
    shown = pick_retrieved(system, questions, some, 6, seed=0)
    return RetrievalContent("colours", findings, shown, {"retriever": "retriever/x@1"}, {"total": 12_345}, 20)


def png(_: Sequence[str]) -> dict[str, bytes]:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    return {f"pic{n}": out.getvalue() for n in range(len(WORDS))}


def test_a_retriever_that_finds_all_is_told_so():
    findings = content().findings
    assert findings.score("mdr", "union").recall[1].value == 1.0
    assert findings.score("mdr", "corpus").mrr == 1.0
    assert findings.score("BM25", "union").recall[1].value == 1.0  # the colour is the only rare word they share


@pytest.mark.parametrize("method", ["dr", "sdr"])
def test_two_steps_miss_where_the_intent_is_wrong(method: str):
    findings = content(method).findings
    assert findings.score(method, "union").recall[10].value == pytest.approx(11 / 12)
    assert findings.score(method, "union", oracle=True).recall[1].value == 1.0
    assert findings.intents[method].accuracy.value == pytest.approx(11 / 12)


def test_the_page_is_self_contained_and_escapes_what_people_wrote():
    page = render_retrieval(content(), png)
    assert "default-src 'none'" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "&lt;b&gt;red&lt;/b&gt;" in page
    assert "<b>red</b>" not in page
    assert "data:image/jpeg" in page
    for told in ("The whole corpus: 12 responses", "Pools of 8 responses", "12,345", "oracle intent", "chance"):
        assert told in page


def test_words_and_pictures_stay_out_of_the_page_without_leave():
    page = render_retrieval(content())
    assert "please" not in page
    assert "data:image" not in page
    assert "evaluation.show_dialogues" in page


def test_a_wrong_modality_is_told_among_the_examples():
    told = content("sdr")
    assert any(r.rank == MISS and r.intent == "text" for r in told.retrieved)
    assert "wrong modality" in render_retrieval(told, png)


def test_examples_show_every_modality_and_outcome_in_turn():
    shown = content("sdr").retrieved
    assert {r.sample.modality for r in shown[:2]} == {"text", "image"}
    assert shown[2].rank == MISS
    assert all(r.hits[0].score >= r.hits[-1].score for r in shown)
    assert shown[0].hits[0].response == shown[0].gold


def test_hits_of_two_steps_are_of_the_predicted_modality():
    some = given()
    questions = asked(some)
    system = retriever_system("sdr", Perfect("sdr"), Maker(), questions, some)
    assert {hit.response.modality for hit in best_hits(system, questions, some, 0, 5)} == {"text"}


def test_the_manifest_has_the_retrievers_own_headline():
    """One of twelve is sought in the wrong modality."""
    scalars = headline(replace(content("sdr"), reranked=RERANKED))
    assert scalars.pop("sdr intent, weighted F1") == pytest.approx(11 / 12, abs=0.01)
    assert scalars == {
        "sdr R@1": pytest.approx(11 / 12),
        "sdr R@10": pytest.approx(11 / 12),
        "sdr R@1, whole corpus": pytest.approx(11 / 12),
        "sdr R@1, whole corpus, re-ranked": 0.625,
    }


def test_a_second_look_is_told_where_there_is_one():
    page = render_retrieval(replace(content(), reranked=RERANKED))
    assert "A second look at the first 20" in page
    for share in ("0.500", "0.625", "0.750"):
        assert share in page
        assert share in rerank_words(RERANKED)
    assert "second look" not in render_retrieval(content())


def test_the_terminal_shows_a_row_a_system():
    table = retrieval_table(content().findings)
    assert len(table.rows) == 6
    assert "Pools of 8" in str(table.title)


def test_a_long_name_is_not_cut_in_a_narrow_terminal():
    findings = content().findings
    long = "an_encoder_with_a_long_name"
    rows = [replace(row, system=f"{long}, last turn") for row in findings.rows]
    console = Console(width=80, file=io.StringIO())
    console.print(retrieval_table(replace(findings, rows=rows)))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "…" not in shown
    assert shown.count(long) == len([row for row in rows if row.pool == "union"])


def test_pools_are_halved_where_there_are_too_few_responses():
    some = given()
    fewer = asked(some, size=50)
    assert {len(pool) for pool in fewer.pools["union"]} == {2 * 6}
    assert fewer.drawn == Drawn(size=6, wanted_size=50, source="test", wanted_source="test")
    with pytest.raises(CorpusError, match="no sample to evaluate"):
        make_questions(some, [], PoolSettings(), "test")


def test_a_report_says_how_its_pools_fall_short_of_what_was_wanted():
    """Of twelve training samples none is a distractor of test; asked with the test split, all splits are drawn from."""
    some = given()
    training = tuple(replace(s, split="train") for s in some.samples[2:])
    mixed = replace(some, samples=(*some.samples[:2], *training))
    questions = make_questions(mixed, mixed.samples[:2], PoolSettings(size=8), "test")
    assert questions.drawn == Drawn(size=4, wanted_size=8, source="all", wanted_source="test")
    words = (
        "Too few responses: pools hold 4 responses a modality instead of 8, and distractors come from all splits, not "
        "the test split."
    )
    assert questions.drawn.shortfall == words
    system = retriever_system("mdr", Perfect(), Maker(), questions, mixed)
    findings = summarise(questions, [system], resamples=10, seed=0)
    told = RetrievalContent("x", findings, [], {}, {"total": 1}, 10)
    assert words in render_retrieval(told)
    assert content().notes == []


def test_a_retriever_without_a_modality_of_the_corpus_is_refused():
    some = given()
    with pytest.raises(CorpusError, match="responses of modality image"):
        retriever_system("mdr", Perfect(modalities=("text",)), Maker(), asked(some), some)


def test_one_modality_has_one_column_and_no_intent():
    some = given(WORDS)
    samples = tuple(s for s in some.samples if s.modality == "text")
    only = SampleSet(samples, {s.response_id: some.responses[s.response_id] for s in samples}, ("text",))
    questions = asked(only)
    system = retriever_system("mdr", Perfect(modalities=("text",)), Maker(), questions, only)
    findings = summarise(questions, [system], resamples=10, seed=0)
    assert findings.subsets == ("multimodal",)
    told = RetrievalContent("x", findings, pick_retrieved(system, questions, only, 2, 0), {}, {"total": 1}, 10)
    page = render_retrieval(told)
    assert "Which modality" not in page
    assert ", oracle intent" not in page


def test_contexts_are_read_without_speakers_and_empty_pictures():
    query = Query((Turn("user", "about @7"), Turn("agent", "", ("a",)), Turn("user", "yes", ("b",))))
    assert context_words(query, FACTS) == ["about Alien <1979>", "yes"]


def test_an_encoder_off_the_shelf_is_the_one_that_texts_start_from():
    towers = TowerSettings(text="tiny-bert")
    [(name, encode)] = shelf_encoders("auto", towers, FeatureSettings(), ModelSettings()).items()
    vectors = encode(["a red mug", "blue " * 300, "a red mug"])
    assert name == "tiny-bert"
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)
    assert shelf_encoders("none", towers, FeatureSettings(), ModelSettings()) == {}
    assert shelf_encoders("features", towers, FeatureSettings(text="none"), ModelSettings()) == {}


def test_words_rank_by_what_they_share():
    some = given()
    systems = {s.name: s for s in word_systems(asked(some), some, FACTS, {})}
    assert list(systems) == ["BM25", "BM25, last turn"]
    assert isinstance(systems["BM25"], System)
