"""finetune_mllm: Ray Train with DeepSpeed learns what plain torch learns, whoever works and whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs.bench.zero import compare
from jobs.finetune_mllm import require_hints, run, task_entry
from jobs.glue.cluster import quiet_data
from jobs.glue.entry import JobContext
from jobs.glue.metric_logs import FragileLog, require_mlflow, scalars_of, write_events
from jobs.glue.placing import (
    HELD_OUT,
    POSITIONS,
    Pass,
    PlaceRows,
    TrainError,
    make_datasets,
    ordered_shards,
    placed_rows,
    plan_passes,
    read_rows,
)
from jobs.glue.train import RunPlace, remove_left_over, start_monitor, watch
from jobs.glue.tune import only_run
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import AppConfig, build_config
from mmd.errors import ConfigError
from mmd.intent.finetune import finetune_plain, key_of
from mmd.intent.mllm import HeldOutScore, load_held_out, load_mllm_classifiers
from mmd.intent.samples import FOLDER, ORIGINAL, SAMPLES, Sample, Samples, sample_from_row, sample_to_row
from mmd.intent.training_plan import Recipe, StepPlan, TrainingRun
from mmd.intent.types import IntentExample
from mmd.models.ahead import ahead
from mmd.schema import Turn
from tests.jobs.killing import steps_gone_on_after, training_worker, wait_for_checkpoints

ROOT = Path(__file__).resolve().parents[2]
NAME = "words"
WORDS = {"refund": "i want my money back", "season": "can i wear this in summer", "which size fits": "170 cm tall"}
LABELS = {"intent": tuple(WORDS)}
RUN = TrainingRun("intent-fold0", ("intent",), 0)
RECIPE = Recipe("full", 1.0, 0.0, 0.0, 1.0, epochs=3.0, batch=2, accumulate=1, workers=2)


def make_samples(n: int = 24) -> list[Sample]:
    labels = list(WORDS)
    out = []
    for i in range(n):
        label = labels[i % 3]
        example = IntentExample(f"d{i:02d}", "intent", label, (Turn("user", f"{WORDS[label]} {i % 4}"),))
        out.append(
            Sample(f"d{i:02d}", f"d{i:02d}", ORIGINAL, i // 3 % 4, f"{label} (5 of 6)" if i % 2 else "", example)
        )
    return out


def write_samples(store: ArtifactStore) -> Artifact:
    """Write a corpus that names the labels, and samples in shards of seven."""
    import pyarrow as pa

    with store.write("corpus", NAME, settings={}) as writer:
        writer.write_json("tasks.json", {task: list(labels) for task, labels in LABELS.items()})
    table = pa.Table.from_pylist([sample_to_row(sample) for sample in make_samples()], schema=SAMPLES)
    with store.write("samples", NAME, settings={}, inputs={"corpus": store.open(f"corpus/{NAME}")}) as writer:
        writer.write_table(FOLDER, table, rows_per_shard=7)
    return store.open(f"samples/{NAME}")


def make_config(store: Path, **finetune: object) -> AppConfig:
    return build_config(
        {
            "store": str(store),
            "data": {"corpus": {"name": NAME}},
            "models": {"mllm": "tiny-llama"},
            "intent": {"finetune": {"batch": 4, "epochs": 3.0, "checkpoint_every": 2, "threads": 1} | finetune},
        }
    )


def make_plan(n: int = 10) -> StepPlan:
    return StepPlan(tuple(key_of(sample) for sample in make_samples(n)), RECIPE, 0, 0.0)


# ---------------------------------------------------------------- order of the data


def test_a_set_that_fits_memory_is_read_once_for_all_epochs():
    assert plan_passes(make_plan(), row_bytes=10, budget=100) == [Pass(0, 32)]  # 8 steps of 4


def test_passes_of_a_larger_set_cover_every_position_in_whole_steps():
    """10 samples of 10 bytes, 4 a step by 2 workers of 45 bytes: 9 rows, so 2 steps a pass."""
    assert plan_passes(make_plan(), row_bytes=10, budget=45) == [Pass(i, i + 8) for i in (0, 8, 16, 24)]


def test_a_row_comes_once_to_each_worker_that_needs_it_with_all_its_positions():
    import pyarrow as pa

    plan = make_plan()
    table = pa.Table.from_pylist([sample_to_row(sample) for sample in make_samples(12)], schema=SAMPLES)
    placed = [PlaceRows(plan, Pass(0, 20), worker)(table).to_pylist() for worker in range(2)]
    places = {p: (worker, row["id"]) for worker, rows in enumerate(placed) for row in rows for p in row[POSITIONS]}
    assert places == {p: (p // 2 % 2, plan.keys[plan.sample(p)].id) for p in range(20)}
    assert PlaceRows(plan, Pass(0, 20), 0)(table.slice(10)).num_rows == 0  # samples that the run does not train on


def test_the_loader_works_ahead_in_order_and_hands_on_its_errors():
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("disk gone")

    loader = ahead(items(), 2)
    assert [next(loader) for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="disk gone"):
        next(loader)


@pytest.mark.ray
def test_each_worker_gets_its_own_samples_in_the_plans_order(tmp_path: Path, ray_local: None):
    samples = Samples(write_samples(ArtifactStore(str(tmp_path))))
    plan = make_plan()
    passes = [Pass(0, 20), Pass(20, 32)]
    config = ordered_shards(plan, passes, {HELD_OUT: [("intent", "d20"), ("intent", "d11")]})
    with quiet_data():
        workers = config.configure(make_datasets(samples.shards(), passes, [HELD_OUT]), 2)
        for rank, first_step in ((0, 0), (1, 3)):
            found = list(placed_rows(passes, workers[rank].__getitem__, plan, first_step, rank, sample_from_row))
            expected = [plan.micro_positions(step, 0, rank) for step in range(first_step, plan.total_steps)]
            assert [[position for position, _ in rows] for rows in found] == [list(each) for each in expected]
            assert all(sample.id == plan.keys[plan.sample(p)].id for rows in found for p, sample in rows)
        assert sorted(row["id"] for row in read_rows(workers[1][HELD_OUT])) == ["d11", "d20"]


@pytest.mark.ray
def test_samples_that_changed_under_a_run_are_noticed(tmp_path: Path, ray_local: None):
    samples = Samples(write_samples(ArtifactStore(str(tmp_path))))
    other = StepPlan(tuple(key_of(sample) for sample in make_samples(26)[20:]), RECIPE, 0, 0.0)
    passes = [Pass(0, 4)]
    with quiet_data():
        shards = ordered_shards(other, passes, {}).configure(make_datasets(samples.shards(), passes), 2)
        with pytest.raises(TrainError, match="Make them again"):
            for rank in range(2):
                list(placed_rows(passes, shards[rank].__getitem__, other, 0, rank, sample_from_row))


# ---------------------------------------------------------------- metrics and places


def test_equal_trainings_write_equal_tensorboard_files(tmp_path: Path):
    rows = [(1, scalars_of({"loss": 2.0, "rate": 0.1, "norm": 3.0, "validation": {"intent": 0.5}}))]
    assert set(rows[0][1]) == {"train/loss", "train/rate", "train/norm", "held_out_weighted_f1/intent"}
    for name in ("a", "b"):
        write_events(tmp_path / name, rows)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert b"train/loss" in (tmp_path / "a").read_bytes()


def test_mlflow_is_asked_for_only_where_it_is_installed():
    from importlib.util import find_spec

    require_mlflow(None)
    if find_spec("mlflow") is None:
        with pytest.raises(ConfigError, match="pip install mlflow"):
            require_mlflow("file:///tmp/runs")


def test_a_run_is_found_again_only_after_it_finished(tmp_path: Path):
    place = RunPlace(str(tmp_path), "run")
    assert place.finished() is None
    (tmp_path / "run" / "checkpoint_1").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint_1" / "state.json").write_text("{}")
    assert place.finished() is None
    place.finish("checkpoint_1")
    assert place.finished() == "checkpoint_1"
    place.fetch("checkpoint_1", str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "state.json").is_file()
    place.remove()
    assert not (tmp_path / "run").exists()


def test_hints_get_the_temperature_that_fits_the_dialogues_that_have_one():
    """All say 'a', right three times in four: by 10 nats without hint (T = 10 / ln 3), by 20 with (T = 20 / ln 3)."""
    golds = dict(zip("pqrstuvw", "aaabaaab", strict=True))
    scores = {
        key: HeldOutScore(fold=0, plain=(0.0, -10.0), hinted=(0.0, -20.0 if key in "pqrs" else -10.0)) for key in golds
    }
    entry = task_entry("it", ("a", "b"), scores, golds)
    assert entry.temperature == pytest.approx(10 / np.log(3), rel=1e-3)
    assert entry.hinted_temperature == pytest.approx(20 / np.log(3), rel=1e-3)


def test_without_hints_or_held_out_dialogues_there_is_nothing_to_fit():
    untold = {"p": HeldOutScore(fold=0, plain=(0.0, -1.0), hinted=(0.0, -1.0))}
    assert task_entry("it", ("a", "b"), untold, {"p": "a"}).hinted_temperature is None
    entry = task_entry("it", ("a", "b"), {}, {})
    assert (entry.temperature, entry.hinted_temperature) == (1.0, None)


def test_a_log_that_fails_is_told_once_and_then_left_alone(capsys: pytest.CaptureFixture[str]):
    sent = []

    def send(scalars: dict[str, float], step: int) -> None:
        sent.append(step)
        if step == 2:
            raise ConnectionError("server gone")

    fragile = FragileLog(send)
    for step in (1, 2, 3, 4):
        fragile.add(step, {"loss": 1.0})
    assert sent == [1, 2]
    assert capsys.readouterr().out.count("server gone") == 1


@pytest.mark.ray
def test_reports_that_fail_neither_stop_nor_hide_the_training(ray_local: None, capsys: pytest.CaptureFixture[str]):
    import ray

    def on_row(row: dict[str, object]) -> None:
        raise ConnectionError("server gone")

    monitor = start_monitor()
    with pytest.raises(TrainError, match="the training's own"), watch(monitor, "run", 2, on_row):
        ray.get(monitor.put.remote({"step": 1}))
        time.sleep(0.8)
        ray.get(monitor.put.remote({"step": 2}))
        raise TrainError("the training's own")
    assert capsys.readouterr().out.count("server gone") == 1
    with pytest.raises(ray.exceptions.RayActorError):
        for _ in range(100):  # the kill is asked for, and arrives when the machine has time
            ray.get(monitor.take.remote())
            time.sleep(0.1)


def test_samples_with_hints_of_another_number_are_refused(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    with store.write("samples", NAME, settings={"hints": 2}):
        pass
    context = JobContext(build_config({"store": str(tmp_path), "intent": {"prompt": {"hints": 1}}}))
    with pytest.raises(ConfigError, match=r"hints=1: samples/words@\w+ was made with 2; set it to 2, or run `mmd aug"):
        require_hints(context, store.open(f"samples/{NAME}"))


def test_a_left_over_run_goes_unless_somebody_is_at_it(tmp_path: Path):
    place = RunPlace(str(tmp_path / ".train"), "run")
    remove_left_over(place)
    assert not (tmp_path / ".train").exists()
    Path(place.path).mkdir(parents=True)
    with only_run(place.path):
        remove_left_over(place)
        assert place.exists()
    remove_left_over(place)
    assert not place.exists()


# ---------------------------------------------------------------- training


def read_losses(artifact: Artifact) -> list[float]:
    return [row["loss"] for row in artifact.read_json("training.json")["runs"]["intent-fold0"]["history"]]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "finetune",
    [{}, {"workers": 2, "batch": 2, "method": "lora", "lora": {"dropout": 0.0}, "deepspeed": {"stage": 3}}],
    ids=["one_worker_full", "two_workers_zero_3_lora"],
)
def test_the_job_learns_what_the_plain_call_learns(tmp_path: Path, ray_local: None, finetune: dict[str, object]):
    """Differences come from the order of sums: below 1e-4 of the loss."""
    samples = write_samples(ArtifactStore(str(tmp_path)))
    config = make_config(tmp_path, **finetune)
    adapter = run(JobContext(config))
    plain = finetune_plain(make_samples(), RUN, LABELS, config.intent, config.models, config.seed)
    assert read_losses(adapter) == pytest.approx([row["loss"] for row in plain.state.history], rel=1e-4)
    held_out = load_held_out(adapter, "intent")
    assert held_out is not None
    assert set(held_out.plain) == {s.id for s in make_samples() if s.fold == 0}
    classifier = load_mllm_classifiers(adapter, config.models)["intent"]
    asked = [sample.example for sample in make_samples() if sample.fold == 0]
    for example, answer in zip(asked, classifier.predict(asked), strict=True):
        assert answer.values == pytest.approx(held_out.plain[example.dialogue_id].values, abs=1e-4)
    assert adapter.manifest.inputs["samples"].startswith(samples.ref)
    assert run(JobContext(config)).manifest.created_unix_s == adapter.manifest.created_unix_s  # unchanged: skipped
    assert not list((tmp_path / ".train").glob("finetune*"))  # checkpoints are gone


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_zero_2_and_3_on_two_workers_learn_what_one_plain_worker_learns():
    """Equal global batch, float32: losses agree to 1e-4."""
    record = compare(stages=(0, 2, 3), workers=2, method="full", epochs=2.0, dialogues=90)
    for stage in ("0", "2", "3"):
        assert record["stages"][stage]["largest_relative_difference"] < 1e-4
        assert record["stages"][stage]["resumed_equals_uninterrupted"]


CHECKPOINT_EVERY = 10
JOB = "import sys; from jobs.glue.entry import main; from jobs.finetune_mllm import run; sys.exit(main('x', '', run))"


def start_job(store: Path, tmp_path: Path) -> subprocess.Popen[bytes]:
    sets = [
        f"store={store}",
        f"data.corpus.name={NAME}",
        "models.mllm=tiny-llama",
        "intent.finetune.batch=1",
        "intent.finetune.epochs=12",
        f"intent.finetune.checkpoint_every={CHECKPOINT_EVERY}",
        "intent.finetune.validate_every=4",
        "intent.finetune.threads=1",
    ]
    with (tmp_path / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", JOB, *(part for each in sets for part in ("--set", each))],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("whole")
    write_samples(ArtifactStore(str(folder / "store")))
    job = start_job(folder / "store", folder)
    assert job.wait(600) == 0, (folder / "log").read_text()
    return read_losses(ArtifactStore(str(folder / "store")).open(f"adapter/{NAME}"))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("victim", ["worker", "driver"])
def test_a_killed_run_ends_with_the_losses_of_an_uninterrupted_one(
    tmp_path: Path, uninterrupted: list[float], victim: str
):
    store = tmp_path / "store"
    write_samples(ArtifactStore(str(store)))
    job = start_job(store, tmp_path)
    wait_for_checkpoints(store, job, tmp_path / "log", 3 * CHECKPOINT_EVERY)
    if victim == "worker":
        training_worker(job).kill()
    else:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        job = start_job(store, tmp_path)
    assert job.wait(900) == 0, (tmp_path / "log").read_text()
    assert max(steps_gone_on_after((tmp_path / "log").read_text()), default=0) > 0  # not started over
    adapter = ArtifactStore(str(store)).open(f"adapter/{NAME}")
    assert read_losses(adapter) == uninterrupted
    assert json.loads(adapter.read_bytes("mllm.json"))["method"] == "full"
