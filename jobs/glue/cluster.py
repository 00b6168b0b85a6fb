"""Reaching Ray: join the cluster a job was submitted to, or start a local one and stop it afterwards."""

from __future__ import annotations

import contextvars
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.glue.nodes import growing_to
from jobs.glue.stopping import own_sigterm
from jobs.glue.storage import require_shared_store
from mmd.config import ClusterSettings
from mmd.errors import MmdError

_held: contextvars.ContextVar[bool] = contextvars.ContextVar("held", default=False)
_store: contextvars.ContextVar[str | None] = contextvars.ContextVar("store", default=None)


@contextmanager
def ray_cluster(settings: ClusterSettings) -> Iterator[None]:
    """Connect to Ray for the length of the ``with``; an already connected process keeps its connection.

    Under ``ray job submit`` the job's own cluster is joined. A local cluster has more logical CPUs than
    cores, since actor pools that hold every CPU starve the tasks that feed them and hang silently.

    Raises:
        ClusterError: a node does not see the store of :func:`sharing`.
    """
    import ray

    with growing_to(settings.autoscaler_cpus):
        if ray.is_initialized():
            yield
            return
        _connect(settings)
        try:
            if (store := _store.get()) is not None:
                require_shared_store(store)
            yield
        finally:
            if not _held.get():
                ray.shutdown()


@contextmanager
def hold_cluster() -> Iterator[None]:
    """Keep the cluster that an inner :func:`ray_cluster` reaches first until this ``with`` ends.

    Nothing starts unless a step needs Ray, and steps that follow each other share one cluster.
    """
    import ray

    mine = not _held.get() and not ray.is_initialized()
    token = _held.set(True)
    try:
        yield
    finally:
        _held.reset(token)
        if mine and ray.is_initialized():
            ray.shutdown()


@contextmanager
def sharing(store: str) -> Iterator[None]:
    """Let every :func:`ray_cluster` that connects within this ``with`` check first that all nodes see a store."""
    token = _store.set(store)
    try:
        yield
    finally:
        _store.reset(token)


def joins(settings: ClusterSettings) -> bool:
    """Say whether a cluster that is there already is joined, as by a submitted job, and not a local one started."""
    return bool(settings.address or os.environ.get("RAY_ADDRESS"))


def _connect(settings: ClusterSettings) -> None:
    import ray

    # The default health interval adds about 8 s to every fit of Ray Train.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    with own_sigterm():
        if joins(settings):
            ray.init(address=settings.address, log_to_driver=False)
            return
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a private cluster on the loopback interface
        with busy_machine():
            _start(settings)


@contextmanager
def busy_machine() -> Iterator[None]:
    """Say in words that Ray gave up starting: it waits 30 s for its own processes, which a loaded machine exceeds.

    Raises:
        MmdError: Ray did not start in its time.
    """
    try:
        yield
    except Exception as err:
        if "timed out during startup" not in str(err):
            raise
        raise MmdError(
            "Ray did not start within its 30 s, so this machine is very busy; try again when less runs on it, or "
            "join a cluster with cluster.address."
        ) from err


def _start(settings: ClusterSettings) -> None:
    import ray

    ray.init(
        address="local",  # else a cluster that somebody started on this machine would be taken, and refuse the sizes
        num_cpus=settings.logical_cpus,
        object_store_memory=settings.object_store_mb * 2**20,
        include_dashboard=settings.dashboard,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


@contextmanager
def quiet_logger(name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Hush one of Ray's loggers below a level; failures are raised, logging them too would double them."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def quiet_data() -> Iterator[None]:
    """Run Ray Data without its own bars and banners; jobs show progress in their own units."""
    from ray.data import DataContext

    data_context = DataContext.get_current().copy()
    data_context.enable_progress_bars = False
    data_context.print_on_execution_start = False
    data_context.raise_original_map_exception = True
    # The newer reader of Parquet starts sixteen processes for each dataset and worker, only to read files' footers.
    data_context.use_datasource_v2 = False
    with quiet_logger("ray.data", logging.CRITICAL), DataContext.current(data_context):
        yield


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raise an :class:`MmdError` that a worker met as itself, without the trace of how it got here."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as err:
        cause = own_error(err)
        if cause is None:
            raise
        raise cause from None


def own_error(err: BaseException | None) -> MmdError | None:
    """Return the :class:`MmdError` that one of Ray's errors wraps, at whatever depth; none for other causes."""
    while err is not None and not isinstance(err, MmdError):
        err = getattr(err, "cause", None) or err.__cause__
    return err
