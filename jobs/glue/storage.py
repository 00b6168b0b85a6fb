"""Storage that all nodes of a cluster share: found missing before work starts, not hours later on one node."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.glue.nodes import alive_nodes
from mmd.artifacts import ArtifactStore
from mmd.errors import ArtifactError, ClusterError

_PATIENCE_S = 5.0  # a network disk may show a new folder late
_ANSWER_S = 120.0  # a node that has just come unpacks the job's code first
_NAMED = 6


def require_shared_store(uri: str) -> None:
    """Refuse a store on a local disk where the connected cluster has nodes that do not see it.

    The driver writes a file there and every node looks for it; on one node nothing is written or asked. Nodes that an
    autoscaler adds later are not seen from here.

    Raises:
        ClusterError: naming the nodes.
        ArtifactError: the driver itself cannot write there.
    """
    nodes = alive_nodes()
    if len(nodes) < 2:
        return
    store = ArtifactStore(uri)
    if store.protocol != "file":
        return
    probe = Path(store.root).absolute() / f".probe-{uuid.uuid4().hex}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
    except OSError as err:
        raise ArtifactError(
            f"store {uri}: cannot be written ({err.strerror or err}); set `store` to a folder of yours."
        ) from err
    try:
        blind = look_on_nodes(nodes, [str(probe)])
    finally:
        probe.unlink(missing_ok=True)
    if blind:
        raise ClusterError(
            f"store {uri}: {_share(blind, nodes)} not see what this job writes there: {_named(blind, nodes)}. "
            "Give --set store=s3://BUCKET/PREFIX, or mount one disk at this path on every node."
        )


def require_visible(paths: Iterable[str | Path]) -> None:
    """Refuse files that the driver sees and some node of the connected cluster does not.

    Raises:
        ClusterError: naming the nodes.
    """
    nodes = alive_nodes()
    absolute = [str(Path(path).absolute()) for path in paths if Path(path).exists()]
    if len(nodes) < 2 or not absolute:
        return
    if blind := look_on_nodes(nodes, absolute):
        raise ClusterError(
            f"{', '.join(absolute)}: {_share(blind, nodes)} not see it: {_named(blind, nodes)}. Data is not sent with "
            "a job: put it on a disk that every node mounts at this path."
        )


def look_on_nodes(nodes: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> dict[str, str]:
    """Let every node look for files; return node id → what went wrong there.

    Nodes that are lost meanwhile, or too busy to answer in two minutes, are not among them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(missing)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            list(paths), _PATIENCE_S
        ): str(node["NodeID"])
        for node in nodes
    }
    answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    for answer in late:
        ray.cancel(answer, force=True)
    found = {asked[answer]: _answer_of(answer) for answer in answered}
    alive = {str(node["NodeID"]) for node in alive_nodes()}
    return {node: wrong for node, wrong in found.items() if wrong and node in alive}


def _answer_of(answer: Any) -> str:  # noqa: ANN401 (ray.ObjectRef)
    import ray
    from ray.exceptions import RayError

    try:
        unseen = ray.get(answer)
    except RayError as err:
        return f"cannot run this job's code: {str(err).strip().splitlines()[-1][:200]}"
    return f"no {', '.join(unseen)}" if unseen else ""


def missing(paths: Sequence[str], patience_s: float) -> list[str]:
    """Return the paths that are not here, after waiting for them for a while."""
    until = time.monotonic() + patience_s
    while unseen := [path for path in paths if not Path(path).exists()]:
        if time.monotonic() > until:
            break
        time.sleep(0.25)
    return unseen


def _share(blind: Mapping[str, str], nodes: Sequence[Mapping[str, Any]]) -> str:
    return f"{len(blind)} of {len(nodes)} nodes {'does' if len(blind) == 1 else 'do'}"


def _named(blind: Mapping[str, str], nodes: Sequence[Mapping[str, Any]]) -> str:
    names = [
        f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}: {blind[str(node['NodeID'])]})"
        for node in nodes
        if str(node["NodeID"]) in blind
    ]
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
