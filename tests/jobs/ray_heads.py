"""Ray clusters of several nodes on this machine, with ports, a folder and a token of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx

BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4
_START_S = 300.0


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        address: of its dashboard.
        gcs: what further nodes join.
        environment: of its processes, and of clients that know the token.
    """

    address: str
    gcs: str
    environment: Mapping[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cluster_environment() -> dict[str, str]:
    """Return this process's variables, without what leads to other clusters."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``ray start --block`` until the ``with`` ends; it ends what it started."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def head(cpus: int = 4) -> Iterator[Head]:
    """Start a head with a dashboard; a loaded machine, on which Ray gives its own processes up, gets further tries."""
    for last in (False, False, True):
        with ExitStack() as stack:
            try:
                started = start_head(stack, cpus)
            except NotStartedError:
                if last:
                    raise
                continue
            yield started
            return


class NotStartedError(Exception):
    """The processes of a node have ended."""


def start_head(stack: ExitStack, cpus: int) -> Head:
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # socket paths must be short
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    port, dashboard = free_port(), free_port()
    environment = cluster_environment()
    command = [
        *ray_start("--head", "--port", str(port), "--num-cpus", str(cpus), "--temp-dir", folder),
        *("--dashboard-port", str(dashboard), "--ray-client-server-port", str(free_port())),
    ]
    process = stack.enter_context(running(command, environment))
    started = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", environment)
    wait_for_nodes(started, 1, process)
    return started


@contextmanager
def node(of: Head, cpus: int = 2, hiding: Path | None = None) -> Iterator[None]:
    """Start a further node, in whose eyes a folder is empty: as on a machine with a disk of its own."""
    command = ray_start("--address", of.gcs, "--num-cpus", str(cpus))
    if hiding is not None:
        script = 'mount -t tmpfs none "$0" && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, str(hiding), *command]
    count = alive_nodes(of)
    with running(command, of.environment) as process:
        wait_for_nodes(of, count + 1, process)
        yield


def ray_start(*words: str) -> list[str]:
    """Return a command that starts a node; the ports that have fixed defaults would collide on one machine."""
    return [
        *(str(BIN / "ray"), "start", "--block", "--disable-usage-stats", "--object-store-memory", str(100 * 2**20)),
        *("--dashboard-agent-listen-port", str(free_port())),
        *words,
    ]


def wait_for_nodes(of: Head, count: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    while alive_nodes(of) < count:
        if process.poll() is not None or time.monotonic() > until:
            raise NotStartedError
        time.sleep(0.5)


def alive_nodes(of: Head) -> int:
    """Return how many nodes the dashboard knows to be alive; 0 without dashboard."""
    try:
        answer = httpx.get(f"{of.address}/api/v0/nodes", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10)
    except httpx.TransportError:
        return 0
    if not answer.is_success:  # it has just begun
        return 0
    nodes = answer.json()["data"]["result"]["result"]
    return sum(node["state"] == "ALIVE" for node in nodes)


class Tunnel:
    """Passes connections on to a port, as a port-forward does, until they are cut.

    Args:
        host: of the port.
        port: that connections are passed on to.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self.cuts = 0

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        """Break every connection that is open now."""
        cut, self._open = self._open, []
        self.cuts += bool(cut)
        for end in cut:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    self._start(_pass_on, source, sink)

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with source, contextlib.suppress(OSError):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        finally:
            sink.shutdown(socket.SHUT_RDWR)  # the other direction closes it


def can_hide_folders() -> bool:
    """Say whether this machine lets us give a process another view of the file system."""
    command = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return (
        shutil.which("unshare") is not None and not subprocess.run(command, check=False, capture_output=True).returncode
    )
