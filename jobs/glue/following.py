"""Follow the log of a job on a cluster until it ends, over connections that may break."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from jobs.glue.submission import JobServer, LostContactError, SubmittedJob
from mmd.errors import ClusterError

_SILENCE_S = 10.0  # a connection that died without a word looks like a job that prints nothing: ask now and then
_PAUSE_S = 1.0
_PATIENCE_S = 300.0


def follow(
    server: JobServer,
    job_id: str,
    write: Callable[[str], object],
    note: Callable[[str], object],
    *,
    patience_s: float = _PATIENCE_S,
) -> SubmittedJob:
    """Write what a job prints, each character once, until it ends; return how it ended.

    Args:
        server: where it runs.
        job_id: which.
        write: takes the log's pieces.
        note: takes a remark on the connection.
        patience_s: time without an answer after which it gives up.

    Raises:
        ClusterError: there is no such job, or contact is lost for longer than ``patience_s``.
    """
    return asyncio.run(_Follower(server, job_id, write, note, patience_s).run())


class _Follower:
    def __init__(
        self,
        server: JobServer,
        job_id: str,
        write: Callable[[str], object],
        note: Callable[[str], object],
        patience_s: float,
    ) -> None:
        self._server, self._id = server, job_id
        self._write, self._note = write, note
        self._patience_s = patience_s
        self._written = 0  # characters of the log

    async def run(self) -> SubmittedJob:
        lost_s: float | None = None
        while True:
            with suppress(LostContactError):  # whether the job goes on, the next request tells
                await self._stream()
            try:
                job = await self._job()
            except LostContactError as err:
                if lost_s is None:
                    lost_s = time.monotonic()
                    self._note(f"lost contact with the cluster, trying again for {self._patience_s:.0f} s …")
                if time.monotonic() - lost_s > self._patience_s:
                    raise ClusterError(f"{self._id} may still be running, but {err}") from err
            else:
                lost_s = None
                if job.ended:
                    await self._write_rest()
                    return job
            await asyncio.sleep(_PAUSE_S)

    async def _job(self) -> SubmittedJob:
        return await asyncio.to_thread(self._server.job, self._id)

    async def _stream(self) -> None:
        """Write the log until its stream ends, or the job does while the stream is silent."""
        reading = asyncio.ensure_future(self._read())
        try:
            while not (await asyncio.wait({reading}, timeout=_SILENCE_S))[0]:
                if (await self._job()).ended:
                    return
            await reading
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, LostContactError):
                await reading

    async def _read(self) -> None:
        at = 0
        async for piece in self._server.tail(self._id):
            new = piece[max(0, self._written - at) :]  # every stream begins with the log's first line
            at += len(piece)
            if new:
                self._write(new)
                self._written = at

    async def _write_rest(self) -> None:
        try:
            log = await asyncio.to_thread(self._server.log, self._id)
        except ClusterError as err:
            self._note(f"the end of its log cannot be read: {err}")
            return
        if rest := log[self._written :]:
            self._write(rest)
