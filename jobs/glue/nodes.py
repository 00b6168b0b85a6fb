"""The machines behind a connected Ray cluster: its nodes, their cores, and how far it may grow."""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_MORE_THAN_ANY = sys.maxsize
_grows_to: ContextVar[int | None] = ContextVar("_grows_to", default=None)


@contextmanager
def growing_to(cpus: int | None) -> Iterator[None]:
    """Let :func:`worker_count` know for the length of the ``with`` how far the cluster may grow."""
    token = _grows_to.set(cpus)
    try:
        yield
    finally:
        _grows_to.reset(token)


def alive_nodes() -> list[dict[str, Any]]:
    """Return what Ray tells of the nodes that are there."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def own_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_by_machine(nodes: Sequence[Mapping[str, Any]], here: str, here_cores: int) -> dict[str, int]:
    """Return host name → cores of the machines that nodes run on.

    Ray counts logical CPUs: those that a node was started with, which may be more than its machine has, and every one
    of several nodes on a machine may claim all of its cores. Of the driver's own machine the true number is known; of
    others the CPUs of their nodes are believed, as Ray counts them itself unless it is told otherwise.

    Args:
        nodes: of :func:`alive_nodes`.
        here: host name of this machine.
        here_cores: its cores.
    """
    cpus: Counter[str] = Counter()
    for node in nodes:
        cpus[str(node["NodeManagerHostname"])] += int(node["Resources"].get("CPU", 0))
    return {host: min(count, here_cores) if host == here else count for host, count in cpus.items()}


def worker_count() -> int:
    """Return how many busy processes the cluster has cores for, once its autoscaler has added what it may.

    An upper bound for pools that grow with their work: only their waiting makes an autoscaler add nodes. How far it may
    go is what the settings say (``cluster.autoscaler_cpus``), or what it reports itself.
    """
    present = sum(_present().values())
    return max(1, present, _grows_to.get() or _cpus_to_come())


def threads_each(workers: int) -> int:
    """Return the threads that each of some training processes may compute with, one core being left to Ray.

    Nodes that might come do not count, and no process has more cores than a machine.
    """
    cores = _present().values()
    return max(1, min(max(cores, default=1), sum(cores) // workers) - 1)


def _present() -> dict[str, int]:
    return cores_by_machine(alive_nodes(), socket.gethostname(), own_cores())


def _cpus_to_come() -> int:
    """Return the CPUs of a cluster that has grown to its autoscaler's limits; 0 without autoscaler, or without limit.

    Ray Train and Ray Data read the limits from the cluster in the same way. Some platforms report them there; the
    autoscaler that comes with Ray 2.60 does not.
    """
    from ray._private.state import state
    from ray.util.client import ray as ray_client

    if ray_client.is_connected():  # type: ignore[no-untyped-call]  # by ray://, where it cannot be asked
        return 0
    limits = state.get_max_resources_from_cluster_config()
    cpus = int((limits or {}).get("CPU", 0))
    return cpus if cpus < _MORE_THAN_ANY else 0
