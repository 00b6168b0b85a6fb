"""``mmd submit`` against a real cluster that asks for a token: ends, exit codes, stopping, shared storage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmd.artifacts import Artifact, ArtifactStore
from tests.jobs.ray_heads import BIN, Head, Tunnel, can_hide_folders, head, node

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow]
SMALL = ("--corpus", "shop", "--set", "data.shop.dialogues=40", "--set", "data.shop.items=12")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head() as started:
        yield started


def submit(cluster: Head, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "mmd.cli", "submit", *words, "--address", cluster.address],
        cwd=ROOT,
        env=cluster.environment | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def job_of(cluster: Head, *words: str) -> str:
    done = submit(cluster, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state(cluster: Head, job_id: str) -> str:
    lines = submit(cluster, "--status", job_id).stdout.splitlines()
    return next(line.split(None, 1)[1] for line in lines if line.startswith("state"))


def wait_for(cluster: Head, job_id: str, wanted: str) -> None:
    until = time.monotonic() + 120
    while state(cluster, job_id) != wanted:
        assert time.monotonic() < until
        time.sleep(0.5)


def corpus(store: Path) -> Artifact:
    return ArtifactStore(str(store)).open("corpus/shop")


@pytest.fixture(scope="module")
def ingested(cluster: Head, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    store = tmp_path_factory.mktemp("submitted") / "store"
    done = submit(cluster, "ingest", *SMALL, "--set", f"store={store}", "--follow", "--env", "SECRET=s3cret")
    return done, store


def test_a_job_is_followed_to_its_end(ingested: tuple[subprocess.CompletedProcess[str], Path]):
    done, store = ingested
    assert done.returncode == 0, done.stdout + done.stderr
    job_id, *log = done.stdout.splitlines()
    assert job_id.startswith("ingest-")
    assert any(line.startswith(f"ingest: {corpus(store).ref} in ") for line in log)
    assert done.stderr.splitlines()[-1] == f"{job_id}: succeeded"
    assert "s3cret" not in done.stdout + done.stderr


def test_ray_job_submit_makes_the_same_artefact(
    cluster: Head, ingested: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
):
    command = [str(BIN / "ray"), "job", "submit", "--address", cluster.address, "--working-dir", "."]
    words = ["--", "python", "-m", "jobs.ingest", *SMALL, "--set", f"store={tmp_path}"]
    done = subprocess.run(
        [*command, *words], cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = corpus(ingested[1]).manifest, corpus(tmp_path).manifest
    assert ours.version == theirs.version
    assert ours.digest == theirs.digest


def run_code(cluster: Head, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python that reaches the cluster as a user's would."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_jobs_own_exit_code_comes_through(cluster: Head, tmp_path: Path):
    done = submit(
        cluster, "ingest", "--corpus", f"mine:chat={tmp_path}/none", "--set", f"store={tmp_path}/s", "--follow"
    )
    assert done.returncode == 2
    assert f"mmd ingest: {tmp_path}/none" in done.stdout
    assert "failed with exit code 2" in done.stderr


def test_any_exit_code_comes_through_and_code_runs_that_the_cluster_has(cluster: Head):
    """By the client itself: what no job of ours ends with, and an environment that reaches the command."""
    code = (
        "from jobs.glue.submission import JobServer; from jobs.glue.following import follow; import sys\n"
        f"server = JobServer({cluster.address!r})\n"
        "id = server.submit('odd', 'echo value=$GREETING; exit 3', code=None, environment={'GREETING': 'hello'})\n"
        "sys.exit(follow(server, id, lambda text: print(text, end=''), print).exit_code)\n"
    )
    done = run_code(cluster, code)
    assert done.returncode == 3, done.stderr
    assert "value=hello\n" in done.stdout


@pytest.fixture
def long_job(cluster: Head, tmp_path: Path) -> Iterator[str]:
    """A job that takes minutes."""
    words = ("--corpus", "shop", "--set", "data.shop.dialogues=40000", "--set", f"store={tmp_path}/store")
    job_id = job_of(cluster, "ingest", *words)
    wait_for(cluster, job_id, "running")
    yield job_id
    submit(cluster, "--stop", job_id)


def test_ctrl_c_leaves_the_job_running_and_stop_ends_it(cluster: Head, long_job: str):
    command = [sys.executable, "-m", "mmd.cli", "submit", "--logs", long_job, "--follow", "--address", cluster.address]
    with subprocess.Popen(
        command, cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline()  # the log's first line: it follows
        following.send_signal(signal.SIGINT)
        _, errors = following.communicate(timeout=60)
    assert following.returncode == 130
    assert f"{long_job} goes on. To end it: mmd submit --stop {long_job} --address {cluster.address}" in errors
    assert state(cluster, long_job) == "running"

    stopped = submit(cluster, "--stop", long_job)
    assert (stopped.returncode, stopped.stderr) == (0, f"{long_job}: stopped\n")
    assert submit(cluster, "--logs", long_job, "--follow").returncode == 143
    listed = submit(cluster, "--list").stdout
    assert long_job in listed.replace("\n", "")
    assert "stopped" in listed


def test_without_the_token_nothing_is_told(cluster: Head, tmp_path: Path):
    done = submit(cluster, "--list", RAY_AUTH_MODE="disabled", HOME=str(tmp_path))
    assert done.returncode == 2
    assert "the cluster asks for a token" in done.stderr
    wrong = submit(cluster, "--list", RAY_AUTH_TOKEN="f" * 64)
    assert wrong.returncode == 2
    assert "does not take this token" in wrong.stderr


def test_a_connection_that_is_cut_is_made_again(cluster: Head):
    """As when a port-forward ends and is started again: nothing is lost, nothing comes twice."""
    host, port = cluster.address.removeprefix("http://").split(":")
    code = (
        "from jobs.glue.submission import JobServer; from jobs.glue.following import follow; import sys\n"
        "server = JobServer(sys.argv[1])\n"
        "count = 'for i in $(seq 40); do echo line $i; sleep 0.5; done; exit 5'\n"
        "id = server.submit('count', count, code=None, environment={})\n"
        "sys.exit(follow(server, id, lambda text: print(text, end='', flush=True), print).exit_code)\n"
    )
    with (
        Tunnel(host, int(port)) as tunnel,
        subprocess.Popen(
            [sys.executable, "-c", code, tunnel.address],
            cwd=ROOT,
            env=cluster.environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as following,
    ):
        assert following.stdout is not None
        lines = []
        for line in following.stdout:
            lines.append(line.strip())
            if lines[-1] in {"line 3", "line 9"}:
                tunnel.cut()
    assert tunnel.cuts >= 2
    assert [line for line in lines if line.startswith("line ")] == [f"line {i}" for i in range(1, 41)]
    assert following.returncode == 5


def test_workers_are_counted_as_far_as_the_autoscaler_goes(cluster: Head):
    """Its limits are reported here in its place: a head without CPUs and up to eight workers of eight."""
    code = (
        "import ray\n"
        f"ray.init({cluster.gcs!r}, log_to_driver=False)\n"
        "from ray._private.worker import global_worker\n"
        "from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig\n"
        "from jobs.glue.nodes import worker_count\n"
        "before = worker_count()\n"
        "group = NodeGroupConfig(name='cpu', max_count=8, resources={'CPU': 8})\n"
        "report = global_worker.gcs_client.report_cluster_config\n"
        "report(ClusterConfig(node_group_configs=[group]).SerializeToString())\n"
        "print(before, worker_count())\n"
        "report(ClusterConfig().SerializeToString())\n"
        "print(worker_count() == before)\n"
    )
    done = run_code(cluster, code)
    cores = min(4, len(os.sched_getaffinity(0)))
    assert done.stdout.splitlines() == [f"{cores} 64", "True"], done.stderr


@pytest.mark.skipif(not can_hide_folders(), reason="this machine gives no process a view of its own of the files")
def test_a_node_that_does_not_see_the_store_is_found_before_work_starts(cluster: Head, tmp_path: Path):
    hidden, shared, chats = tmp_path / "hidden", tmp_path / "shared", tmp_path / "hidden" / "chats"
    chats.mkdir(parents=True)
    line = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]}
    (chats / "dialogues.jsonl").write_text(json.dumps(line) + "\n")
    with node(cluster, hiding=hidden):
        lost = submit(cluster, "ingest", *SMALL, "--set", f"store={hidden}/store", "--follow")
        assert lost.returncode == 2, lost.stdout + lost.stderr
        assert f"store {hidden}/store: 1 of 2 nodes does not see what this job writes there" in lost.stdout
        assert "Give --set store=s3://BUCKET/PREFIX, or mount one disk" in lost.stdout
        assert not list((hidden / "store").iterdir())

        unread = submit(cluster, "ingest", "--corpus", f"mine:chat={chats}", "--set", f"store={shared}", "--follow")
        assert unread.returncode == 2, unread.stdout + unread.stderr
        assert f"{chats}: 1 of 2 nodes does not see it" in unread.stdout

        seen = submit(cluster, "ingest", *SMALL, "--set", f"store={shared}", "--follow")
        assert seen.returncode == 0, seen.stdout + seen.stderr
    assert not list(shared.glob(".probe-*"))
