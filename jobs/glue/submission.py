"""The Jobs API of a Ray cluster: send a job, follow, list and stop jobs; what goes wrong is told in words."""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from mmd.errors import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_TIMEOUTS_S = (10.0, 120.0)  # to connect; between two bytes: a large package is stored before the answer comes
_TOLD_CHARS = 400
_STOPPED = 143
"""Exit code of a stopped job, which Ray does not tell: what a job of ours ends with at SIGTERM."""
_NO_AGENT = "No available agent"  # Ray: the process beside each node that starts jobs


class LostContactError(ClusterError):
    """The cluster does not answer now; it may again later."""


@dataclass(frozen=True)
class SubmittedJob:
    """What a cluster tells of a job; its environment, which may hold secrets, is left out.

    Attributes:
        id: under which it was submitted.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        entrypoint: its shell command.
        message: what Ray says of the status.
        driver_exit_code: of the command, negative for a signal; None unless it ended by itself.
        started_unix_s: when Ray took it.
        ended_unix_s: when it ended; None before.
    """

    id: str
    status: str
    entrypoint: str
    message: str = ""
    driver_exit_code: int | None = None
    started_unix_s: float | None = None
    ended_unix_s: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in {"STOPPED", "SUCCEEDED", "FAILED"}

    @property
    def exit_code(self) -> int:
        """What a shell would say of the command: its own code, 128 + N after signal N; 1 if it never started."""
        if self.status == "STOPPED":
            return _STOPPED
        if self.driver_exit_code is None:
            return 0 if self.status == "SUCCEEDED" else 1
        return self.driver_exit_code if self.driver_exit_code >= 0 else 128 - self.driver_exit_code


def address_of(given: str | None) -> str:
    """Return the address of the dashboard: as given, of the environment, or of this machine.

    Raises:
        ClusterError: it is not an address of a dashboard.
    """
    named = next((value for name in ADDRESS_VARIABLES if (value := os.environ.get(name))), None)
    address = given or named or DEFAULT_ADDRESS
    if address == "auto":
        return address
    if "://" not in address:
        address = f"http://{address}"
    if urlsplit(address).scheme not in {"http", "https"} or not urlsplit(address).hostname:
        raise ClusterError(
            f"address {shown(address)}: jobs are sent to the dashboard, as http://HEAD:8265; give that as --address."
        )
    return address.rstrip("/")


def shown(address: str) -> str:
    """Return an address without the password that it may hold."""
    return re.sub(r"//[^/@]*@", "//…@", address)


class JobServer:
    """The job server in the dashboard of a cluster's head.

    Args:
        address: of :func:`address_of`.

    Raises:
        ClusterError: nothing answers there, or something else does, or it refuses the token.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        _use_token_if_there_is_one()
        with self._in_words(), _without(ADDRESS_VARIABLES):  # Ray prefers them to the address that it is given
            self._client = _timed_client(address)
        for module in ("dashboard_sdk", "job.sdk"):  # which tell of every package and stream
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)

    def submit(self, verb: str, entrypoint: str, *, code: Path | None, environment: Mapping[str, str]) -> str:
        """Send a job; return its id.

        Args:
            verb: what the id begins with.
            entrypoint: shell command.
            code: folder to run in, which is sent; None runs what is installed there.
            environment: variables of the job and its workers. The cluster's dashboard can tell them.
        """
        job_id = f"{verb}-{secrets.token_hex(4)}"
        runtime_env: dict[str, Any] = {"env_vars": dict(environment)} if environment else {}
        if code is not None:
            runtime_env["working_dir"] = str(code)
        with self._in_words(f"whether it took {job_id} is unknown (mmd submit --status {job_id})"):
            return self._client.submit_job(
                entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env, metadata={"mmd": verb}
            )

    def job(self, job_id: str) -> SubmittedJob:
        """Return what the cluster tells of a job."""
        with self._in_words():
            return _told(self._client.get_job_info(job_id))

    def jobs(self) -> list[SubmittedJob]:
        """Return the submitted jobs that the cluster remembers, latest first; drivers of other kinds are left out."""
        with self._in_words():
            found = [_told(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.started_unix_s or 0.0, reverse=True)

    def log(self, job_id: str) -> str:
        """Return what a job has printed so far."""
        with self._in_words():
            return self._client.get_job_logs(job_id)

    def stop(self, job_id: str) -> bool:
        """Ask a job to end, as SIGTERM does; return whether it was running."""
        with self._in_words():
            return self._client.stop_job(job_id)

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """Yield what a job prints, from its first line, in pieces.

        Raises:
            LostContactError: the stream broke.
        """
        import aiohttp

        try:
            async for piece in self._client.tail_job_logs(job_id):
                yield piece
        except (aiohttp.ClientError, OSError, RuntimeError) as err:
            raise LostContactError(f"{shown(self.address)}: the log of {job_id} broke off ({err}).") from err

    @contextmanager
    def _in_words(self, unsure: str = "") -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        where = shown(self.address)
        try:
            yield
        except AuthenticationError as err:
            raise ClusterError(_about_token(where, str(err))) from None
        except (OSError, KeyError) as err:  # requests' errors are OSErrors; KeyError: an answer that is not Ray's
            _raise_unreachable(where, err, unsure)
        except (RuntimeError, ValueError) as err:
            _raise_refused(where, str(err), unsure)


def _timed_client(address: str) -> JobSubmissionClient:
    """Return Ray's client, which would wait for a silent server for ever."""
    from ray.job_submission import JobSubmissionClient

    class TimedClient(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:  # noqa: ANN401 (requests is untyped)
            return super()._do_request(method, endpoint, **{"timeout": _TIMEOUTS_S, **more})

    return TimedClient(address)


def _told(details: JobDetails) -> SubmittedJob:
    return SubmittedJob(
        id=details.submission_id or details.job_id or "",
        status=str(details.status.value),
        entrypoint=details.entrypoint,
        message=details.message or "",
        driver_exit_code=details.driver_exit_code,
        started_unix_s=details.start_time / 1000 if details.start_time else None,
        ended_unix_s=details.end_time / 1000 if details.end_time else None,
    )


def _use_token_if_there_is_one() -> None:
    """Send the token that lies ready; from 2.61 on Ray does so by itself."""
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if named or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _about_token(where: str, said: str) -> str:
    what = "asks for a token" if said.startswith("Authentication required") else "does not take this token"
    return (
        f"{where}: the cluster {what}. Put the cluster's token into RAY_AUTH_TOKEN, or into the file ~/.ray/auth_token "
        "(`ray get-auth-token` on its head prints it; on Kubernetes: kubectl -n mmd get secret mmd-ray-token -o "
        "jsonpath='{.data.auth_token}' | base64 -d), and set RAY_AUTH_MODE=token."
    )


def _raise_unreachable(where: str, err: Exception, unsure: str) -> NoReturn:
    if not isinstance(err, OSError) or "JSON" in type(err).__name__:
        raise ClusterError(
            f"{where}: something answers there that is no Ray dashboard; its port is 8265 unless it was changed."
        ) from err
    raise LostContactError(
        f"{where}: no Ray dashboard answers ({_short(shown(str(err))) or type(err).__name__}). {_sentence(unsure)}"
        "Give its address with --address or RAY_API_SERVER_ADDRESS. To reach one inside a cluster: kubectl -n mmd "
        "port-forward svc/mmd-head-svc 8265, or `ray dashboard cluster/vm.yaml`, then --address http://127.0.0.1:8265; "
        "`ray start --head` starts one here."
    ) from err


def _raise_refused(where: str, said: str, unsure: str) -> NoReturn:
    found = re.match(r"Request failed with status code (\d+): (.*)\.$", said, re.DOTALL)
    if found is None:
        raise ClusterError(f"{where}: {_short(shown(said))}") from None
    status, text = int(found[1]), found[2]
    if status == 404 and "does not exist" in text:
        raise ClusterError(f"{where}: {_short(text)}; `mmd submit --list` shows the jobs that it knows.") from None
    if _NO_AGENT in text:
        look = "if that stays so, dashboard_agent.log of the head says why, e.g. a port that is taken"
        unsure = "; ".join(filter(None, (look, unsure)))
    kind = LostContactError if status >= 500 else ClusterError
    raise kind(f"{where}: answered {status}: {_short(text)} {_sentence(unsure)}".rstrip()) from None


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}. " if words else ""


def _short(text: str) -> str:
    """Return the end of what a server said: of a traceback, its message."""
    text = " ".join(text.split())
    return text if len(text) <= _TOLD_CHARS else f"… {text[-_TOLD_CHARS:]}"


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)
