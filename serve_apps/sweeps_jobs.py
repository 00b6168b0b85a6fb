"""The job server of a Ray cluster by its REST API: launching, listing and stopping the jobs of sweeps."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from mmd.errors import UnavailableError
from mmd.sweeps.store import ID_VARIABLE, is_id, started_at

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
_TIMEOUTS_S = {"GET": 5.0, "POST": 20.0}  # a busy cluster takes its time to accept a job
_TOLD_CHARS = 300
_MARK = "mmd_sweep"  # metadata of our jobs: id, corpus and space


@dataclass(frozen=True)
class LaunchedJob:
    """What the cluster knows of the job of a sweep.

    Attributes:
        sweep_id: of the sweep; also the job's own.
        corpus: that it works on.
        space: that was asked for.
        status: Ray's.
        message: Ray's, of the status.
    """

    sweep_id: str
    corpus: str
    space: Mapping[str, Any]
    status: Status
    message: str = ""

    @property
    def started_unix_s(self) -> float:
        """When it was launched."""
        return started_at(self.sweep_id)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in {"STOPPED", "SUCCEEDED", "FAILED"}


class Jobs(Protocol):
    """Where jobs run; every method may raise :class:`~mmd.errors.UnavailableError`."""

    async def launch(self, sweep_id: str, corpus: str, space: Mapping[str, Any], entrypoint: str) -> None:
        """Send the job of a sweep."""
        ...

    async def jobs(self) -> list[LaunchedJob]:
        """Return the jobs that were launched for sweeps, as far as the cluster remembers."""
        ...

    async def stop(self, job_id: str) -> None:
        """Ask a job to end, as SIGTERM does; nothing happens to one that has ended."""
        ...


class _Told(BaseModel):
    submission_id: str | None = None
    status: Status
    message: str | None = None
    metadata: dict[str, str] | None = None


_LIST = TypeAdapter(list[_Told])


class RayJobs:
    """The Jobs API of a cluster's dashboard.

    Ray's own client takes ``RAY_ADDRESS`` for more than what it is told, and waits for a silent server for ever.

    Args:
        address: of the dashboard.
        working_dir: URI of the code's package; None runs what the image has.
    """

    def __init__(self, address: str, working_dir: str | None = None) -> None:
        self._address, self._working_dir = address.rstrip("/"), working_dir

    async def launch(self, sweep_id: str, corpus: str, space: Mapping[str, Any], entrypoint: str) -> None:
        """Send the job of a sweep."""
        runtime_env: dict[str, Any] = {"env_vars": {ID_VARIABLE: sweep_id}}
        if self._working_dir is not None:
            runtime_env["working_dir"] = self._working_dir
        mark = {"id": sweep_id, "corpus": corpus, "space": space}
        body = {
            "entrypoint": entrypoint,
            "submission_id": sweep_id,
            "runtime_env": runtime_env,
            "metadata": {_MARK: json.dumps(mark)},
        }
        await self._ask("POST", "/api/jobs/", body)

    async def jobs(self) -> list[LaunchedJob]:
        """Return the jobs of sweeps; those of others are left out."""
        answer = await self._ask("GET", "/api/jobs/")
        try:
            told = _LIST.validate_json(answer.content)
        except ValidationError as err:
            raise UnavailableError(f"{self._address}: something answers there that is no Ray dashboard.") from err
        return [found for job in told if (found := _launched(job)) is not None]

    async def stop(self, job_id: str) -> None:
        """Ask a job to end."""
        await self._ask("POST", f"/api/jobs/{quote(job_id, safe='')}/stop")

    async def _ask(
        self, method: Literal["GET", "POST"], path: str, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUTS_S[method], trust_env=False) as client:
                answer = await client.request(method, self._address + path, json=body, headers=_token_header())
        except httpx.HTTPError as err:
            reason = str(err) or type(err).__name__
            raise UnavailableError(
                f"{self._address}: no Ray dashboard answers ({reason}); see serve.jobs_address."
            ) from err
        if answer.status_code in (401, 403):
            raise UnavailableError(
                f"{self._address}: the cluster does not take the service's token; give the service RAY_AUTH_MODE=token "
                "and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
            )
        if answer.status_code >= 400:
            said = " ".join(answer.text.split())[-_TOLD_CHARS:]
            raise UnavailableError(f"{self._address}: answered {answer.status_code}: {said}")
        return answer


def _launched(job: _Told) -> LaunchedJob | None:
    """Return what the mark of a job says; None for a job without one, or with one that is not ours."""
    try:
        mark = json.loads((job.metadata or {})[_MARK])
        sweep_id, corpus, space = mark["id"], mark["corpus"], mark["space"]
    except (KeyError, ValueError, TypeError):
        return None
    if not (isinstance(sweep_id, str) and isinstance(corpus, str) and isinstance(space, dict)):
        return None
    if job.submission_id != sweep_id or not is_id(sweep_id):
        return None  # of another program, or made up
    return LaunchedJob(sweep_id, corpus, space, job.status, (job.message or "")[-_TOLD_CHARS:])


def _token_header() -> dict[str, str]:
    """Return the header with the cluster's token, where Ray's own variables say that there is one."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() not in ("token", "k8s"):
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        try:
            token = path.read_text(encoding="utf-8")
        except OSError:
            return {}
    return {"Authorization": f"Bearer {token.strip()}"}
