"""Batches of cheap work through Ray Tune: reused actors, one progress line, restore after an interruption."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import fsspec
import structlog

from jobs.glue.cluster import quiet_logger
from jobs.glue.progress import Advance, progress
from mmd.errors import MmdError

log = structlog.get_logger(__name__)
_finished: ContextVar[list[str] | None] = ContextVar("_finished", default=None)
Worker = Callable[[Any], list[dict[str, Any]]]

Tell = Callable[[list[dict[str, Any]]], None]
_RESTARTS = 2
"""Times a trial is started again after it failed: its node may be lost, and with it nothing but the trial's time."""

_advance: Advance | None = None
"""Moves the progress line of the run in this process. Callbacks are stored with a run, a terminal cannot be."""
_tell: Tell | None = None
"""Is given the results of each batch as it ends, in this process."""
_follow: Tell | None = None
"""Is given what trials report before they end."""


class BatchError(MmdError):
    """Some batches failed for good; the message quotes the first cause."""


def tune_batches(  # noqa: PLR0913 (where, how and what is told: each by name)
    make_worker: Callable[..., Worker],
    arguments: tuple[Any, ...],
    batches: Sequence[Any],
    *,
    storage: str,
    name: str,
    max_concurrent: int,
    title: str,
    force: bool = False,
    tell: Tell | None = None,
) -> list[dict[str, Any]]:
    """Run ``make_worker(*arguments)(batch)`` for every batch, a trial each; return all results in batch order.

    An actor makes its worker once and keeps it for all batches that it gets. A run of this name that was
    interrupted in this storage is restored: finished batches are not run again. After success its folder is removed.

    Args:
        make_worker: builds the worker inside an actor.
        arguments: its arguments, sent once through the object store.
        batches: what each call of the worker gets; results must be JSON-able.
        storage: folder or URI of Tune's runs.
        name: of this run: the same for the same work and for no other.
        max_concurrent: trials at a time.
        title: of the progress line.
        force: start anew, whatever an earlier run of this name left.
        tell: is given the results of each batch as it ends.

    Raises:
        BatchError: a batch failed.
    """
    import_tune()
    from ray import tune

    # Batches of another size are other work: a run that was cut differently must not be restored into this one.
    name = f"{name}-{hashlib.sha256(repr(list(batches)).encode()).hexdigest()[:8]}"
    parameters = {"make_worker": make_worker, "arguments": arguments, "batches": list(batches)}
    trainable = tune.with_resources(tune.with_parameters(_trainable(), **parameters), {"cpu": 1})
    config = tune.TuneConfig(max_concurrent_trials=max_concurrent, reuse_actors=True)
    return run_trials(trainable, len(batches), config, storage=storage, name=name, title=title, force=force, tell=tell)


def import_tune() -> None:
    """Set what Tune reads when it is imported."""
    # No CSV and TensorBoard files for each trial, no banner for each run.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's own handler stays after the run and swallows the next Ctrl-C, which then ends nothing.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")


def run_trials(  # noqa: PLR0913 (as above)
    trainable: Any,  # noqa: ANN401 (Tune's)
    count: int,
    config: Any,  # noqa: ANN401 (a ray.tune.TuneConfig)
    *,
    storage: str,
    name: str,
    title: str,
    force: bool = False,
    tell: Tell | None = None,
    follow: Tell | None = None,
) -> list[dict[str, Any]]:
    """Run ``count`` trials, numbered by ``index`` in their configuration; return what each reported last, in order.

    A run of this name that was interrupted in this storage is restored, unless ``force`` is on. After success, or at
    the end of :func:`keeping_runs`, its folder is removed: its name does not tell by which code it ran, so that a later
    run would pass its results on.

    Args:
        trainable: reports ``results``, a JSON list.
        count: of trials.
        config: scheduler, concurrency.
        storage: folder or URI of Tune's runs.
        name: of this run: the same for the same work and for no other.
        title: of the progress line.
        force: start anew, whatever an earlier run of this name left.
        tell: is given the results of each trial as it ends.
        follow: is given each trial's results so far whenever it reports them.

    Raises:
        BatchError: a trial failed.
    """
    from ray import tune

    if "://" not in storage:
        storage = str(Path(storage).absolute())
    path = f"{storage}/{name}"
    with only_run(path), quiet_logger("ray.tune"), _progress_line(title, count, tell, follow):
        if force:
            remove_run(path)
        if tune.Tuner.can_restore(path) and _has_snapshot(path):
            tuner = tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, restart_errored=True)
            # Finished trials are not reported again.
            _move(
                sum(
                    result.metrics is not None and "results" in result.metrics and bool(result.metrics.get("done"))
                    for result in _results(tuner.get_results())
                )
            )
        else:
            tuner = tune.Tuner(
                trainable,
                param_space={"index": tune.grid_search(list(range(count)))},
                tune_config=config,
                run_config=tune.RunConfig(
                    name=name,
                    storage_path=storage,
                    verbose=0,
                    callbacks=[_callback()],
                    failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                    checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                ),
            )
        results = _collect(tuner.fit(), count, path)
        _done_with(path)
    return results


def _done_with(path: str) -> None:
    finished = _finished.get()
    if finished is None:
        _tidy(path)
    else:
        finished.append(path)


@contextmanager
def keeping_runs() -> Iterator[None]:
    """Keep runs that succeed until this ``with`` ends well, by when what is made of their results is written.

    Where it ends by an error, or with the process, the next run of the same name finds their results.
    """
    finished: list[str] = []
    token = _finished.set(finished)
    try:
        yield
    finally:
        _finished.reset(token)
    for path in finished:
        _tidy(path)


def _has_snapshot(path: str) -> bool:
    """Say whether a run got as far as its first snapshot; one killed before is started afresh."""
    fs, root = _opened(path)
    return bool(fs.glob(f"{root}/experiment_state-*.json"))


def remove_run(path: str) -> None:
    """Remove what a run left in a folder, or under a URI; nothing happens where it left nothing."""
    fs, root = _opened(path)
    if fs.exists(root):
        fs.rm(root, recursive=True)


def _tidy(path: str) -> None:
    """Remove a run whose results are at hand; a store that lets nobody remove anything must not cost them."""
    try:
        remove_run(path)
    except Exception as err:  # noqa: BLE001 (drivers of stores raise what they like)
        told = f"{type(err).__name__}: {err}"[:300]
        log.warning("run_not_removed", path=path, error=told, advice="remove it, or the next run takes its results")


def _opened(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a run and the path there; Ray writes runs by a driver of its own, so look anew."""
    fs, root = fsspec.core.url_to_fs(path)
    fs.invalidate_cache()
    return fs, str(root)


@contextmanager
def only_run(path: str) -> Iterator[None]:
    """Hold a lock on a run in a local folder; the system drops it with the process, however that ends.

    For a URI this does nothing: object stores have no locks. Two processes at one run there write over each other's
    snapshots and remove each other's folder, and nobody is told; whoever starts them has to see to it that there is
    one. The service does for the sweeps that it launches, but for two that are launched in the same moment.

    Raises:
        BatchError: another process is at the same run.
    """
    if "://" in path:
        yield
        return
    place = Path(f"{path}.lock")
    place.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with place.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BatchError(
                    f"{path}: another process is at the same work; wait for it and run this again: it will find the "
                    "result."
                ) from None
            if not _is_at(lock, place):  # its last holder removed it meanwhile: others would lock another one
                continue
            try:
                yield
            finally:
                place.unlink(missing_ok=True)  # while it is held: nobody else's can be there
            return


def _is_at(file: IO[str], place: Path) -> bool:
    """Say whether an open file is the one that is there on disk."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False


def _collect(grid: Any, n_batches: int, path: str) -> list[dict[str, Any]]:  # noqa: ANN401 (ray.tune.ResultGrid)
    if grid.num_errors:
        cause = str(grid.errors[0]).strip().splitlines()[-1]
        raise BatchError(f"{grid.num_errors} of {n_batches} batches failed; the first: {cause} (details under {path})")
    found = {
        r.metrics["config"]["index"]: r.metrics["results"]
        for r in _results(grid)
        if r.metrics and "results" in r.metrics
    }
    if len(found) != n_batches:
        missing = n_batches - len(found)
        raise BatchError(f"{missing} of {n_batches} batches gave no result; remove {path} and run the command again.")
    return [value for _, batch in sorted(found.items()) for value in json.loads(batch)]


def _results(grid: Any) -> list[Any]:  # noqa: ANN401 (ray.tune.ResultGrid)
    return [grid[i] for i in range(len(grid))]


def _trainable() -> Any:  # noqa: ANN401 (a subclass of ray.tune.Trainable, which only Ray's import can name)
    from ray import tune

    class Batch(tune.Trainable):
        """One trial: one batch. The worker outlives it, since the actor is reused."""

        def setup(  # type: ignore[override]  # Tune passes with_parameters' values by name
            self,
            config: dict[str, Any],
            make_worker: Callable[..., Worker],
            arguments: tuple[Any, ...],
            batches: Sequence[Any],
        ) -> None:
            """Make the worker, once an actor."""
            self._index = config["index"]
            self._batches = batches
            self._work = make_worker(*arguments)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Go on with another batch."""
            self._index = new_config["index"]
            return True

        def step(self) -> dict[str, Any]:
            """Do the whole batch: it is the unit of restoring."""
            return {"results": json.dumps(self._work(self._batches[self._index])), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Keep nothing: the results are in the trial's report."""

        def load_checkpoint(self, checkpoint: Any) -> None:  # noqa: ANN401 (Tune's own type)
            """Load nothing."""

    return Batch


def _callback() -> Any:  # noqa: ANN401 (a subclass of ray.tune.Callback)
    from ray import tune

    class BatchDone(tune.Callback):
        """Passes on what trials report. It is stored with the run, so it refers to nothing but this module's names."""

        def on_trial_result(
            self,
            iteration: int,  # noqa: ARG002
            trials: list[Any],  # noqa: ARG002
            trial: Any,  # noqa: ANN401, ARG002
            result: dict[str, Any],
            **info: Any,  # noqa: ANN401, ARG002
        ) -> None:
            """Tell what a trial has come to so far."""
            _reported(result)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401, ARG002 (Tune's signature)
            """Count one batch, and tell what came of it."""
            _ended(trial.last_result)

    return BatchDone()


def _reported(result: dict[str, Any]) -> None:
    if _follow is not None and "results" in result:
        _follow(json.loads(result["results"]))


def _ended(result: dict[str, Any]) -> None:
    _move(1)
    if _tell is not None and "results" in result:
        _tell(json.loads(result["results"]))


def _move(steps: int) -> None:
    if _advance is not None and steps:
        _advance(steps)


@contextmanager
def _progress_line(title: str, total: int, tell: Tell | None, follow: Tell | None) -> Iterator[None]:
    global _advance, _tell, _follow  # noqa: PLW0603 (see their docstrings)
    with progress(title, total, "batches") as advance:
        _advance, _tell, _follow = advance, tell, follow
        try:
            yield
        finally:
            _advance = _tell = _follow = None
