"""Records of sweeps for the API's and the page's tests, and a job server that keeps jobs as Ray's does."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from mmd.artifacts import ArtifactStore
from mmd.config import AppConfig
from mmd.sweeps.kinds import KINDS, space_of
from mmd.sweeps.store import SweepStore, started_at, sweep_of
from mmd.sweeps.types import SweepRecord, Trial, best_of, mean_best

CONKD = "20260901-101500-conkd-0000000a"
GATES = "20260902-111500-gates-0000000b"
RULES = "20260903-121500-rules-0000000c"
LOST = "20260904-131500-text_fraction-0000000d"
RUNNING = "20260905-141500-conkd-0000000e"


def write_sweep(store: ArtifactStore, sweep_id: str, trials: list[Trial], **changes: Any) -> SweepRecord:
    kind = KINDS[sweep_of(sweep_id)]
    started = started_at(sweep_id)
    values: dict[str, Any] = {
        "id": sweep_id,
        "sweep": kind.name,
        "corpus": "tiny",
        "state": "done",
        "metric": kind.metric,
        "mode": kind.mode,
        "axis": kind.axis,
        "space": space_of(kind, AppConfig()),
        "settings": "0123456789ab",
        "total": len(trials),
        "done": sum(trial.done for trial in trials),
        "kept": len(trials),
        "best": mean_best(best_of(trials, kind.metric, kind.mode), kind.metric),
        "started_unix_s": started,
        "updated_unix_s": started + 754.0,
        "ended_unix_s": started + 754.0,
        "artifact": "gate/tiny-conkd@0123456789ab" if kind.name == "conkd" else None,
    }
    record = SweepRecord.model_validate(values | changes)
    SweepStore(store).write(record, trials)
    return record


def students(*, done: int = 100) -> list[Trial]:
    """Return trials as those of a sweep of ConKD: 6 points, the best with γ = 0.9 and the soft gate."""
    points: list[dict[str, Any]] = [{"gate": "hard", "eta": eta} for eta in (0.1, 0.3)] + [{"gate": "soft"}]
    trials = []
    for n, (point, gamma) in enumerate((point, gamma) for point in points for gamma in (0.3, 0.9)):
        top = 0.02 + 0.01 * gamma + (0.004 if point["gate"] == "soft" else point["eta"] / 100)
        validations = 6 if n % 3 else 2
        curve = tuple((float(v), top * (1 - math.exp(-v / 1.5))) for v in range(1, validations + 1))
        metrics = {"score": curve[-1][1], "f1": curve[-1][1] * 1.02, "perplexity": 34.0 + n, "item_ratio": 0.4}
        setting = point | {"gamma": gamma, "temperature": 1.0}
        trials.append(Trial(setting=setting, metrics=metrics, curve=curve, done=n < done, at_s=60.0 * (n + 1)))
    return trials


def slices() -> list[Trial]:
    """Return trials as those of a sweep of gates: two tasks, arms and shares."""
    trials = []
    for task, lift in (("dialogue_intent", 0.0), ("image_scene", 0.1)):
        for arm, gain in (("pool", 0.0), ("override", 0.04), ("vote", 0.06)):
            for share in (0.0, 0.5, 1.0):
                taus = [i / 20 for i in range(21)] if arm == "override" else [0.0, 1.01]
                values = [0.6 + lift + gain * math.exp(-((tau - 0.6) ** 2) * 8) + 0.05 * share for tau in taus]
                curve = tuple(zip(taus, values, strict=True))
                best = max(curve, key=lambda point: point[1])
                setting = {"task": task, "arm": arm, "vote_weight": 3.0, "mllm_share": share}
                metrics = {"weighted_f1": best[1], "tau": best[0]}
                trials.append(Trial(setting=setting, group=task, metrics=metrics, curve=curve, at_s=len(trials) * 0.7))
    return trials


def searches() -> list[Trial]:
    """Return trials as those of a search for rules: 3 labels, 5 folds, 2 partitions."""
    trials = []
    for n in range(30):
        label, fold, partition = ("refund", "coupon", "size")[n % 3], n // 3 % 5, n // 15
        setting = {"task": "dialogue_intent", "label": label, "partition": partition, "fold": fold}
        metrics = {"reward": 0.5 + (n * 7 % 11) / 30, "rules": float(n % 9), "rollouts": 400.0, "evaluations": 9000.0}
        trials.append(Trial(setting=setting, group=f"dialogue_intent: {label}", metrics=metrics, at_s=1.0 + n))
    return trials


def write_all(store: ArtifactStore, *, running_job: str | None = None) -> None:
    """Write a sweep of each kind and state."""
    write_sweep(store, CONKD, students())
    write_sweep(store, GATES, slices(), artifact="gate/tiny@0123456789ab")
    write_sweep(store, RULES, searches(), state="failed", note="features/tiny: is gone.", artifact=None)
    write_sweep(store, LOST, [], state="running", ended_unix_s=None, total=18)
    now = time.time()
    fresh = {"state": "running", "ended_unix_s": None, "artifact": None, "total": 12, "started_unix_s": now - 300}
    write_sweep(store, RUNNING, students(done=3), **fresh, updated_unix_s=now + 3600, job=running_job)


class JobServer:
    """The part of Ray's Jobs API that the service uses; jobs wait until a test says otherwise.

    ``jobs``: id → what was sent, with ``status`` and ``message``; ``token``: asked for, if there is one; ``lists``:
    whether jobs are listed, which a busy cluster may not do while it takes others.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.token = ""
        self.lists = True
        self.address = ""
        self.app = FastAPI()
        self.app.get("/api/jobs/")(self._list)
        self.app.post("/api/jobs/")(self._submit)
        self.app.post("/api/jobs/{job_id}/stop")(self._stop)

    def _refused(self, request: Request) -> Response | None:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse("Unauthorized", 401)
        return None

    async def _list(self, request: Request) -> Response:
        if not self.lists:
            return JSONResponse("busy", 500)
        return self._refused(request) or JSONResponse(
            [{"type": "SUBMISSION", "submission_id": job_id, **job} for job_id, job in self.jobs.items()]
        )

    async def _submit(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        self.jobs[body["submission_id"]] = body | {"status": "PENDING", "message": ""}
        return JSONResponse({"job_id": body["submission_id"], "submission_id": body["submission_id"]})

    async def _stop(self, job_id: str, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        if job_id not in self.jobs:
            return JSONResponse(f"Job {job_id} does not exist", 404)
        self.jobs[job_id]["status"] = "STOPPED"
        return JSONResponse({"stopped": True})


@contextmanager
def job_server(port: int) -> Iterator[JobServer]:
    found = JobServer()
    server = uvicorn.Server(uvicorn.Config(found.app, port=port, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    found.address = f"http://127.0.0.1:{port}"
    try:
        yield found
    finally:
        server.should_exit = True
        thread.join()
