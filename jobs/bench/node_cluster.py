"""A Ray cluster of several nodes on one machine whose nodes can be lost: a head without CPUs, and workers.

Each node is a machine of its own (:mod:`jobs.bench.machines`), with an address, a host name, a temporary folder and
Ray's ordinary ports; they share the disk. Jobs reach it by the Jobs API, as they reach any other cluster.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from jobs.bench.harness import loop_variables
from jobs.bench.machines import Machine, Network, Place, why_not
from jobs.glue.following import follow
from jobs.glue.job_command import job_command
from jobs.glue.packing import packed_code
from jobs.glue.stopping import sigterm_as_interrupt
from jobs.glue.submission import JobServer, SubmittedJob
from mmd.config import ServeSettings
from mmd.errors import ClusterError

HEAD = "head"
GCS_PORT, DASHBOARD_PORT = 6379, 8265
_START_S = 300.0
_TOO_SLOW = "timed out during startup"
"""What Ray says when a node did not start in its 30 s, on a busy machine: it is started again."""
_AGAIN = "\n--- started again ---\n"
_SAID_CHARS = 600
_ROWS = 1000
_ANSWER_S = 60.0
_NOT_PASSED_ON = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@dataclass(frozen=True)
class NodeSize:
    """What Ray is told that a worker node has.

    Attributes:
        cpus: logical; the machines share this one's cores.
        object_store_mb: of each node, the head's too, MiB.
    """

    cpus: int = 4
    object_store_mb: int = 200


class NodeCluster:
    """A running cluster; use :func:`node_cluster`.

    Args:
        network: of its machines.
        folder: for temporary files and logs; short, since Ray's sockets lie in it.
        size: of the worker nodes.
    """

    def __init__(self, network: Network, folder: Path, size: NodeSize) -> None:
        self._network, self._folder, self.size = network, folder, size
        self._numbers = itertools.count(1)
        self.nodes: dict[str, Machine] = {}
        place = network.place(HEAD)
        self._head = place.address
        self.nodes[HEAD] = self._start(place)

    @property
    def dashboard(self) -> str:
        """Address of the dashboard and the Jobs API."""
        return f"http://{self._head}:{DASHBOARD_PORT}"

    def address_of(self, name: str) -> str:
        """Return a node's IPv4 address."""
        return self.nodes[name].place.address

    def add(self) -> str:
        """Start another worker node; return its name. It joins some seconds later (:meth:`wait_for`)."""
        place = self._network.place(f"worker{next(self._numbers)}")
        self.nodes[place.name] = self._start(place)
        return place.name

    def kill(self, name: str) -> None:
        """End a worker node with everything that runs on it, by SIGKILL.

        Raises:
            ClusterError: it is the head, or gone.
        """
        self._taken(name).kill()

    def unplug(self, name: str) -> None:
        """Take a worker node away without a word: who waits for its answer hears nothing, as when its power fails.

        Raises:
            ClusterError: it is the head, or gone.
        """
        self._taken(name).unplug()

    def _taken(self, name: str) -> Machine:
        if name == HEAD or name not in self.nodes:
            raise ClusterError(f"node {name!r}: not a worker; there are {', '.join(self.workers())}.")
        return self.nodes.pop(name)

    def workers(self) -> list[str]:
        """Return the names of the worker nodes that were started and not killed."""
        return [name for name in self.nodes if name != HEAD]

    def alive(self) -> dict[str, dict[str, Any]]:
        """Return name → what Ray tells of the nodes that it takes for alive."""
        return {str(row["node_name"]): row for row in self._state("nodes") if row["state"] == "ALIVE"}

    def actors(self, title: str) -> dict[str, int]:
        """Return name of a worker node → how many running actors there have this in their class's name."""
        names = {row["node_id"]: name for name, row in self.alive().items() if name in self.workers()}
        running = [row for row in self._state("actors") if row["state"] == "ALIVE" and title in row["class_name"]]
        return dict(Counter(names[row["node_id"]] for row in running if row["node_id"] in names))

    def _state(self, what: str) -> list[dict[str, Any]]:
        """Return the rows of Ray's state API.

        Raises:
            ClusterError: the dashboard does not answer.
        """
        try:
            answer = httpx.get(f"{self.dashboard}/api/v0/{what}", params={"limit": _ROWS}, timeout=_ANSWER_S)
            answer.raise_for_status()
            rows: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as err:
            raise ClusterError(f"{self.dashboard}: does not tell {what} ({type(err).__name__}: {err}).") from err
        return rows

    def wait_for(self, nodes: int) -> None:
        """Wait until so many nodes are alive, the head among them.

        Raises:
            ClusterError: one ended, or they are too few after five minutes.
        """
        until, told = time.monotonic() + _START_S, ""
        while time.monotonic() < until:
            for name in [name for name, machine in self.nodes.items() if not machine.alive]:
                self._start_again(name)
            try:
                alive = self.alive()
                if len(alive) == nodes:
                    return
                told = f"alive are {', '.join(alive)}"
            except ClusterError as err:
                told = str(err)
            time.sleep(0.5)
        raise ClusterError(f"cluster: no {nodes} nodes after {_START_S:.0f} s; {told}")

    def log(self, name: str) -> str:
        """Return what ``ray start`` said on a node."""
        path = self._folder / name / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def submit(self, verb: str, *arguments: str) -> ClusterJob:
        """Send a job as ``mmd submit`` does.

        Args:
            verb: of ``mmd``.
            arguments: of the job.
        """
        command, server = job_command(verb, arguments), JobServer(self.dashboard)
        with packed_code(command.files) as code:
            job_id = server.submit(command.verb, command.entrypoint, code=code, environment={"OMP_NUM_THREADS": "1"})
        return ClusterJob(server, job_id)

    def _start(self, place: Place) -> Machine:
        own = self._folder / place.name
        own.mkdir(exist_ok=True)
        is_head = place.name == HEAD
        command = head_command(place, self.size) if is_head else worker_command(place, self._head, self.size)
        return self._network.start(place, [*command, f"--temp-dir={own / 'ray'}"], node_environment(os.environ), own)

    def _start_again(self, name: str) -> None:
        said = self.log(name)
        if _TOO_SLOW not in said.rpartition(_AGAIN)[2]:
            raise ClusterError(f"node {name} ended: {said[-_SAID_CHARS:]}")
        with (self._folder / name / "log").open("a", encoding="utf-8") as log:
            log.write(_AGAIN)
        self.nodes[name] = self._start(self.nodes[name].place)


@dataclass(frozen=True)
class ClusterJob:
    """A job on the cluster."""

    server: JobServer
    id: str

    def ended(self) -> bool:
        """Say whether it ended."""
        return self.server.job(self.id).ended

    def log(self) -> str:
        """Return what it has printed."""
        return self.server.log(self.id)

    def wait(self) -> SubmittedJob:
        """Wait for its end and return how it ended."""
        return follow(self.server, self.id, lambda _: None, lambda _: None)

    def wait_until(self, moment: Callable[[], object], timeout_s: float = 600.0) -> bool:
        """Wait until something is true; return whether it came before the job ended.

        Raises:
            ClusterError: neither came in time.
        """
        until, asked = time.monotonic() + timeout_s, 0.0
        while time.monotonic() < until:
            if moment():
                return True
            if time.monotonic() - asked > 2.0:
                if self.ended():
                    return False
                asked = time.monotonic()
            time.sleep(0.05)
        raise ClusterError(f"job {self.id}: what was waited for did not come within {timeout_s:.0f} s.")


@contextmanager
def node_cluster(workers: int = 2, size: NodeSize | None = None) -> Iterator[NodeCluster]:
    """Run a cluster for the length of the ``with``; all of it ends with that, whatever ends it.

    Raises:
        ClusterError: this machine cannot hold it, or Ray did not start.
    """
    if reason := why_not():
        raise ClusterError(f"a cluster of several nodes cannot be started here: {reason}.")
    with ExitStack() as stack:
        stack.enter_context(sigterm_as_interrupt())
        folder = Path(tempfile.mkdtemp(prefix="mmd-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        network = Network()
        stack.callback(network.close)
        cluster = NodeCluster(network, folder, size or NodeSize())
        cluster.wait_for(1)
        for _ in range(workers):
            cluster.add()
        cluster.wait_for(1 + workers)
        yield cluster


def head_command(place: Place, size: NodeSize) -> list[str]:
    """Return how the head starts; without CPUs, as in ``cluster/kube``: only drivers run there."""
    return [
        *_ray_start(place, size),
        "--head",
        f"--port={GCS_PORT}",
        "--num-cpus=0",
        "--dashboard-host=0.0.0.0",
        f"--dashboard-port={DASHBOARD_PORT}",
    ]


def worker_command(place: Place, head: str, size: NodeSize) -> list[str]:
    """Return how a worker node starts."""
    return [*_ray_start(place, size), f"--address={head}:{GCS_PORT}", f"--num-cpus={size.cpus}"]


def _ray_start(place: Place, size: NodeSize) -> list[str]:
    program = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    store = size.object_store_mb * 2**20
    return [
        *program,
        f"--node-name={place.name}",
        f"--node-ip-address={place.address}",
        f"--object-store-memory={store}",
    ]


def node_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return a node's environment: this Python first, one thread a process, nothing of another cluster."""
    kept = {name: value for name, value in environ.items() if name not in _NOT_PASSED_ON}
    path = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    return kept | {"PATH": path, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"} | loop_variables(ServeSettings())
