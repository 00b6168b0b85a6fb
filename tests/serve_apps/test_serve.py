"""The application on Ray Serve: the engine's own answers over HTTP, refusals, swaps without a restart."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import yaml
from pydantic import ValidationError

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.errors import ConfigError, RequestError
from mmd.intent.engine import IntentEngine, IntentQuery
from mmd.intent.online import OnlineExtractors, OnlineFeatures
from mmd.intent.rulebase import RuleBase
from mmd.recommend.online import RecommendQuery
from mmd.schema import DIALOGUES, Dialogue, Turn
from serve_apps.api import ApiError, Part
from serve_apps.app import AppArgs, build, refs_from
from serve_apps.examples import data_url
from serve_apps.ingress import HandleBackend
from serve_apps.intent import IntentReplica
from serve_apps.replica import PartStatus, Refused
from serve_apps.run import check_artifacts, check_port, main
from tests.serve_apps.sweep_records import CONKD, students, write_sweep

CONFIG = Path(__file__).resolve().parents[2] / "serve_apps" / "serve_config.yaml"
SMALL = ServeSettings(max_replicas=1, max_turns=20, request_timeout_s=20, slowdown=0)  # queues alone refuse


@pytest.fixture(scope="module")
def store(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    folder = tmp_path_factory.mktemp("serve") / "store"
    shutil.copytree(tiny_store, folder)
    return ArtifactStore(str(folder))


@pytest.fixture(scope="module")
def base_url(ray_local: None, store: ArtifactStore, free_port: Callable[[], int]) -> Iterator[str]:
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(AppArgs(store=store.root, corpus="tiny", serve=SMALL)), name="test_serve")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.mark.ray
def test_the_service_answers_as_the_engine_does(base_url: str, store: ArtifactStore):
    engine, corpus = IntentEngine.from_store(store, "tiny"), Corpus(store.open("corpus/tiny"))
    images = {image.id: image for image in corpus.images()}
    with httpx.Client(base_url=base_url, timeout=30) as client:
        for task in corpus.tasks:
            for dialogue in [d for d in corpus.dialogues("test") if task in d.labels][:6]:
                wanted = {i: images[i] for turn in dialogue.turns for i in turn.image_ids}
                (expected,) = engine.predict([IntentQuery(dialogue, task, wanted)])
                turns = [
                    {
                        "speaker": t.speaker,
                        "text": t.text,
                        "images": [data_url(images[i]) for i in t.image_ids],
                        "item_ids": list(t.item_ids),
                    }
                    for t in dialogue.turns
                ]
                answer = client.post("/v1/intent", json={"turns": turns, "task": task}).json()
                (served,) = answer["predictions"]
                assert (served["label"], served["arm"]) == (expected.label, expected.arm)
                assert served["confidence"] == pytest.approx(expected.confidence, abs=1e-6)
                assert [rule["id"] for rule in served["fired"]] == [rule.rule_id for rule in expected.fired]


@pytest.mark.ray
def test_the_service_refuses_what_is_wrong_or_too_much(base_url: str):
    photo = base64.b64encode(os.urandom(30 * 2**20)).decode()
    heavy = {"turns": [{"speaker": "user", "text": "", "images": [f"data:image/png;base64,{photo}"]}]}
    with httpx.Client(base_url=base_url, timeout=30) as client:
        for body, status, code in [
            (heavy, 413, "body_too_large"),
            ({"turns": [{"speaker": "user", "text": "hi"}] * 10_000}, 400, "too_many_turns"),
            ({"turns": [{"speaker": "user", "text": " "}]}, 400, "empty_dialogue"),
            ({"turns": [{"speaker": "user", "text": "hi"}], "task": "mood"}, 400, "unknown_task"),
            ({"turns": [{"speaker": "user", "text": "hi", "images": ["http://a/b.png"]}]}, 400, "remote_image"),
        ]:
            response = client.post("/v1/intent", json=body)
            assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").json()["status"] == "ready"
        assert client.get("/").headers["content-type"].startswith("text/html")


@pytest.mark.ray
def test_sweeps_in_the_store_are_shown_and_not_launched_without_keys(base_url: str, store: ArtifactStore):
    write_sweep(store, CONKD, students())
    [sweep] = httpx.get(f"{base_url}/v1/sweeps", timeout=20).json()["sweeps"]
    assert (sweep["id"], sweep["state"]) == (CONKD, "done")
    assert len(httpx.get(f"{base_url}/v1/sweeps/{CONKD}", timeout=20).json()["trials"]) == 6
    assert httpx.get(f"{base_url}/sweeps", timeout=20).status_code == 200
    answer = httpx.post(f"{base_url}/v1/sweeps", json={"sweep": "rules", "corpus": "tiny"}, timeout=20)
    assert answer.status_code == 403


@pytest.mark.ray
def test_many_requests_at_once_all_get_an_answer(base_url: str):
    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:
            body = {"turns": [{"speaker": "user", "text": "Where is my refund?"}]}
            return list(await asyncio.gather(*(client.post("/v1/intent", json=body) for _ in range(40))))

    labels = [response.json()["predictions"][0]["label"] for response in asyncio.run(flood())]
    assert labels == ["refund_status"] * 40


@pytest.mark.ray
def test_artefacts_are_swapped_without_a_restart(ray_local: None, store: ArtifactStore):
    """One replica object lives through a swap; a bad one is refused and told."""
    old = store.open("rulebase/tiny")
    base = RuleBase.load(old)
    with store.write("rulebase", "tiny", settings={"edited": True}) as writer:
        RuleBase(base.rules[:1], base.prototypes, base.defaults, base.meta).save(writer)
    new = store.open("rulebase/tiny")

    async def swap() -> tuple[list[int], str | None, str]:
        replica = IntentReplica(store.root, "tiny", SMALL, AppArgs(store=store.root).features)
        counts = []
        for refs in (
            {"rulebase": old.ref},
            {"rulebase": new.ref},
            {"rulebase": "rulebase/tiny@missing"},
            {"typo": "x"},
        ):
            await replica.reconfigure(refs)
            counts.append(len(replica.engine.model.gate.rulebase.rules))
        replica.check_health()
        status = await replica.status()
        return counts, status.rejected_update, status.artifacts["rulebase"]

    counts, rejected, serving = asyncio.run(swap())
    assert counts == [len(base.rules), 1, 1, 1]
    assert rejected is not None
    assert "typo" in rejected
    assert serving == new.ref


@pytest.mark.ray
def test_a_swap_that_fails_unforeseen_leaves_the_old_artefacts_answering(ray_local: None, store: ArtifactStore):
    """Features whose own description lacks a key."""
    old = store.open("features/tiny")
    inputs = {"corpus": store.open("corpus/tiny")}
    with store.write("features", "tiny", settings={"hollow": True}, inputs=inputs) as writer:
        writer.write_json("features.json", {})
    hollow = store.open("features/tiny")
    query = IntentQuery(Dialogue("d", "request", "test", (Turn("user", "Where is my refund?"),)), "dialogue_intent")

    async def swap() -> tuple[str | None, str, str]:
        replica = IntentReplica(store.root, "tiny", SMALL, AppArgs(store=store.root).features)
        await replica.reconfigure({"features": old.ref})
        await replica.reconfigure({"features": hollow.ref})
        replica.check_health()
        status = await replica.status()
        (prediction,) = replica.engine.predict([query])
        return status.rejected_update, status.artifacts["features"], prediction.label

    rejected, serving, label = asyncio.run(swap())
    assert rejected is not None
    assert "KeyError" in rejected
    assert (serving, label) == (old.ref, "refund_status")


@pytest.mark.ray
def test_examples_are_of_the_corpus_that_answers(ray_local: None, store: ArtifactStore):
    """A swap may bring another corpus: here one that has a single dialogue left."""
    corpus = store.open("corpus/tiny")
    (shard,) = corpus.shards("dialogues")
    with store.write("corpus", "tiny", settings={**corpus.manifest.settings, "dialogues": 1}) as writer:
        for name in corpus.manifest.files.keys() - {shard}:
            writer.write_bytes(name, corpus.read_bytes(name))
        rows = corpus.read_table("dialogues", DIALOGUES).to_pylist()
        pictured = next(row for row in rows if row["split"] == "train" and any(t["image_ids"] for t in row["turns"]))
        writer.write_table("dialogues", pa.Table.from_pylist([pictured], schema=DIALOGUES))
    newer = store.open("corpus/tiny")

    async def swap() -> tuple[int, int]:
        replica = IntentReplica(store.root, "tiny", SMALL)
        await replica.reconfigure({})
        before = await replica.examples()
        model = replica.engine.model
        swapped = replace(model, artifacts={**model.artifacts, "corpus": newer.ref})
        replica._engine = IntentEngine(swapped, OnlineFeatures(OnlineExtractors()))
        return len(before.examples), len((await replica.examples()).examples)

    before, after = asyncio.run(swap())
    assert before > 1
    assert after == 1


@pytest.mark.ray
@pytest.mark.parametrize(("gpus", "device"), [(0.0, "cpu"), (0.5, "auto")])
def test_a_replica_takes_no_gpu_that_it_did_not_reserve(ray_local: None, gpus: float, device: str):
    replica = IntentReplica("artifacts", "tiny", ServeSettings(gpus_per_replica=gpus))
    assert replica._models.device == device


@pytest.mark.ray
def test_a_replica_without_artefacts_is_not_healthy(ray_local: None, tmp_path: Path):
    replica = IntentReplica(str(tmp_path), "tiny", SMALL, AppArgs(store="x").features)
    with pytest.raises(RuntimeError, match="before its artefacts are loaded"):
        replica.check_health()


# ---------------------------------------------------------------- without a cluster


class Handle:
    """Stands where a deployment handle stands, to fail as Ray does."""

    def __init__(self, *failures: Exception | float) -> None:
        self._failures = list(failures)
        self.calls = 0
        self.tasks = self.status = self

    def remote(self) -> Any:
        async def call() -> str:
            self.calls += 1
            failure = self._failures.pop(0) if self._failures else None
            if isinstance(failure, Exception):
                raise failure
            await asyncio.sleep(failure or 0)
            return "answer"

        return call()


def call(*failures: Exception | float) -> Any:
    return asyncio.run(HandleBackend(Handle(*failures), Handle(), Handle(), 0.05, None).tasks())  # type: ignore[arg-type]


def test_a_dying_replica_costs_a_retry_not_the_request():
    from ray.exceptions import RayActorError

    assert call(RayActorError()) == "answer"
    with pytest.raises(ApiError) as caught:
        call(RayActorError(), RayActorError())
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


def test_a_full_queue_is_429_and_a_late_answer_504():
    from ray.serve.exceptions import BackPressureError

    with pytest.raises(ApiError) as full:
        call(BackPressureError(num_queued_requests=9, max_queued_requests=8))
    assert (full.value.status, full.value.retry_after_s) == (429, 1)
    with pytest.raises(ApiError) as late:
        call(1.0)
    assert late.value.status == 504


def test_an_absent_part_is_asked_again_only_after_a_while(monkeypatch: pytest.MonkeyPatch):
    from serve_apps import ingress
    from serve_apps.replica import absent_part

    monkeypatch.setattr(ingress, "_STATUS_KEPT_S", 60.0)

    class Absent(Handle):
        """A part that has nothing to answer with."""

        def __init__(self) -> None:
            super().__init__()
            self.answer = self.stream = self

        def options(self, *, stream: bool) -> Absent:
            assert stream
            return self

        def remote(self, *_: RecommendQuery) -> Any:
            async def call() -> Any:
                self.calls += 1
                return absent_part("recommendation", "no student yet")

            return call()

    student = Absent()
    backend = HandleBackend(Handle(), Handle(), student, 1.0, None)  # type: ignore[arg-type]

    async def ask() -> None:
        with pytest.raises(ApiError, match="no student yet") as caught:
            await backend.recommend(RecommendQuery("r", ()))
        assert (caught.value.status, caught.value.code) == (503, "no_student")

    async def stream() -> None:
        with pytest.raises(ApiError, match="no student"):
            async for _ in backend.stream(RecommendQuery("r", ())):
                pass

    asyncio.run(ask())
    asyncio.run(ask())
    asyncio.run(stream())
    assert student.calls == 1
    monkeypatch.setattr(ingress, "_STATUS_KEPT_S", -1.0)  # a second is over
    asyncio.run(ask())
    assert student.calls == 2


class Answering(Handle):
    """A part that is there, unless it fails."""

    def __init__(self, part: Part, *failures: Exception | float) -> None:
        super().__init__(*failures)
        self._part = part

    def remote(self) -> Any:
        async def call() -> PartStatus:
            await Handle.remote(self)
            return PartStatus(self._part)

        return call()


class Seat:
    """A policy that is there."""

    async def status(self) -> PartStatus:
        return PartStatus("policy")


def test_what_answers_is_told_while_a_part_is_down_hangs_or_is_full():
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError

    full = BackPressureError(num_queued_requests=9, max_queued_requests=8)

    def ready(failure: Exception | float) -> Any:
        parts = Answering("intent"), Answering("retrieval"), Answering("recommendation", failure)
        backend = HandleBackend(*parts, 0.2, Seat())  # type: ignore[arg-type]

        async def twice() -> Any:
            first, second = await backend.ready(), await backend.ready()
            assert first is second
            assert [part.calls for part in parts] == [1, 1, 1]  # kept for a second
            return first

        return asyncio.run(twice())

    for failure in (RayActorError(), 5.0):
        told = ready(failure)
        assert (told.status, told.answers) == ("ready", ("intent", "retrieval"))
        assert told.degraded[0].startswith("recommendation: ")
    busy = ready(full)
    assert busy.answers == ("intent", "retrieval", "recommendation")
    assert "too many requests" in busy.degraded[0]


class Streaming:
    """Stands where the handle of a stream stands: pieces, then a failure."""

    def __init__(self, *pieces: Any) -> None:
        self._pieces = list(pieces)
        self.cancelled = False
        self.stream = self

    def options(self, *, stream: bool) -> Streaming:
        assert stream
        return self

    def remote(self, _: RecommendQuery) -> Streaming:
        return self

    async def __anext__(self) -> Any:
        if not self._pieces:
            raise StopAsyncIteration
        piece = self._pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return piece

    def cancel(self) -> None:
        self.cancelled = True


def test_a_stream_that_fails_is_told_as_other_failures_are_and_given_up():
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError

    full = BackPressureError(num_queued_requests=9, max_queued_requests=8)
    unknown = Refused(400, "unknown_item", "there is none")

    async def collect(*pieces: Any) -> tuple[list[Any], int, bool]:
        handle, found = Streaming(*pieces), []
        try:
            async for piece in HandleBackend(Handle(), Handle(), handle, 1, None).stream(RecommendQuery("r", ())):  # type: ignore[arg-type]
                found.append(piece)  # noqa: PERF401 (what came before a failure is looked at)
        except ApiError as err:
            return found, err.status, handle.cancelled
        return found, 200, handle.cancelled

    assert asyncio.run(collect("a", "b")) == (["a", "b"], 200, True)
    assert asyncio.run(collect(full)) == ([], 429, True)
    assert asyncio.run(collect(unknown)) == ([], 400, True)
    assert asyncio.run(collect("a", RayActorError())) == (["a"], 503, True)
    assert asyncio.run(collect(RayActorError(), "a")) == (["a"], 200, True)  # nothing was told yet: asked again
    assert asyncio.run(collect(RayActorError(), RayActorError(), "a")) == ([], 503, True)


def test_the_builder_refuses_unknown_arguments():
    with pytest.raises(ValidationError, match="corpsu"):
        AppArgs.model_validate({"store": "artifacts", "corpsu": "shop"})


def test_serve_can_build_from_the_deploy_files_arguments():
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build_as_serve_does

    (app,) = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["applications"]
    assert build_as_serve_does(build, app["args"])._bound_deployment.name == "ingress"  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="corpsu"):
        build_as_serve_does(build, {"store": "artifacts", "corpsu": "shop"})  # type: ignore[arg-type]


def test_a_replica_that_goes_has_as_long_to_finish_as_anybody_waits():
    app = build(AppArgs(store="artifacts", serve=ServeSettings(request_timeout_s=50)))
    ingress = app._bound_deployment
    deployments = [ingress, *(bound._bound_deployment for bound in ingress.init_args[:3])]
    assert [d.name for d in deployments] == ["ingress", "intent", "retrieval", "recommendation"]
    assert all(d._deployment_config.graceful_shutdown_timeout_s > 50 for d in deployments)


def test_a_replica_reserves_the_gpus_of_the_settings():
    app = build(AppArgs(store="artifacts", serve=ServeSettings(gpus_per_replica=0.5)))
    intent = app._bound_deployment.init_args[0]._bound_deployment
    assert intent.ray_actor_options["num_gpus"] == 0.5


def test_the_builder_bounds_queues_and_sets_limits():
    settings = ServeSettings(max_replicas=3, max_ongoing_requests=4, max_queued_requests=5)
    app = build(AppArgs(store="artifacts", serve=settings))
    ingress = app._bound_deployment
    intent = ingress.init_args[0]._bound_deployment
    assert (intent.max_ongoing_requests, intent.max_queued_requests) == (4, 5)
    assert ingress.max_ongoing_requests >= 3 * 4 + 5
    assert intent._deployment_config.autoscaling_config.max_replicas == 3
    assert intent._deployment_config.backpressure_config.status_code == 429


def test_the_deploy_file_is_valid_and_names_the_builder():
    from ray.serve.schema import ServeDeploySchema

    parsed = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    (app,) = parsed.applications
    assert app.import_path == "serve_apps.app:build"
    assert AppArgs.model_validate(app.args).corpus == "shop"
    assert [deployment.name for deployment in app.deployments] == ["ingress", "intent", "retrieval", "recommendation"]


def test_references_find_their_role():
    given = ["adapter/shop@1", "gate/shop@2", "index/shop@3", "student/shop@4", "policy/shop@5"]
    intent, retrieval, student, policy = refs_from(given)
    assert policy.given() == {"policy": "policy/shop@5"}
    assert intent.given() == {"adapter": "adapter/shop@1", "gate": "gate/shop@2"}
    assert retrieval.given() == {"index": "index/shop@3"}
    assert student.given() == {"student": "student/shop@4"}
    with pytest.raises(RequestError, match="report/x"):
        refs_from(["report/x@1"])


# ---------------------------------------------------------------- the command


def test_a_taken_port_is_refused_before_ray_starts():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"choose another with --set serve\.port=N"):
            check_port(ServeSettings(port=taken.getsockname()[1]))


def test_missing_artefacts_are_told_before_ray_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "settings.yaml"
    config.write_text(f"store: {tmp_path / 'store'}\n", encoding="utf-8")
    assert main(["--config", str(config)]) == 2
    assert "corpus/shop" in capsys.readouterr().out


def test_what_is_there_passes_the_check(store: ArtifactStore):
    before = [artifact.ref for artifact in store.find()]
    check_artifacts(store.root, "tiny", [store.open("rulebase/tiny").ref])
    assert [artifact.ref for artifact in store.find()] == before  # it looks and changes nothing


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(tiny_store: Path, tmp_path: Path, free_port: Callable[[], int]):
    """A real process: its own cluster, HTTP, SIGTERM, exit code 0."""
    port = free_port()
    config = tmp_path / "settings.yaml"
    config.write_text(f"store: {tiny_store}\nserve: {{port: {port}}}\n", encoding="utf-8")
    command = [sys.executable, "-m", "serve_apps.run", "--config", str(config), "--corpus", "tiny"]
    server = subprocess.Popen(command, cwd=CONFIG.parents[1], env=os.environ | {"RAY_ADDRESS": ""})
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/readyz", server)
    finally:
        server.terminate()
    assert server.wait(60) == 0


def wait_until_ready(url: str, server: subprocess.Popen[bytes], seconds: float = 120) -> None:
    for _ in range(int(seconds)):
        assert server.poll() is None, "the server stopped"
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    pytest.fail(f"{url}: not ready after {seconds} s")
