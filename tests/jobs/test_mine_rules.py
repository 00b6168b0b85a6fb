"""mine_rules: the searches spread by Ray Tune are the plain ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.bench import mcts
from jobs.glue.entry import JobContext
from jobs.glue.tune import BatchError, tune_batches
from jobs.mine_rules import batch_units, mine
from mmd.config import AppConfig, build_config
from mmd.intent.miner import SearchUnit, in_order, join, mine_task
from mmd.intent.types import IntentExample
from mmd.schema import Turn

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"refund": "我要退款", "season": "夏天能穿吗", "size": "多大尺码"}


def make_examples(n: int = 24) -> list[IntentExample]:
    labels = list(WORDS)
    return [
        IntentExample(f"d{i:02d}", "intent", labels[i % 3], (Turn("user", f"{WORDS[labels[i % 3]]}{i % 4}"),))
        for i in range(n)
    ]


def make_config(store: Path) -> AppConfig:
    search = {"rollouts": 30, "seeds": 2, "rules_per_search": 5}
    return build_config(
        {"store": str(store), "intent": {"folds": 2, "search": search}, "tune": {"searches_per_trial": 2}}
    )


def test_a_batch_never_spans_two_folds():
    units = [SearchUnit("t", 0, fold, label) for fold in range(2) for label in "abc"]
    assert [[f"{u.fold}{u.label}" for u in batch] for batch in batch_units(units, 2)] == [
        ["0a", "0b"],
        ["0c"],
        ["1a", "1b"],
        ["1c"],
    ]


@pytest.mark.ray
def test_searches_through_tune_give_the_base_of_the_plain_call(tmp_path: Path, ray_local: None):
    config, examples = make_config(tmp_path), in_order(make_examples())
    mined, metrics = mine(JobContext(config), {"intent": examples}, {"intent": {}}, run_name="congruence")
    plain = mine_task(examples, config.intent, config.seed)
    assert join(mined).to_yaml() == join([plain]).to_yaml()
    assert mined[0].firings == plain.firings
    assert metrics["intent searches"] == 12
    assert not list(tmp_path.glob(".tune/*"))  # nothing is left behind


def failing_worker(message: str) -> Callable[[int], list[dict[str, object]]]:
    def work(batch: int) -> list[dict[str, object]]:
        if batch == 1:
            raise ValueError(message)
        return [{"batch": batch}]

    return work


def kind_worker() -> Callable[[int], list[dict[str, object]]]:
    return lambda batch: [{"batch": batch}]


@pytest.mark.ray
def test_ctrl_c_after_a_run_of_tune_does_what_it_did_before(tmp_path: Path, ray_local: None):
    before = signal.getsignal(signal.SIGINT)
    tune_batches(kind_worker, (), [1], storage=str(tmp_path), name="kind", max_concurrent=1, title="t")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.ray
def test_a_batch_that_fails_is_told_with_its_cause(tmp_path: Path, ray_local: None):
    with pytest.raises(BatchError, match=r"1 of 3 batches failed.*deliberate"):
        tune_batches(
            failing_worker, ("deliberate",), [0, 1, 2], storage=str(tmp_path), name="f", max_concurrent=2, title="t"
        )


def dying_worker(marks: str) -> Callable[[int], list[dict[str, object]]]:
    """Die of SIGKILL at the first attempt of batch 1, as by the loss of the node."""

    def work(batch: int) -> list[dict[str, object]]:
        died = Path(marks) / "died"
        if batch == 1 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [{"batch": batch}]

    return work


@pytest.mark.ray
def test_a_batch_whose_process_is_lost_is_done_again(tmp_path: Path, ray_local: None):
    marks, runs = tmp_path / "marks", tmp_path / "runs"
    marks.mkdir()
    found = tune_batches(
        dying_worker, (str(marks),), [0, 1, 2], storage=str(runs), name="lost", max_concurrent=1, title="t"
    )
    assert (marks / "died").exists()
    assert [value["batch"] for value in found] == [0, 1, 2]


def test_the_benchmark_counts_distinct_conjunctions():
    record = mcts.run({"sizes": [500], "predicates": 20, "rollouts": 40, "repeats": 1})
    assert record["sizes"]["500"]["evaluations"] >= 20


SLOW_RUN = """
import sys, time, pathlib
sys.path.insert(0, {root!r})
from jobs.glue.cluster import ray_cluster
from jobs.glue.tune import tune_batches
from mmd.config import ClusterSettings

def make(log):
    def work(batch):
        time.sleep(1.0)
        with open(log, "a") as handle:
            handle.write(f"{{batch}}\\n")
        return [{{"batch": batch}}]
    return work

with ray_cluster(ClusterSettings()):
    out = tune_batches(make, ({log!r},), list(range(40)), storage={storage!r}, name="slow", max_concurrent=2, title="t")
print("RESULT", [value["batch"] for value in out])
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_killed_midway_goes_on_where_it_stopped(tmp_path: Path):
    log = tmp_path / "log"
    code = SLOW_RUN.format(root=str(ROOT), log=str(log), storage=str(tmp_path / "runs"))
    environment = os.environ | {"TUNE_GLOBAL_CHECKPOINT_S": "1"}
    first = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not log.exists() or len(log.read_text().split()) < 12:
        time.sleep(0.5)
        assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = len(log.read_text().split())
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert f"RESULT {list(range(40))}" in done.stdout
    again = len(log.read_text().split()) - before
    assert again <= 40 - before + 6  # the last ones before the kill may run twice
