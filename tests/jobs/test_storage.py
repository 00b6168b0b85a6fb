"""Whether all nodes see what they share; nodes that do not: test_submit_cluster.py."""

import threading
import time
from pathlib import Path

import pytest

from jobs.glue.storage import look_on_nodes, missing, require_shared_store, require_visible
from mmd.errors import ArtifactError


def test_what_is_there_is_seen_at_once(tmp_path: Path):
    started = time.monotonic()
    assert missing([str(tmp_path)], patience_s=60) == []
    assert time.monotonic() - started < 10


def test_what_appears_late_is_waited_for(tmp_path: Path):
    late = tmp_path / "late"
    writer = threading.Timer(0.3, late.touch)
    writer.start()
    assert missing([str(tmp_path), str(late)], patience_s=30) == []
    writer.join()


def test_what_never_comes_is_told(tmp_path: Path):
    assert missing([str(tmp_path), str(tmp_path / "never")], patience_s=0) == [str(tmp_path / "never")]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_on_one_node_nothing_is_written_or_asked(tmp_path: Path):
    started = time.monotonic()
    require_shared_store(str(tmp_path / "store"))
    require_visible([tmp_path / "none"])
    assert not (tmp_path / "store").exists()
    assert time.monotonic() - started < 1


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_node_tells_what_it_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ray

    from jobs.glue import storage

    monkeypatch.setattr(storage, "_PATIENCE_S", 0.0)
    (node,) = ray.nodes()
    assert look_on_nodes([node], [str(tmp_path)]) == {}
    assert look_on_nodes([node], [str(tmp_path / "x")]) == {node["NodeID"]: f"no {tmp_path}/x"}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_store_is_probed_and_left_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two entries of one node stand for two nodes that share a disk."""
    import ray

    from jobs.glue import storage

    monkeypatch.setattr(storage, "alive_nodes", lambda: [*ray.nodes(), *ray.nodes()])
    require_shared_store(str(tmp_path / "store"))
    require_shared_store("memory://store")
    assert list((tmp_path / "store").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written"):
        require_shared_store(str(tmp_path / "file"))
