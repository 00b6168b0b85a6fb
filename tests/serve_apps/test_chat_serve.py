"""Conversations on Ray Serve: OpenAI's client against the application, a part that is not there, another policy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from mmd.artifacts import Artifact, ArtifactStore
from mmd.assistant.loading import load_assistant
from mmd.assistant.types import AssistantQuery
from mmd.config import ServeSettings
from mmd.schema import Turn
from serve_apps.app import AppArgs, build
from serve_apps.keys_cli import add_key

SMALL = ServeSettings(max_replicas=1, request_timeout_s=20)
TEXTS = ("Where is my refund?", "Something blue, please", "有没有好看的马克杯？")


@pytest.fixture(scope="module")
def store(
    full_store: Path, tmp_path_factory: pytest.TempPathFactory, make_policy: Callable[..., Artifact]
) -> ArtifactStore:
    """Intent, student and a policy; the index is gone."""
    folder = tmp_path_factory.mktemp("serve") / "store"
    shutil.copytree(full_store, folder)
    shutil.rmtree(folder / "index")
    store = ArtifactStore(str(folder))
    make_policy(store, words="student")
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
def test_places_of_clients_that_went_away_are_free(served: tuple[str, str]):
    """More than there are places and than may wait in the line, one after the other; then others are answered."""
    url, key = served
    body = {"messages": [{"role": "user", "content": TEXTS[0]}], "stream": True}
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        for _ in range(20):
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                assert next(response.iter_text()).startswith("data: ")
        assert client.post("/v1/chat/completions", json=body | {"stream": False}).status_code == 200
