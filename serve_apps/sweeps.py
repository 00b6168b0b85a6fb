"""Sweeps as the service shows and launches them: the store's records joined with the cluster's jobs."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

import structlog

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from mmd.corpora.settings import ReaderName
from mmd.errors import ArtifactError, ConfigError, UnavailableError
from mmd.sweeps.kinds import KINDS, SweepKind, check_space, fields_of, overrides_of, space_of
from mmd.sweeps.store import MAX_RECORDS, SweepStore, is_id, new_id, sweep_of
from mmd.sweeps.types import State, SweepRecord, Trial, best_of, state_at
from serve_apps.api import ApiError
from serve_apps.sweeps_api import (
    FieldOut,
    KindOut,
    KindsResponse,
    LaunchingOut,
    LaunchRequest,
    SweepDetail,
    SweepOut,
    SweepsResponse,
    TrialOut,
)
from serve_apps.sweeps_jobs import Jobs, LaunchedJob, RayJobs, Status

MAX_UNFINISHED = 4
"""Launched sweeps that may wait or run at once."""
_UNFINISHED = ("waiting", "running")
_ENDS: Mapping[Status, State] = {"STOPPED": "stopped", "FAILED": "failed"}
_KEPT_S = 1.0  # what was read is told again for so long, whoever asks
_RETRY_AFTER_S = 5
T = TypeVar("T")


class SweepDesk:
    """Lists, shows, launches and stops sweeps.

    Args:
        store: whose records are shown, and in which launched sweeps work.
        settings: of the service.
        jobs: where they run; None takes ``serve.jobs_address``.
    """

    def __init__(self, store: ArtifactStore, settings: ServeSettings, jobs: Jobs | None = None) -> None:
        self._sweeps, self._settings = SweepStore(store), settings
        if jobs is None and settings.jobs_address is not None:
            jobs = RayJobs(settings.jobs_address, settings.jobs_working_dir)
        # Without keys nothing is launched, and nobody learns of the cluster's jobs.
        self._jobs = jobs if settings.api_keys_file is not None else None
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="sweeps")
        self._reading, self._launching = asyncio.Lock(), asyncio.Lock()
        self._ended: dict[str, SweepRecord] = {}  # nothing more is written to them
        self._kept: tuple[float, list[SweepOut], str | None] | None = None
        self._known: dict[str, LaunchedJob] = {}  # as the cluster told last, and those sent since
        self._log = structlog.get_logger("mmd.sweeps")

    # ------------------------------------------------------------ reading

    async def all(self, key: str | None) -> SweepsResponse:
        """Return the newest sweeps."""
        sweeps, problem = await self._all()
        return SweepsResponse(sweeps=tuple(sweeps), launching=self.launching(key), problem=problem)

    async def one(self, sweep_id: str) -> SweepDetail:
        """Return a sweep with its trials.

        Raises:
            ApiError: 404, there is no such sweep; 503, there is no record of it, and the cluster cannot be asked.
        """
        found = await self._out(sweep_id)
        trials = await self._in_thread(lambda: self._trials(sweep_id))
        best = {id(trial) for trial in best_of(trials, found.metric, found.mode).values()}
        told = tuple(TrialOut(**trial.model_dump(), best=id(trial) in best) for trial in trials)
        return SweepDetail(**found.model_dump(), trials=told)

    async def kinds(self) -> KindsResponse:
        """Return the sweeps that there are, each with the corpora that have what it needs."""
        corpora = await self._in_thread(self._corpora)
        told = [_kind_out(kind, corpora.get(name, ())) for name, kind in KINDS.items()]
        return KindsResponse(kinds=tuple(told))

    def launching(self, key: str | None) -> LaunchingOut:
        """Say whether the owner of a key may launch sweeps."""
        reason = self._refusal(key)
        return LaunchingOut(allowed=reason is None, reason=reason)

    def _refusal(self, key: str | None) -> str | None:
        settings = self._settings
        if settings.api_keys_file is None:
            return "launching and stopping need API keys, and this service has none (serve.api_keys_file)."
        if self._jobs is None:
            return "this service knows no cluster to launch jobs on (serve.jobs_address)."
        if settings.jobs_keys and key not in settings.jobs_keys:
            return "this API key may look, but not launch or stop (serve.jobs_keys)."
        return None

    async def _all(self) -> tuple[list[SweepOut], str | None]:
        async with self._reading:
            if self._kept is None or time.monotonic() - self._kept[0] > _KEPT_S:
                records, (jobs, problem) = await asyncio.gather(self._in_thread(self._records), self._ask_jobs())
                known = {record.id for record in records}
                found = [self._told(record, jobs.get(record.id)) for record in records]
                found += [self._launched(job) for job in jobs.values() if job.sweep_id not in known]
                found.sort(key=lambda sweep: sweep.id, reverse=True)
                self._kept = time.monotonic(), found[:MAX_RECORDS], problem
            return self._kept[1], self._kept[2]

    async def _forget(self) -> None:
        """Let the next list be read anew, and not be one that is being read just now."""
        async with self._reading:
            self._kept = None

    async def _out(self, sweep_id: str) -> SweepOut:
        if is_id(sweep_id):
            sweeps, problem = await self._all()
            for sweep in sweeps:
                if sweep.id == sweep_id:
                    return sweep
            if problem is not None:  # another process of the service may have launched it
                raise _unavailable(f"{problem} {sweep_id} is not recorded yet, if there is such a sweep.")
        raise ApiError(404, "unknown_sweep", f"{sweep_id[:80]!r}: there is no such sweep; /v1/sweeps has them.")

    async def _ask_jobs(self) -> tuple[Mapping[str, LaunchedJob], str | None]:
        """Return the jobs of sweeps by id, and what was wrong where they are not those of now."""
        if self._jobs is None:
            return {}, None
        before, problem = set(self._known), None
        try:
            told = {job.sweep_id: job for job in await self._jobs.jobs()}
            sent = {sweep_id: job for sweep_id, job in self._known.items() if sweep_id not in before}
            self._known = sent | told
        except UnavailableError as err:
            problem = str(err)
        return dict(self._known), problem

    def _records(self) -> list[SweepRecord]:
        found = []
        for sweep_id in self._sweeps.ids()[:MAX_RECORDS]:
            record = self._ended.get(sweep_id)
            if record is None:
                try:
                    record = self._sweeps.read(sweep_id)
                except ArtifactError:  # not there yet, or of another version
                    continue
                if record.state != "running":
                    self._ended[sweep_id] = record
            found.append(record)
        self._ended = {record.id: record for record in found if record.id in self._ended}
        return found

    def _trials(self, sweep_id: str) -> Sequence[Trial]:
        try:
            return self._sweeps.trials(sweep_id)
        except ArtifactError:
            return ()

    def _corpora(self) -> dict[str, tuple[str, ...]]:
        store = self._sweeps.store
        names: dict[str, set[str]] = {}
        for kind in {needed for sweep in KINDS.values() for needed in sweep.needs}:
            names[kind] = {path.rsplit("/", 1)[-1] for path in store.subdirs(f"{store.root}/{kind}")}
        return {
            name: tuple(sorted(set.intersection(*(names[kind] for kind in sweep.needs))))
            for name, sweep in KINDS.items()
        }

    def _told(self, record: SweepRecord, job: LaunchedJob | None) -> SweepOut:
        now = time.time()
        state, note = state_at(record, now), record.note
        if record.state == "running" and job is not None and job.ended:  # before it could write how
            state = _ENDS.get(job.status, "interrupted")
            note = note or (job.message if state == "failed" else None) or None
        fields = set(SweepOut.model_fields) - {"state", "note", "seconds", "stoppable"}
        until = record.ended_unix_s or (now if state == "running" else record.updated_unix_s)
        # A job of another name does more than this sweep, as a pipeline does.
        stoppable = state == "running" and self._jobs is not None and record.job == record.id
        seconds = round(max(0.0, until - record.started_unix_s), 1)
        told = record.model_dump(include=fields)
        return SweepOut(**told, state=state, note=note, seconds=seconds, stoppable=stoppable)

    def _launched(self, job: LaunchedJob) -> SweepOut:
        """Return what is to be told of a job that has not recorded anything."""
        kind = KINDS[sweep_of(job.sweep_id)]
        states = {**_ENDS, "SUCCEEDED": "failed"}
        notes = {"SUCCEEDED": "The job ended without a record in this store.", "FAILED": job.message or None}
        return SweepOut(
            id=job.sweep_id,
            sweep=kind.name,
            corpus=job.corpus,
            state=states.get(job.status, "waiting"),
            metric=kind.metric,
            mode=kind.mode,
            axis=kind.axis,
            space=dict(job.space),
            total=0,
            done=0,
            best=None,
            started_unix_s=job.started_unix_s,
            seconds=0.0,
            artifact=None,
            note=notes.get(job.status),
            stoppable=not job.ended,
        )

    # ------------------------------------------------------------ launching

    async def launch(self, request: LaunchRequest, key: str | None) -> SweepOut:
        """Launch a sweep and return it; it waits until the cluster starts it.

        Raises:
            ApiError: it must not or cannot be, or asks for what is not there; 503, the cluster cannot be asked what it
                runs already.
        """
        jobs, kind = self._allowed(key), KINDS[request.sweep]
        space = {name: list(v) if isinstance(v, tuple) else v for name, v in request.space.items()}
        try:
            check_space(kind, space)
        except ConfigError as err:
            raise ApiError(400, "invalid_space", str(err).removeprefix("settings: "), "space") from None
        reader = await self._in_thread(lambda: self._reader(kind, request.corpus))
        async with self._launching:
            await self._forget()
            sweeps, problem = await self._all()
            if problem is not None:
                raise _unavailable(f"{problem} Nothing is launched while it is not known what runs already.")
            self._refuse_twin(kind, request.corpus, space, sweeps)
            unfinished = [sweep.id for sweep in sweeps if sweep.state in _UNFINISHED and sweep.stoppable]
            if len(unfinished) >= MAX_UNFINISHED:
                message = f"{len(unfinished)} sweeps wait or run already; at most {MAX_UNFINISHED} do. Stop one first."
                raise ApiError(409, "too_many_sweeps", message)
            sweep_id = new_id(kind.name)
            options = [*self._options(kind, sweep_id), "--corpus", f"{request.corpus}:{reader}"]
            command = entrypoint(kind, options, [f"store={self._sweeps.store.uri}", *overrides_of(space)])
            with _explained():
                await jobs.launch(sweep_id, request.corpus, space, command)
            job = self._known[sweep_id] = LaunchedJob(sweep_id, request.corpus, space, "PENDING")
            await self._forget()
        self._log.info("sweep_launched", id=sweep_id, sweep=kind.name, corpus=request.corpus, key=key)
        return self._launched(job)

    def _refuse_twin(self, kind: SweepKind, corpus: str, space: Mapping[str, Any], sweeps: Sequence[SweepOut]) -> None:
        """Refuse what goes on already: two jobs would work on one run of Tune, and break each other's.

        Raises:
            ApiError: there is such a sweep.
        """
        wanted = space_of(kind, check_space(kind, space))
        for sweep in sweeps:
            if sweep.state not in _UNFINISHED or (sweep.sweep, sweep.corpus) != (kind.name, corpus):
                continue
            job = self._known.get(sweep.id)
            if wanted == (sweep.space if job is None else _whole(kind, job.space)):
                message = (
                    f"{sweep.id}: searches the same space of {corpus} and is {sweep.state}; wait for it or stop it."
                )
                raise ApiError(409, "same_sweep", message)

    async def stop(self, sweep_id: str, key: str | None) -> SweepOut:
        """Ask a sweep's job to end; it writes that it was stopped.

        Raises:
            ApiError: it must not or cannot be stopped, or there is no such sweep; 503, the cluster cannot be asked.
        """
        jobs = self._allowed(key)
        found = await self._out(sweep_id)
        if not found.stoppable:
            reason = (
                f"{sweep_id}: is {found.state}; nothing is left to stop."
                if found.state not in _UNFINISHED
                else f"{sweep_id}: was not launched here, and may be a step of a longer job; stop it where it was "
                "started (Ctrl+C, or mmd submit --stop)."
            )
            raise ApiError(409, "not_stoppable", reason)
        with _explained():
            await jobs.stop(sweep_id)
        await self._forget()
        self._log.info("sweep_stopped", id=sweep_id, key=key)
        return await self._out(sweep_id)

    def _allowed(self, key: str | None) -> Jobs:
        reason = self._refusal(key)
        if reason is not None or self._jobs is None:
            raise ApiError(403, "launching_off", f"no sweep is launched or stopped here: {reason}")
        return self._jobs

    def _options(self, kind: SweepKind, sweep_id: str) -> list[str]:
        """Return what the operator's settings say of every job, and where a report goes: beside the trials."""
        config, profile = self._settings.jobs_config, self._settings.jobs_profile
        options = [] if config is None else ["--config", config]
        options += [] if profile is None else ["--profile", profile]
        if kind.reports and self._sweeps.store.protocol == "file":
            options += ["--out", self._sweeps.folder(sweep_id)]
        return options

    def _reader(self, kind: SweepKind, corpus: str) -> ReaderName:
        """Return how a corpus was read, once what the sweep needs is found.

        Raises:
            ApiError: something is missing.
        """
        store = self._sweeps.store
        try:
            opened = {needed: store.open(f"{needed}/{corpus}", verify=False) for needed in ("corpus", *kind.needs)}
        except ArtifactError as err:
            raise ApiError(409, "missing_artifact", f"sweep {kind.name} of {corpus}: {err}") from None
        told = opened["corpus"].manifest.settings.get("reader")
        readers: tuple[ReaderName, ...] = get_args(ReaderName)
        return next((name for name in readers if name == told), "chat")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def entrypoint(kind: SweepKind, options: Sequence[str], assignments: Sequence[str]) -> str:
    """Return the command of a sweep's job; what a client said comes as whole, quoted words, all of them checked.

    Args:
        kind: of the sweep.
        options: of the job.
        assignments: settings, as ``--set`` takes them.
    """
    sets = [word for assignment in assignments for word in ("--set", assignment)]
    return shlex.join(["python", "-m", kind.module, *kind.arguments, *options, *sets])


def _whole(kind: SweepKind, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return all that a launched sweep searches; None where this version knows no such space."""
    try:
        return space_of(kind, check_space(kind, asked))
    except ConfigError:
        return None


def _kind_out(kind: SweepKind, corpora: Sequence[str]) -> KindOut:
    fields = [
        FieldOut(key=field.key, default=field.default, accepts=dict(field.schema), description=field.description)
        for field in fields_of(kind)
    ]
    return KindOut(name=kind.name, needs=kind.needs, corpora=tuple(corpora), fields=tuple(fields))


@contextmanager
def _explained() -> Iterator[None]:
    """Turn a cluster that cannot be asked into the API's error."""
    try:
        yield
    except UnavailableError as err:
        raise _unavailable(str(err)) from None


def _unavailable(message: str) -> ApiError:
    return ApiError(503, "cluster_unavailable", message, retry_after_s=_RETRY_AFTER_S)
