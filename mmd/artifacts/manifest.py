"""What an artefact is and was made of: kinds, manifest, versions, and which files are allowed in."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

import mmd
from mmd.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from mmd.artifacts.files import Artifact

Kind = Literal[
    "corpus",
    "features",
    "rulebase",
    "classifier",
    "gate",
    "samples",
    "adapter",
    "retriever",
    "index",
    "graph",
    "teacher",
    "student",
    "policy",
    "report",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
_COMMANDS: Mapping[str, str] = {
    "corpus": "ingest",
    "features": "featurize",
    "rulebase": "mine_rules",
    "classifier": "fit_intent",
    "gate": "fit_intent",
    "samples": "augment",
    "adapter": "finetune_mllm",
    "retriever": "train_retriever",
    "index": "build_index",
    "graph": "build_graph",
    "teacher": "train_teachers",
    "student": "distill",
    "policy": "fit_policy",
    "report": "evaluate",
}
_COMMANDS_BY_ENDING = {
    ("report", "-retrieval"): "evaluate_retrieval",
    ("report", "-recommend"): "evaluate_recommend",
    ("report", "-recommend-validation"): "evaluate_recommend --split validation",
    ("report", "-assistant"): "evaluate_assistant",
    ("gate", "-conkd"): "sweep_gates --method conkd",
}
"""Of a kind that several jobs make, the ending of an artefact's name tells which one."""
SAFE_SUFFIXES = frozenset(
    {".parquet", ".json", ".jsonl", ".yaml", ".safetensors", ".faiss", ".html", ".png", ".txt", ".md", ".jinja"}
    | {".tfevents"}
)  # .jinja: chat templates of language models, which transformers renders in Jinja's sandbox; .tfevents: TensorBoard
MANIFEST = "manifest.json"
_CHUNK = 1 << 20


def command_for(kind: str, name: str) -> str:
    """Return the command that makes an artefact, for people to type: ``mmd distill``."""
    endings = ((ending, verb) for (of, ending), verb in _COMMANDS_BY_ENDING.items() if of == kind)
    return "mmd " + next((verb for ending, verb in endings if name.endswith(ending)), _COMMANDS[kind])


class FileEntry(BaseModel):
    """Size in bytes and SHA-256 of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an artefact is and was made of; ``digest`` covers what determines its content, not when or where."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    name: str
    version: str
    schema_version: int
    root: str = Field(description="Folder under the version that holds the files.")
    settings: dict[str, Any]
    inputs: dict[str, str] = Field(description="Role → 'kind/name@version digest' of the artefacts read.")
    seeds: dict[str, int]
    metrics: dict[str, Any]
    files: dict[str, FileEntry]
    digest: str
    code: str = Field(description="mmd version and, in a git checkout, its revision.")
    created_unix_s: float

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        """Refuse names that lead out of the artefact: they are paths that are read, and copied into caches."""
        if odd := [relative for relative in files if not is_inside(relative)]:
            raise ValueError(f"file {odd[0]!r} lies outside the artefact")
        return files


def is_inside(relative: str) -> bool:
    """Say whether a file name stays inside the artefact's folder."""
    path = PurePosixPath(relative)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def fingerprint(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def version_for(
    kind: str, settings: Mapping[str, Any], inputs: Mapping[str, Artifact], seeds: Mapping[str, int]
) -> str:
    """Return the version that these settings, inputs and seeds lead to: equal work, equal version."""
    return fingerprint(
        {
            "kind": kind,
            "mmd": mmd.__version__,
            "schema": SCHEMA_VERSION,
            "settings": dict(settings),
            "inputs": {role: artifact.manifest.digest for role, artifact in inputs.items()},
            "seeds": dict(seeds),
        }
    )[:12]


def code_revision() -> str:
    """Return ``mmd <version>``, with ``git <hash>`` and ``+dirty`` in a checkout."""
    here = Path(__file__).resolve().parent
    try:
        head = _git(here, "rev-parse", "--short", "HEAD")
        dirty = "+dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else ""
    except (OSError, subprocess.SubprocessError):
        return f"mmd {mmd.__version__}"
    return f"mmd {mmd.__version__} git {head}{dirty}"


def _git(cwd: Path, *args: str) -> str:
    done = subprocess.run(  # noqa: S603 (fixed arguments)
        ["git", *args],  # noqa: S607 (the user's git)
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
        timeout=10,
    )
    return done.stdout.strip()


def hash_file(fs: Any, path: str) -> tuple[int, str]:  # noqa: ANN401 (fsspec is untyped)
    """Return a file's size in bytes and SHA-256 (hex)."""
    digest, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def diff_manifests(a: Manifest, b: Manifest) -> list[tuple[str, str, str]]:
    """Return (field, value in a, value in b) for everything that differs, settings and metrics by key path."""
    left, right = dict(_flatten(a.model_dump())), dict(_flatten(b.model_dump()))
    skip = {"created_unix_s", "root"}
    keys = [k for k in [*left, *(k for k in right if k not in left)] if k not in skip]
    missing = "–"
    return [(k, left.get(k, missing), right.get(k, missing)) for k in keys if left.get(k) != right.get(k)]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 (JSON)
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(value, ensure_ascii=False)
