"""Reaching Ray: join the cluster a job was submitted to, or start a local one and stop it afterwards."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mmd.config import ClusterSettings


@contextmanager
def ray_cluster(settings: ClusterSettings) -> Iterator[None]:
    """Connect to Ray for the length of the ``with``; an already connected process keeps its connection.

    Under ``ray job submit`` the job's own cluster is joined. A local cluster has more logical CPUs than
    cores, since actor pools that hold every CPU starve the tasks that feed them and hang silently.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    if settings.address or os.environ.get("RAY_ADDRESS"):
        ray.init(address=settings.address, log_to_driver=False)
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a private cluster on the loopback interface
        ray.init(
            num_cpus=settings.logical_cpus,
            object_store_memory=settings.object_store_mb * 2**20,
            include_dashboard=settings.dashboard,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()
