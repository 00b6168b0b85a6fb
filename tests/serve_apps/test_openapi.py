"""Schemathesis against the OpenAPI document: whatever it makes up, answers match what is documented."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis

from mmd.config import ServeSettings
from serve_apps.http import create_app


@pytest.fixture
def api_schema(backend: Any) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(backend, ServeSettings(max_body_mb=0.5)))


schema = schemathesis.pytest.from_fixture("api_schema")


@pytest.mark.filterwarnings("ignore")  # of the tool's own dependencies
@schema.parametrize()
@hypothesis.settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_answers_match_the_openapi_document(case: Any):
    case.call_and_validate()
