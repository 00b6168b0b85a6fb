"""Sweeps over HTTP: listed from the store, launched and stopped by keys alone, and never with more than was allowed."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mmd.artifacts import ArtifactStore
from mmd.config import AppConfig, ServeSettings, build_config
from mmd.errors import ConfigError
from mmd.sweeps.kinds import KINDS
from mmd.sweeps.store import SweepStore
from serve_apps.api import ApiError
from serve_apps.http import create_app
from serve_apps.keys_cli import add_key
from serve_apps.sweeps import MAX_UNFINISHED, SweepDesk, entrypoint
from serve_apps.sweeps_api import LaunchRequest
from serve_apps.sweeps_jobs import LaunchedJob, RayJobs
from tests.serve_apps.sweep_records import (
    CONKD,
    GATES,
    LOST,
    RULES,
    RUNNING,
    JobServer,
    job_server,
    students,
    write_all,
    write_sweep,
)

TOKEN = "0123"  # noqa: S105 (of the job server in these tests)
LAUNCH = {"sweep": "rules", "corpus": "tiny", "space": {"intent.search.rollouts": 20}}

NO_SWEEPS = [
    "20260901-101500-conkd-ffffffff",
    "x",
    "..",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    f"{CONKD}%2ftrials.json",
    f"{CONKD}%5c..%5c{GATES}",
    f"{CONKD}%00",
    "20260901-101500-conkd-0000000A",
    "a" * 5000,
]
HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"sweep": "pipeline"}, "invalid_value"),
    ({"sweep": ["rules"]}, "invalid_value"),
    ({"sweep": None}, "invalid_value"),
    ({"corpus": "../../etc"}, "invalid_value"),
    ({"corpus": "tiny --force"}, "invalid_value"),
    ({"corpus": "tiny:chat=/etc"}, "invalid_value"),
    ({"corpus": "tiny\n"}, "invalid_value"),
    ({"corpus": "-h"}, "invalid_value"),
    ({"arguments": ["--force"]}, "unknown_field"),
    ({"entrypoint": "id"}, "unknown_field"),
    ({"store": "s3://mine"}, "unknown_field"),
    ({"space": {"store": "s3://mine"}}, "invalid_space"),
    ({"space": {"data.corpus.path": "/etc"}}, "invalid_space"),
    ({"space": {"models.proposer": "gpt2"}}, "invalid_space"),
    ({"space": {"intent.search": {"rollouts": 3}}}, "invalid_value"),
    ({"space": {"intent.search.rollouts": "20; rm -rf /"}}, "invalid_space"),
    ({"space": {"intent.search.rollouts": "$(id)"}}, "invalid_space"),
    ({"space": {"intent.search.rollouts": 0}}, "invalid_space"),
    ({"space": {"intent.search.rollouts": 20.5}}, "invalid_space"),
    ({"space": {"intent.search.rollouts": True}}, "invalid_space"),
    ({"space": {"intent.search.rollouts": 10**15}}, "invalid_value"),
    ({"space": {"intent.search.seeds": 10**9}}, "invalid_space"),
    ({"space": {"intent.search.rollouts": [20]}}, "invalid_space"),
    ({"space": {"intent.search.rollouts --force": 20}}, "invalid_space"),
    ({"space": {"intent.search.rollouts=1 --set store": 20}}, "invalid_space"),
    ({"space": {"intent.predicates.kinds": ["text"] * 65}}, "invalid_value"),
    ({"space": {"intent.predicates.kinds": ["text`id`"]}}, "invalid_space"),
    ({"space": {"intent.predicates.kinds": ["t" * 101]}}, "invalid_value"),
    ({"space": {"intent.predicates.kinds": [["text"]]}}, "invalid_value"),
    ({"space": {"intent.search.rollouts": None}}, "invalid_value"),
    ({"space": {f"k{n}": 1 for n in range(65)}}, "invalid_value"),
    ({"space": {"k" * 101: 1}}, "invalid_value"),
    ({"space": [1]}, "invalid_value"),
]


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> ArtifactStore:
    """The tiny store with a sweep of each kind and state."""
    shutil.copytree(tiny_store, tmp_path / "store")
    found = ArtifactStore(str(tmp_path / "store"))
    write_all(found)
    return found


@pytest.fixture
def cluster(free_port: Callable[[], int]) -> Iterator[JobServer]:
    with job_server(free_port()) as server:
        yield server


@pytest.fixture
def ask(backend: Any, store: ArtifactStore) -> Iterator[Callable[..., TestClient]]:
    """Make a client of a service with these settings."""
    opened: list[TestClient] = []

    def make(**settings: Any) -> TestClient:
        given = ServeSettings(**settings)
        app = create_app(backend, given, SweepDesk(store, given))
        opened.append(TestClient(app, raise_server_exceptions=False).__enter__())
        return opened[-1]

    yield make
    for client in opened:
        client.__exit__()


@pytest.fixture
def keyed(ask: Callable[..., TestClient], cluster: JobServer, tmp_path: Path) -> TestClient:
    """A client with a key of a service that may launch."""
    key = add_key(tmp_path / "keys.txt", "lab")
    client = ask(api_keys_file=str(tmp_path / "keys.txt"), jobs_address=cluster.address)
    client.headers["Authorization"] = f"Bearer {key}"
    return client


def refused(answer: Any, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    return str(answer.json()["error"]["message"])


# ---------------------------------------------------------------- reading


def test_sweeps_are_listed_newest_first_with_their_state(ask: Callable[..., TestClient]):
    told = ask().get("/v1/sweeps").json()
    states = {sweep["id"]: sweep["state"] for sweep in told["sweeps"]}
    assert list(states) == [RUNNING, LOST, RULES, GATES, CONKD]
    assert states == {RUNNING: "running", LOST: "interrupted", RULES: "failed", GATES: "done", CONKD: "done"}
    conkd = told["sweeps"][-1]
    assert (conkd["done"], conkd["total"], conkd["metric"], conkd["seconds"]) == (6, 6, "score", 754.0)
    assert conkd["artifact"] == "gate/tiny-conkd@0123456789ab"
    assert told["problem"] is None
    assert told["launching"]["allowed"] is False
    assert "serve.api_keys_file" in told["launching"]["reason"]


def test_a_sweep_is_shown_with_its_trials_the_best_marked(ask: Callable[..., TestClient]):
    told = ask().get(f"/v1/sweeps/{CONKD}").json()
    assert told["trials"][0]["curve"] == [list(point) for point in students()[0].curve]
    [best] = [trial for trial in told["trials"] if trial["best"]]
    assert best["setting"] == {"gate": "soft", "gamma": 0.9, "temperature": 1.0}
    assert told["best"] == best["metrics"]["score"]
    by_task = [trial["group"] for trial in ask().get(f"/v1/sweeps/{GATES}").json()["trials"] if trial["best"]]
    assert sorted(by_task) == ["dialogue_intent", "image_scene"]


def test_what_changes_while_it_runs_is_seen_and_what_has_ended_is_not_read_again(
    ask: Callable[..., TestClient], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve_apps.sweeps._KEPT_S", -1.0)
    client = ask()
    client.get("/v1/sweeps")
    read, asked = SweepStore.read, []
    monkeypatch.setattr(SweepStore, "read", lambda self, sweep_id: asked.append(sweep_id) or read(self, sweep_id))
    client.get("/v1/sweeps")
    assert asked == [RUNNING, LOST]
    write_sweep(store, RUNNING, students(), state="done")
    assert client.get(f"/v1/sweeps/{RUNNING}").json()["state"] == "done"


def test_an_illegible_record_hides_no_other(ask: Callable[..., TestClient], store: ArtifactStore):
    store.put(f"{SweepStore(store).folder(RULES)}/sweep.json", b"{")
    store.put(f"{SweepStore(store).folder(CONKD)}/trials.json", b"{")
    client = ask()
    assert [sweep["id"] for sweep in client.get("/v1/sweeps").json()["sweeps"]] == [RUNNING, LOST, GATES, CONKD]
    refused(client.get(f"/v1/sweeps/{RULES}"), 404, "unknown_sweep")
    assert client.get(f"/v1/sweeps/{CONKD}").json()["trials"] == []


def test_what_is_no_sweep_is_not_found_and_not_looked_for(
    ask: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
):
    client = ask()
    client.get("/v1/sweeps")
    paths: list[str] = []
    monkeypatch.setattr(SweepStore, "trials", lambda _, sweep_id: paths.append(sweep_id) or ())
    for name in NO_SWEEPS:
        answer = client.get(f"/v1/sweeps/{name}")
        assert answer.status_code == 404, name
        assert len(answer.text) < 1000
    assert paths == []


def test_the_kinds_tell_what_may_be_searched_and_where(ask: Callable[..., TestClient]):
    kinds = {kind["name"]: kind for kind in ask().get("/v1/sweeps/kinds").json()["kinds"]}
    assert set(kinds) == set(KINDS)
    assert kinds["rules"]["corpora"] == ["tiny"]
    assert kinds["conkd"]["corpora"] == []
    fields = {field["key"]: field for field in kinds["conkd"]["fields"]}
    assert fields["recommend.sweep.gammas"]["default"] == [0.3, 0.6, 0.9]
    assert fields["recommend.sweep.gates"]["accepts"]["items"]["enum"] == ["hard", "soft"]


# ---------------------------------------------------------------- launching


def test_without_keys_nothing_is_launched_or_stopped_and_the_cluster_is_not_asked(
    ask: Callable[..., TestClient], cluster: JobServer
):
    client = ask(jobs_address=cluster.address)
    assert "serve.api_keys_file" in refused(client.post("/v1/sweeps", json=LAUNCH), 403, "launching_off")
    refused(client.post(f"/v1/sweeps/{RUNNING}/stop", json={}), 403, "launching_off")
    assert cluster.jobs == {}


def test_without_a_key_and_without_an_address_it_is_told_what_is_missing(
    ask: Callable[..., TestClient], keyed: TestClient, tmp_path: Path, cluster: JobServer
):
    key = keyed.headers.pop("Authorization")
    refused(keyed.post("/v1/sweeps", json=LAUNCH), 401, "invalid_api_key")
    refused(keyed.get("/v1/sweeps"), 401, "invalid_api_key")
    client = ask(api_keys_file=str(tmp_path / "keys.txt"))
    client.headers["Authorization"] = key
    assert "serve.jobs_address" in refused(client.post("/v1/sweeps", json=LAUNCH), 403, "launching_off")
    assert cluster.jobs == {}


def test_a_key_that_is_not_named_may_only_look(ask: Callable[..., TestClient], cluster: JobServer, tmp_path: Path):
    path = tmp_path / "keys.txt"
    lab, shop = add_key(path, "lab"), add_key(path, "shop")
    client = ask(api_keys_file=str(path), jobs_address=cluster.address, jobs_keys=("lab",))
    client.headers["Authorization"] = f"Bearer {shop}"
    assert client.get("/v1/sweeps").json()["launching"]["allowed"] is False
    assert "serve.jobs_keys" in refused(client.post("/v1/sweeps", json=LAUNCH), 403, "launching_off")
    client.headers["Authorization"] = f"Bearer {lab}"
    assert client.get("/v1/sweeps").json()["launching"] == {"allowed": True, "reason": None}
    assert client.post("/v1/sweeps", json=LAUNCH).status_code == 200


def test_a_launched_sweep_is_a_job_with_these_words_and_waits(
    keyed: TestClient, cluster: JobServer, store: ArtifactStore
):
    told = keyed.post("/v1/sweeps", json=LAUNCH).json()
    assert (told["state"], told["sweep"], told["corpus"], told["stoppable"]) == ("waiting", "rules", "tiny", True)
    assert told["space"] == LAUNCH["space"]
    [(job_id, job)] = cluster.jobs.items()
    assert job_id == told["id"]
    assert shlex.split(job["entrypoint"]) == [
        *("python", "-m", "jobs.mine_rules", "--corpus", "tiny:shop"),
        *("--set", f"store={store.uri}", "--set", "intent.search.rollouts=20"),
    ]
    assert job["runtime_env"] == {"env_vars": {"MMD_SWEEP_ID": job_id}}
    assert keyed.get("/v1/sweeps").json()["sweeps"][0]["id"] == job_id
    assert keyed.get(f"/v1/sweeps/{job_id}").json()["trials"] == []


def test_a_job_that_left_no_record_tells_why(
    keyed: TestClient, cluster: JobServer, monkeypatch: pytest.MonkeyPatch, store: ArtifactStore
):
    monkeypatch.setattr("serve_apps.sweeps._KEPT_S", -1.0)
    job_id = keyed.post("/v1/sweeps", json=LAUNCH).json()["id"]
    for status, message, state, note in (
        ("RUNNING", "", "waiting", None),
        ("FAILED", "runtime_env setup failed", "failed", "runtime_env setup failed"),
        ("STOPPED", "", "stopped", None),
        ("SUCCEEDED", "", "failed", "The job ended without a record in this store."),
    ):
        cluster.jobs[job_id] |= {"status": status, "message": message}
        told = keyed.get(f"/v1/sweeps/{job_id}").json()
        assert (told["state"], told["note"]) == (state, note)


def test_a_job_that_ended_before_it_recorded_how_is_told_as_the_cluster_tells_it(
    keyed: TestClient, cluster: JobServer, monkeypatch: pytest.MonkeyPatch, store: ArtifactStore
):
    monkeypatch.setattr("serve_apps.sweeps._KEPT_S", -1.0)
    job_id = keyed.post("/v1/sweeps", json=LAUNCH).json()["id"]
    write_sweep(store, job_id, [], state="running", updated_unix_s=4e9, ended_unix_s=None, job=job_id)
    for status, state, note in (
        ("RUNNING", "running", None),
        ("STOPPED", "stopped", None),
        ("FAILED", "failed", "the driver was killed"),
        ("SUCCEEDED", "interrupted", None),
    ):
        cluster.jobs[job_id] |= {"status": status, "message": "the driver was killed"}
        told = keyed.get(f"/v1/sweeps/{job_id}").json()
        assert (told["state"], told["note"], told["stoppable"]) == (state, note, state == "running")
    cluster.jobs[job_id] |= {"status": "STOPPED"}
    write_sweep(store, job_id, [], job=job_id)  # what it recorded counts
    assert keyed.get(f"/v1/sweeps/{job_id}").json()["state"] == "done"


def test_a_running_sweep_is_stopped_as_the_job_that_it_is(
    keyed: TestClient, cluster: JobServer, monkeypatch: pytest.MonkeyPatch, store: ArtifactStore
):
    monkeypatch.setattr("serve_apps.sweeps._KEPT_S", -1.0)
    launched = keyed.post("/v1/sweeps", json=LAUNCH).json()["id"]
    assert keyed.post(f"/v1/sweeps/{launched}/stop", json={}).json()["state"] == "stopped"
    refused(keyed.post(f"/v1/sweeps/{launched}/stop", json={}), 409, "not_stoppable")
    assert "Ctrl+C" in refused(keyed.post(f"/v1/sweeps/{RUNNING}/stop", json={}), 409, "not_stoppable")
    refused(keyed.post(f"/v1/sweeps/{CONKD}/stop", json={}), 409, "not_stoppable")
    refused(keyed.post("/v1/sweeps/nothing/stop", json={}), 404, "unknown_sweep")


def test_a_sweep_that_is_a_step_of_a_longer_job_is_not_stopped(
    keyed: TestClient, cluster: JobServer, store: ArtifactStore
):
    cluster.jobs["pipeline-12ab"] = {"status": "RUNNING", "metadata": {"mmd": "pipeline"}}
    write_all(store, running_job="pipeline-12ab")
    assert keyed.get(f"/v1/sweeps/{RUNNING}").json()["stoppable"] is False
    message = refused(keyed.post(f"/v1/sweeps/{RUNNING}/stop", json={}), 409, "not_stoppable")
    assert "mmd submit --stop" in message
    assert cluster.jobs["pipeline-12ab"]["status"] == "RUNNING"


def test_a_launched_sweep_that_runs_is_stopped(
    keyed: TestClient, cluster: JobServer, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve_apps.sweeps._KEPT_S", -1.0)
    launched = keyed.post("/v1/sweeps", json=LAUNCH).json()["id"]
    now = time.time()
    write_sweep(store, launched, [], state="running", ended_unix_s=None, updated_unix_s=now, job=launched)
    assert keyed.post(f"/v1/sweeps/{launched}/stop", json={}).status_code == 200
    assert cluster.jobs[launched]["status"] == "STOPPED"


def launch_of(rollouts: int) -> dict[str, Any]:
    return LAUNCH | {"space": {"intent.search.rollouts": rollouts}}


def test_only_so_many_wait_or_run_at_once(keyed: TestClient, cluster: JobServer):
    for n in range(MAX_UNFINISHED):
        assert keyed.post("/v1/sweeps", json=launch_of(20 + n)).status_code == 200
    assert "Stop one first" in refused(keyed.post("/v1/sweeps", json=launch_of(99)), 409, "too_many_sweeps")
    assert len(cluster.jobs) == MAX_UNFINISHED


def test_a_sweep_is_not_launched_beside_one_of_the_same_space(
    keyed: TestClient, cluster: JobServer, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve_apps.sweeps._KEPT_S", -1.0)
    launched = keyed.post("/v1/sweeps", json=LAUNCH).json()["id"]
    equal = LAUNCH | {"space": LAUNCH["space"] | {"intent.folds": 5}}  # its default
    for state in ("waiting", "running"):
        assert keyed.get(f"/v1/sweeps/{launched}").json()["state"] == state
        for request in (LAUNCH, equal):
            assert launched in refused(keyed.post("/v1/sweeps", json=request), 409, "same_sweep")
        space = {"intent.folds": 7}  # of settings that the service does not know, under what was asked for
        written = {"state": "running", "ended_unix_s": None, "updated_unix_s": time.time(), "job": launched}
        write_sweep(store, launched, [], **written, space=space)
    keyed.post(f"/v1/sweeps/{launched}/stop", json={})
    assert keyed.post("/v1/sweeps", json=LAUNCH).status_code == 200
    assert len(cluster.jobs) == 2


def test_a_sweep_is_not_launched_beside_one_that_was_started_elsewhere(keyed: TestClient, store: ArtifactStore):
    sweep_id = RULES[:-1] + "0"
    write_sweep(store, sweep_id, [], state="running", ended_unix_s=None, updated_unix_s=time.time())
    assert sweep_id in refused(keyed.post("/v1/sweeps", json=LAUNCH | {"space": {}}), 409, "same_sweep")
    assert keyed.post("/v1/sweeps", json=LAUNCH).status_code == 200


def test_what_a_sweep_needs_must_be_there(keyed: TestClient, cluster: JobServer):
    message = refused(keyed.post("/v1/sweeps", json={"sweep": "conkd", "corpus": "tiny"}), 409, "missing_artifact")
    assert "mmd build_graph" in message
    message = refused(keyed.post("/v1/sweeps", json={"sweep": "rules", "corpus": "other"}), 409, "missing_artifact")
    assert "corpus/other" in message
    assert cluster.jobs == {}


def test_a_hostile_launch_is_refused_before_the_cluster_hears_of_it(keyed: TestClient, cluster: JobServer):
    for change, code in HOSTILE:
        message = refused(keyed.post("/v1/sweeps", json=LAUNCH | change), 400, code)
        assert len(message) < 2000
    assert cluster.jobs == {}


def test_a_broken_launch_is_refused(keyed: TestClient):
    huge = '{"sweep": "rules", "corpus": "tiny", "space": {"seed": ' + "9" * 5000 + "}}"
    for body in ('{"sweep": "rules"', '{"a": NaN}', "[]", '{"space": ' + "[" * 5000, huge):
        answer = keyed.post("/v1/sweeps", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, body[:80]
    assert keyed.post("/v1/sweeps", content="sweep=rules").status_code == 415


def test_every_word_of_a_command_is_quoted_whatever_it_holds():
    values = ["store=a store; id", 'intent.predicates.kinds=["it\'s; $(id)"]']  # would be refused before
    command = entrypoint(KINDS["gates"], ["--config", "/opt/my mmd/ray_config.yaml"], values)
    assert shlex.split(command) == [
        *("python", "-m", "jobs.sweep_gates", "--method", "kdsl", "--config", "/opt/my mmd/ray_config.yaml"),
        *("--set", values[0], "--set", values[1]),
    ]


def test_an_experiments_report_goes_beside_its_trials_and_the_operators_settings_go_along(
    ask: Callable[..., TestClient], cluster: JobServer, store: ArtifactStore, tmp_path: Path
):
    key = add_key(tmp_path / "keys.txt", "lab")
    client = ask(
        api_keys_file=str(tmp_path / "keys.txt"),
        jobs_address=cluster.address,
        jobs_config="/opt/mmd/ray_config.yaml",
        jobs_profile="gpu",
        jobs_working_dir="s3://bucket/mmd.zip",
    )
    client.headers["Authorization"] = f"Bearer {key}"
    request = {"sweep": "text_fraction", "corpus": "tiny", "space": {"retrieval.sweep.fractions": [0.25, 0.5]}}
    sweep_id = client.post("/v1/sweeps", json=request).json()["id"]
    job = cluster.jobs[sweep_id]
    assert shlex.split(job["entrypoint"]) == [
        *("python", "-m", "jobs.experiments", "text_fraction", "--config", "/opt/mmd/ray_config.yaml"),
        *("--profile", "gpu"),
        *("--out", f"{store.root}/.sweeps/{sweep_id}", "--corpus", "tiny:shop", "--set", f"store={store.uri}"),
        *("--set", "retrieval.sweep.fractions=[0.25, 0.5]"),
    ]
    assert job["runtime_env"]["working_dir"] == "s3://bucket/mmd.zip"


def test_a_cluster_that_is_away_or_refuses_is_told_and_hides_no_record(
    ask: Callable[..., TestClient], cluster: JobServer, free_port: Callable[[], int], tmp_path: Path
):
    key = add_key(tmp_path / "keys.txt", "lab")
    cluster.token = TOKEN
    for address, words in (
        (f"http://127.0.0.1:{free_port()}", "no Ray dashboard answers"),
        (cluster.address, "does not take the service's token"),
    ):
        client = ask(api_keys_file=str(tmp_path / "keys.txt"), jobs_address=address)
        client.headers["Authorization"] = f"Bearer {key}"
        told = client.get("/v1/sweeps").json()
        assert words in told["problem"]
        assert len(told["sweeps"]) == 5
        answer = client.post("/v1/sweeps", json=LAUNCH)
        assert words in refused(answer, 503, "cluster_unavailable")
        assert answer.headers["Retry-After"] == "5"


def test_nothing_is_launched_while_it_is_not_known_what_runs(
    keyed: TestClient, cluster: JobServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve_apps.sweeps._KEPT_S", -1.0)
    cluster.lists = False  # and would take jobs
    answer = keyed.post("/v1/sweeps", json=LAUNCH)
    assert "not known what runs already" in refused(answer, 503, "cluster_unavailable")
    assert answer.headers["Retry-After"] == "5"
    assert cluster.jobs == {}
    cluster.lists = True
    assert keyed.post("/v1/sweeps", json=LAUNCH).status_code == 200
    cluster.lists = False
    refused(keyed.post("/v1/sweeps", json=LAUNCH), 503, "cluster_unavailable")
    assert len(cluster.jobs) == 1


def test_a_launched_sweep_is_told_of_though_the_list_fails_after_it(
    keyed: TestClient, cluster: JobServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve_apps.sweeps._KEPT_S", -1.0)
    launch = RayJobs.launch

    async def launch_and_fail(self: RayJobs, *arguments: Any) -> None:
        await launch(self, *arguments)
        cluster.lists = False

    monkeypatch.setattr(RayJobs, "launch", launch_and_fail)
    answer = keyed.post("/v1/sweeps", json=LAUNCH)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    [job_id] = cluster.jobs
    assert (told["id"], told["state"], told["space"], told["stoppable"]) == (job_id, "waiting", LAUNCH["space"], True)
    listed = keyed.get("/v1/sweeps").json()
    assert listed["sweeps"][0] == told
    assert "answered 500" in listed["problem"]
    assert keyed.get(f"/v1/sweeps/{job_id}").json() == told | {"trials": []}
    assert keyed.post(f"/v1/sweeps/{job_id}/stop", json={}).status_code == 200
    assert cluster.jobs[job_id]["status"] == "STOPPED"
    cluster.lists = True
    assert keyed.get(f"/v1/sweeps/{job_id}").json()["state"] == "stopped"
    cluster.jobs.clear()  # a new cluster
    refused(keyed.get(f"/v1/sweeps/{job_id}"), 404, "unknown_sweep")


def test_a_sweep_that_another_process_may_have_launched_is_not_said_to_be_none(
    keyed: TestClient, cluster: JobServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve_apps.sweeps._KEPT_S", -1.0)
    cluster.lists = False
    unknown = NO_SWEEPS[0]
    assert unknown in refused(keyed.get(f"/v1/sweeps/{unknown}"), 503, "cluster_unavailable")
    assert keyed.get(f"/v1/sweeps/{CONKD}").status_code == 200
    refused(keyed.get("/v1/sweeps/x"), 404, "unknown_sweep")
    cluster.lists = True
    refused(keyed.get(f"/v1/sweeps/{unknown}"), 404, "unknown_sweep")


@pytest.mark.parametrize("slow", ["jobs", "records"])
def test_a_list_that_was_asked_for_before_a_launch_is_not_told_after_it(
    slow: str, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve_apps.sweeps._KEPT_S", -1.0)
    ids = SweepStore.ids

    class AskedMeanwhile:
        """Somebody asks for the list while a job is sent, and is answered after that."""

        def __init__(self) -> None:
            self.there: list[LaunchedJob] = []
            self.asked, self.answered = asyncio.Event(), threading.Event()
            self.late: asyncio.Task[Any] | None = None

        async def launch(self, sweep_id: str, corpus: str, space: Mapping[str, Any], entrypoint: str) -> None:  # noqa: ARG002
            self.late = asyncio.create_task(desk.all("lab"))
            await self.asked.wait()
            monkeypatch.setattr("serve_apps.sweeps._KEPT_S", 60.0)
            self.there.append(LaunchedJob(sweep_id, corpus, space, "PENDING"))
            asyncio.get_running_loop().call_later(0.05, self.answered.set)

        async def jobs(self) -> list[LaunchedJob]:
            found = list(self.there)
            if self.late is not None:
                self.asked.set()
                if slow == "jobs":
                    await asyncio.to_thread(self.answered.wait, 10)
            return found

        async def stop(self, job_id: str) -> None:
            """Nothing is stopped here."""

    async def story() -> None:
        told = await desk.launch(LaunchRequest.model_validate(LAUNCH), "lab")
        assert jobs.late is not None
        await jobs.late
        assert (await desk.all("lab")).sweeps[0] == told
        with pytest.raises(ApiError, match="searches the same space"):
            await desk.launch(LaunchRequest.model_validate(LAUNCH), "lab")

    def ids_at_last(sweeps: SweepStore) -> list[str]:
        if slow == "records" and jobs.late is not None:
            jobs.answered.wait(10)
        return ids(sweeps)

    jobs = AskedMeanwhile()
    monkeypatch.setattr(SweepStore, "ids", ids_at_last)
    desk = SweepDesk(store, ServeSettings(api_keys_file=str(tmp_path / "keys.txt")), jobs)
    asyncio.run(story())


def test_the_clusters_token_is_sent_as_ray_does(
    keyed: TestClient, cluster: JobServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    cluster.token = TOKEN
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert keyed.post("/v1/sweeps", json=LAUNCH).status_code == 200


def test_jobs_of_others_and_made_up_marks_are_no_sweeps(keyed: TestClient, cluster: JobServer):
    job = {"status": "RUNNING", "message": ""}
    for n, mark in enumerate(("", "{", "[]", '{"id": "../x", "corpus": "a", "space": {}}', '{"id": 3}')):
        cluster.jobs[f"raysubmit_{n}"] = job | {"metadata": {"mmd_sweep": mark}}
    cluster.jobs["raysubmit_9"] = job | {
        "metadata": {"mmd_sweep": f'{{"id": "{CONKD}", "corpus": "a", "space": {{}}}}'}
    }
    told = keyed.get("/v1/sweeps").json()
    assert [sweep["id"] for sweep in told["sweeps"]] == [RUNNING, LOST, RULES, GATES, CONKD]
    assert told["sweeps"][-1]["state"] == "done"


@pytest.mark.parametrize(
    "serve",
    [
        {"jobs_address": "head:8265"},
        {"jobs_address": "ftp://head"},
        {"jobs_address": "http://head:8265/x?y"},
        {"jobs_address": "http://me:secret@head:8265"},
        {"jobs_working_dir": "/home/me"},
    ],
)
def test_addresses_and_packages_are_checked_with_the_settings(serve: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(serve))):
        build_config({"serve": serve})
    assert AppConfig().serve.jobs_address is None
