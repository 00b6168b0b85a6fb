"""How many processes a cluster's machines can keep busy."""

from typing import Any

import pytest

from jobs.glue import nodes
from jobs.glue.cluster import ray_cluster
from jobs.glue.nodes import cores_by_machine, growing_to, threads_each, worker_count
from mmd.config import ClusterSettings


def node(host: str, cpus: float, **more: Any) -> dict[str, Any]:
    return {"NodeManagerHostname": host, "Alive": True, "Resources": {"CPU": cpus, "memory": 1e9}, **more}


@pytest.mark.parametrize(
    ("cluster", "cores"),
    [
        ([node("here", 8)], {"here": 2}),  # a local cluster, started with more logical CPUs than cores
        ([node("here", 1)], {"here": 1}),  # and one that shall use fewer
        ([node("here", 2), node("here", 2), node("here", 2)], {"here": 2}),  # three nodes on this machine
        ([node("here", 2), node("far", 8), node("far", 8)], {"here": 2, "far": 16}),
        ([{"NodeManagerHostname": "head", "Alive": True, "Resources": {}}, node("far", 8)], {"head": 0, "far": 8}),
    ],
)
def test_logical_cpus_are_bounded_by_the_cores_that_are_known(cluster: list[dict[str, Any]], cores: dict[str, int]):
    assert cores_by_machine(cluster, "here", 2) == cores


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A cluster's nodes, to be filled; this machine has two cores."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(nodes, "alive_nodes", lambda: found)
    monkeypatch.setattr(nodes, "own_cores", lambda: 2)
    monkeypatch.setattr(nodes.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(nodes, "_cpus_to_come", lambda: 0)
    return found


def test_every_core_of_a_cluster_can_be_busy(cluster: list[dict[str, Any]]):
    cluster += [node("here", 8), node("a", 4), node("b", 4)]
    assert worker_count() == 10


def test_a_cluster_that_may_grow_is_counted_as_grown(cluster: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    cluster += [node("head", 0), node("a", 8)]
    assert worker_count() == 8
    monkeypatch.setattr(nodes, "_cpus_to_come", lambda: 64)
    assert worker_count() == 64
    assert threads_each(1) == 7  # what is there
    with growing_to(96):  # the settings know better
        assert worker_count() == 96
    with growing_to(4):  # but what is there counts in any case
        assert worker_count() == 8
    assert worker_count() == 64


def test_the_settings_of_a_cluster_say_how_far_it_may_grow(
    cluster: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)  # connected already
    cluster += [node("a", 8)]
    with ray_cluster(ClusterSettings(autoscaler_cpus=64)):
        assert worker_count() == 64
    with ray_cluster(ClusterSettings()):
        assert worker_count() == 8
    assert worker_count() == 8


def test_a_cluster_without_cpus_still_gets_one_process(cluster: list[dict[str, Any]]):
    cluster += [node("head", 0)]
    assert worker_count() == 1
    assert threads_each(2) == 1


def test_training_processes_share_the_cores_and_leave_one_to_ray(cluster: list[dict[str, Any]]):
    cluster += [node("a", 8), node("b", 8)]
    assert threads_each(1) == 7  # not 15: a process has one machine
    assert threads_each(2) == 7
    assert threads_each(4) == 3
    assert threads_each(16) == 1
