"""Artefacts: immutable, hashed results under ``<store>/<kind>/<name>/<version>/``, manifest last.

A writer puts its files under ``<version>/w-<random>/`` and, when all are there, creates
``<version>/manifest.json`` exclusively. A version without a manifest does not exist for readers; two writers
of one version never mix, since each has its own folder and the first manifest wins; what an interrupted
writer leaves behind is unreachable and removed by :func:`mmd.artifacts.cleaning.gc`.

The store is a local path or any fsspec URI. Only safe formats go in: Parquet, JSON, YAML, safetensors, FAISS,
HTML and PNG; nothing is ever unpickled.
"""

from __future__ import annotations

from mmd.artifacts.files import Artifact, ArtifactWriter
from mmd.artifacts.manifest import (
    KINDS,
    SAFE_SUFFIXES,
    FileEntry,
    Kind,
    Manifest,
    code_revision,
    command_for,
    diff_manifests,
    fingerprint,
    version_for,
)
from mmd.artifacts.store import ArtifactStore

__all__ = [
    "KINDS",
    "SAFE_SUFFIXES",
    "Artifact",
    "ArtifactStore",
    "ArtifactWriter",
    "FileEntry",
    "Kind",
    "Manifest",
    "code_revision",
    "command_for",
    "diff_manifests",
    "fingerprint",
    "version_for",
]
