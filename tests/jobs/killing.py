"""What tests of killed training jobs look at: checkpoints of a run, its workers, and where it went on."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from pathlib import Path

import psutil


def steps_kept(store: Path) -> list[int]:
    """Return the steps of the checkpoints of the runs under a store."""
    found = []
    for path in store.glob(".train/*/*/checkpoint_*/state.json"):
        with contextlib.suppress(OSError, ValueError):  # being written, or removed
            found.append(int(json.loads(path.read_text())["step"]))
    return found


def wait_for_checkpoints(store: Path, job: subprocess.Popen[bytes], log: Path, step: int) -> None:
    """Wait until a run that is under way has a checkpoint of this step or later: Ray has noted earlier ones by then."""
    while max(steps_kept(store), default=0) < step:
        assert job.poll() is None, log.read_text()
        time.sleep(0.1)


def training_worker(job: subprocess.Popen[bytes]) -> psutil.Process:
    """Return the process that trains."""
    own = [p for p in psutil.Process(job.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    assert own
    return own[0]


def steps_gone_on_after(log: str) -> list[int]:
    """Return after which steps a run went on, as its log says; nothing when it only ever started anew."""
    return [int(step) for step in re.findall(r": goes on after step (\d+)", log)]
