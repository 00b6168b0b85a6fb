"""Recording a sweep while it runs: state, trials, TensorBoard, log line; none of it can end the sweep."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from jobs.glue import sweeping
from jobs.glue.entry import JobContext
from jobs.glue.sweep_events import steps_of
from jobs.glue.sweeping import SweepRun, record_found, recorded, submission_id, with_space
from mmd.artifacts import ArtifactStore
from mmd.config import build_config
from mmd.errors import ArtifactError, ConfigError
from mmd.sweeps.store import ID_VARIABLE, SweepStore
from mmd.sweeps.types import SweepRecord, Trial

ROOT = Path(__file__).resolve().parents[2]
GIVEN = "20260131-235959-conkd-01ab23cd"


@pytest.fixture
def context(tmp_path: Path) -> JobContext:
    return JobContext(build_config({"store": str(tmp_path / "store"), "data": {"corpus": {"name": "tiny"}}}))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_WRITE_S", 0.02)


def read(result: Mapping[str, Any]) -> list[Trial]:
    curve = tuple((float(n + 1), value) for n, value in enumerate(result["curve"]))
    return [Trial(setting={"gamma": result["gamma"]}, metrics={"score": result["curve"][-1]}, curve=curve)]


def sweeps_of(context: JobContext) -> SweepStore:
    return SweepStore(context.store)


def wait_for(what: Any) -> None:
    until = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_sweep_is_seen_while_it_runs_and_after_it(context: JobContext):
    sweeps = sweeps_of(context)
    with recorded(context, "conkd", "abc", read) as run:
        told = sweeps.read(run.id)
        assert (told.state, told.total, told.done, told.best, told.corpus) == ("running", 0, 0, None, "tiny")
        assert told.space["recommend.sweep.gammas"] == [0.3, 0.6, 0.9]
        run.expect(3)
        run.follow([{"gamma": 0.3, "curve": [0.1]}])
        wait_for(lambda: sweeps.trials(run.id))
        [trial] = sweeps.trials(run.id)
        assert (trial.done, trial.curve) == (False, ((1.0, 0.1),))
        run.tell([{"gamma": 0.3, "curve": [0.1, 0.4]}, {"gamma": 0.6, "curve": [0.2]}])
        run.follow([{"gamma": 0.3, "curve": [0.9]}])  # late: it has ended
        wait_for(lambda: sweeps.read(run.id).done == 2)
        assert sweeps.read(run.id).best == 0.4
        run.made("gate/tiny-conkd@0123")
    told = sweeps.read(run.id)
    assert (told.state, told.total, told.done, told.kept, told.best) == ("done", 3, 2, 2, 0.4)
    assert (told.artifact, told.note, told.settings) == ("gate/tiny-conkd@0123", None, "abc")
    assert told.ended_unix_s is not None
    assert told.ended_unix_s >= told.started_unix_s
    assert [trial.setting["gamma"] for trial in sweeps.trials(run.id)] == [0.3, 0.6]


def test_results_that_are_told_again_at_the_end_change_nothing(context: JobContext):
    results = [{"gamma": 0.3, "curve": [0.5]}, {"gamma": 0.6, "curve": [0.2]}]
    with recorded(context, "conkd", "abc", read) as run:
        run.tell(results[:1])
        wait_for(lambda: sweeps_of(context).trials(run.id))
        before = sweeps_of(context).trials(run.id)
        run.tell(results)  # the second had ended before an interruption
    after = sweeps_of(context).trials(run.id)
    assert after[:1] == before
    assert len(after) == 2


@pytest.mark.parametrize(
    ("error", "state", "note"),
    [
        (KeyboardInterrupt(), "stopped", None),
        (ArtifactError("teacher/tiny: is gone."), "failed", "teacher/tiny: is gone."),
        (ValueError("a customer's words"), "failed", "ValueError; the job's log has more"),
    ],
)
def test_how_it_ended_is_told_and_words_of_bugs_are_not(
    context: JobContext, error: BaseException, state: str, note: str | None
):
    with pytest.raises(type(error)), recorded(context, "conkd", "abc", read) as run:
        raise error
    told = sweeps_of(context).read(run.id)
    assert (told.state, told.note) == (state, note)


def test_numbers_that_json_does_not_have_are_left_out(context: JobContext):
    with recorded(context, "conkd", "abc", read) as run:
        run.tell([{"gamma": 0.3, "curve": [0.5, float("inf")]}, {"gamma": 0.6, "curve": [0.2]}])
    worse, better = sweeps_of(context).trials(run.id)
    assert (worse.metrics, worse.curve) == ({}, ((1.0, 0.5),))
    assert sweeps_of(context).read(run.id).best == better.metrics["score"] == 0.2


def test_a_store_that_cannot_be_written_does_not_end_the_sweep(context: JobContext, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(SweepStore, "write", refuse)
    monkeypatch.setattr(SweepStore, "prune", refuse)
    with recorded(context, "conkd", "abc", read) as run:
        run.tell([{"gamma": 0.3, "curve": [0.5]}, {"unread": "by the reader"}])
    assert not sweeps_of(context).exists(run.id)


def test_trials_that_could_not_be_written_are_written_the_next_time(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
):
    write, failed = SweepStore.write, []

    def fail_once(self: SweepStore, record: SweepRecord, trials: Sequence[Trial] | None = None) -> None:
        if trials and not failed:
            failed.append(record)
            raise OSError("store away")
        write(self, record, trials)

    monkeypatch.setattr(SweepStore, "write", fail_once)
    with recorded(context, "conkd", "abc", read) as run:
        run.tell([{"gamma": 0.3, "curve": [0.5]}])
        wait_for(lambda: sweeps_of(context).trials(run.id))
        assert len(failed) == 1
        assert sweeps_of(context).read(run.id).done == 1


def test_the_last_record_has_its_trials_whatever_became_of_those_before(context: JobContext):
    with recorded(context, "conkd", "abc", read) as run:
        run.tell([{"gamma": 0.3, "curve": [0.5]}])
        wait_for(lambda: sweeps_of(context).trials(run.id))
        context.store.fs.rm(f"{sweeps_of(context).folder(run.id)}/trials.json")  # by whoever tidies a bucket
    told = sweeps_of(context).read(run.id)
    assert (told.state, told.kept, len(sweeps_of(context).trials(run.id))) == ("done", 1, 1)


def test_the_first_of_failures_in_a_row_is_told_and_again_after_a_success(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
):
    fate = iter([OSError("store away"), OSError("store away"), None, OSError("store away"), OSError("still"), None])

    def write(*_: Any) -> None:
        if error := next(fate):
            raise error

    monkeypatch.setattr(SweepStore, "write", write)
    run = SweepRun(context, sweeping.KINDS["conkd"], "abc", read)
    with structlog.testing.capture_logs() as logs:
        for _ in range(6):
            run._write()
    assert [(log["event"], log["error"]) for log in logs] == [("sweep_not_recorded", "OSError: store away")] * 2


def test_a_launched_sweep_has_the_id_that_it_was_given_once(context: JobContext, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ID_VARIABLE, GIVEN)
    ids = []
    for sweep in ("conkd", "conkd", "rules"):
        with recorded(context, sweep, "abc", read) as run:  # type: ignore[arg-type]
            ids.append(run.id)
    assert ids[0] == GIVEN
    assert len(set(ids)) == 3
    monkeypatch.setenv(ID_VARIABLE, "../../elsewhere")
    assert SweepRun(context, sweeping.KINDS["conkd"], "abc", read).id.startswith("20")


def test_what_was_made_before_is_told_to_those_who_launched_it(context: JobContext, monkeypatch: pytest.MonkeyPatch):
    with context.store.write("gate", "tiny-conkd", settings={}) as writer:
        writer.write_json("conkd.json", {})
    artifact = context.store.open("gate/tiny-conkd")
    record_found(context, "conkd", "abc", artifact)
    assert sweeps_of(context).ids() == []
    monkeypatch.setenv(ID_VARIABLE, GIVEN)
    record_found(context, "conkd", "abc", artifact)
    told = sweeps_of(context).read(GIVEN)
    assert (told.state, told.artifact, told.total) == ("done", artifact.ref, 0)
    assert told.note is not None
    assert "had made this before" in told.note


def test_the_job_of_the_cluster_is_named(monkeypatch: pytest.MonkeyPatch):
    name = "RAY_JOB_CONFIG_JSON_ENV_VAR"
    monkeypatch.delenv(name, raising=False)
    assert submission_id() is None
    for text in ("{", "[]", '{"metadata": null}', '{"metadata": {}}'):
        monkeypatch.setenv(name, text)
        assert submission_id() is None
    monkeypatch.setenv(name, json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert submission_id() == "raysubmit_1"


def test_a_file_with_a_space_is_laid_over_the_settings(context: JobContext, tmp_path: Path):
    path = tmp_path / "space.yaml"
    path.write_text("intent: {search: {rollouts: 7}}\n")
    changed = with_space(JobContext(context.config, options={"space": path}), "rules")
    assert changed.config.intent.search.rollouts == 7
    assert changed.config.store == context.config.store
    assert with_space(context, "rules") is context
    with pytest.raises(ConfigError, match="no setting that sweep gates searches"):
        with_space(JobContext(context.config, options={"space": path}), "gates")


def test_progress_is_printed_where_no_bar_is(context: JobContext, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweeping, "_LINE_S", 0.0)
    with recorded(context, "conkd", "abc", read) as run:
        run.expect(4)
        run.tell([{"gamma": 0.3, "curve": [0.5]}])
    assert f"conkd {run.id}: 1 of 4 trials, best score 0.5" in capsys.readouterr().out


# ---------------------------------------------------------------- TensorBoard


def events_in(path: Path) -> list[Any]:
    """Return the events of a file; a record is length, its checksum, bytes, their checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_tensorboard_has_a_run_a_trial_with_settings_and_curve_and_the_sweeps_own(context: JobContext):
    with recorded(context, "conkd", "abc", read) as run:
        run.expect(2)
        run.tell([{"gamma": 0.3, "curve": [0.25, 0.5]}, {"gamma": 0.6, "curve": [0.125]}])
    folder = Path(sweeps_of(context).folder(run.id)) / "tensorboard"
    runs = sorted(path.name for path in folder.glob("trial-*"))
    assert runs == ["trial-0001", "trial-0002"]
    values = [v for event in events_in(folder / "trial-0001" / "events.tfevents") for v in event.summary.value]
    assert [v.tag for v in values[:3]] == [
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    ]
    assert b"gamma" in values[1].metadata.plugin_data.content
    assert [(v.tag, v.simple_value) for v in values[3:]] == [("score", 0.25), ("score", 0.5), ("score", 0.5)]
    [own] = folder.glob("events.out.tfevents.*")
    best = [v.simple_value for event in events_in(own) for v in event.summary.value if v.tag == "sweep/best_score"]
    assert best[-1] == 0.5


def test_places_between_zero_and_one_become_hundredths():
    assert steps_of([(0.0, 1.0), (0.25, 2.0), (1.01, 3.0)]) == [(0, 1.0), (25, 2.0), (101, 3.0)]
    assert steps_of([(1.0, 5.0), (2.0, 6.0)]) == [(1, 5.0), (2, 6.0)]


def test_a_remote_store_gets_the_event_files_while_the_sweep_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = build_config({"store": f"memory://{tmp_path.name}", "data": {"corpus": {"name": "tiny"}}})
    store = ArtifactStore(config.store)
    with recorded(JobContext(config), "conkd", "abc", read) as run:
        folder = f"{SweepStore(store).folder(run.id)}/tensorboard"
        run.tell([{"gamma": 0.3, "curve": [0.25]}])
        wait_for(lambda: store.fs.exists(f"{folder}/trial-0001/events.tfevents"))
        run.tell([{"gamma": 0.6, "curve": [0.5]}])
    assert store.fs.exists(f"{folder}/trial-0002/events.tfevents")
    [own] = store.fs.glob(f"{folder}/events.out.tfevents.*")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "own").write_bytes(store.fs.cat_file(own))
    values = [v for event in events_in(tmp_path / "own") for v in event.summary.value]
    assert [v.simple_value for v in values if v.tag == "sweep/best_score"][-1] == 0.5


EXPORTED = """
import sys, time, urllib.request
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
from jobs.glue.entry import JobContext
from jobs.glue.sweeping import recorded
from mmd.config import build_config
from mmd.sweeps.types import Trial
context = JobContext(build_config({"store": sys.argv[1], "data": {"corpus": {"name": "tiny"}}}))
url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
read = lambda told: [Trial(setting={"gamma": 1}, metrics={"score": told["score"]})]
with recorded(context, "conkd", "abc", read) as run:
    run.expect(5)
    run.tell([{"score": 0.25}])
    until = time.monotonic() + 120
    while time.monotonic() < until:
        text = urllib.request.urlopen(url, timeout=30).read().decode()
        found = [line for line in text.splitlines() if line.startswith("ray_mmd_sweep") and run.id in line]
        if len(found) == 3:
            break
        time.sleep(1)
print("\\n".join(sorted(line.partition("{")[0] + " " + line.rsplit(" ", 1)[1] for line in found)))
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.ray
def test_gauges_are_among_the_metrics_that_ray_exports(tmp_path: Path):
    command = [sys.executable, "-c", EXPORTED, str(tmp_path / "store")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.stdout.split("\n")[:3] == [
        "ray_mmd_sweep_best 0.25",
        "ray_mmd_sweep_trials 5.0",
        "ray_mmd_sweep_trials_done 1.0",
    ], done.stderr[-2000:]
