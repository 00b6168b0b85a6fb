"""Ray clusters of several nodes on this machine, with ports, a folder and a token of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4
_START_S = 120.0


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
    """Start a head with a dashboard."""
    with ExitStack() as stack:
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
        wait_for_dashboard(started, process)
        yield started


@contextmanager
def node(of: Head, cpus: int = 2, hiding: Path | None = None) -> Iterator[None]:
    """Start a further node, in whose eyes a folder is empty: as on a machine with a disk of its own."""
    command = ray_start("--address", of.gcs, "--num-cpus", str(cpus))
    if hiding is not None:
        script = 'mount -t tmpfs none "$0" && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, str(hiding), *command]
    with running(command, of.environment):
        yield


def ray_start(*words: str) -> list[str]:
    """Return a command that starts a node; the ports that have fixed defaults would collide on one machine."""
    return [
        *(str(BIN / "ray"), "start", "--block", "--disable-usage-stats", "--object-store-memory", str(100 * 2**20)),
        *("--dashboard-agent-listen-port", str(free_port())),
        *words,
    ]


def wait_for_dashboard(of: Head, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    request = urllib.request.Request(f"{of.address}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})  # noqa: S310 (own address)
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()  # noqa: S310 (own address)
        except OSError:
            assert process.poll() is None, "ray start ended"
            assert time.monotonic() < until, "no dashboard"
            time.sleep(0.3)
        else:
            return


def can_hide_folders() -> bool:
    """Say whether this machine lets us give a process another view of the file system."""
    command = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return (
        shutil.which("unshare") is not None and not subprocess.run(command, check=False, capture_output=True).returncode
    )
