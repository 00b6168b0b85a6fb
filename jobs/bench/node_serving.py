"""The service on several nodes, two replicas of everything on different ones, asked while a node is lost."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from jobs.bench.harness import meanwhile
from jobs.bench.node_cluster import HEAD, NodeCluster
from jobs.bench.node_trials import REPLACED_AFTER_S, Lab
from jobs.glue.entry import console
from mmd.artifacts import ArtifactStore
from mmd.corpora.store import Corpus
from mmd.errors import ClusterError
from mmd.loadtest.generator import Load, Request
from mmd.loadtest.questions import CHAT, asked_of, endless, text_dialogues
from mmd.loadtest.report import summarise

CONFIG = Path("serve_apps/serve_config.yaml")
APP = "mmd"
_API = "/api/serve/applications/"
_DEPLOY_S = 600.0
_PORT = 8000
_CLIENT_S = 10.0  # a client's patience; then it asks again
_WARMUP = 20
_TRIES = 3
_TARGET = 0.999


def try_serving(lab: Lab, rate: float, seconds: float) -> dict[str, Any]:
    """Deploy as ``serve deploy`` does; ask undisturbed, then with one node lost, then with another fallen silent.

    They go after a third of the time: the first is killed, the second loses its power and says nothing more. Requests
    go to all nodes' proxies in turn; clients ask again once, at the next: what a load balancer would do that has not
    noticed the loss yet.
    """
    cluster = lab.cluster
    questions = endless([asked_of(d) for d in text_dialogues(Corpus(newest_corpus(lab)))], CHAT)
    deploy(cluster, config_of(lab.ready or lab.work))
    told: dict[str, Any] = {}
    try:
        started = time.monotonic()
        wait_until_running(cluster)
        told |= {"deployed_s": round(time.monotonic() - started, 1), "replicas": replicas(cluster)}
        for name, lose in LOSSES.items():
            console.print(f"serve, {name} …", markup=False)
            head, *others = [f"http://{cluster.address_of(node)}:{_PORT}" for node in (HEAD, *cluster.workers())]
            load = Load(head, rate, retries=1, timeout_s=_CLIENT_S, others=others)
            load.one_by_one(list(itertools.islice(questions, _WARMUP)))
            asked = list(itertools.islice(questions, round(rate * seconds)))
            told[name] = _asked(cluster, load, asked, seconds / 3, lose)
            cluster.wait_for(3)
            wait_until_running(cluster)
            told[name]["replicas_afterwards"] = replicas(cluster)
    finally:
        httpx.delete(f"{cluster.dashboard}{_API}", timeout=60.0)
    return told


LOSSES: Mapping[str, Callable[[NodeCluster, str], None] | None] = {
    "undisturbed": None,
    "node lost": NodeCluster.kill,
    "node silent": NodeCluster.unplug,
}


def _asked(
    cluster: NodeCluster,
    load: Load,
    asked: Sequence[Request],
    after_s: float,
    lose: Callable[[NodeCluster, str], None] | None,
) -> dict[str, Any]:
    """Ask, lose a node meanwhile, and say what came of it."""
    lost: dict[str, Any] = {}

    def lose_one(over: threading.Event) -> None:
        if lose is None or over.wait(after_s):
            return
        node = cluster.workers()[0]
        lose(cluster, node)
        lost.update(node=node, after_s=round(after_s, 1))
        if not over.wait(REPLACED_AFTER_S):
            cluster.add()

    with meanwhile(lose_one):
        outcomes = load.run(asked)
    told = summarise(outcomes)
    share = told["answered"] / told["requests"]
    return told | {
        "lost": lost or None,
        "proxies": 1 + len(load.others),
        "answered_share": share,
        "target_share": _TARGET,
        "reached": share >= _TARGET,
    }


def newest_corpus(lab: Lab) -> Any:  # noqa: ANN401 (an Artifact)
    """Return the corpus whose questions are asked."""
    return ArtifactStore(str(lab.ready)).open("corpus/shop")


def config_of(store: Path) -> dict[str, Any]:
    """Return the deployment file of the checkout with two replicas of everything, at most one a node."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    spread = {"min_replicas": 2, "max_replicas": 2, "max_replicas_per_node": 1}
    config["applications"][0]["args"] |= {"store": str(store), "serve": spread}
    return config


def deploy(cluster: NodeCluster, config: Mapping[str, Any]) -> None:
    """Send a deployment file to the cluster; again where a busy machine was too slow to start Serve's proxy.

    Raises:
        ClusterError: it is refused.
    """
    for _ in range(_TRIES):
        answer = httpx.put(f"{cluster.dashboard}{_API}", json=config, timeout=300.0)
        if answer.is_success:
            return
    raise ClusterError(f"{cluster.dashboard}: refuses {CONFIG}: {answer.text[-600:]}")


def wait_until_running(cluster: NodeCluster) -> None:
    """Wait until all replicas run.

    Raises:
        ClusterError: they do not after ten minutes, or cannot be started.
    """
    until, state = time.monotonic() + _DEPLOY_S, {}
    while time.monotonic() < until:
        state = application(cluster)
        healthy = all(one["status"] == "HEALTHY" for one in state.get("deployments", {}).values())
        if state.get("status") == "RUNNING" and healthy:
            return
        if state.get("status") == "DEPLOY_FAILED":
            break
        time.sleep(1.0)
    raise ClusterError(f"service: {state.get('status')}: {str(state.get('message'))[-600:]}")


def application(cluster: NodeCluster) -> dict[str, Any]:
    """Return what Serve tells of the application."""
    answer = httpx.get(f"{cluster.dashboard}{_API}", timeout=60.0)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()["applications"].get(APP, {})
    return found


def replicas(cluster: NodeCluster) -> dict[str, list[str]]:
    """Return deployment → names of the nodes of its running replicas."""
    names = {row["node_id"]: name for name, row in cluster.alive().items()}
    return {
        name: sorted(names.get(one["node_id"], "lost") for one in found["replicas"] if one["state"] == "RUNNING")
        for name, found in application(cluster)["deployments"].items()
    }
