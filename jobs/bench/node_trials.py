"""Jobs on a cluster of several nodes beside the same jobs alone, once undisturbed, once with a worker node lost midway.

A trial starts from a store that holds what the job reads, sends it by the Jobs API, and compares what it made with what
the job makes in a cluster of its own on this machine: version, and hash of every file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jobs.bench.node_cluster import ClusterJob, NodeCluster, node_environment
from jobs.glue.entry import console
from jobs.glue.train import GOES_ON
from mmd.artifacts import Artifact, ArtifactStore, Kind
from mmd.errors import ClusterError

REPLACED_AFTER_S = 5.0
_TRIES = 3
_LOG_CHARS = 2000
_BUSY_MACHINE = "Ray did not start within its 30 s"
METRICS = "metrics.json"
_TABLE = ".parquet"
_TIMED = (METRICS, "report.html", ".tfevents", "training.json", _TABLE)
"""Ends of files that tell times, too, and so may differ between runs; the rest of metrics and tables is compared."""
_TIMES = re.compile(r"latency|[_/]m?s(_per_\w+)?(/|$)|per_s$")
_GOES_ON = re.compile(re.escape(GOES_ON) + r" (\d+)")
"""What a training says that was interrupted; nothing where it stopped just behind a checkpoint."""
_COUNTED = ("dialogues_", "images", "quarantined.")


@dataclass(frozen=True)
class Trial:
    """A job, and when it is midway.

    Attributes:
        verb: of ``mmd``.
        arguments: without the store.
        makes: kind of its artefact.
        midway: says of its store whether part of the work is done and reported, and part is not.
        at_work: part of the class name of the actors whose node is lost.
        kept: returns what of the work is kept in its store; it is recorded just before the loss.
    """

    verb: str
    arguments: Sequence[str]
    makes: Kind
    midway: Callable[[Path], bool]
    at_work: str
    kept: Callable[[Path], Any] | None = None


@dataclass(frozen=True)
class Loss:
    """The loss of a node.

    Attributes:
        node: its name.
        at_s: seconds after the job was sent.
        at_work: node → actors that were at work on it just before.
        kept: what of the work was kept just before.
    """

    node: str
    at_s: float
    at_work: Mapping[str, int]
    kept: Any = None

    def told(self) -> dict[str, Any]:
        """Return it for a record."""
        return {"node": self.node, "at_s": self.at_s, "actors_at_work": dict(self.at_work), "kept": self.kept}


@dataclass
class Lab:
    """Where trials are made.

    Attributes:
        cluster: that jobs are sent to.
        work: folder for stores, on a disk that the nodes share.
        ready: store with what jobs read; None: they read no artefact.
    """

    cluster: NodeCluster
    work: Path
    ready: Path | None = None
    _stores: int = field(default=0)

    def try_job(self, trial: Trial) -> dict[str, Any]:
        """Run a job alone, on the nodes, and on the nodes with the loss of one; compare."""
        alone = self._alone(trial)
        told: dict[str, Any] = {
            "artefact": alone.ref,
            "digest": alone.manifest.digest,
            "files": len(alone.manifest.files),
        }
        for name, disturbed in (("undisturbed", False), ("node lost", True)):
            console.print(f"{trial.verb}, {name} …", markup=False)
            told[name] = self._on_nodes(trial, alone, disturbed=disturbed)
        return told

    def store(self, without: Kind | None = None) -> Path:
        """Return a new store like the ready one, without artefacts of a kind."""
        self._stores += 1
        place = self.work / f"{without or 'store'}-{self._stores}"
        shutil.rmtree(place, ignore_errors=True)  # what a run that was broken off left
        if self.ready is None:
            place.mkdir(parents=True)
        else:
            shutil.copytree(self.ready, place, ignore=shutil.ignore_patterns(".*"))
            if without:
                shutil.rmtree(place / without, ignore_errors=True)
        return place

    def send(self, verb: str, *arguments: str, store: Path) -> dict[str, Any]:
        """Run a job on the nodes and return its exit code, its seconds and, if it failed, the end of its log."""
        started = time.monotonic()
        job = self.cluster.submit(verb, *arguments, "--set", f"store={store}")
        return ending(job, started)

    def _alone(self, trial: Trial) -> Artifact:
        """Return what the job makes in a cluster of its own, or made when the ready store was made."""
        place = self.ready
        if place is None:
            place = self.store(trial.makes)
            run_alone(trial.verb, [*trial.arguments, "--set", f"store={place}"])
        return newest(place, trial.makes)

    def _on_nodes(self, trial: Trial, alone: Artifact, *, disturbed: bool) -> dict[str, Any]:
        place = self.store(trial.makes)
        started = time.monotonic()
        job = self.cluster.submit(trial.verb, *trial.arguments, "--set", f"store={place}")
        loss = None
        if disturbed:
            watched = partial(trial.kept, place) if trial.kept else None
            loss = lose_node(self.cluster, job, lambda: trial.midway(place), trial.at_work, started, watched)
        told = ending(job, started)
        if not told["exit_code"]:
            told |= compare(alone, newest(place, trial.makes))
        if disturbed:
            told["lost"] = loss.told() if loss else None
            told["went_on_after_steps"] = went_on_after(job.log())
            self.cluster.wait_for(3)
        return told


def went_on_after(log: str) -> list[int]:
    """Return the steps after which a job's training went on; 0: it started anew."""
    return [int(step) for step in _GOES_ON.findall(log)]


def lose_node(
    cluster: NodeCluster,
    job: ClusterJob,
    midway: Callable[[], bool],
    at_work: str,
    started: float,
    kept: Callable[[], Any] | None = None,
) -> Loss | None:
    """Kill the node with most of a job's actors when it is midway; another joins later. None: the job ended before.

    Args:
        cluster: that it runs on.
        job: which.
        midway: whether it is.
        at_work: part of the class name of its actors.
        started: monotonic time at which it was sent.
        kept: returns what of its work is kept.
    """
    if not job.wait_until(lambda: midway() and bool(cluster.actors(at_work))):
        return None
    where = cluster.actors(at_work)
    if not where:
        return None
    node = max(where, key=lambda name: where[name])
    found = kept() if kept else None
    cluster.kill(node)
    loss = Loss(node, round(time.monotonic() - started, 1), where, found)
    time.sleep(REPLACED_AFTER_S)
    cluster.add()
    return loss


def ending(job: ClusterJob, started: float) -> dict[str, Any]:
    """Wait for a job's end; return its exit code, its seconds since ``started`` and, if it failed, its last words."""
    code = job.wait().exit_code
    told = {"exit_code": code, "seconds": round(time.monotonic() - started, 1)}
    return told | ({"log": job.log()[-_LOG_CHARS:]} if code else {})


def run_alone(verb: str, arguments: Sequence[str], timeout_s: float = 3600.0) -> None:
    """Run a job in a process of its own, in a cluster of its own; again where the machine was too busy to start Ray.

    Raises:
        ClusterError: it failed.
    """
    command = [sys.executable, "-m", f"jobs.{verb}", *arguments]
    for _ in range(_TRIES):
        done = subprocess.run(  # noqa: S603 (our own module)
            command, env=node_environment(os.environ), capture_output=True, text=True, check=False, timeout=timeout_s
        )
        if done.returncode == 0:
            return
        if _BUSY_MACHINE not in done.stdout:
            break
    raise ClusterError(f"{verb} alone: exit code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")


def newest(store: Path, kind: Kind) -> Artifact:
    """Return the artefact of a kind that was made last, its files' hashes checked.

    Raises:
        ClusterError: there is none.
    """
    opened = ArtifactStore(str(store))
    found = opened.find(kind)
    if not found:
        raise ClusterError(f"{store}: holds no {kind}.")
    return opened.open(max(found, key=lambda artifact: artifact.manifest.created_unix_s).ref)


def compare(one: Artifact, other: Artifact) -> dict[str, Any]:
    """Return whether two artefacts are the same: version, each file's hash, and losses where there are any."""
    told: dict[str, Any] = {"version_equal": one.ref == other.ref, "files_unlike": files_unlike(one, other)}
    told["equal"] = told["version_equal"] and all(
        name.endswith(_TIMED) and one.has(name) and other.has(name) for name in told["files_unlike"]
    )
    if METRICS in told["files_unlike"] and one.has(METRICS) and other.has(METRICS):
        told["metrics_unlike"] = numbers_unlike(*(json.loads(a.read_bytes(METRICS)) for a in (one, other)))
        told["equal"] = told["equal"] and not told["metrics_unlike"]
    if tables := [name for name in told["files_unlike"] if name.endswith(_TABLE) and one.has(name) and other.has(name)]:
        told["columns_unlike"] = {name: columns_unlike(one.read_bytes(name), other.read_bytes(name)) for name in tables}
        told["equal"] = told["equal"] and not any(told["columns_unlike"].values())
    if one.manifest.kind == "corpus":
        told["counts"] = {name: n for name, n in other.manifest.metrics.items() if name.startswith(_COUNTED)}
    if one.has("training.json") and one.manifest.kind == "adapter":
        told["losses"] = compare_losses(losses_of(one), losses_of(other))
    return told


def files_unlike(one: Artifact, other: Artifact) -> list[str]:
    """Return the files that only one of two artefacts has, or that differ; in order."""
    mine, theirs = ({name: entry.sha256 for name, entry in a.manifest.files.items()} for a in (one, other))
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))


def numbers_unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the places of two nested records that differ, in order; times are left out."""
    mine, theirs = dict(_leaves(one)), dict(_leaves(other))
    return sorted(
        place
        for place in mine.keys() | theirs.keys()
        if not _TIMES.search(place) and mine.get(place) != theirs.get(place)
    )


def columns_unlike(one: bytes, other: bytes) -> list[str]:
    """Return the columns of two tables in Parquet that differ, in order; times are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    mine, theirs = (pq.read_table(pa.BufferReader(data)) for data in (one, other))
    names = sorted({*mine.column_names, *theirs.column_names})
    return [name for name in names if not _TIMES.search(f"/{name}") and not _same_column(mine, theirs, name)]


def _same_column(one: Any, other: Any, name: str) -> bool:  # noqa: ANN401 (tables of pyarrow)
    return name in one.column_names and name in other.column_names and bool(one[name].equals(other[name]))


def _leaves(found: object, place: str = "") -> Iterator[tuple[str, object]]:
    rows: Iterable[tuple[object, object]]
    if isinstance(found, Mapping):
        rows = found.items()
    elif isinstance(found, list):
        rows = enumerate(found)
    else:
        yield place, found
        return
    for name, value in rows:
        yield from _leaves(value, f"{place}/{name}")


def losses_of(adapter: Artifact) -> dict[str, list[float]]:
    """Return run → loss of each step."""
    runs: Mapping[str, Any] = json.loads(adapter.read_bytes("training.json"))["runs"]
    return {name: [float(row["loss"]) for row in run["history"]] for name, run in runs.items()}


def compare_losses(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return how many steps there are and the largest relative difference of a step's losses; None: other steps."""
    steps = {name: len(losses) for name, losses in one.items()}
    if steps != {name: len(losses) for name, losses in other.items()}:
        return {"steps": steps, "largest_relative_difference": None}
    pairs = [pair for name in one for pair in zip(one[name], other[name], strict=True)]
    gap = max((abs(a - b) / max(abs(a), 1e-12) for a, b in pairs), default=0.0)
    return {"steps": steps, "largest_relative_difference": gap}
