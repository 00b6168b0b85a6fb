"""Runs of Ray Tune and what they leave: nothing after success, wherever they are kept, and anew with ``force``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import structlog

from jobs import mine_rules, sweep_gates
from jobs.glue import tune
from jobs.glue.entry import JobContext
from jobs.glue.tune import BatchError, remove_run, tune_batches
from mmd.config import build_config


def unsure_worker(folder: str) -> Callable[[int], list[dict[str, Any]]]:
    """Note each batch in a log; fail at batch 1 until a file says that the fault is mended."""

    def work(batch: int) -> list[dict[str, Any]]:
        if batch == 1 and not (Path(folder) / "mended").exists():
            raise ValueError("deliberate")
        with (Path(folder) / "log").open("a") as log:
            log.write(f"{batch}\n")
        return [{"batch": batch}]

    return work


@pytest.mark.ray
@pytest.mark.parametrize(
    ("scheme", "options", "done"),
    [("", {}, [0, 1, 2]), ("file://", {"force": True}, [0, 0, 1, 2, 2])],
    ids=["folder", "uri_forced"],
)
def test_a_run_that_failed_goes_on_or_with_force_starts_anew_and_leaves_nothing(
    tmp_path: Path,
    scheme: str,
    options: dict[str, bool],
    done: list[int],
    ray_local: None,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(tune, "_RESTARTS", 0)
    runs, notes = tmp_path / "runs", tmp_path / "notes"
    notes.mkdir()
    work = partial(tune_batches, unsure_worker, (str(notes),), [0, 1, 2])
    run = partial(work, storage=f"{scheme}{runs}", name="unsure", max_concurrent=1, title="t")
    with pytest.raises(BatchError, match="deliberate"):
        run()
    assert list(runs.iterdir()) != []
    (notes / "mended").touch()
    assert [value["batch"] for value in run(**options)] == [0, 1, 2]
    assert sorted(map(int, (notes / "log").read_text().split())) == done
    assert list(runs.iterdir()) == []


def test_a_run_is_removed_wherever_it_is_kept(tmp_path: Path):
    for root in (str(tmp_path), f"file://{tmp_path}", f"memory://{tmp_path.name}"):
        fs, folder = fsspec.core.url_to_fs(root)
        for run in ("old", "other"):
            fs.makedirs(f"{folder}/{run}/trial", exist_ok=True)
            fs.pipe_file(f"{folder}/{run}/trial/result.json", b"{}")
        remove_run(f"{root}/old")
        assert not fs.exists(f"{folder}/old")
        assert fs.exists(f"{folder}/other/trial/result.json")
        remove_run(f"{root}/old")  # is gone already


def test_results_are_not_lost_where_nothing_may_be_removed(monkeypatch: pytest.MonkeyPatch):
    def refuse(path: str) -> None:
        raise PermissionError("AccessDenied: s3:DeleteObject")

    monkeypatch.setattr(tune, "remove_run", refuse)
    with structlog.testing.capture_logs() as logs:
        tune._tidy("s3://bucket/.tune/run")
    assert [(log["event"], log["path"]) for log in logs] == [("run_not_removed", "s3://bucket/.tune/run")]


def test_forced_sweeps_start_their_runs_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    for job in (mine_rules, sweep_gates):
        monkeypatch.setattr(job, "ray_cluster", lambda _: nullcontext())
        monkeypatch.setattr(job, "tune_batches", lambda *_, force, **__: asked.append(force) or [])
    for force in (False, True):
        context = JobContext(build_config({"store": str(tmp_path)}), force=force)
        mine_rules.mine(context, {}, {}, run_name="r")
        sweep_gates.sweep(context, {}, run_name="r")
    assert asked == [False, False, True, True]
