"""Retrieval on Ray Serve: as offline, batched, swapped without a restart, absent, overloaded."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError
from mmd.features.store import Features
from mmd.retrieval.loading import load_online
from mmd.retrieval.online import OnlineRetrieval
from mmd.retrieval.samples import load_samples
from mmd.retrieval.settings import SampleSettings
from mmd.retrieval.types import Query
from mmd.schema import Turn
from serve_apps.app import AppArgs, build
from serve_apps.examples import turns_in
from serve_apps.limits import RetrievalQuery
from serve_apps.replica import Refused
from serve_apps.retrieval import RetrievalReplica, rank_one

pytestmark = pytest.mark.ray

SMALL = ServeSettings(max_replicas=1, max_turns=20, request_timeout_s=20, slowdown=0)  # queues alone refuse
ASKED = RetrievalQuery("r1", Query((Turn("user", "A blue mug, please"),)), {}, 5)


@pytest.fixture(scope="module")
def store(retrieval_store: Path, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """A store of our own that has a retriever and an index, and nothing that recognises intents."""
    folder = tmp_path_factory.mktemp("serve") / "store"
    shutil.copytree(retrieval_store, folder)
    for kind in ("rulebase", "classifier", "gate"):
        shutil.rmtree(folder / kind)
    return ArtifactStore(str(folder))


@pytest.fixture(scope="module")
def base_url(ray_local: None, store: ArtifactStore, free_port: Callable[[], int]) -> Iterator[str]:
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(AppArgs(store=store.root, corpus="tiny", serve=SMALL)), name="test_retrieval")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def newer(store: ArtifactStore, make_index: Callable[..., Artifact]) -> tuple[Artifact, Artifact]:
    """The first index, and one that lacks the best responses to :data:`ASKED`."""
    old = store.open("index/tiny")
    return old, make_index(store, store.open("retriever/tiny"), skip=3)


def hits(engine: OnlineRetrieval) -> list[str]:
    result = rank_one(engine, ASKED)
    assert not isinstance(result, Refused)
    return [hit.response.id for hit in result.answer.hits]


def test_many_requests_at_once_are_answered_as_the_engine_answers_each(base_url: str, store: ArtifactStore):
    """Over HTTP, in batches with others; and intents, which are not there, are refused with the way out."""
    engine = load_online(store, "tiny")
    corpus, features = Corpus(store.open("corpus/tiny")), Features(store.open("features/tiny"))
    samples = [s for s in load_samples(corpus, features, SampleSettings()).samples if s.split == "test"][:20]
    images = {image.id: image for image in corpus.images()}
    bodies = [{"turns": [t.model_dump() for t in turns_in(s.query.turns, images)], "k": 5} for s in samples]

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:
            return list(await asyncio.gather(*(client.post("/v1/retrieve", json=body) for body in bodies)))

    for sample, response in zip(samples, asyncio.run(flood()), strict=True):
        assert response.status_code == 200, response.text
        (expected,) = engine.rank([engine.prepare(sample.query, images)], 5)
        assert [hit["id"] for hit in response.json()["hits"]] == [hit.response.id for hit in expected.hits]

    with httpx.Client(base_url=base_url, timeout=30) as client:
        picture = client.get(
            client.post("/v1/retrieve", json=bodies[0] | {"modality": "image"}).json()["hits"][0]["image"]
        )
        assert picture.headers["content-type"].startswith("image/")
        assert client.get("/v1/images/" + "0" * 64).status_code == 404
        refused = client.post("/v1/intent", json={"turns": [{"speaker": "user", "text": "hi"}]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_intent")
        ready = client.get("/readyz").json()
        assert ready["answers"] == ["retrieval"]
        assert [problem.partition(":")[0] for problem in ready["degraded"]] == ["policy", "intent", "recommendation"]
        assert "rulebase/tiny" in ready["degraded"][1]
        assert client.get("/v1/tasks").json() == {"tasks": []}
        assert client.get("/v1/examples").json() == {"examples": []}


def test_an_index_is_swapped_without_a_restart(ray_local: None, store: ArtifactStore, newer: tuple[Artifact, Artifact]):
    """One replica lives through swaps; what cannot be loaded is refused and told, and the old one answers on."""
    old, new = newer

    async def scenario() -> tuple[list[list[str]], list[str | None]]:
        replica = RetrievalReplica(store.root, "tiny", SMALL)
        found, rejected = [], []
        for refs in (
            {"index": old.ref},
            {"index": new.ref},
            {"index": "index/tiny@missing"},
            {"index": old.ref, "retriever": "corpus/tiny"},
            {"typo": "x"},
        ):
            await replica.reconfigure(refs)
            replica.check_health()
            found.append(hits(replica.engine))
            rejected.append((await replica.status()).rejected_update)
        return found, rejected

    (first, second, *rest), rejected = asyncio.run(scenario())
    assert first != second
    assert rest == [second] * 3
    assert rejected[:2] == [None, None]
    missing, no_retriever, typo = (str(reason) for reason in rejected[2:])
    assert "index/tiny@missing" in missing
    assert "train_retriever" in no_retriever
    assert "typo" in typo


def test_a_damaged_index_is_refused_and_the_old_one_answers(
    ray_local: None, store: ArtifactStore, newer: tuple[Artifact, Artifact], make_index: Callable[..., Artifact]
):
    old, _ = newer
    broken = make_index(store, store.open("retriever/tiny"), skip=5)
    file = next(Path(broken.path()).rglob("*.faiss"))
    file.write_bytes(file.read_bytes()[:-8])

    async def scenario() -> tuple[list[str], str | None]:
        replica = RetrievalReplica(store.root, "tiny", SMALL)
        await replica.reconfigure({"index": old.ref})
        await replica.reconfigure({"index": broken.ref})
        return hits(replica.engine), (await replica.status()).rejected_update

    answered, rejected = asyncio.run(scenario())
    assert answered == hits(load_online(store, "tiny", {"index": old.ref}))
    assert rejected is not None
    assert ".faiss" in rejected


def test_a_part_that_is_absent_says_so_and_comes_in_by_a_swap(
    ray_local: None, tiny_store: Path, tmp_path: Path, make_retriever: Callable[..., Any]
):
    """From a store without a retriever to one that has been trained meanwhile, in the same replica."""
    empty = ArtifactStore(str(tiny_store))

    async def scenario() -> None:
        replica = RetrievalReplica(empty.root, "tiny", SMALL)
        await replica.reconfigure({"retriever": None, "index": None})
        replica.check_health()  # absent is no illness
        refused = await replica.answer(ASKED)
        assert isinstance(refused, Refused)
        assert (refused.status, refused.code) == (503, "no_retriever")
        assert "index/tiny" in str((await replica.status()).absent)
        make_retriever(tiny_store, tmp_path / "store", "mdr")
        replica._store = ArtifactStore(str(tmp_path / "store"))
        await replica.reconfigure({"retriever": None, "index": None})
        assert len(hits(replica.engine)) == 5
        assert (await replica.status()).absent is None

    asyncio.run(scenario())


def test_what_is_asked_for_by_name_must_be_there_at_the_start(ray_local: None, tiny_store: Path):
    replica = RetrievalReplica(str(tiny_store), "tiny", SMALL)
    with pytest.raises(ArtifactError, match="index/tiny@1"):
        asyncio.run(replica.reconfigure({"index": "index/tiny@1"}))
    with pytest.raises(RuntimeError, match="before its artefacts are loaded"):
        replica.check_health()
