"""A measurement in a process of its own, whose time and memory are looked at from outside."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from mmd.errors import MmdError

_SAMPLE_S = 0.5
_REST = 20.0  # times as long as a look took is waited for the next, so that looking costs a twentieth at most


class MeasurementError(MmdError):
    """A measurement's process failed."""


def apart(work: Callable[..., dict[str, Any]], **given: Any) -> dict[str, Any]:  # noqa: ANN401 (the work's arguments)
    """Call a function in a fresh process and watch the process and all that it starts.

    Args:
        work: of a module's top level; returns what JSON can hold.
        given: its arguments, by name.

    Returns:
        ``seconds`` and ``cpu_s`` from the process's start to its end, ``peak_pss_gb`` of all processes together and of
        ``…_of_one_process_gb`` (pages that processes share count once), sampled; ``own_peak_rss_gb`` of the process
        itself, as the kernel keeps it; then what the function returned.

    Raises:
        MeasurementError: the function failed; the message ends in its trace.
    """
    with tempfile.TemporaryDirectory(prefix="mmd-apart-") as folder:
        answer = Path(folder) / "answer.json"
        spawn = multiprocessing.get_context("spawn")
        process = spawn.Process(target=_answer, args=(work.__module__, work.__qualname__, given, str(answer)))
        started = time.perf_counter()
        process.start()
        try:
            watched = _watch(process)
        finally:
            process.terminate()  # where this process was told to stop; nothing happens to one that has ended
            process.join()
        seconds = time.perf_counter() - started
        found: dict[str, Any] = (
            json.loads(answer.read_text(encoding="utf-8"))
            if answer.exists()
            else {"failed": f"its process ended with {process.exitcode}, as one that is killed for its memory does"}
        )
    if "failed" in found:
        raise MeasurementError(f"{work.__module__}.{work.__qualname__}({given}): {found['failed']}")
    return {"seconds": seconds, **watched, **found}


def _answer(module: str, name: str, given: Mapping[str, Any], path: str) -> None:
    """Do the work and leave its answer, or its trace, in a file."""
    try:
        found = getattr(importlib.import_module(module), name)(**given)
        found = {"own_peak_rss_gb": _peak_kib() / 2**20, **found}
    except Exception:  # noqa: BLE001 (told and raised in the process that asked)
        found = {"failed": traceback.format_exc()[-3000:]}
    target = Path(path)
    part = target.with_suffix(".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.rename(target)


def _watch(process: multiprocessing.process.BaseProcess) -> dict[str, float]:
    """Sample a process and its descendants until it ends."""
    peak, peak_one = 0, 0
    cpu_s: dict[int, float] = {}
    while process.is_alive():
        looked = time.perf_counter()
        tree = _tree(process.pid)
        each = [_pss(one) for one in tree]
        cpu_s |= {one.pid: max(_cpu_s(one), cpu_s.get(one.pid, 0.0)) for one in tree}
        peak, peak_one = max(peak, sum(each)), max([peak_one, *each])
        process.join(max(_SAMPLE_S, _REST * (time.perf_counter() - looked)))
    return {
        "cpu_s": sum(cpu_s.values()),
        "peak_pss_gb": peak / 2**30,
        "peak_pss_of_one_process_gb": peak_one / 2**30,
    }


def _tree(pid: int | None) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0
    return float(times.user + times.system)


def _pss(process: psutil.Process) -> int:
    """Return a process's proportional set size in bytes: shared pages count once over all processes."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def _peak_kib() -> int:
    """Return the most memory that this process has held, KiB.

    ``getrusage`` begins with what the process that started this one held: on Linux the kernel's own count is asked.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if peaks:
            return int(peaks[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
