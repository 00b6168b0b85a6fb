"""The routes of sweeps: what is searched, what was found, launching and stopping."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request

from serve_apps.asking import ERRORS
from serve_apps.sweeps import SweepDesk
from serve_apps.sweeps_api import (
    KindsResponse,
    LaunchRequest,
    StopRequest,
    SweepDetail,
    SweepOut,
    SweepsResponse,
)

_CHANGES: dict[int | str, dict[str, Any]] = {code: ERRORS[code] for code in (400, 403, 408, 409, 413, 415, 429)}


def add_sweeps(app: FastAPI, desk: SweepDesk) -> None:
    """Add the routes of sweeps to an application."""

    @app.get("/v1/sweeps", summary="The newest sweeps", tags=["sweeps"])
    async def sweeps(request: Request) -> SweepsResponse:
        """Return the sweeps that the store has records of and those that were launched here, newest first."""
        return await desk.all(request.state.key_name)

    @app.get("/v1/sweeps/kinds", summary="Which sweeps there are", tags=["sweeps"])
    async def kinds() -> KindsResponse:
        """Return every sweep with the settings that its space may have, and the corpora that have what it needs."""
        return await desk.kinds()

    @app.get("/v1/sweeps/{sweep_id}", summary="One sweep", tags=["sweeps"], responses={404: ERRORS[404]})
    async def sweep(sweep_id: str) -> SweepDetail:
        """Return a sweep with its trials so far."""
        return await desk.one(sweep_id)

    @app.post("/v1/sweeps", summary="Launch a sweep", tags=["sweeps"], responses=_CHANGES)
    async def launch(body: LaunchRequest, request: Request) -> SweepOut:
        """Launch a sweep as a job on the cluster; it needs an API key and `serve.jobs_address`.

        The space is checked as the settings file is; what it leaves out has the cluster's defaults.
        """
        return await desk.launch(body, request.state.key_name)

    @app.post(
        "/v1/sweeps/{sweep_id}/stop",
        summary="Stop a sweep",
        tags=["sweeps"],
        responses={**_CHANGES, 404: ERRORS[404]},
    )
    async def stop(sweep_id: str, body: StopRequest, request: Request) -> SweepOut:  # noqa: ARG001 (its shape is all)
        """Ask the job of a sweep to end; what its trials have come to stays."""
        return await desk.stop(sweep_id, request.state.key_name)
