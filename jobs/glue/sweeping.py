"""Recording a sweep while it runs: beside the artefacts, in the Ray dashboard's metrics, in TensorBoard, in the log.

A job wraps its work in :func:`recorded` and gives what its trials come to, to the run that this yields. A record that
cannot be written never ends the sweep.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from jobs.glue.entry import JobContext, console
from jobs.glue.sweep_events import SweepEvents
from jobs.glue.sweep_gauges import SweepGauges
from jobs.glue.tune import keeping_runs
from mmd.artifacts import Artifact, ArtifactStore
from mmd.errors import MmdError
from mmd.sweeps.kinds import KINDS, SweepKind, check_space, read_space, space_of
from mmd.sweeps.store import EVENTS_FOLDER, ID_VARIABLE, SweepStore, is_id, kept, new_id, sweep_of, thinned
from mmd.sweeps.types import NOTE_CHARS, SweepName, SweepRecord, Trial, Written, best_of, mean_best

log = structlog.get_logger(__name__)
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's own; set for the entry point of a submitted job alone
_WRITE_S = 2.0
_LINE_S = 20.0
Read = Callable[[Mapping[str, Any]], Sequence[Trial]]
"""Turns one result of a trial into what is recorded; it may stand for several trials."""


def add_space(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a file with a search space."""
    parser.add_argument(
        "--space",
        type=Path,
        metavar="FILE",
        help="search space, in YAML as the settings file's: laid over all other settings (examples: cluster/sweeps)",
    )


def with_space(context: JobContext, sweep: SweepName) -> JobContext:
    """Return the context with the search space of ``--space`` laid over its settings.

    Raises:
        ConfigError: the file cannot be read, or names what this sweep does not search.
    """
    path = context.options.get("space")
    if path is None:
        return context
    kind = KINDS[sweep]
    return replace(context, config=check_space(kind, read_space(path, kind), context.config))


@contextmanager
def recorded(context: JobContext, sweep: SweepName, settings: str, read: Read) -> Iterator[SweepRun]:
    """Record what is done inside the ``with`` as one sweep; how it is left says how it ended.

    Runs of Ray Tune that succeed inside are kept until then: what is made of them is written by the end.

    Args:
        context: of the job.
        sweep: which one.
        settings: hash of all settings that its result depends on.
        read: of the trials' results.
    """
    run = SweepRun(context, KINDS[sweep], settings, read)
    run.start()
    try:
        with keeping_runs():
            yield run
    except KeyboardInterrupt:
        run.end("stopped")
        raise
    except BaseException as err:
        run.end("failed", str(err) if isinstance(err, MmdError) else f"{type(err).__name__}; the job's log has more")
        raise
    run.end("done")


def record_found(context: JobContext, sweep: SweepName, settings: str, artifact: Artifact) -> None:
    """Leave a record of a sweep that found its result made already, where somebody launched it and follows it."""
    if not is_id(os.environ.get(ID_VARIABLE, "")):
        return
    with recorded(context, sweep, settings, lambda _: ()) as run:
        run.made(artifact.ref, note="Nothing was searched: equal settings and inputs had made this before.")


class SweepRun:
    """A sweep under way; safe to be told from any thread.

    Args:
        context: of the job.
        kind: of the sweep.
        settings: hash of what its result depends on.
        read: of the trials' results.
    """

    def __init__(self, context: JobContext, kind: SweepKind, settings: str, read: Read) -> None:
        now = time.time()
        self._store, self._read = SweepStore(context.store), read
        self._lock, self._over = threading.RLock(), threading.Event()
        self._writing = threading.Lock()  # a slow store must not hold up those who tell
        self._trials: dict[str, Trial] = {}
        self._ended: list[Trial] = []  # since the record was written last
        self._changed, self._unsaved = True, True  # trials: since the record was written last; that the store has not
        self._failing: set[Callable[..., object]] = set()  # what went wrong when it was done last
        self._record = SweepRecord(
            id=self._free_id(kind.name),
            sweep=kind.name,
            corpus=context.name,
            state="running",
            metric=kind.metric,
            mode=kind.mode,
            axis=kind.axis,
            space=space_of(kind, context.config),
            settings=settings,
            started_unix_s=now,
            updated_unix_s=now,
            job=submission_id(),
        )
        folder = f"{self._store.folder(self._record.id)}/{EVENTS_FOLDER}"
        self._sent = None if context.store.protocol == "file" else _SentFolder(context.store, folder)
        self._events = SweepEvents(Path(folder) if self._sent is None else self._sent.path, kind.metric)
        self._gauges = SweepGauges({"id": self._record.id, "sweep": kind.name, "corpus": context.name})
        self._thread = threading.Thread(target=self._keep_writing, name="sweep-record", daemon=True)
        self._line_at = now

    def _free_id(self, sweep: SweepName) -> str:
        given = os.environ.get(ID_VARIABLE, "")
        fits = is_id(given) and sweep_of(given) == sweep
        return given if fits and not self._store.exists(given) else new_id(sweep)

    @property
    def id(self) -> str:
        """Of the record."""
        return self._record.id

    def start(self) -> None:
        """Write the record for the first time, remove the oldest ones, and keep writing."""
        self._safely(self._store.prune)
        self._write()
        self._thread.start()

    def expect(self, total: int) -> None:
        """Say how many trials there will be."""
        with self._lock:
            self._record = self._record.model_copy(update={"total": total})

    def made(self, artifact: str | None, note: str | None = None) -> None:
        """Say which artefact came of it, and what else is to be known."""
        with self._lock:
            self._record = self._record.model_copy(update={"artifact": artifact, "note": note})

    def tell(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Take results of ended trials; some may be told again."""
        self._take(results, done=True)

    def follow(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Take results so far of trials that go on."""
        self._take(results, done=False)

    def _take(self, results: Sequence[Mapping[str, Any]], *, done: bool) -> None:
        for result in results:
            self._safely(self._take_one, result, done)

    def _take_one(self, result: Mapping[str, Any], done: bool) -> None:  # noqa: FBT001 (passed on)
        trials = self._read(result)
        with self._lock:
            at_s = round(max(0.0, time.time() - self._record.started_unix_s), 1)
            for trial in trials:
                key = json.dumps(trial.setting, sort_keys=True)
                if key in self._trials and self._trials[key].done:
                    continue
                self._trials[key] = _plain(trial).model_copy(update={"done": done, "at_s": at_s})
                self._changed = True
                if done:
                    self._ended.append(self._trials[key])

    def end(self, state: Written, note: str | None = None) -> None:
        """Write the record for the last time."""
        self._over.set()
        self._thread.join()
        with self._lock:
            told = {"state": state, "ended_unix_s": time.time()} | ({"note": note[:NOTE_CHARS]} if note else {})
            self._record = self._record.model_copy(update=told)
        self._unsaved = True  # the last record is whole, whatever came of those before
        self._write()
        self._safely(self._events.close)
        if self._sent is not None:
            self._safely(self._sent.close)

    def _keep_writing(self) -> None:
        while not self._over.wait(_WRITE_S):
            self._write()

    def _write(self) -> None:
        """Write the record, with the trials where the store has others, and tell how far the sweep is."""
        with self._writing:
            with self._lock:
                trials, changed, self._changed = tuple(self._trials.values()), self._changed, False
                ended, self._ended = self._ended, []
                shown = kept(trials, self._record)
                told = self._progress(trials) | {"updated_unix_s": time.time(), "kept": len(shown)}
                record = self._record = self._record.model_copy(update=told)
            self._unsaved |= changed
            if self._safely(self._store.write, record, shown if self._unsaved else None):
                self._unsaved = False
            if changed:
                self._safely(self._gauges.set, record.done, record.total, record.best)
                self._safely(self._write_events, record, ended)
        self._print_line(record)

    def _write_events(self, record: SweepRecord, ended: Sequence[Trial]) -> None:
        for trial in ended:
            self._events.trial(trial)
        self._events.progress(record.done, record.total, record.best)
        if self._sent is not None:
            self._sent.send()

    def _progress(self, trials: Sequence[Trial]) -> dict[str, Any]:
        metric, mode = self._record.metric, self._record.mode
        return {
            "done": sum(trial.done for trial in trials),
            "total": max(self._record.total, len(trials)),
            "best": mean_best(best_of(trials, metric, mode), metric),
        }

    def _print_line(self, record: SweepRecord) -> None:
        """Print how far the sweep is where no progress bar does, as in the log of a submitted job."""
        now = time.time()
        if console.is_terminal or now - self._line_at < _LINE_S:
            return
        self._line_at = now
        best = "" if record.best is None else f", best {record.metric} {record.best:.4g}"
        line = f"{record.sweep} {record.id}: {record.done} of {record.total or '?'} trials{best}"
        console.print(line, markup=False, soft_wrap=True)

    def _safely(self, work: Callable[..., object], *arguments: object) -> bool:
        """Do what must not end the sweep, and say whether it was done; the first of failures in a row is told."""
        try:
            work(*arguments)
        except Exception as err:  # noqa: BLE001 (whatever it is: a store's hiccup, a full disk)
            if work not in self._failing:
                self._failing.add(work)
                log.warning("sweep_not_recorded", id=self.id, error=f"{type(err).__name__}: {err}"[:300])
            return False
        self._failing.discard(work)
        return True


class _SentFolder:
    """A folder of this machine whose files, which only grow, are put into a folder of a remote store.

    Args:
        store: the remote one.
        target: the folder there.
    """

    def __init__(self, store: ArtifactStore, target: str) -> None:
        self._fs, self._target = store.fs, target
        self._folder = tempfile.TemporaryDirectory(prefix="mmd-sweep-")
        self.path = Path(self._folder.name)
        self._sizes: dict[Path, int] = {}

    def send(self) -> None:
        """Put what has changed, all at once where the store's driver can."""
        sizes = {path: path.stat().st_size for path in self.path.rglob("*") if path.is_file()}
        changed = [path for path, size in sizes.items() if self._sizes.get(path) != size]
        targets = [f"{self._target}/{path.relative_to(self.path).as_posix()}" for path in changed]
        self._fs.put([str(path) for path in changed], targets)
        self._sizes |= {path: sizes[path] for path in changed}

    def close(self) -> None:
        """Put the rest and remove the folder here."""
        with self._folder:
            self.send()


def _plain(trial: Trial) -> Trial:
    """Return a trial without numbers that JSON does not have, its curve thinned."""
    metrics = {name: value for name, value in trial.metrics.items() if math.isfinite(value)}
    curve = thinned([point for point in trial.curve if math.isfinite(point[1])])
    return trial.model_copy(update={"metrics": metrics, "curve": curve})


def submission_id() -> str | None:
    """Return the id under which the cluster knows the job that this process runs; None for no submitted job."""
    try:
        told = json.loads(os.environ.get(_JOB_VARIABLE, "{}"))
        found = told["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(found)
