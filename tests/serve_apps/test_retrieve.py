"""/v1/retrieve and the pictures of responses: the engine's own answers over HTTP, and clear refusals."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from httpx import Response
from starlette.testclient import TestClient

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError, ModelError
from mmd.features.extract import ExtractorInfo
from mmd.features.settings import FeatureSettings
from mmd.features.store import Features
from mmd.intent.online import OnlineExtractors, OnlineFeatures, OnlineSettings
from mmd.models.settings import ModelSettings
from mmd.retrieval.engine import RetrievalEngine
from mmd.retrieval.facts import Facts, context_text
from mmd.retrieval.loading import load_online, load_reader
from mmd.retrieval.online import OnlineRetrieval, OnlineSources
from mmd.retrieval.rerank import PairReader, Reranker, RerankNet
from mmd.retrieval.samples import load_samples
from mmd.retrieval.saving import load_maker, load_spec
from mmd.retrieval.settings import SampleSettings
from mmd.retrieval.sources import training_sources
from mmd.retrieval.types import Query, Sample
from mmd.schema import Image, OcrLine, Turn
from serve_apps.api import RetrieveResponse
from serve_apps.examples import data_url as data_url_of
from serve_apps.http import create_app
from serve_apps.retrieval import Wanted, rank_each

DataUrl = Callable[..., str]
LIMITS = ServeSettings(max_images=4)
K = 7


@pytest.fixture
def client(full_backend: Any) -> Iterator[TestClient]:
    with TestClient(create_app(full_backend, LIMITS), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def samples(retrieval_store: Path) -> list[Sample]:
    """Test samples of every modality, some with pictures in their context."""
    store = ArtifactStore(str(retrieval_store))
    corpus, features = Corpus(store.open("corpus/tiny")), Features(store.open("features/tiny"))
    found = [s for s in load_samples(corpus, features, SampleSettings()).samples if s.split == "test"][:24]
    assert {sample.modality for sample in found} == {"text", "image", "product"}
    assert any(turn.image_ids for sample in found for turn in sample.query.turns)
    return found


@pytest.fixture(scope="module")
def offline(retrieval_store: Path, tiny_retrieval: OnlineRetrieval) -> RetrievalEngine:
    """The same retriever and index, its inputs made from the stored corpus as in training and evaluation."""
    store = ArtifactStore(str(retrieval_store))
    retriever = store.open("retriever/tiny")
    spec = load_spec(retriever)
    corpus, features = Corpus(store.open("corpus/tiny")), Features(store.open("features/tiny"))
    chosen = FeatureSettings(ocr="none", vision="descriptor", text="none")
    sources = training_sources(corpus, features, spec.towers, chosen, ModelSettings())
    maker = load_maker(retriever, Facts.load(corpus, features, spec.samples), sources)
    engine = tiny_retrieval.engine
    return RetrievalEngine(engine.retriever, engine.indices, engine.responses, maker)


def user(text: str = "", *images: str) -> dict[str, Any]:
    return {"speaker": "user", "text": text, "images": list(images)}


def ask(client: TestClient, *turns: dict[str, Any], **fields: Any) -> Response:
    return client.post("/v1/retrieve", json={"turns": list(turns), **fields})


def body_of(query: Query, images: dict[str, Image]) -> list[dict[str, Any]]:
    return [
        {
            "speaker": turn.speaker,
            "text": turn.text,
            "images": [data_url_of(images[key]) for key in turn.image_ids],
            "item_ids": list(turn.item_ids),
        }
        for turn in query.turns
    ]


def error_of(response: Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


# ---------------------------------------------------------------- answers


def test_served_answers_equal_those_of_evaluation(
    client: TestClient, samples: list[Sample], offline: RetrievalEngine, tiny_corpus: Corpus
):
    """Pictures and words read on the spot lead to the hits that stored features lead to."""
    images = {image.id: image for image in tiny_corpus.images()}
    for sample in samples:
        (expected,) = offline.retrieve([sample.query], K)
        answer = RetrieveResponse.model_validate(ask(client, *body_of(sample.query, images), k=K).json())
        assert [hit.id for hit in answer.hits] == [hit.response.id for hit in expected.hits]
        assert [hit.score for hit in answer.hits] == pytest.approx([hit.score for hit in expected.hits], abs=1e-5)


def test_queries_ranked_together_are_answered_as_alone(
    tiny_retrieval: OnlineRetrieval, samples: list[Sample], tiny_corpus: Corpus
):
    images = {image.id: image for image in tiny_corpus.images()}
    prepared = [tiny_retrieval.prepare(sample.query, images) for sample in samples]
    together = tiny_retrieval.rank(prepared, K)
    for entry, answer in zip(prepared, together, strict=True):
        (alone,) = tiny_retrieval.rank([entry], K)
        assert [hit.response.id for hit in answer.hits] == [hit.response.id for hit in alone.hits]
        assert [hit.score for hit in answer.hits] == pytest.approx([hit.score for hit in alone.hits], abs=1e-5)


def test_a_picture_changes_the_answer(client: TestClient, tiny_corpus: Corpus):
    plain = ask(client, user("Do you have something like this?")).json()["hits"]
    picture = data_url_of(next(tiny_corpus.images()))
    pictured = ask(client, user("Do you have something like this?", picture)).json()["hits"]
    assert [hit["score"] for hit in plain] != pytest.approx([hit["score"] for hit in pictured], abs=1e-6)


def test_messages_and_turns_are_one_dialogue(client: TestClient, data_url: DataUrl):
    picture = data_url()
    turns = [user("It looks like this", picture), {"speaker": "agent", "text": "I see."}, user("In blue?")]
    parts = [{"type": "text", "text": "It looks like this"}, {"type": "image_url", "image_url": {"url": picture}}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": "In blue?"},
    ]
    by_turns = ask(client, *turns).json()["hits"]
    assert by_turns == client.post("/v1/retrieve", json={"messages": messages}).json()["hits"]


@pytest.mark.parametrize("modality", ["text", "image", "product"])
def test_one_modality_alone_can_be_ranked(client: TestClient, modality: str):
    answer = ask(client, user("A mug, please"), modality=modality, k=5).json()
    assert {hit["modality"] for hit in answer["hits"]} == {modality}
    assert len(answer["hits"]) == 5


def test_where_fewer_exist_than_are_asked_all_are_given(client: TestClient, tiny_retrieval: OnlineRetrieval):
    there = len(tiny_retrieval.engine.indices["product"])
    assert there < 50
    hits = ask(client, user("A mug, please"), modality="product", k=50).json()["hits"]
    assert len({hit["id"] for hit in hits}) == len(hits) == there


def test_an_answer_says_how_long_it_took_and_what_made_it(client: TestClient):
    answer = ask(client, user("A mug, please")).json()
    assert {"decode", "pictures", "encode", "search", "wait", "total"} == set(answer["timings_ms"])
    assert answer["artifacts"]["index"].startswith("index/tiny@")
    assert answer["artifacts"]["retriever"].startswith("retriever/tiny@")
    assert answer["predicted"] is None  # mdr ranks all modalities at once


def test_a_two_step_method_tells_which_modality_it_predicts(
    full_backend: Any, retrieval_store: Path, tmp_path: Path, make_retriever: Callable[..., Any]
):
    full_backend.retrieval = make_retriever(retrieval_store, tmp_path / "sdr", "sdr")
    with TestClient(create_app(full_backend, LIMITS)) as client:
        answer = ask(client, user("A mug, please")).json()
        predicted = answer["predicted"]
        assert sum(predicted["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert predicted["modality"] == max(predicted["probabilities"], key=predicted["probabilities"].get)
        assert {hit["modality"] for hit in answer["hits"]} == {predicted["modality"]}


# ---------------------------------------------------------------- pictures


def test_a_hits_picture_is_served_as_it_was_stored(client: TestClient, tiny_corpus: Corpus):
    stored = {image.id: image for image in tiny_corpus.images()}
    (hit, *_) = ask(client, user("A mug, please"), modality="image").json()["hits"]
    picture = client.get(hit["image"])
    image = stored[hit["image"].rpartition("/")[2]]
    assert picture.content == image.data
    assert picture.headers["content-type"] == f"image/{image.format.lower()}"
    assert "immutable" in picture.headers["cache-control"]
    again = client.get(hit["image"], headers={"if-none-match": picture.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("image_id", ["0" * 64, "x", "..%2f..%2fetc", "0" * 63 + "g"])
def test_an_unknown_picture_is_404_with_an_error_body(client: TestClient, image_id: str):
    error = error_of(client.get(f"/v1/images/{image_id}"), 404)
    assert error["code"] in ("unknown_image", "not_found")
    assert error["type"] == "invalid_request_error"


def test_words_alone_have_no_picture(client: TestClient):
    hits = ask(client, user("A mug, please"), modality="text").json()["hits"]
    assert [hit["image"] for hit in hits] == [None] * len(hits)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("turns", "fields", "code", "param"),
    [
        ([], {}, "empty_dialogue", "turns"),
        ([user("  ")], {}, "empty_dialogue", "turns"),
        ([user("hi")], {"modality": "song"}, "unknown_modality", "modality"),
        ([user("hi")], {"k": 0}, "invalid_value", "k"),
        ([user("hi")], {"k": 51}, "invalid_value", "k"),
        ([user("hi")], {"k": "many"}, "invalid_value", "k"),
        ([user("hi")], {"topk": 3}, "unknown_field", "topk"),
        ([user("hi", "http://a/b.png")], {}, "remote_image", "turns[0].images[0]"),
        ([user("hi"), user("", "data:image/png;base64,aGk=")], {}, "not_an_image", "turns[1].images[0]"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    client: TestClient, turns: Sequence[Any], fields: dict[str, Any], code: str, param: str
):
    error = error_of(ask(client, *turns, **fields), 400)
    assert (error["code"], error["param"]) == (code, param)


def test_an_unknown_modality_is_answered_with_the_known_ones(client: TestClient):
    assert "text, image, product" in error_of(ask(client, user("hi"), modality="song"), 400)["message"]


def test_a_picture_that_breaks_off_is_refused(client: TestClient, tiny_corpus: Corpus):
    data = next(tiny_corpus.images()).data
    cut = f"data:image/png;base64,{base64.b64encode(data[: len(data) // 2]).decode()}"
    assert error_of(ask(client, user("this?", cut)), 400)["code"] == "image_truncated"


def test_too_many_pictures_are_refused(client: TestClient, data_url: DataUrl):
    error = error_of(ask(client, user("these?", *[data_url()] * 5)), 400)
    assert error["code"] == "too_many_images"


def test_without_an_index_the_way_out_is_told(backend: Any):
    with TestClient(create_app(backend, LIMITS)) as client:
        for response in (ask(client, user("hi")), client.get(f"/v1/images/{'0' * 64}")):
            error = error_of(response, 503)
            assert error["code"] == "no_retriever"
            assert "mmd build_index" in error["message"]
        assert client.get("/readyz").json()["answers"] == ["intent"]


def test_readiness_tells_what_can_be_retrieved(client: TestClient):
    ready = client.get("/readyz").json()
    assert ready["answers"] == ["intent", "retrieval", "recommendation"]
    assert ready["modalities"] == ["text", "image", "product"]
    assert {"gate", "retriever", "index"} <= set(ready["artifacts"])


# ---------------------------------------------------------------- one of a batch


def test_a_query_that_cannot_be_ranked_spoils_no_other(tiny_retrieval: OnlineRetrieval):
    good = tiny_retrieval.prepare(Query((Turn("user", "A mug, please"),)), {})
    empty = tiny_retrieval.prepare(Query((Turn("user", " "),)), {})
    first, refused, last = rank_each(tiny_retrieval, [good, empty, good], Wanted(3, None, each=False))
    assert getattr(refused, "status", None) == 400
    assert [len(getattr(answer, "hits", ())) for answer in (first, last)] == [3, 3]


# ---------------------------------------------------------------- pictures that no corpus knows


def test_words_in_a_sent_picture_are_part_of_the_context(tiny_corpus: Corpus):
    """As OCR of stored pictures is, and gone once the query is ranked."""
    facts = Facts(SampleSettings(picture_text="ocr"), {}, {}, {})
    sources = OnlineSources(OnlineFeatures(OnlineExtractors()), facts, {})
    read = Image(
        "shot", "PNG", 8, 8, b"", ocr=(OcrLine("order", 1.0, (0, 0, 1, 1)), OcrLine("4711", 1.0, (0, 1, 1, 2)))
    )
    query = Query((Turn("user", "Where is it?", ("shot",)),))
    shown, problems = sources.look({"shot": read})
    assert problems == ()
    sources.show(shown)
    assert context_text(query, {}, sources.pictures) == ["user: Where is it? [picture: order 4711]"]
    sources.show({})
    assert context_text(query, {}, sources.pictures) == ["user: Where is it? [picture]"]


def test_words_of_pictures_are_left_out_where_training_left_them_out():
    facts = Facts(SampleSettings(picture_text="none"), {}, {}, {})
    sources = OnlineSources(OnlineFeatures(OnlineExtractors()), facts, {})
    line = OcrLine("order", 1.0, (0, 0, 1, 1))
    shown, _ = sources.look({"shot": Image("shot", "PNG", 8, 8, b"", ocr=(line,))})
    sources.show(shown)
    assert dict(sources.pictures) == {}


def test_pictures_that_cannot_be_read_are_told_and_the_words_answer(
    tiny_retrieval: OnlineRetrieval, tiny_corpus: Corpus
):
    """The vision extractor is missing: the answer is that of the words alone."""
    sources = tiny_retrieval._sources
    blind = OnlineFeatures(OnlineExtractors(absent={"vision": "not installed"}))
    image = next(tiny_corpus.images())
    query = Query((Turn("user", "Like this?", (image.id,)),))
    seeing, sources._features = sources._features, blind
    try:
        prepared = tiny_retrieval.prepare(query, {image.id: image})
        assert prepared.problems == ("vision: not installed",)
        assert len(tiny_retrieval.rank([prepared], 3)[0].hits) == 3
    finally:
        sources._features = seeing


def test_pictures_of_responses_are_seen_as_in_training(tiny_retrieval: OnlineRetrieval, offline: RetrievalEngine):
    """By a re-ranker, which looks at both sides of a pair."""
    responses = [r for r in tiny_retrieval.engine.responses.values() if r.image_id][:4]
    online, stored = (engine.maker.responses(responses).pictures for engine in (tiny_retrieval.engine, offline))
    torch.testing.assert_close(online, stored, atol=1e-6, rtol=0)
    assert online is not None
    assert online.abs().sum() > 0


def test_a_re_ranker_that_came_with_the_retriever_looks_again(
    tiny_retrieval: OnlineRetrieval, samples: list[Sample], tiny_corpus: Corpus
):
    """Its scores order the hits; they are those that it gives a pair by itself."""
    engine = tiny_retrieval.engine
    reader = PairReader(engine.retriever, engine.maker)
    first = next(iter(engine.responses.values()))
    net = RerankNet(reader.read(samples[0].query, [first])[0].shape[1])
    net.second.weight.data.normal_(generator=torch.Generator().manual_seed(3))
    again = RetrievalEngine(engine.retriever, engine.indices, engine.responses, engine.maker, Reranker(net, reader, 6))
    online = OnlineRetrieval(again, tiny_retrieval._sources, tiny_retrieval.pictures, context_turns=8)
    images = {image.id: image for image in tiny_corpus.images()}
    (answer,) = online.rank([online.prepare(samples[0].query, images)], 4)
    scores = [hit.score for hit in answer.hits]
    assert scores == sorted(scores, reverse=True)
    assert "rerank" in answer.timings_ms


# ---------------------------------------------------------------- loading


def test_a_store_without_an_index_is_refused_with_the_way_out(tiny_store: Path):
    with pytest.raises(ArtifactError, match="index/tiny"):
        load_online(ArtifactStore(str(tiny_store)), "tiny")


def test_an_index_of_another_retriever_is_refused(
    retrieval_store: Path, tmp_path: Path, make_retriever: Callable[..., Any]
):
    make_retriever(retrieval_store, tmp_path / "two", "mdr")
    store = ArtifactStore(str(tmp_path / "two"))
    new, old = store.open("retriever/tiny"), store.open("index/tiny").manifest.inputs["retriever"].split()[0]
    assert new.ref == old
    other = next(a for a in store.find("retriever") if a.ref != new.ref)
    with pytest.raises(ArtifactError, match="mmd build_index"):
        load_online(store, "tiny", {"retriever": other.ref})


def test_another_version_of_an_extractor_is_refused(retrieval_store: Path):
    store = ArtifactStore(str(retrieval_store))
    spec = load_spec(store.open("retriever/tiny"))
    older = spec.model_copy(update={"extractors": {"text": None, "vision": ExtractorInfo("descriptor-0", 9)}})
    corpus, features = Corpus(store.open("corpus/tiny")), Features(store.open("features/tiny"))
    with pytest.raises(ModelError, match="trained with descriptor-0"):
        load_reader(older, corpus, features, OnlineSettings())
