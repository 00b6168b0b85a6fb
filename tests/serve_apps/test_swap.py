"""Adapters and policies change under a running service, by the same declarative deployment that operators use."""

from __future__ import annotations

import asyncio
import gc
import shutil
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.intent.engine import IntentEngine, IntentQuery
from mmd.intent.showcase import picture_ids, query_of
from serve_apps.examples import turns_in
from serve_apps.intent import IntentReplica

CONFIG = Path(__file__).resolve().parents[2] / "serve_apps" / "serve_config.yaml"
SCENE = "image_scene"
MakeAdapter = Callable[..., Artifact]
Answers = list[tuple[str, float]]  # of each question: who answered, and how sure
A = TypeVar("A")
T = TypeVar("T")

pytestmark = pytest.mark.ray


class Service:
    """A service deployed from the project's own file, and deployed again with other artefacts."""

    def __init__(self, store: ArtifactStore, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        self._config["http_options"].update(host="127.0.0.1", port=port)
        (app,) = self._config["applications"]
        app["args"] = {"store": store.root, "corpus": "tiny", "serve": {"max_replicas": 1}}
        self._user_configs = [deployment["user_config"] for deployment in app["deployments"]]

    def deploy(self, **refs: str) -> None:
        for user_config in self._user_configs:
            user_config.update({role: ref for role, ref in refs.items() if role in user_config})
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(self._config))

    def wait_for(self, accepted: Callable[[dict[str, Any]], bool], seconds: float = 60) -> dict[str, Any]:
        """Return /readyz once it is accepted."""
        found: Any = None
        for _ in range(int(seconds * 5)):
            try:
                response = httpx.get(f"{self.url}/readyz", timeout=30)
                found = response.text
                if response.status_code == 200 and accepted(response.json()):
                    return dict(response.json())
            except httpx.TransportError as err:
                found = err
            time.sleep(0.2)
        pytest.fail(f"not accepted within {seconds} s: {found}")


@pytest.fixture(scope="module")
def store(mllm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    folder = tmp_path_factory.mktemp("swap") / "store"
    shutil.copytree(mllm_store, folder)
    return ArtifactStore(str(folder))


@pytest.fixture(scope="module")
def service(ray_local: None, store: ArtifactStore, free_port: Callable[[], int]) -> Iterator[Service]:
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    service = Service(store, port)
    service.deploy()
    yield service
    serve.shutdown()


@pytest.fixture(scope="module")
def adapters(store: ArtifactStore, make_adapter: MakeAdapter) -> tuple[Artifact, Artifact]:
    """The adapter that the gate names, and a newer one."""
    return store.open("adapter/tiny"), make_adapter(store, seed=2)


@pytest.fixture(scope="module")
def damaged(store: ArtifactStore, adapters: tuple[Artifact, Artifact], make_adapter: MakeAdapter) -> Artifact:
    adapter = make_adapter(store, seed=5)
    weights = Path(adapter.path("joint/adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    return adapter


@pytest.fixture(scope="module")
def scenes(store: ArtifactStore) -> list[IntentQuery]:
    corpus = Corpus(store.open("corpus/tiny"))
    dialogues = [d for d in corpus.dialogues("test") if SCENE in d.labels]
    images = {image.id: image for image in corpus.images(picture_ids(dialogues))}
    return [query_of(d, SCENE, images) for d in dialogues]


@pytest.fixture(scope="module")
def expected(
    store: ArtifactStore, adapters: tuple[Artifact, Artifact], scenes: list[IntentQuery]
) -> dict[str, list[float]]:
    """Return adapter → confidence of each scene's answer, by the engine itself; the two adapters differ."""
    found = {
        adapter.ref: [
            p.confidence for p in IntentEngine.from_store(store, "tiny", refs={"adapter": adapter.ref}).predict(scenes)
        ]
        for adapter in adapters
    }
    first, second = found.values()
    assert first != pytest.approx(second, abs=1e-3)
    return found


async def during(swap: Awaitable[T], ask: Callable[[], Awaitable[A]]) -> tuple[T, list[A]]:
    """Ask again and again until the swap is through, and once more."""
    swapping = asyncio.ensure_future(swap)
    asked, last = [], False
    while not last:
        last = swapping.done()
        asked.append(await ask())
    return await swapping, asked


def who_answered(asked: list[Answers], expected: dict[str, list[float]]) -> list[str]:
    """Return the adapter of every answer, in order, each having answered as it does on its own."""
    for answers in asked:
        for n, (ref, confidence) in enumerate(answers):
            assert confidence == pytest.approx(expected[ref][n], abs=1e-4)
    return [ref for answers in asked for ref, _ in answers]


def test_a_replica_answers_while_its_adapter_is_swapped(
    ray_local: None,
    store: ArtifactStore,
    adapters: tuple[Artifact, Artifact],
    damaged: Artifact,
    scenes: list[IntentQuery],
    expected: dict[str, list[float]],
):
    """Every answer is one adapter's or the other's; the old one goes; a damaged one is refused."""
    old, new = adapters

    async def scenario() -> None:
        replica = IntentReplica(store.root, "tiny", ServeSettings())

        async def ask() -> Answers:
            # not through replica.answer: Serve batches only inside its own replicas, see the test below
            answers = await asyncio.to_thread(replica.engine.answer, scenes)
            assert all(answer.degraded == () for answer in answers)
            return [(answer.artifacts["adapter"], answer.predictions[0].confidence) for answer in answers]

        await replica.reconfigure({"adapter": old.ref})
        replaced = weakref.ref(replica.engine)
        _, asked = await during(replica.reconfigure({"adapter": new.ref}), ask)
        answered = who_answered(asked, expected)
        assert (answered[0], answered[-1]) == (old.ref, new.ref)
        await asyncio.sleep(0)
        gc.collect()
        assert replaced() is None

        _, asked = await during(replica.reconfigure({"adapter": damaged.ref}), ask)
        assert set(who_answered(asked, expected)) == {new.ref}
        assert "adapter_model.safetensors" in str((await replica.status()).rejected_update)

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_deployed_service_answers_while_its_adapter_is_swapped(
    service: Service,
    adapters: tuple[Artifact, Artifact],
    damaged: Artifact,
    scenes: list[IntentQuery],
    expected: dict[str, list[float]],
):
    """The same over HTTP, by deploying the project's own file with another user_config."""
    old, new = adapters
    bodies = [
        {"task": SCENE, "turns": [turn.model_dump() for turn in turns_in(query.dialogue.turns, query.images)]}
        for query in scenes
    ]
    first = service.wait_for(lambda ready: ready["artifacts"].get("adapter") == old.ref)
    assert first["degraded"] == []

    async def swap(ref: str, accepted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        await asyncio.to_thread(service.deploy, adapter=ref)
        return await asyncio.to_thread(service.wait_for, accepted)

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:

            async def ask() -> Answers:
                responses = await asyncio.gather(*(client.post("/v1/intent", json=body) for body in bodies))
                assert [r.status_code for r in responses] == [200] * len(bodies)
                answers = [r.json() for r in responses]
                assert all(a["degraded"] == [] and a["predictions"][0]["mllm_share"] == 1.0 for a in answers)
                return [(a["artifacts"]["adapter"], a["predictions"][0]["confidence"]) for a in answers]

            _, asked = await during(swap(new.ref, lambda ready: ready["artifacts"]["adapter"] == new.ref), ask)
            answered = who_answered(asked, expected)
            assert (answered[0], answered[-1]) == (old.ref, new.ref)

            ready, asked = await during(swap(damaged.ref, lambda ready: ready["rejected_update"] is not None), ask)
            assert set(who_answered(asked, expected)) == {new.ref}
            assert "adapter_model.safetensors" in ready["rejected_update"]

    asyncio.run(scenario())


@pytest.mark.slow
def test_conversations_go_on_while_their_policy_is_swapped(
    service: Service, store: ArtifactStore, make_policy: Callable[..., Artifact]
):
    """Every reply is one policy's or the other's; one that does not exist is refused."""
    first, second = make_policy(store, words="student"), make_policy(store, words="retrieval")
    service.deploy(policy=first.ref)
    service.wait_for(lambda ready: ready["artifacts"].get("policy") == first.ref)
    body = {"messages": [{"role": "user", "content": "Do you have a purple dress?"}]}

    async def swap(ref: str, accepted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        await asyncio.to_thread(service.deploy, policy=ref)
        return await asyncio.to_thread(service.wait_for, accepted)

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:

            async def ask() -> list[str]:
                responses = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(3)))
                assert [r.status_code for r in responses] == [200] * 3
                return [r.json()["mmd"]["artifacts"]["policy"] for r in responses]

            _, asked = await during(swap(second.ref, lambda ready: ready["artifacts"]["policy"] == second.ref), ask)
            decided = [ref for refs in asked for ref in refs]
            assert (decided[0], decided[-1]) == (first.ref, second.ref)
            assert set(decided) == {first.ref, second.ref}

            ready, asked = await during(
                swap("policy/tiny@missing", lambda ready: ready["rejected_update"] is not None), ask
            )
            assert {ref for refs in asked for ref in refs} == {second.ref}
            assert "policy/tiny@missing" in ready["rejected_update"]

    asyncio.run(scenario())
