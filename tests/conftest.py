"""Fixtures shared by all tests: the real data folder, and one Ray cluster for the whole run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of third-party data beside the checkout; tests that need it skip without it."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data not found at {REAL_DATA}; see docs/data.md for where it comes from")
    return REAL_DATA


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray cluster a test run; more logical CPUs than cores, so that actor pools never starve."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    import ray

    ray.init(num_cpus=8, object_store_memory=512 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
