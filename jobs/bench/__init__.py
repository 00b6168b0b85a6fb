"""Benchmarks: each module ``jobs.bench.NAME`` exposes ``run(options) -> dict`` and states its conditions.

``python -m jobs.bench NAME`` runs one and writes ``docs/results/NAME-DATE.json``: name, code revision, hardware,
load before and after, and what ``run`` returned: configuration, warm-up, repeats, medians with minimum and maximum.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast

import psutil

from mmd.artifacts import code_revision
from mmd.errors import ConfigError

BENCHES = ("ingest", "matching", "mcts", "gate_cv", "probe", "serving", "rules_cv")
"""Module names; a new benchmark adds its own here."""


class Bench(Protocol):
    """A benchmark module. ``add_options`` is optional."""

    def run(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Measure and return ``config``, ``warmup``, ``repeats`` and the results, JSON-able."""
        ...


def load_bench(name: str) -> Bench:
    """Import one benchmark module.

    Raises:
        ConfigError: there is no such benchmark.
    """
    if name not in BENCHES:
        raise ConfigError(f"bench {name!r}: unknown; there are {', '.join(BENCHES)}.")
    return cast("Bench", importlib.import_module(f"jobs.bench.{name}"))


def add_options(bench: Bench, parser: argparse.ArgumentParser) -> None:
    """Let a benchmark add its own command-line options, if it has any."""
    adder: Callable[[argparse.ArgumentParser], None] | None = getattr(bench, "add_options", None)
    if adder:
        adder(parser)


def hardware() -> dict[str, Any]:
    """Describe the machine: processor, cores, memory, platform."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, min and max of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def timed(work: Callable[[], object]) -> float:
    """Return the wall seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run_bench(name: str, options: Mapping[str, Any], out: Path) -> tuple[Path, dict[str, Any]]:
    """Run one benchmark and write its record; a second run on one day gets a running number.

    Returns:
        Where the record was written, and the record.
    """
    bench = load_bench(name)
    load_before = os.getloadavg()
    measured = bench.run(options)
    record = {
        "bench": name,
        "code": code_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        **measured,
    }
    out.mkdir(parents=True, exist_ok=True)
    target = _free_path(out, f"{name}-{datetime.now(UTC):%Y-%m-%d}")
    target.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return target, record


def _free_path(out: Path, stem: str) -> Path:
    target, number = out / f"{stem}.json", 1
    while target.exists():
        number += 1
        target = out / f"{stem}-{number}.json"
    return target
