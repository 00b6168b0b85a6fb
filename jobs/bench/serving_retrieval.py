"""/v1/retrieve under a steady load, against the same engine called directly; see ``serving``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.bench.serving import Answer, ServedPart, add_options, measure_part
from mmd.artifacts import ArtifactStore
from mmd.config import load_config
from mmd.intent.online import OnlineSettings
from mmd.retrieval.loading import load_online
from mmd.retrieval.types import Query

__all__ = ["add_options", "run"]

HITS = 10


def load_retrieval(store: ArtifactStore, corpus: str) -> Answer:
    """Return the retrieval engine's rank."""
    config = load_config()
    settings = OnlineSettings(features=config.features, models=config.models)
    engine = load_online(store, corpus, settings=settings)
    return lambda dialogue: engine.rank([engine.prepare(Query(dialogue.turns), {})], HITS)


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Measure /v1/retrieve."""
    return measure_part(ServedPart("/v1/retrieve", load_retrieval), options)
