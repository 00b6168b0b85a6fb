"""Runs of Ray Tune: one process each, nothing left after success wherever they are kept, begun anew with ``force``."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any

import fsspec
import pytest
import structlog

from jobs import mine_rules, sweep_gates
from jobs.glue import tune
from jobs.glue.entry import JobContext
from jobs.glue.tune import BatchError, keeping_runs, only_run, remove_run, tune_batches
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


@pytest.mark.ray
def test_results_that_were_never_written_are_found_again(tmp_path: Path, ray_local: None):
    runs, notes = tmp_path / "runs", tmp_path / "notes"
    notes.mkdir()
    (notes / "mended").touch()
    work = partial(tune_batches, unsure_worker, (str(notes),), [0, 1, 2])
    run = partial(work, storage=str(runs), name="sure", max_concurrent=1, title="t")
    with pytest.raises(OSError, match="disk is full"), keeping_runs():
        run()
        raise OSError("disk is full")
    with keeping_runs():
        assert [value["batch"] for value in run()] == [0, 1, 2]
    assert (notes / "log").read_text().split() == ["0", "1", "2"]
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


# ---------------------------------------------------------------- one process a run


def is_held(place: Path) -> bool:
    """Say whether somebody has the lock on a file that is on disk."""
    with place.open() as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_run_is_one_process_s_until_it_ends_and_then_anybody_s(tmp_path: Path):
    run, place = str(tmp_path / "runs" / "run"), tmp_path / "runs" / "run.lock"
    with only_run(run):
        assert is_held(place)
        with pytest.raises(BatchError, match="another process"), only_run(run):
            pass
        assert is_held(place)  # the refused one took nothing away
    assert not place.exists()
    with pytest.raises(OSError, match="disk full"), only_run(run):
        raise OSError("disk full")
    assert not place.exists()
    with only_run(run):
        pass


def test_the_lock_is_still_held_when_its_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    held, unlink = [], Path.unlink

    def watched(self: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 (pathlib's)
        held.append(is_held(self))
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    with only_run(str(tmp_path / "run")):
        pass
    assert held == [True]


@pytest.mark.parametrize("anew", [False, True], ids=["gone", "another_one_there"])
def test_a_lock_on_a_file_that_was_removed_meanwhile_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anew: object
):
    """As when its last holder ends between another's opening and locking of the file."""
    place, flock = tmp_path / "run.lock", fcntl.flock
    locked = []

    def late(file: IO[str], how: int) -> None:
        if not locked:
            place.unlink()
            if anew:
                place.touch()
        locked.append(file.fileno())
        flock(file, how)

    monkeypatch.setattr(tune.fcntl, "flock", late)
    with only_run(str(tmp_path / "run")):
        monkeypatch.setattr(tune.fcntl, "flock", flock)
        assert len(locked) == 2
        assert is_held(place)


def test_a_run_is_kept_until_what_is_made_of_it_is_written(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with pytest.raises(OSError, match="disk is full"), keeping_runs():
        tune._done_with(str(tmp_path / "one"))
        raise OSError("disk is full")
    assert (tmp_path / "one").exists()
    with keeping_runs():
        tune._done_with(str(tmp_path / "one"))
        assert (tmp_path / "one").exists()
    assert not (tmp_path / "one").exists()
    tune._done_with(str(tmp_path / "two"))  # nobody asked to keep it
    assert not (tmp_path / "two").exists()
