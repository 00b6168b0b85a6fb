"""Schemathesis against the OpenAPI document: whatever it makes up, answers match what is documented."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis.specs.openapi.checks import positive_data_acceptance

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from serve_apps.http import create_app
from serve_apps.sweeps import SweepDesk

OPERATIONS = [
    "POST /v1/intent",
    "POST /v1/retrieve",
    "POST /v1/recommend",
    "POST /v1/chat/completions",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /v1/images/{image_id}",
    "GET /v1/tasks",
    "GET /v1/examples",
    "GET /v1/sweeps",
    "GET /v1/sweeps/kinds",
    "GET /v1/sweeps/{sweep_id}",
    "POST /v1/sweeps",
    "POST /v1/sweeps/{sweep_id}/stop",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
]


@pytest.mark.filterwarnings("ignore")  # of the tool's own dependencies
@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_match_the_openapi_document(full_backend: Any, tiny_store: Path, record: dict[str, Any], label: str):
    settings = ServeSettings(max_body_mb=0.5)
    app = create_app(full_backend, settings, SweepDesk(ArtifactStore(str(tiny_store)), settings))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = {found.ok().label: found.ok() for found in schema.get_all_operations()}
    assert set(operations) == set(OPERATIONS)

    @hypothesis.settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @hypothesis.given(case=operations[label].as_strategy())
    def check(case: Any) -> None:
        # a schema cannot say that pictures must decode and dialogues must have words
        answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        statuses[str(answer.status_code)] += 1

    statuses: Counter[str] = Counter()
    try:
        check()
    finally:
        told = {"cases": statuses.total(), "status": dict(sorted(statuses.items()))}
        record.setdefault("schemathesis", {})[label] = told
