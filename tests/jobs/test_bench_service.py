"""The bench of the whole service: what it counts, and that every scenario runs on a small store."""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.bench import service
from jobs.bench.harness import Bench, Memory, meanwhile
from mmd.errors import ConfigError


def options_of(store: Path, *words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    service.add_options(parser)
    return vars(parser.parse_args(["--store", str(store), "--corpus", "tiny", *words]))


def test_memory_is_told_by_its_peak_and_by_the_slope_of_the_second_half():
    """Growth while everything is loaded does not count: 100 MiB in the first half, then 2 MiB in every 10 s of which
    a process that started late has 1.5."""
    whole = [(0.0, 0.0), (10.0, 100.0), (20.0, 100.0), (30.0, 102.0), (40.0, 104.0), (50.0, 106.0)]
    late = {30.0: 0.0, 40.0: 1.5, 50.0: 3.0}
    rows = [(at, {"early": mib - late.get(at, 0.0)} | ({"late": late[at]} if at > 30 else {})) for at, mib in whole]
    assert Memory(rows).told() == {
        "peak_mib": 106.0,
        "slope_mib_a_minute": 12.0,
        "slope_by_process": {"late": 9.0, "early": 3.0},
    }
    assert Memory().told() == {"peak_mib": 0.0, "slope_mib_a_minute": 0.0, "slope_by_process": {}}


def test_memory_of_the_service_is_seen_by_process():
    """A process that is called as one of Ray's holds 150 MiB."""
    memory = Memory()
    hold = "held = b'x' * (150 * 2**20); print('ready', flush=True); input()"
    command = ["ray::Fake.work", "-c", hold]
    with subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with meanwhile(memory.watch):
            threading.Event().wait(1.3)
        other.kill()
    assert 140 < memory.rows[0][1]["ray::Fake"] < 200
    assert memory.told()["peak_mib"] >= 150


def test_what_fails_meanwhile_fails_the_measurement():
    def work(_: threading.Event) -> None:
        raise OSError("no such process")

    with pytest.raises(OSError, match="no such process"), meanwhile(work):
        pass


def test_no_question_is_asked_twice_and_a_part_can_be_left_out(tiny_store: Path):
    bench = Bench(options_of(tiny_store))
    asked = [str(one.body) for one in (*bench.requests(150), *bench.requests(150, stream=True))]
    assert len(set(asked)) == 300
    (tiny_store / "student").mkdir()
    with bench.without("recommendation") as store:
        assert not (Path(store.root) / "student").exists()
        assert store.open("rulebase/tiny").ref == bench.store.open("rulebase/tiny").ref
    (tiny_store / "student").rmdir()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_scenarios_run_on_a_small_store(tiny_store: Path):
    """Rule base and probe alone are served: turns are answered, marked degraded."""
    words = ("--scenarios", "steady", "kill", "down", "--seconds", "12", "--rate", "5")
    record = service.run(options_of(tiny_store, *words))
    assert record["steady"]["answered"] == record["steady"]["requests"] == 60
    assert record["kill"]["killed"] == ["intent"]
    assert all(record["down"][part]["reached"] for part in ("retrieval", "recommendation"))
    assert record["steady"]["status"] == {"200": 60}
    with pytest.raises(ConfigError, match="one version of rulebase and index"):
        service.run(options_of(tiny_store, "--scenarios", "swap"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_turns_and_overload_are_measured_on_a_small_store(tiny_store: Path):
    words = ("--scenarios", "turn", "overload", "--seconds", "5", "--turns", "5")
    record = service.run(options_of(tiny_store, *words))
    assert record["turn"]["whole"]["answered"] == record["turn"]["streamed"]["answered"] == 5
    assert record["turn"]["direct_ms"]["p50"] > 0
    assert record["overload"]["reached"]["statuses"]
    assert record["overload"]["overloaded"]["requests"] == round(3 * record["overload"]["held_per_s"] * 5)
