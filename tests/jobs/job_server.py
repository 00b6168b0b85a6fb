"""A small HTTP server that speaks as much of Ray's Jobs API as a client's failures take: it falls silent or breaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Script:
    """What the server says.

    Attributes:
        log: of its one job.
        breaks: after how many characters each successive stream of the log breaks off; then one goes on to the end.
        silent: whether the last stream stays open and says nothing.
        statuses: of the job, one a request, the last for ever.
        exit_code: of the job's command.
        errors: how many questions after the job are answered with 500 first.
        answer: instead of everything else.
        seen: requests, as METHOD PATH.
    """

    log: str = "one\ntwo\nthree\n"
    breaks: list[int] = field(default_factory=list)
    silent: bool = False
    statuses: list[str] = field(default_factory=lambda: ["SUCCEEDED"])
    exit_code: int | None = 0
    errors: int = 0
    answer: Handler | None = None
    seen: list[str] = field(default_factory=list)

    def application(self) -> web.Application:
        @web.middleware
        async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.seen.append(f"{request.method} {request.path}")
            return await (self.answer or handler)(request)

        app = web.Application(middlewares=[watch])
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/jobs/", self._jobs),
                web.get("/api/jobs/{job}", self._job),
                web.post("/api/jobs/{job}/stop", self._stop),
                web.get("/api/jobs/{job}/logs", self._log),
                web.get("/api/jobs/{job}/logs/tail", self._tail),
            ]
        )
        return app

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})

    async def _jobs(self, _: web.Request) -> web.Response:
        driver = {"type": "DRIVER", "job_id": "02000000", "status": "RUNNING", "entrypoint": "python own.py"}
        return web.json_response([driver, self._details()])

    async def _job(self, request: web.Request) -> web.Response:
        if self.errors:
            self.errors -= 1
            return web.Response(status=500, text="the agent is away")
        if request.match_info["job"] != "ingest-1":
            return web.Response(status=404, text=f"Job {request.match_info['job']} does not exist")
        return web.json_response(self._details())

    async def _stop(self, _: web.Request) -> web.Response:
        return web.json_response({"stopped": self.statuses[0] in {"PENDING", "RUNNING"}})

    async def _log(self, _: web.Request) -> web.Response:
        return web.json_response({"logs": self.log})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        if self.breaks:
            await stream.send_str(self.log[: self.breaks.pop(0)])
            assert request.transport is not None
            request.transport.abort()
        elif self.silent:
            await asyncio.sleep(60)
        else:
            for at in range(0, len(self.log), 4):
                await stream.send_str(self.log[at : at + 4])
        return stream

    def _details(self) -> dict[str, Any]:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return {
            "type": "SUBMISSION",
            "submission_id": "ingest-1",
            "status": status,
            "entrypoint": "python -m jobs.ingest",
            "message": "as scripted",
            "start_time": 1_000,
            "end_time": 4_000,
            "runtime_env": {"env_vars": {"KEY": "s3cret"}},
            "driver_exit_code": self.exit_code if status in {"SUCCEEDED", "FAILED"} else None,
        }


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """Serve in a thread; yield the address."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(script.application(), shutdown_timeout=0.1)

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{asyncio.run_coroutine_threadsafe(start(), loop).result(10)}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
