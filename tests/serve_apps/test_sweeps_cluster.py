"""Sweeps launched over HTTP on a real cluster: followed to the end, stopped, recorded; the code comes as a package."""

from __future__ import annotations

import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from jobs.bench.node_jobs import SMALL as SMALL_SHOP
from jobs.bench.node_jobs import as_options
from jobs.bench.node_trials import run_alone
from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings, load_config
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
    """The code as the URI of a package; its settings are those of a small shop."""
    told = subprocess.run(["git", "ls-files", "mmd", "jobs"], cwd=ROOT, capture_output=True, text=True, check=True)
    path = tmp_path_factory.mktemp("package") / "mmd.zip"
    small = load_config(ROOT / "ray_config.yaml", overrides=as_options(SMALL_SHOP)[1::2])
    with zipfile.ZipFile(path, "w") as archive:
        for name in told.stdout.split():
            archive.write(ROOT / name, name)
        archive.writestr("ray_config.yaml", yaml.safe_dump(small.model_dump(mode="json"), allow_unicode=True))
    return f"file://{path}"


@pytest.fixture(scope="module")
def trained_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything that a small shop's pipeline makes."""
    store = tmp_path_factory.mktemp("trained") / "store"
    run_alone("pipeline", [*as_options(SMALL_SHOP), "--set", f"store={store}"])
    return store


Launching = Callable[[Path], AbstractContextManager[httpx.Client]]


@pytest.fixture
def launching(
    tmp_path: Path,
    cluster: Head,
    package: str,
    backend: Any,
    serving: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> Launching:
    """Return what makes a client of a service that may launch sweeps over a store on the cluster."""
    keys = tmp_path / "keys.txt"
    key = add_key(keys, "lab")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    settings = ServeSettings(api_keys_file=str(keys), jobs_address=cluster.address, jobs_working_dir=package)

    @contextmanager
    def client_of(store: Path) -> Iterator[httpx.Client]:
        url = serving(backend, settings, sweeps=SweepDesk(ArtifactStore(str(store)), settings))
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            yield client

    return client_of


@pytest.fixture
def service(tiny_store: Path, tmp_path: Path, launching: Launching) -> Iterator[tuple[httpx.Client, ArtifactStore]]:
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    with launching(store) as client:
        yield client, ArtifactStore(str(store))


def launch(client: httpx.Client, space: dict[str, Any], sweep: str = "rules", corpus: str = "tiny") -> str:
    answer = client.post("/v1/sweeps", json={"sweep": sweep, "corpus": corpus, "space": space})
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


@pytest.mark.parametrize(
    ("sweep", "space", "trials"),
    [
        ("gates", {"intent.gate.mllm_shares": [0.0, 0.5]}, None),
        (
            "conkd",
            {
                "recommend.sweep.gates": ["hard", "soft"],
                "recommend.sweep.etas": [0.3],
                "recommend.sweep.gammas": [0.3, 0.6],
                "recommend.sweep.temperatures": [1.0],
            },
            4,
        ),
        ("text_fraction", {"retrieval.sweep.fractions": [0.5], "retrieval.sweep.seeds": 1}, None),
    ],
)
def test_every_other_sweep_is_launched_and_ends(
    sweep: str, space: dict[str, Any], trials: int | None, trained_shop: Path, launching: Launching
):
    with launching(trained_shop) as client:
        launched = launch(client, space, sweep, "shop")
        follow(client, launched, lambda told: told["state"] == "done")
        told = client.get(f"/v1/sweeps/{launched}").json()
    assert told["done"] == len(told["trials"]) == (trials or told["total"]) > 0
    assert told["best"] is not None
    if sweep != "text_fraction":  # which reports, and makes no artefact
        assert ArtifactStore(str(trained_shop)).open(told["artifact"]).manifest.kind == "gate"
