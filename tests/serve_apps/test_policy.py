"""The policy in the ingress: loaded, swapped without a restart, refused where it cannot be loaded."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmd.artifacts import Artifact, ArtifactStore
from mmd.assistant.loading import UNFITTED
from mmd.assistant.settings import AssistantSettings
from mmd.config import ServeSettings
from mmd.errors import ArtifactError
from serve_apps.policy import PolicySeat

SMALL = ServeSettings(max_replicas=1)


def test_a_policy_is_swapped_without_a_restart(full_store: Path, tmp_path: Path, make_policy: Callable[..., Artifact]):
    """From none to one to another; what cannot be loaded is refused and told, and the old one decides on."""
    shutil.copytree(full_store, tmp_path / "store")
    store = ArtifactStore(str(tmp_path / "store"))

    async def scenario() -> tuple[list[str], list[str | None]]:
        seat = PolicySeat(store.root, "tiny", SMALL, AssistantSettings())
        assert seat.served.degraded == ("policy: none is loaded yet",)
        await seat.reconfigure({"policy": None})
        assert seat.served.degraded == (UNFITTED,)
        first, second = make_policy(store, words="student"), make_policy(store, words="retrieval")
        words, rejected = [], []
        for ref in (first.ref, second.ref, "policy/tiny@missing", "corpus/tiny"):
            await seat.reconfigure({"policy": ref})
            words.append(seat.served.policy.plan.words)
            rejected.append((await seat.status()).rejected_update)
        assert seat.served.artifacts == {"policy": second.ref}
        return words, rejected

    words, rejected = asyncio.run(scenario())
    assert words == ["student", "retrieval", "retrieval", "retrieval"]
    assert rejected[:2] == [None, None]
    assert "policy/tiny@missing" in str(rejected[2])
    assert "fit_policy" in str(rejected[3])


def test_a_policy_that_is_asked_for_by_name_must_be_there_at_the_start(full_store: Path):
    seat = PolicySeat(str(full_store), "tiny", SMALL, AssistantSettings())
    with pytest.raises(ArtifactError, match="policy/tiny@1"):
        asyncio.run(seat.reconfigure({"policy": "policy/tiny@1"}))
