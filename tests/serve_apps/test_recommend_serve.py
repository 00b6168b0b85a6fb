"""Recommendation on Ray Serve: as offline, batched, streamed, swapped without a restart, absent."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import ServeSettings
from mmd.errors import ArtifactError
from mmd.recommend.loading import load_online
from mmd.recommend.online import OnlineRecommender, RecommendQuery
from mmd.schema import Turn
from serve_apps.app import AppArgs, build
from serve_apps.recommend import RecommendReplica, recommend_one
from serve_apps.replica import Refused

pytestmark = pytest.mark.ray

SMALL = ServeSettings(max_replicas=1, max_turns=20, request_timeout_s=20, slowdown=0)  # queues alone refuse
TEXTS = ("有人吗", "Do you have a minute?", "I want a refund", "Something blue, please", "有没有好看的马克杯？")


@pytest.fixture(scope="module")
def store(student_store: Path, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """A store of our own that has a student, and nothing that recognises intents or ranks responses."""
    folder = tmp_path_factory.mktemp("serve") / "store"
    shutil.copytree(student_store, folder)
    for kind in ("rulebase", "classifier", "gate"):
        shutil.rmtree(folder / kind)
    return ArtifactStore(str(folder))


@pytest.fixture(scope="module")
def base_url(ray_local: None, store: ArtifactStore, free_port: Callable[[], int]) -> Iterator[str]:
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(AppArgs(store=store.root, corpus="tiny", serve=SMALL)), name="test_recommend")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def query(text: str, mode: Any = None) -> RecommendQuery:
    return RecommendQuery("r1", (Turn("user", text),), 3, mode)


def reply(engine: OnlineRecommender, asked: RecommendQuery) -> str:
    result = recommend_one(engine, asked)
    assert not isinstance(result, Refused)
    return result.answer.text


def bodies(**fields: Any) -> list[dict[str, Any]]:
    modes = (None, "rec", "gen")
    return [
        {"turns": [{"speaker": "user", "text": t}], "mode": mode, "k": 3, **fields} for t in TEXTS for mode in modes
    ]


def test_many_requests_at_once_are_answered_as_the_student_answers_each(base_url: str, store: ArtifactStore):
    """Over HTTP, in batches with others, whole and as streams; what is not there is refused with the way out."""
    engine = load_online(store, "tiny")

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:
            asked = [*bodies(), *bodies(stream=True)]
            return list(await asyncio.gather(*(client.post("/v1/recommend", json=body) for body in asked)))

    responses = asyncio.run(flood())
    whole, streams = responses[: len(bodies())], responses[len(bodies()) :]
    for body, response, stream in zip(bodies(), whole, streams, strict=True):
        assert response.status_code == stream.status_code == 200, response.text
        expected = reply(engine, query(body["turns"][0]["text"], body["mode"]))
        assert response.json()["reply"]["text"] == expected
        *_, end = (block.split("\n") for block in stream.text.strip().split("\n\n"))
        assert end[0] == "event: end"
        assert json.loads(end[1].removeprefix("data: "))["response"]["reply"]["text"] == expected

    with httpx.Client(base_url=base_url, timeout=30) as client:
        for path, code in (("/v1/intent", "no_intent"), ("/v1/retrieve", "no_retriever")):
            refused = client.post(path, json={"turns": [{"speaker": "user", "text": "hi"}]})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, code)
        unknown = {"turns": [{"speaker": "user", "text": "hi", "item_ids": ["nowhere"]}], "stream": True}
        refused = client.post("/v1/recommend", json=unknown)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_item")
        ready = client.get("/readyz").json()
        assert ready["answers"] == ["recommendation"]
        assert set(ready["artifacts"]) == {"student", "graph", "corpus"}
        image = next(iter(engine.pictures))
        assert client.get(f"/v1/images/{image}").headers["content-type"].startswith("image/")
        assert client.get("/v1/images/" + "0" * 64).status_code == 404


def test_a_stream_is_given_up_with_its_client(base_url: str):
    """And the service answers others at once."""
    body = {"turns": [{"speaker": "user", "text": "有人吗"}], "stream": True}
    with httpx.Client(base_url=base_url, timeout=30) as client:
        for _ in range(3 * SMALL.max_ongoing_requests):
            with client.stream("POST", "/v1/recommend", json=body) as response:
                assert next(response.iter_text()).startswith("event: mode")
        assert client.post("/v1/recommend", json=bodies()[0]).status_code == 200


def test_a_student_is_swapped_without_a_restart(
    ray_local: None, store: ArtifactStore, make_student: Callable[..., Artifact]
):
    """One replica lives through swaps; what cannot be loaded is refused and told, and the old one answers on."""
    old = store.open("student/tiny")
    new, broken = make_student(store, seed=1, steps=2), make_student(store, seed=2, steps=1)
    weights = next(Path(broken.path()).rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])

    async def scenario() -> tuple[list[str], list[str | None]]:
        replica = RecommendReplica(store.root, "tiny", SMALL)
        said, rejected = [], []
        for ref in (old.ref, new.ref, broken.ref, "student/tiny@missing", "corpus/tiny"):
            await replica.reconfigure({"student": ref})
            replica.check_health()
            said.append(reply(replica.engine, query(TEXTS[0])))
            rejected.append((await replica.status()).rejected_update)
        return said, rejected

    (first, second, *rest), rejected = asyncio.run(scenario())
    assert first == reply(load_online(store, "tiny", {"student": old.ref}), query(TEXTS[0]))
    assert first != second
    assert rest == [second] * 3
    assert rejected[:2] == [None, None]
    damaged, missing, other = (str(reason) for reason in rejected[2:])
    assert ".safetensors" in damaged
    assert "student/tiny@missing" in missing
    assert "mmd distill" in other


def test_a_part_that_is_absent_says_so_and_comes_in_by_a_swap(ray_local: None, tiny_store: Path, student_store: Path):
    """From a store without a student to one that has one, in the same replica."""

    async def scenario() -> None:
        replica = RecommendReplica(str(tiny_store), "tiny", SMALL)
        await replica.reconfigure({"student": None})
        replica.check_health()  # absent is no illness
        (streamed,) = [piece async for piece in replica.stream(query("hi"))]
        for refused in (await replica.answer(query("hi")), streamed):
            assert isinstance(refused, Refused)
            assert (refused.status, refused.code) == (503, "no_student")
        assert "student/tiny" in str((await replica.status()).absent)
        replica._store = ArtifactStore(str(student_store))
        await replica.reconfigure({"student": None})
        assert reply(replica.engine, query("hi"))
        assert (await replica.status()).absent is None

    asyncio.run(scenario())


def test_what_is_asked_for_by_name_must_be_there_at_the_start(ray_local: None, tiny_store: Path):
    replica = RecommendReplica(str(tiny_store), "tiny", SMALL)
    with pytest.raises(ArtifactError, match="student/tiny@1"):
        asyncio.run(replica.reconfigure({"student": "student/tiny@1"}))


def test_without_its_corpus_a_student_answers_and_products_have_no_pictures(student_store: Path, tmp_path: Path):
    shutil.copytree(student_store, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "corpus")
    engine = load_online(ArtifactStore(str(tmp_path / "store")), "tiny")
    assert reply(engine, query("hi"))
    assert engine.degraded[0].startswith("pictures: ")
    assert set(engine.artifacts) == {"student", "graph"}
