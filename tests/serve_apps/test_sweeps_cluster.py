"""Sweeps launched over HTTP on a real cluster: followed to the end, stopped, recorded; the code comes as a package."""

from __future__ import annotations

import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from mmd.sweeps.store import SweepStore
from serve_apps.keys_cli import add_key
from serve_apps.sweeps import SweepDesk
from tests.jobs.ray_heads import TOKEN, Head, head

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"intent.search.rollouts": 20, "intent.search.seeds": 1, "intent.folds": 2}
ENDLESS = {"intent.search.rollouts": 10**9, "intent.search.patience": 10**9, "intent.search.seeds": 20}
WAIT_S = 270.0

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head() as found:
        yield found


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The code as the URI of a package."""
    told = subprocess.run(
        ["git", "ls-files", "mmd", "jobs", "ray_config.yaml"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    path = tmp_path_factory.mktemp("package") / "mmd.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in told.stdout.split():
            archive.write(ROOT / name, name)
    return f"file://{path}"


@pytest.fixture
def service(
    tiny_store: Path,
    tmp_path: Path,
    cluster: Head,
    package: str,
    backend: Any,
    serving: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[httpx.Client, ArtifactStore]]:
    shutil.copytree(tiny_store, tmp_path / "store")
    store = ArtifactStore(str(tmp_path / "store"))
    key = add_key(tmp_path / "keys.txt", "lab")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    settings = ServeSettings(
        api_keys_file=str(tmp_path / "keys.txt"), jobs_address=cluster.address, jobs_working_dir=package
    )
    url = serving(backend, settings, sweeps=SweepDesk(store, settings))
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        yield client, store


def launch(client: httpx.Client, space: dict[str, Any]) -> str:
    answer = client.post("/v1/sweeps", json={"sweep": "rules", "corpus": "tiny", "space": space})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def follow(client: httpx.Client, sweep_id: str, until: Callable[[dict[str, Any]], bool]) -> list[str]:
    """Return the states that a sweep went through until something is so."""
    states: list[str] = []
    end = time.monotonic() + WAIT_S
    while True:
        told = client.get(f"/v1/sweeps/{sweep_id}").json()
        if told["state"] not in states[-1:]:
            states.append(told["state"])
        if until(told):
            return states
        assert told["state"] in ("waiting", "running"), f"{told['state']}: {told['note']}"
        assert time.monotonic() < end, f"still {told['state']}"
        time.sleep(1)


def test_a_sweep_launched_over_http_is_followed_to_its_artefact(service: tuple[httpx.Client, ArtifactStore]):
    client, store = service
    launched = launch(client, SMALL)
    states = follow(client, launched, lambda told: told["state"] == "done")
    assert states[0] == "waiting"
    told = client.get(f"/v1/sweeps/{launched}").json()
    assert told["done"] == told["total"] == len(told["trials"]) > 0
    assert all(trial["metrics"]["rollouts"] <= 20 for trial in told["trials"])
    assert told["space"]["intent.search.rollouts"] == 20
    artifact = store.open(told["artifact"])
    assert artifact.ref == store.open("rulebase/tiny").ref
    record = SweepStore(store).read(launched)
    assert record.job == launched
    assert record.settings == artifact.manifest.version
    assert list(Path(SweepStore(store).folder(launched)).glob("tensorboard/trial-*"))
    again = launch(client, SMALL)
    follow(client, again, lambda told: told["state"] == "done")
    told = client.get(f"/v1/sweeps/{again}").json()
    assert told["artifact"] == artifact.ref
    assert "had made this before" in told["note"]


def test_a_sweep_that_would_run_for_ever_is_stopped(service: tuple[httpx.Client, ArtifactStore]):
    client, store = service
    launched = launch(client, ENDLESS)
    follow(client, launched, lambda told: told["state"] == "running" and told["total"] > 0)
    assert client.post(f"/v1/sweeps/{launched}/stop", json={}).status_code == 200
    follow(client, launched, lambda told: told["state"] == "stopped")
    assert SweepStore(store).read(launched).state == "stopped"
