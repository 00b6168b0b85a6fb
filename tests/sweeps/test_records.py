"""Records of sweeps: written whole, read back, capped, and honest about sweeps that are gone."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import fsspec
import pytest

from mmd.artifacts import ArtifactStore
from mmd.artifacts.cleaning import gc
from mmd.errors import ArtifactError
from mmd.sweeps.store import MAX_POINTS, MAX_TRIALS, SweepStore, is_id, kept, new_id, sweep_of, thinned
from mmd.sweeps.types import LOST_S, SweepRecord, Trial, best_of, mean_best, state_at


def record(sweep_id: str = "20260131-235959-conkd-01ab23cd", **changes: object) -> SweepRecord:
    values = {
        "id": sweep_id,
        "sweep": sweep_of(sweep_id),
        "corpus": "shop",
        "state": "done",
        "metric": "f1",
        "mode": "max",
        "axis": None,
        "space": {"recommend.sweep.gammas": [0.3, 0.9]},
        "settings": "abc",
        "started_unix_s": 100.0,
        "updated_unix_s": 100.0,
    }
    return SweepRecord.model_validate(values | changes)


def trial(n: int, f1: float, group: str = "") -> Trial:
    return Trial(setting={"gamma": n}, group=group, metrics={"f1": f1}, curve=((1.0, f1 / 2), (2.0, f1)))


@pytest.fixture(params=["local", "memory"])
def sweeps(request: pytest.FixtureRequest, tmp_path: Path) -> SweepStore:
    uri = str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"
    if request.param == "memory":
        fs = fsspec.filesystem("memory")
        fs.store.clear()
    return SweepStore(ArtifactStore(uri))


def test_a_record_and_its_trials_are_read_back_as_they_were_written(sweeps: SweepStore):
    trials = (trial(1, 0.25), trial(2, 0.5))
    sweeps.write(record(), trials)
    assert sweeps.read(record().id) == record()
    assert sweeps.trials(record().id) == trials
    sweeps.write(record(total=4))  # the trials stay
    assert sweeps.read(record().id).total == 4
    assert sweeps.trials(record().id) == trials
    assert sweeps.ids() == [record().id]


def test_ids_sort_by_time_and_name_their_sweep():
    early, late = (new_id("rules", datetime(2026, 1, day, 12, 30, tzinfo=UTC)) for day in (3, 20))
    assert early < late
    assert early.startswith("20260103-123000-rules-")
    assert sweep_of(late) == "rules"
    assert is_id(new_id("text_fraction"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "20260131-235959-conkd-01ab23cd/..",
        "20260131-235959-conkd-01ab23cd\n",
        "20260131-235959-other-01ab23cd",
        "20260131-235959-conkd-01AB23CD",
        "2026٠131-235959-conkd-01ab23cd",
    ],
)
def test_what_is_no_id_never_becomes_a_path(sweeps: SweepStore, text: str):
    assert not is_id(text)
    for ask in (sweeps.read, sweeps.trials, sweeps.exists, sweeps.folder):
        with pytest.raises(ArtifactError, match="not the id of a sweep"):
            ask(text)


def test_a_record_that_is_not_there_or_illegible_is_told(sweeps: SweepStore):
    with pytest.raises(ArtifactError, match="has no such sweep"):
        sweeps.read(record().id)
    sweeps.write(record(), ())
    sweeps.store.put(f"{sweeps.folder(record().id)}/sweep.json", b'{"id": 3')
    sweeps.store.put(f"{sweeps.folder(record().id)}/trials.json", b"[3]")
    with pytest.raises(ArtifactError, match="remove its folder"):
        sweeps.read(record().id)
    with pytest.raises(ArtifactError, match="remove its folder"):
        sweeps.trials(record().id)


def test_a_running_sweep_without_a_sign_of_life_was_interrupted():
    running = record(state="running")
    assert state_at(running, 100.0 + LOST_S) == "running"
    assert state_at(running, 100.1 + LOST_S) == "interrupted"
    assert state_at(record(), 1e9) == "done"


def test_the_oldest_records_of_ended_sweeps_go_and_running_ones_stay(sweeps: SweepStore):
    ids = [f"2026010{day}-000000-rules-0000000{day}" for day in range(1, 6)]
    for sweep_id in ids:
        sweeps.write(record(sweep_id), ())
    sweeps.write(record(ids[0], state="running", updated_unix_s=time.time()))
    sweeps.prune(keep=2)
    assert sweeps.ids() == [ids[4], ids[3], ids[0]]


def test_gc_removes_what_is_beyond_the_cap_and_what_has_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmd.artifacts.cleaning.MAX_RECORDS", 2)
    store = ArtifactStore(str(tmp_path))
    sweeps = SweepStore(store)
    for day in (1, 2):
        sweeps.write(record(f"2026010{day}-000000-rules-00000000"), ())
    stray = tmp_path / ".sweeps" / "20260103-000000-rules-00000000"
    (stray / "tensorboard").mkdir(parents=True)
    first = [leftover.path.rsplit("/", 1)[1] for leftover in gc(store, dry_run=True)]
    assert first == ["20260101-000000-rules-00000000"]  # the one without a record is new
    gc(store)
    assert sweeps.ids() == ["20260103-000000-rules-00000000", "20260102-000000-rules-00000000"]
    gc(store, min_age_s=-1.0)
    assert sweeps.ids() == ["20260102-000000-rules-00000000"]


def test_the_best_is_told_by_group_and_averaged_over_groups():
    trials = [trial(1, 0.2, "a"), trial(2, 0.6, "a"), trial(3, 0.4, "b"), trial(4, 0.6, "a")]
    best = best_of(trials, "f1", "max")
    assert {group: found.setting["gamma"] for group, found in best.items()} == {"a": 2, "b": 3}
    assert mean_best(best, "f1") == pytest.approx(0.5)
    assert best_of(trials, "f1", "min")["a"].setting["gamma"] == 1
    assert mean_best(best_of(trials, "loss", "min"), "loss") is None


def test_a_long_curve_is_thinned_evenly_with_both_ends():
    points = [(float(i), 0.0) for i in range(10_001)]
    few = thinned(points)
    assert len(few) == MAX_POINTS
    assert (few[0], few[-1]) == (points[0], points[-1])
    gaps = {b[0] - a[0] for a, b in pairwise(few)}
    assert max(gaps) - min(gaps) <= 1
    assert thinned(points[:3]) == tuple(points[:3])


def test_of_too_many_trials_the_best_and_the_first_are_kept():
    trials = [trial(n, n / 10_000) for n in range(MAX_TRIALS + 50)]
    few = kept(trials, record())
    assert len(few) == MAX_TRIALS
    assert few[-1] == trials[-1]
    assert few[:-1] == tuple(trials[: MAX_TRIALS - 1])
