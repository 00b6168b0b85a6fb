"""Every job of ``jobs/`` sent to the nodes by itself, from what the pipeline made alone, and compared with that."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.bench.node_jobs import SMALL, as_options
from jobs.bench.node_trials import Lab, compare, newest, run_alone
from jobs.glue.entry import console
from mmd.artifacts import Artifact, ArtifactStore, Kind, code_revision
from mmd.errors import ClusterError

SWEPT: Mapping[str, object] = {
    "recommend.sweep.gates": "[hard, soft]",
    "recommend.sweep.etas": "[0.3]",
    "recommend.sweep.gammas": "[0.3, 0.6]",
    "recommend.sweep.temperatures": "[1.0]",
}
"""Four students are tried."""


@dataclass(frozen=True)
class Verb:
    """A job that makes an artefact.

    Attributes:
        command: of ``mmd``, with its arguments.
        makes: kind of its artefact.
        in_pipeline: whether the pipeline makes it, too.
        settings: beside those of the small shop.
    """

    command: Sequence[str]
    makes: Kind
    in_pipeline: bool = True
    settings: Mapping[str, object] | None = None

    @property
    def arguments(self) -> list[str]:
        """All but the verb itself and the store."""
        return [*self.command[1:], *as_options({**SMALL, **(self.settings or {})})]


_MAKES: Mapping[str, Kind] = {
    "ingest": "corpus",
    "featurize": "features",
    "mine_rules": "rulebase",
    "fit_intent": "gate",
    "augment": "samples",
    "finetune_mllm": "adapter",
    "sweep_gates": "gate",
    "evaluate": "report",
    "train_retriever": "retriever",
    "build_index": "index",
    "evaluate_retrieval": "report",
    "build_graph": "graph",
    "train_teachers": "teacher",
    "distill": "student",
    "evaluate_recommend": "report",
    "fit_policy": "policy",
    "evaluate_assistant": "report",
}
VERBS: Mapping[str, Verb] = {
    **{name: Verb((name,), kind) for name, kind in _MAKES.items()},
    "sweep_conkd": Verb(("sweep_gates", "--method", "conkd"), "gate", in_pipeline=False, settings=SWEPT),
}
"""Name of a module of ``jobs/`` → its job."""
PIPELINE = "pipeline"
NAMES = (*VERBS, PIPELINE)


def try_verbs(lab: Lab, names: Sequence[str]) -> dict[str, Any]:
    """Send jobs one after the other; those that made the same in an earlier run in the same folder are only read.

    Args:
        lab: with a ready store.
        names: of :data:`NAMES`.
    """
    told: dict[str, Any] = {}
    lab.work.mkdir(parents=True, exist_ok=True)
    for name in names:
        if earlier := recorded(lab.work, name):
            told[name] = earlier
            continue
        console.print(f"{name} …", markup=False)
        found = _try_pipeline(lab) if name == PIPELINE else _try(lab, VERBS[name])
        told[name] = {"code": code_revision(), **found}
        if told[name].get("equal"):
            record_of(lab.work, name).write_text(json.dumps(told[name]), encoding="utf-8")
    return told


def record_of(work: Path, name: str) -> Path:
    """Return where it is recorded what a job or a part did."""
    return work / f"{name}.json"


def recorded(work: Path, name: str) -> dict[str, Any] | None:
    """Return what an earlier run in the same folder recorded; None: nothing."""
    record = record_of(work, name)
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None


def _try(lab: Lab, verb: Verb) -> dict[str, Any]:
    """Send a job, forced to make its artefact anew, into a copy of the store in which it was made alone; compare."""
    alone = lab.store()
    if not verb.in_pipeline:
        run_alone(verb.command[0], [*verb.arguments, "--set", f"store={alone}"])
    place, sent = lab.store(), time.time()
    told = lab.send(verb.command[0], *verb.arguments, "--force", store=place)
    if told["exit_code"]:
        return told
    made = newest(place, verb.makes)
    if made.manifest.created_unix_s < sent:
        raise ClusterError(f"{verb.command[0]} made no {verb.makes} on the nodes; {made.ref} was there before.")
    return told | {"artefact": made.ref} | _beside(alone, made)


def _try_pipeline(lab: Lab) -> dict[str, Any]:
    """Send the pipeline into an empty store; compare all that it makes."""
    place = lab.work / PIPELINE
    shutil.rmtree(place, ignore_errors=True)
    told = lab.send(PIPELINE, *as_options(SMALL), store=place)
    if told["exit_code"]:
        return told
    alone = lab.store()
    made = {artifact.ref: _beside(alone, artifact) for artifact in ArtifactStore(str(place)).find()}
    lacking = sorted({artifact.ref for artifact in ArtifactStore(str(alone)).find()} - set(made))
    equal = not lacking and all(found["equal"] for found in made.values())
    return told | {"artefacts": made, "lacking": lacking, "equal": equal}


def _beside(alone: Path, made: Artifact) -> dict[str, Any]:
    """Compare an artefact with that of the same version in another store."""
    same = [artifact for artifact in ArtifactStore(str(alone)).find(made.manifest.kind) if artifact.ref == made.ref]
    return compare(same[0], made) if same else {"version_equal": False, "equal": False}
