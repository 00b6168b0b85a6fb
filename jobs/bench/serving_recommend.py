"""/v1/recommend under a steady load, against the same student called directly; see ``serving``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.bench.serving import Answer, ServedPart, add_options, measure_part
from mmd.artifacts import ArtifactStore
from mmd.config import load_config
from mmd.recommend.loading import load_online
from mmd.recommend.online import RecommendQuery

__all__ = ["add_options", "run"]


def load_recommendation(store: ArtifactStore, corpus: str) -> Answer:
    """Return the student's answer."""
    config = load_config()
    engine = load_online(store, corpus, generation=config.recommend.generation, models=config.models)
    return lambda dialogue: engine.answer([engine.prepare(RecommendQuery(dialogue.id, dialogue.turns))])


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Measure /v1/recommend."""
    return measure_part(ServedPart("/v1/recommend", load_recommendation), options)
