"""Records of sweeps in a store: written whole, capped in number, found again by id."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from mmd.artifacts import ArtifactStore
from mmd.errors import ArtifactError
from mmd.sweeps.types import SweepName, SweepRecord, Trial, best_of

FOLDER = ".sweeps"
SWEEP_FILE = "sweep.json"
TRIALS_FILE = "trials.json"
EVENTS_FOLDER = "tensorboard"
ID_VARIABLE = "MMD_SWEEP_ID"
"""In the environment of a job that the service launched: the id under which it follows the sweep."""
MAX_RECORDS = 200
"""Records of ended sweeps that a store keeps, the newest."""
MAX_TRIALS = 2_000
MAX_POINTS = 200
"""Points of a trial's curve that are kept, evenly thinned."""
_RUNNING_S = 86_400.0  # a job that is held in a debugger gives no sign of life, and is not gone
_ID = re.compile(rf"[0-9]{{8}}-[0-9]{{6}}-({'|'.join(get_args(SweepName))})-[0-9a-f]{{8}}")
_TRIALS = TypeAdapter(tuple[Trial, ...])

T = TypeVar("T")


def new_id(sweep: SweepName, now: datetime | None = None) -> str:
    """Return an id that no other sweep has; ids sort by time."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{sweep}-{secrets.token_hex(4)}"


def is_id(text: str) -> bool:
    """Say whether a text is of the form that :func:`new_id` gives; nothing else is ever part of a path."""
    return bool(_ID.fullmatch(text))


def sweep_of(sweep_id: str) -> SweepName:
    """Return which sweep an id names.

    Raises:
        ArtifactError: it is no id.
    """
    found = _ID.fullmatch(sweep_id)
    names: tuple[SweepName, ...] = get_args(SweepName)
    for name in names:
        if found and found[1] == name:
            return name
    raise ArtifactError(f"{sweep_id[:80]!r}: not the id of a sweep; those are as 20260131-235959-conkd-01ab23cd.")


def started_at(sweep_id: str) -> float:
    """Return when the sweep of an id was begun or launched, seconds since 1970.

    Raises:
        ArtifactError: it is no id, or names no time.
    """
    sweep_of(sweep_id)
    try:
        return datetime.strptime(sweep_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError as err:
        raise ArtifactError(f"{sweep_id!r}: does not begin with a time ({err}).") from err


class SweepStore:
    """The records of a store.

    Args:
        store: whose ``.sweeps`` folder has them.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._root = f"{store.root}/{FOLDER}"

    def folder(self, sweep_id: str) -> str:
        """Return the folder of a record, as the store's file system names it.

        Raises:
            ArtifactError: it is no id.
        """
        sweep_of(sweep_id)
        return f"{self._root}/{sweep_id}"

    def ids(self) -> list[str]:
        """Return the ids of all records, newest first."""
        names = (path.rsplit("/", 1)[-1] for path in self.store.subdirs(self._root))
        return sorted(filter(is_id, names), reverse=True)

    def exists(self, sweep_id: str) -> bool:
        """Say whether there is a record."""
        return bool(self.store.fs.exists(f"{self.folder(sweep_id)}/{SWEEP_FILE}"))

    def read(self, sweep_id: str) -> SweepRecord:
        """Return a record.

        Raises:
            ArtifactError: there is none, or it is not legible.
        """
        data = self._bytes(sweep_id, SWEEP_FILE)
        try:
            return SweepRecord.model_validate_json(data)
        except ValidationError as err:
            raise self._illegible(sweep_id, SWEEP_FILE, err) from err

    def trials(self, sweep_id: str) -> tuple[Trial, ...]:
        """Return what is known of a sweep's trials, in the order in which they were first heard of.

        Raises:
            ArtifactError: there is no such record, or it is not legible.
        """
        if not self.store.fs.exists(f"{self.folder(sweep_id)}/{TRIALS_FILE}"):
            return ()
        try:
            return _TRIALS.validate_json(self._bytes(sweep_id, TRIALS_FILE))
        except ValidationError as err:
            raise self._illegible(sweep_id, TRIALS_FILE, err) from err

    def write(self, record: SweepRecord, trials: Sequence[Trial] | None = None) -> None:
        """Write a record, and its trials where they changed; each file is exchanged whole.

        Raises:
            OSError: the store cannot be written.
        """
        folder = self.folder(record.id)
        self.store.fs.makedirs(folder, exist_ok=True)
        if trials is not None:
            self.store.put(f"{folder}/{TRIALS_FILE}", _TRIALS.dump_json(tuple(trials)))
        self.store.put(f"{folder}/{SWEEP_FILE}", record.model_dump_json(indent=2).encode() + b"\n")

    def beyond(self, keep: int = MAX_RECORDS) -> list[str]:
        """Return the ids of ended sweeps older than the ``keep`` newest records."""
        return [sweep_id for sweep_id in self.ids()[keep:] if not self._may_run(sweep_id)]

    def prune(self, keep: int = MAX_RECORDS) -> None:
        """Remove the oldest records of ended sweeps; those that are left are ``keep``."""
        for sweep_id in self.beyond(keep):
            self.store.remove(self.folder(sweep_id))

    def _may_run(self, sweep_id: str) -> bool:
        """Say whether a record is of a sweep that says it runs; such a one was interrupted, if it is old."""
        try:
            record = self.read(sweep_id)
        except ArtifactError:
            return False
        age_s = datetime.now(UTC).timestamp() - record.updated_unix_s
        return record.state == "running" and age_s < _RUNNING_S

    def _bytes(self, sweep_id: str, name: str) -> bytes:
        try:
            return bytes(self.store.fs.cat_file(f"{self.folder(sweep_id)}/{name}"))
        except FileNotFoundError:
            raise ArtifactError(
                f"{sweep_id}: store {self.store.uri} has no such sweep; it keeps the newest {MAX_RECORDS} records."
            ) from None

    def _illegible(self, sweep_id: str, name: str, err: ValidationError) -> ArtifactError:
        where = f"{self.folder(sweep_id)}/{name}"
        return ArtifactError(f"{where}: not a record of this mmd ({err.error_count()} faults); remove its folder.")


def thinned(points: Sequence[T], most: int = MAX_POINTS) -> tuple[T, ...]:
    """Return at most so many of a curve's points, evenly chosen, first and last among them."""
    if len(points) <= most:
        return tuple(points)
    step = (len(points) - 1) / (most - 1)
    return tuple(points[round(i * step)] for i in range(most))


def kept(trials: Sequence[Trial], record: SweepRecord, most: int = MAX_TRIALS) -> tuple[Trial, ...]:
    """Return at most so many trials: the groups' bests, then the first ones, in their order."""
    if len(trials) <= most:
        return tuple(trials)
    best = {id(trial) for trial in best_of(trials, record.metric, record.mode).values()}
    left = most - min(most, len(best))
    chosen: list[Trial] = []
    for trial in trials:
        if id(trial) in best and len(chosen) < most:
            chosen.append(trial)
        elif left > 0:
            chosen.append(trial)
            left -= 1
    return tuple(chosen[:most])
