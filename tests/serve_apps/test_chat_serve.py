"""Conversations on Ray Serve: OpenAI's client against the application, a part that is not there, another policy."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from mmd.artifacts import Artifact, ArtifactStore
from mmd.assistant.fits import Answered
from mmd.assistant.loading import UNFITTED, load_assistant, save_policy
from mmd.assistant.plan import Plan
from mmd.assistant.settings import AssistantSettings
from mmd.assistant.types import AssistantQuery
from mmd.config import ServeSettings
from mmd.errors import ArtifactError
from mmd.schema import Turn
from serve_apps.app import AppArgs, build
from serve_apps.keys_cli import add_key
from serve_apps.policy import PolicySeat

SMALL = ServeSettings(max_replicas=1, request_timeout_s=20)
TEXTS = ("Where is my refund?", "Something blue, please", "有没有好看的马克杯？")


def write_policy(store: ArtifactStore, **plan: Any) -> Artifact:
    counts = Counter({Answered(("dialogue_intent", "refund_status"), "text", "text:0", "It is on its way."): 3})
    with store.write("policy", "tiny", settings=plan) as writer:
        save_policy(writer, Plan(**plan), counts, {})
    return store.open("policy/tiny")


@pytest.fixture(scope="module")
def store(full_store: Path, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """Intent, student and a policy; the index is gone."""
    folder = tmp_path_factory.mktemp("serve") / "store"
    shutil.copytree(full_store, folder)
    shutil.rmtree(folder / "index")
    store = ArtifactStore(str(folder))
    write_policy(store, words="student")
    return store


@pytest.fixture(scope="module")
def served(
    ray_local: None, store: ArtifactStore, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Address, and an API key."""
    from ray import serve

    path, port = tmp_path_factory.mktemp("keys") / "keys.txt", free_port()
    key = add_key(path, "test")
    settings = SMALL.model_copy(update={"api_keys_file": str(path)})
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(AppArgs(store=store.root, corpus="tiny", serve=settings)), name="test_chat")
    yield f"http://127.0.0.1:{port}", key
    serve.shutdown()


@pytest.mark.ray
def test_openais_client_talks_to_the_deployments(served: tuple[str, str], store: ArtifactStore):
    """As the assistant in process does; retrieval, which is not there, degrades the turn."""
    url, key = served
    assistant = load_assistant(store, "tiny")
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=60) as client:
        for text in TEXTS:
            expected = assistant.answer(AssistantQuery("q", (Turn("user", text),), k=5))
            messages: list[Any] = [{"role": "user", "content": text}]
            whole = client.chat.completions.create(model="mmd/tiny", messages=messages)
            chunks = list(client.chat.completions.create(model="mmd/tiny", messages=messages, stream=True))
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert whole.choices[0].message.content == streamed == expected.text
            for extra in (whole.model_extra, chunks[-1].model_extra):
                turn = extra["mmd"] if extra else {}
                assert [d["choice"] for d in turn["decisions"]] == [d.choice for d in expected.decisions]
                assert any(problem.startswith("retrieval: ") for problem in turn["degraded"])
                assert turn["artifacts"]["policy"] == store.open("policy/tiny").ref
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="mmd-wrong").models.list()
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as plain:
        assert "policy" in plain.get("/readyz").json()["artifacts"]
        assert 'mmd_turns_degraded_total{part="retrieval"}' in plain.get("/metrics").text


@pytest.mark.ray
def test_a_policy_is_swapped_without_a_restart(ray_local: None, full_store: Path, tmp_path: Path):
    """From none to one to another; what cannot be loaded is refused and told, and the old one decides on."""
    shutil.copytree(full_store, tmp_path / "store")
    store = ArtifactStore(str(tmp_path / "store"))

    async def scenario() -> tuple[list[str], list[str | None]]:
        seat = PolicySeat(store.root, "tiny", SMALL, AssistantSettings())
        assert seat.served.degraded == ("policy: none is loaded yet",)
        await seat.reconfigure({"policy": None})
        assert seat.served.degraded == (UNFITTED,)
        first, second = write_policy(store, words="student"), write_policy(store, words="retrieval")
        words, rejected = [], []
        for ref in (first.ref, second.ref, "policy/tiny@missing", "corpus/tiny"):
            await seat.reconfigure({"policy": ref})
            words.append(seat.served.policy.plan.words)
            rejected.append((await seat.status()).rejected_update)
        assert seat.served.artifacts == {"policy": second.ref}
        return words, rejected

    words, rejected = asyncio.run(scenario())
    assert words == ["student", "retrieval", "retrieval", "retrieval"]
    assert rejected[:2] == [None, None]
    assert "policy/tiny@missing" in str(rejected[2])
    assert "fit_policy" in str(rejected[3])


@pytest.mark.ray
def test_a_policy_that_is_asked_for_by_name_must_be_there_at_the_start(ray_local: None, full_store: Path):
    seat = PolicySeat(str(full_store), "tiny", SMALL, AssistantSettings())
    with pytest.raises(ArtifactError, match="policy/tiny@1"):
        asyncio.run(seat.reconfigure({"policy": "policy/tiny@1"}))
