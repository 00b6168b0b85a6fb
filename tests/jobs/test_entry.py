"""The frame of a job: command line, exit codes, what is printed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.glue.entry import JobContext, corpus_overrides, main, warn_of_passing_store, with_options
from jobs.glue.progress import progress
from mmd.artifacts import Artifact
from mmd.config import AppConfig
from mmd.errors import ConfigError, CorpusError


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray_config.yaml").write_text("store: s\n")
    monkeypatch.chdir(tmp_path)


def write_report(context: JobContext) -> Artifact:
    """The smallest job: one file, one metric."""
    if found := context.existing("report", {"seed": context.config.seed}, {}, {}):
        return found
    with context.store.write("report", context.name, settings={"seed": context.config.seed}) as writer:
        writer.write_json("report.json", {})
        writer.metrics["rows"] = 7
    return context.store.open(f"report/{context.name}")


@pytest.mark.parametrize(
    ("option", "name", "reader", "path"),
    [
        ("taobao=../data/taobao", "taobao", "taobao", '"../data/taobao"'),
        ("mine:chat=chats", "mine", "chat", '"chats"'),
        ("shop", "shop", "shop", "null"),
        (r"mine:chat=C:\a=b", "mine", "chat", r'"C:\\a=b"'),
    ],
)
def test_the_corpus_option_sets_name_reader_and_path(option: str, name: str, reader: str, path: str):
    assert corpus_overrides(option) == [
        f"data.corpus.name={name}",
        f"data.corpus.reader={reader}",
        f"data.corpus.path={path}",
    ]


def test_a_corpus_without_a_name_is_refused():
    assert corpus_overrides(None) == []
    with pytest.raises(ConfigError, match="write NAME=PATH"):
        corpus_overrides("=folder")


def test_a_job_prints_what_it_made(capsys: pytest.CaptureFixture[str]):
    assert main("report", "doc", write_report, argv=[]) == 0
    said = capsys.readouterr().out
    assert "report/shop@" in said
    assert "rows" in said
    assert "7" in said


def test_of_many_metrics_the_first_are_printed_and_the_rest_is_pointed_to(capsys: pytest.CaptureFixture[str]):
    def run(context: JobContext) -> Artifact:
        with context.store.write("report", context.name, settings={}) as writer:
            writer.metrics = {f"m{n:02}": n for n in range(40)}
        return context.store.open(f"report/{context.name}")

    assert main("report", "doc", run, argv=[]) == 0
    said = capsys.readouterr().out
    assert "m15" in said
    assert "m16" not in said
    assert "… and 24 more: mmd artifacts show report/shop@" in said


def test_an_override_reaches_the_job():
    seen: list[AppConfig] = []

    def run(context: JobContext) -> Artifact:
        seen.append(context.config)
        return write_report(context)

    assert main("report", "doc", run, argv=["--set", "seed=5", "--corpus", "mine:chat=x"]) == 0
    assert (seen[0].seed, seen[0].data.corpus.reader, seen[0].data.corpus.path) == (5, "chat", "x")


def test_a_users_mistake_is_one_message_and_code_2(capsys: pytest.CaptureFixture[str]):
    def run(_: JobContext) -> Artifact:
        raise CorpusError("folder: no [records]; check data.corpus.path.")

    assert main("report", "doc", run, argv=[]) == 2
    assert capsys.readouterr().out.strip() == "mmd report: folder: no [records]; check data.corpus.path."
    assert main("report", "doc", write_report, argv=["--set", "sed=5"]) == 2
    assert "Did you mean 'seed'?" in capsys.readouterr().out


def test_a_bug_keeps_its_traceback():
    def run(_: JobContext) -> Artifact:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main("report", "doc", run, argv=[])


def test_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str]):
    def run(_: JobContext) -> Artifact:
        raise KeyboardInterrupt

    assert main("report", "doc", run, argv=[]) == 130
    assert "run the same command again" in capsys.readouterr().out


WAITING_JOB = """
import signal, sys, time
from jobs.glue.cluster import ray_cluster
from jobs.glue.entry import main

def run(context):
    print("waiting", flush=True)
    time.sleep(300)

def run_on_ray(context):
    with ray_cluster(context.config.cluster):
        return run(context)

if "ignore" in sys.argv:  # as a shell's background jobs do
    signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.exit(main("wait", "doc", run_on_ray if "ray" in sys.argv else run, argv=[]))
"""


def terminated(*words: str) -> tuple[int, list[str], str]:
    """Send SIGTERM to a job that waits; return its exit code, the lines it prints afterwards, and its error output."""
    command = [sys.executable, "-c", WAITING_JOB, *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.terminate()
        said, errors = process.communicate(timeout=120)
    return process.returncode, said.splitlines(), errors


@pytest.mark.parametrize("words", [(), ("ignore",), pytest.param(("ray",), marks=[pytest.mark.ray, pytest.mark.slow])])
def test_sigterm_ends_a_job_as_an_interruption_does(words: tuple[str, ...]):
    code, said, errors = terminated(*words)
    assert code == 143
    assert said == ["mmd wait: terminated; run the same command again to resume."]
    assert "SIGTERM received" not in errors  # the native dump


def test_what_exists_is_reused_unless_forced():
    context = JobContext(AppConfig(store="s"))
    first = write_report(context)
    assert write_report(context).manifest == first.manifest
    assert JobContext(AppConfig(store="s"), force=True).existing("report", {"seed": 0}, {}, {}) is None


def test_options_are_laid_over_those_of_the_command_line():
    context = JobContext(AppConfig(), options={"until": "ingest", "show": 1})
    merged: dict[str, Any] = dict(with_options(context, show=3).options)
    assert merged == {"until": "ingest", "show": 3}


def test_progress_is_silent_away_from_a_terminal(capsys: pytest.CaptureFixture[str]):
    with progress("read", 2, "parts") as advance:
        advance(records=10, bad=0)
        advance(records=5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("store", "in_job", "told"),
    [
        ("artifacts", "yes", "yes"),
        ("/data/artifacts", "yes", "no"),
        ("s3://b/store", "yes", "no"),
        ("artifacts", "no", "no"),
    ],
)
def test_a_store_that_goes_with_the_jobs_code_is_told(
    store: str, in_job: str, told: str, capsys: pytest.CaptureFixture[str]
):
    folder = Path("/ray/session/runtime_resources/working_dir_files/pkg" if in_job == "yes" else "/home/me/mmd")
    warn_of_passing_store(store, folder)
    assert ("store=" in capsys.readouterr().out) is (told == "yes")


def test_going_back_to_earlier_settings_leaves_the_artefact_that_was_asked_for():
    first = write_report(JobContext(AppConfig(store="s", seed=1)))
    write_report(JobContext(AppConfig(store="s", seed=2)))
    again = JobContext(AppConfig(store="s", seed=1))
    write_report(again)
    assert again.open("report").ref == first.ref
