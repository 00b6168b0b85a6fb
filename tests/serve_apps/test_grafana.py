"""The Grafana dashboard asks only for what is exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.glue import sweep_gauges
from serve_apps import intent, recommend, retrieval
from serve_apps.telemetry import Telemetry

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "mmd.json"
RAY = {  # ray/serve/_private
    "ray_serve_deployment_queued_queries",
    "ray_serve_replica_processing_queries",
    "ray_serve_deployment_replica_healthy",
}
PREFIX = re.compile(r'class _Metrics\(PartMetrics\):.*?super\(\).__init__\("(\w+)"\)', re.DOTALL)


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def test_every_metric_of_the_dashboard_is_exported(dashboard: dict[str, Any]):
    told = Telemetry().text().decode()
    own = set(re.findall(r"^# TYPE (\S+) (?:counter)", told, re.MULTILINE))
    own |= {f"{name}_bucket" for name in re.findall(r"^# TYPE (\S+) histogram", told, re.MULTILINE)}
    asked = {name for one in expressions(dashboard) for name in re.findall(r"\b(?:ray_)?(?:mmd|serve)_[a-z_]+", one)}
    sources = [Path(module.__file__).read_text(encoding="utf-8") for module in (intent, recommend, retrieval)]
    parts = {f"ray_mmd_{found[1]}_stage_ms_bucket" for source in sources if (found := PREFIX.search(source))}
    assert len(parts) == 3
    gauges = {f"ray_{name}" for name in re.findall(r"\bmmd_sweep_\w+", Path(sweep_gauges.__file__).read_text("utf-8"))}
    assert len(gauges) == 3
    assert asked == own | RAY | parts | gauges


def test_labels_are_those_that_are_counted_by(dashboard: dict[str, Any]):
    told = " ".join(expressions(dashboard))
    by = {name for group in re.findall(r"by \(([^)]*)\)", told) for name in re.split(r",\s*", group)}
    assert by <= {"status", "le", "speaker", "modality", "part", "stage", "deployment", "id"}


def test_panels_have_titles_and_words_and_do_not_overlap(dashboard: dict[str, Any]):
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert panel["title"]
        assert panel["type"] == "row" or panel["description"]
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
