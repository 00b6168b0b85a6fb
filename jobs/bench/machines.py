"""Machines that are not there: sets of Linux namespaces, each with an address, a host name and processes of its own.

Only files and time are shared, as by machines with a network disk. Killing a machine ends every process in it at once,
however they were started, since its first process is the init of its process namespace. Nothing outlives this process:
the kernel kills a machine whose starter is gone, and :meth:`Network.close` removes links and namespaces.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mmd.errors import ClusterError

_TOOLS = ("ip", "unshare", "setpriv", "mount", "hostname")
_FIRST_HOST, _LAST_HOST, _GATEWAY = 1, 253, 254
_WAIT_S = 20.0


def why_not() -> str | None:
    """Return why this machine can hold no machines; None where it can."""
    if not sys.platform.startswith("linux"):
        return "namespaces are Linux's"
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    if lacking := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(lacking)} not found (packages iproute2, util-linux, hostname)"
    name = f"mmd{secrets.token_hex(3)}"
    try:
        _run("ip", "link", "add", name, "type", "bridge")
        _run("ip", "link", "delete", name)
        _run("unshare", "--net", "--pid", "--fork", "--mount", "--uts", "true")
    except ClusterError as err:
        return str(err)
    return None


@dataclass(frozen=True)
class Place:
    """Where a machine is.

    Attributes:
        name: its host name.
        namespace: of its network.
        link: the end of its cable in the bridge.
        address: IPv4.
    """

    name: str
    namespace: str
    link: str
    address: str


class Machine:
    """A running machine.

    Args:
        place: where it is.
        process: its starter, whose death is the machine's.
    """

    def __init__(self, place: Place, process: subprocess.Popen[bytes]) -> None:
        self.place, self._process = place, process

    @property
    def alive(self) -> bool:
        """Whether its first program still runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End all of its processes by SIGKILL; its address answers that nobody listens."""
        self._process.kill()
        self._process.wait(_WAIT_S)

    def unplug(self) -> None:
        """Pull its cable and end it: who talked to it hears nothing any more, as when the power fails."""
        _run("ip", "link", "set", self.place.link, "down")
        self.kill()


class Network:
    """A bridge with a private subnet, and the machines on it; this process reaches them by their addresses.

    Raises:
        ClusterError: the kernel or the user may not make it.
    """

    def __init__(self) -> None:
        self._id = secrets.token_hex(2)
        self._bridge = f"mmd{self._id}"
        self._subnet = free_subnet(_routes())
        self._places: list[Place] = []
        self._machines: list[Machine] = []
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        try:
            _run("ip", "address", "add", f"{self._subnet}.{_GATEWAY}/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
        except BaseException:
            self.close()
            raise

    def place(self, name: str) -> Place:
        """Lay a cable for a machine that :meth:`start` starts."""
        number = _FIRST_HOST + len(self._places)
        if number > _LAST_HOST:
            raise ClusterError(f"network {self._bridge}: has no address left for another machine.")
        place = Place(name, f"{self._bridge}-{number}", f"{self._bridge}v{number}", f"{self._subnet}.{number}")
        self._places.append(place)
        inside = ("ip", "-n", place.namespace)
        _run("ip", "netns", "add", place.namespace)
        _run("ip", "link", "add", place.link, "type", "veth", "peer", "name", "eth0", "netns", place.namespace)
        _run("ip", "link", "set", place.link, "master", self._bridge, "up")
        _run(*inside, "address", "add", f"{place.address}/24", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "route", "add", "default", "via", f"{self._subnet}.{_GATEWAY}")
        return place

    def start(self, place: Place, command: Sequence[str], env: Mapping[str, str], folder: Path) -> Machine:
        """Run a machine's first program.

        Args:
            place: of the machine.
            command: the program; the machine lives as long as it.
            env: its environment.
            folder: for its output (``log``) and its names (``hosts``).
        """
        hosts = folder / "hosts"
        hosts.write_text(hosts_file(place), encoding="utf-8")
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 (our own command)
                boot_command(place, command, hosts),
                env=dict(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process, which ends the machines in order
            )
        machine = Machine(place, process)
        self._machines.append(machine)
        return machine

    def close(self) -> None:
        """Kill all machines and remove the network; what fails does not spare the rest."""
        with ExitStack() as last_to_first:
            last_to_first.callback(_run, "ip", "link", "delete", self._bridge, check=False)
            for place in self._places:
                last_to_first.callback(_run, "ip", "netns", "delete", place.namespace, check=False)  # with its cable
            for machine in self._machines:
                last_to_first.callback(machine.kill)


def boot_command(place: Place, command: Sequence[str], hosts: Path) -> list[str]:
    """Return the command that runs a program as the first of a machine.

    ``unshare`` stays outside as the starter: SIGKILL of it (or of its own parent) kills the machine's init, and with
    that the kernel ends the process namespace.
    """
    boot = f'hostname {shlex.quote(place.name)} && mount --bind {shlex.quote(str(hosts))} /etc/hosts && exec "$@"'
    inside = ["sh", "-c", boot, "sh", *command]
    spaces = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    return ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", place.namespace, *spaces, *inside]


def hosts_file(place: Place) -> str:
    """Return what a machine knows of names: its own, by which gloo finds its interface."""
    return f"127.0.0.1 localhost\n{place.address} {place.name}\n"


def free_subnet(routes: str) -> str:
    """Return the first three numbers of a /24 network that no route leads to.

    Args:
        routes: what ``ip route`` tells.

    Raises:
        ClusterError: all are taken.
    """
    for number in range(256):
        if f"10.213.{number}." not in routes:
            return f"10.213.{number}"
    raise ClusterError("10.213.0.0/16: no free /24 network; `ip link` lists bridges that a killed run left (mmd…).")


def _routes() -> str:
    return subprocess.run(["ip", "route"], capture_output=True, text=True, check=False).stdout  # noqa: S607


def _run(*command: str, check: bool = True) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_WAIT_S)  # noqa: S603
    if check and done.returncode:
        raise ClusterError(f"{shlex.join(command)}: {done.stderr.strip() or done.returncode}")
