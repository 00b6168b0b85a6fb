"""``mmd submit`` against a server that fails in every way; against a real cluster: test_submit_cluster.py."""

import socket
from pathlib import Path

import pytest
from aiohttp import web

from jobs.glue import following, submission
from jobs.glue.following import follow
from jobs.glue.submission import JobServer, LostContactError, SubmittedJob, address_of, shown
from jobs.submit import environment_of, main
from mmd.cli import main as mmd
from mmd.errors import ClusterError, ConfigError
from tests.jobs.job_server import Script, serving


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*submission.ADDRESS_VARIABLES, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(following, "_PAUSE_S", 0.01)
    monkeypatch.chdir(tmp_path)


def text_server(status: int, text: str) -> Script:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    return Script(answer=answer)


def failing(script: Script) -> str:
    with serving(script) as address, pytest.raises(ClusterError) as told:
        JobServer(address)
    assert address in str(told.value)
    return str(told.value)


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("given", "variables", "address"),
    [
        (None, {}, "http://127.0.0.1:8265"),
        ("head:8265", {}, "http://head:8265"),
        ("https://ray.example/", {"RAY_ADDRESS": "http://other:8265"}, "https://ray.example"),
        (None, {"RAY_ADDRESS": "http://a:1", "RAY_API_SERVER_ADDRESS": "http://b:2"}, "http://b:2"),
        (None, {"RAY_ADDRESS": "auto"}, "auto"),
    ],
)
def test_the_address_is_the_option_then_the_environment_then_this_machine(
    given: str | None, variables: dict[str, str], address: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert address_of(given) == address


@pytest.mark.parametrize("given", ["ray://head:10001", "http://", "ftp://head"])
def test_an_address_that_is_no_dashboards_is_refused(given: str):
    with pytest.raises(ClusterError, match="jobs are sent to the dashboard, as http://HEAD:8265"):
        address_of(given)


def test_the_option_wins_over_the_variables_that_ray_prefers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    script = Script()
    with serving(script) as address:
        assert JobServer(address).job("ingest-1").status == "SUCCEEDED"


def test_a_password_in_the_address_is_not_told():
    assert shown("https://me:pw@ray.example/x") == "https://…@ray.example/x"
    with pytest.raises(LostContactError) as told:
        JobServer("http://me:s3cret@127.0.0.1:9")
    assert "s3cret" not in str(told.value)


# ---------------------------------------------------------------- failures in words


def test_nobody_there_is_told_with_the_ways_to_reach_a_cluster():
    with pytest.raises(LostContactError, match=r"127\.0\.0\.1:9: no Ray dashboard .*port-forward .*ray dashboard"):
        JobServer("http://127.0.0.1:9")


def test_another_service_is_no_dashboard():
    assert "something answers there that is no Ray dashboard" in failing(text_server(200, "<html>hello</html>"))
    assert "something answers there that is no Ray dashboard" in failing(text_server(200, '{"status": "ok"}'))
    assert "404" in failing(text_server(404, "nothing"))


def test_a_missing_and_a_wrong_token_are_told_apart():
    assert "asks for a token. Put the cluster's token into RAY_AUTH_TOKEN" in failing(text_server(401, "Unauthorized"))
    assert "does not take this token" in failing(text_server(403, "Forbidden"))


def test_a_token_that_lies_ready_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    submission._use_token_if_there_is_one()
    assert "RAY_AUTH_MODE" not in submission.os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("x" * 40)
    submission._use_token_if_there_is_one()
    assert submission.os.environ["RAY_AUTH_MODE"] == "token"


def test_a_server_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submission, "_TIMEOUTS_S", (0.5, 0.5))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(LostContactError, match="timed out"):
        JobServer(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_an_error_of_the_server_is_told_by_its_last_words():
    script = Script()
    with serving(script) as address:
        server = JobServer(address)
        script.answer = text_server(500, "Traceback\n" + "  frame\n" * 200 + "RuntimeError: no space left").answer
        with pytest.raises(LostContactError, match=r"answered 500: … .*RuntimeError: no space left$"):
            server.job("ingest-1")


def test_a_cluster_that_cannot_start_jobs_is_told_with_where_to_look():
    script = Script()
    with serving(script) as address:
        server = JobServer(address)
        script.answer = text_server(500, "No available agent to submit job, please try again later.").answer
        with pytest.raises(LostContactError, match=r"please try again later\. If that stays so, dashboard_agent\.log"):
            server.job("ingest-1")


def test_an_unknown_job_is_told_with_the_way_to_find_it():
    with serving(Script()) as address, pytest.raises(ClusterError, match="Job x does not exist; `mmd submit --list`"):
        JobServer(address).job("x")


# ---------------------------------------------------------------- following


@pytest.fixture
def log() -> list[str]:
    return []


def followed(script: Script, log: list[str], **options: float) -> tuple[SubmittedJob, list[str]]:
    notes: list[str] = []
    with serving(script) as address:
        job = follow(JobServer(address), "ingest-1", log.append, notes.append, **options)
    return job, notes


def test_a_log_is_written_as_it_comes(log: list[str]):
    job, _ = followed(Script(), log)
    assert "".join(log) == "one\ntwo\nthree\n"
    assert len(log) == 4
    assert (job.status, job.exit_code) == ("SUCCEEDED", 0)


def test_a_broken_stream_is_taken_up_where_it_broke(log: list[str]):
    script = Script(breaks=[5, 2, 9], statuses=["RUNNING"] * 3 + ["FAILED"], exit_code=3)
    job, _ = followed(script, log)
    assert "".join(log) == "one\ntwo\nthree\n"
    assert job.exit_code == 3
    assert sum(request.endswith("/tail") for request in script.seen) == 4


def test_the_end_of_a_log_is_fetched_when_its_stream_is_silent(log: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "_SILENCE_S", 0.05)
    job, _ = followed(Script(silent=True, statuses=["RUNNING", "RUNNING", "SUCCEEDED"]), log)
    assert "".join(log) == "one\ntwo\nthree\n"
    assert job.ended


def test_a_cluster_that_comes_back_is_followed_on(log: list[str]):
    job, notes = followed(Script(errors=4, statuses=["RUNNING", "SUCCEEDED"]), log)
    assert job.ended
    assert "".join(log) == "one\ntwo\nthree\n"
    assert notes == ["lost contact with the cluster, trying again for 300 s …"]


def test_a_cluster_that_stays_away_is_given_up_and_the_job_is_not_called_failed(log: list[str]):
    script = Script()
    with serving(script) as address:
        server = JobServer(address)
    with pytest.raises(ClusterError, match=r"ingest-1 may still be running, but .* no Ray dashboard answers"):
        follow(server, "ingest-1", log.append, log.append, patience_s=0.1)


def test_an_unknown_job_is_not_waited_for(log: list[str]):
    with serving(Script()) as address, pytest.raises(ClusterError, match="does not exist"):
        follow(JobServer(address), "other", log.append, log.append)


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 3, 3),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_the_exit_code_is_what_a_shell_would_say(status: str, driver: int | None, code: int):
    assert SubmittedJob("x", status, "true", driver_exit_code=driver).exit_code == code


# ---------------------------------------------------------------- the command


def test_the_list_has_submitted_jobs_alone_and_no_secrets(capsys: pytest.CaptureFixture[str]):
    with serving(Script(statuses=["FAILED"], exit_code=3)) as address:
        assert main(["--list", "--address", address]) == 0
    said = capsys.readouterr().out
    [line] = said.splitlines()  # a job, whatever its command
    assert line.split("\t")[:2] == ["ingest-1", "failed with exit code 3"]
    assert "own.py" not in said
    assert "s3cret" not in said


def test_status_tells_how_a_job_stands(capsys: pytest.CaptureFixture[str]):
    with serving(Script(statuses=["FAILED"], exit_code=3)) as address:
        assert main(["--status", "ingest-1", "--address", address]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "job          ingest-1",
        "state        failed with exit code 3",
        "since (UTC)  1970-01-01 00:00:01",
        "took         3 s",
        "command      python -m jobs.ingest",
        "as scripted",
    ]


def test_following_a_log_ends_with_the_jobs_exit_code(capsys: pytest.CaptureFixture[str]):
    with serving(Script(statuses=["FAILED"], exit_code=3)) as address:
        assert main(["--logs", "ingest-1", "--follow", "--address", address]) == 3
        assert main(["--logs", "ingest-1", "--address", address]) == 0
    said = capsys.readouterr()
    assert said.out == "one\ntwo\nthree\n" * 2
    assert said.err == "ingest-1: failed with exit code 3\n"


def test_a_job_that_had_ended_is_not_stopped(capsys: pytest.CaptureFixture[str]):
    with serving(Script()) as address:
        assert main(["--stop", "ingest-1", "--address", address]) == 0
    assert capsys.readouterr().err == "ingest-1 had ended: succeeded\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no job: write `mmd submit JOB …`"),
        (["--list", "ingest"], "ingest: no job is sent together with --list"),
        (["--stop", "x", "ingest", "--force"], "ingest --force: no job is sent together"),
        (["ingest", "--set", "store=/s", "--env", "MMD_NOT_SET"], "--env MMD_NOT_SET: not set here"),
        (["ingest", "--set", "sed=1"], "Did you mean 'seed'"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(words: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    Path("ray_config.yaml").write_text("seed: 0\n")
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("mmd submit: ")
    assert told in said.err
    assert said.out == ""


def test_nothing_is_sent_when_an_argument_is_wrong():
    script = Script()
    Path("ray_config.yaml").write_text("seed: 0\n")
    with serving(script) as address:
        assert main(["ingest", "--address", address, "--set", "store=relative"]) == 2
    assert script.seen == []


def test_variables_are_given_or_taken_from_the_shell_and_their_values_never_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEY", "s3cret")
    assert environment_of(["KEY", "A=1=2", "EMPTY="]) == {"KEY": "s3cret", "A": "1=2", "EMPTY": ""}
    for wrong in ("1A=s3cret", "=s3cret", "a b=s3cret"):
        with pytest.raises(ConfigError, match="not the name of a variable") as told:
            environment_of([wrong])
        assert "s3cret" not in str(told.value)


def test_the_help_shows_each_shape_of_the_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for word in ("--list", "--logs ID --follow", "--status ID", "--stop ID", "--installed", "--env"):
        assert word in said
    with pytest.raises(SystemExit):
        mmd(["--help"])
    assert "submit" in capsys.readouterr().out
