"""Every job on three Ray nodes of this machine by the Jobs API, and the main five through the loss of a worker node.

The nodes have addresses, names and processes of their own (:mod:`jobs.bench.node_cluster`); only the disk is shared.
What a job makes there must be what it makes alone: same version, same hashes. Parts, one after the other:

* ``verbs``: every job of ``jobs/`` by itself, then ``pipeline`` as one (``--verbs`` takes some of them);
* ``ingest``, ``mine_rules``, ``finetune_mllm`` (two workers on two nodes, ZeRO-3): undisturbed, and with a node killed
  (SIGKILL, all its processes) when part of the work is done and reported; a new node joins some seconds later;
* ``sharded``: an index in three parts on several nodes answers as the whole one, before and after a node is lost;
* ``serve``: two replicas of everything on different nodes, asked at a fixed rate while a node is lost.

Takes root, for network namespaces; about half an hour on two free cores.

    mmd bench nodes
    mmd bench nodes --parts ingest serve --work /tmp/nodes
    mmd bench nodes --parts verbs --verbs distill pipeline
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jobs.bench.node_cluster import NodeSize, node_cluster
from jobs.bench.node_jobs import (
    SMALL,
    as_options,
    finetune_trial,
    ingest_trial,
    rules_trial,
    try_sharded,
    write_chats,
)
from jobs.bench.node_serving import try_serving
from jobs.bench.node_trials import Lab, run_alone
from jobs.bench.node_verbs import NAMES, record_of, recorded, try_verbs
from jobs.glue.entry import console
from mmd.artifacts import code_revision

READY = "ready"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the parts and the folder."""
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--verbs", nargs="+", choices=NAMES, default=list(NAMES), help="of that part; default: all")
    parser.add_argument(
        "--work", type=Path, help="folder for stores; what an earlier run finished in it stands (default: a new one)"
    )
    parser.add_argument("--seconds", type=float, default=90.0, help="of the service's load (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=3.0, help="of it, requests a second (default: %(default)s)")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Try the parts on one cluster; those that an earlier run in the same folder finished are only read."""
    with ExitStack() as stack:
        work = (options["work"] or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        work.mkdir(parents=True, exist_ok=True)
        parts = {name: found for name in options["parts"] if (found := _recorded(work, name, options["verbs"]))}
        wanted = [name for name in options["parts"] if name not in parts]
        if set(wanted) - {"ingest"}:
            make_ready(work / READY)
        if wanted:
            cluster = stack.enter_context(node_cluster())
        for name in wanted:
            console.rule(name, align="left")
            found = PARTS[name](Lab(cluster, work / name, work / READY), options)
            if name != "verbs":  # which keep records of their own
                found = {"code": code_revision(), **found}  # a folder may hold what several runs found
                record_of(work, name).write_text(json.dumps(found), encoding="utf-8")
            console.print_json(data=found)
            parts[name] = found
    return {
        "config": {"settings": dict(SMALL), "rate_per_s": options["rate"], "load_s": options["seconds"]},
        "nodes": {"head": "no CPUs", "workers": 2, "logical_cpus": NodeSize().cpus, "apart by": "Linux namespaces"},
        "repeats": 1,
        **parts,
    }


def _recorded(work: Path, part: str, verbs: Sequence[str]) -> dict[str, Any] | None:
    """Return what an earlier run in the same folder found; None where it has not found all."""
    if part != "verbs":
        return recorded(work, part)
    found = {name: one for name in verbs if (one := recorded(work / part, name))}
    return found if len(found) == len(verbs) else None


def make_ready(store: Path) -> None:
    """Make all artefacts of the small shop in a cluster of their own, unless they are there."""
    console.print(f"pipeline alone, into {store} …", markup=False)
    run_alone("pipeline", [*as_options(SMALL), "--set", f"store={store}"])


def _ingest(lab: Lab, _: Mapping[str, Any]) -> dict[str, Any]:
    chats = lab.work / "chats"
    write_chats(chats)
    return Lab(lab.cluster, lab.work).try_job(ingest_trial(chats))  # it reads no artefact


PARTS: Mapping[str, Callable[[Lab, Mapping[str, Any]], dict[str, Any]]] = {
    "ingest": _ingest,
    "mine_rules": lambda lab, _: lab.try_job(rules_trial()),
    "finetune_mllm": lambda lab, _: lab.try_job(finetune_trial()),
    "sharded": lambda lab, _: try_sharded(lab),
    "serve": lambda lab, options: try_serving(lab, options["rate"], options["seconds"]),
    "verbs": lambda lab, options: try_verbs(lab, options["verbs"]),
}
