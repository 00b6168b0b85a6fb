"""Reports on load: what is counted as what, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmd.loadtest.generator import Outcome
from mmd.loadtest.report import draw, percentiles, seconds, summarise, windows

OUTCOMES = [
    Outcome(0.0, 10.0, 200, first_ms=4.0, stages_ms={"total": 8.0}),
    Outcome(1.0, 30.0, 200, tries=2, degraded=("intent: gone",), stages_ms={"total": 12.0}),
    Outcome(11.0, 5.0, 429),
    Outcome(12.0, 6_000.0, 0, error="ReadTimeout", tries=2),
    Outcome(13.0, 50.0, 200, error="broke off"),
]


def test_percentiles_are_interpolated_between_the_values():
    """Of 0 … 100: the p-th percentile is p."""
    assert percentiles([float(n) for n in range(101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    assert percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0, "max": 7.0}
    assert percentiles([]) == {}


def test_answered_refused_and_failed_are_all_requests():
    found = summarise(OUTCOMES)
    assert {key: found[key] for key in ("requests", "answered", "refused", "failed")} == {
        "requests": 5,
        "answered": 2,
        "refused": 1,
        "failed": 2,
    }
    assert (found["asked_again"], found["hung"], found["degraded"]) == (2, 1, 1)
    assert found["latency_ms"] == {"p50": 20.0, "p90": 28.0, "p99": 29.8, "max": 30.0}
    assert found["first_words_ms"] == {"p50": 4.0, "p90": 4.0, "p99": 4.0, "max": 4.0}
    assert found["status"] == {"0": 1, "200": 3, "429": 1}
    assert found["errors"] == {"ReadTimeout": 1, "broke off": 1}
    assert found["stage_ms_median"] == {"total": 10.0}
    assert seconds(OUTCOMES) == pytest.approx(18.0)
    assert found["answered_per_s"] == pytest.approx(2 / 18, abs=0.01)


def test_windows_divide_the_load_by_when_requests_were_due():
    first, second = windows(OUTCOMES)
    assert (first["from_s"], first["requests"], first["answered"], first["max"]) == (0.0, 2, 2, 30.0)
    assert (second["from_s"], second["requests"], second["answered"], second["refused"]) == (10.0, 3, 0, 1)
    assert "p50" not in second


def test_nothing_answered_and_nothing_sent_have_reports(tmp_path: Path):
    assert summarise([])["answered"] == 0
    for number, outcomes in enumerate(([], OUTCOMES[2:], OUTCOMES)):
        draw(outcomes, tmp_path / f"{number}.png", "load", {"replica killed": [3.0, 9.0]})
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
