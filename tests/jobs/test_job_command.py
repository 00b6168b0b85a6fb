"""Mistakes in a job's arguments show before anything is sent."""

import re
import shlex
from pathlib import Path

import pytest

from jobs import submit
from jobs.bench import SUITE as BENCHES
from jobs.experiments import SUITE as EXPERIMENTS
from jobs.glue import entry, records
from jobs.glue.job_command import IMAGE_SETTINGS, job_command, parser_of
from mmd.cli import JOBS
from mmd.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
STORE = ("--set", "store=/mnt/store")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray_config.yaml").write_text("seed: 3\nprofiles: {gpu: {seed: 4}}\n")
    monkeypatch.chdir(tmp_path)


def test_the_entrypoint_is_the_job_with_its_arguments_quoted():
    command = job_command("mine-rules", ["--profile", "gpu", "--set", "store=/mnt/my store", "--force"])
    assert command.entrypoint == "python -m jobs.mine_rules --profile gpu --set 'store=/mnt/my store' --force"
    assert (command.verb, command.files) == ("mine_rules", {"ray_config.yaml": Path("ray_config.yaml")})


def test_arguments_cannot_break_out_of_the_command():
    nasty = "store=/x; rm -rf $(HOME) `id`"
    words = shlex.split(job_command("ingest", ["--set", nasty]).entrypoint)
    assert words == ["python", "-m", "jobs.ingest", "--set", nasty]


def test_a_settings_file_of_ones_own_is_sent_under_the_name_that_the_job_reads():
    Path("mine.yaml").write_text("store: /mnt/store\n")
    command = job_command("ingest", ["--config", "mine.yaml"])
    assert command.files == {"ray_config.yaml": Path("mine.yaml")}
    assert shlex.split(command.entrypoint)[3:] == ["--config", "mine.yaml", "--config", "ray_config.yaml"]
    args = entry.build_parser("ingest", "").parse_args(shlex.split(command.entrypoint)[3:])
    assert str(args.config) == "ray_config.yaml"


def test_a_search_space_is_sent_too():
    Path("conf").mkdir()
    Path("conf/wide.yaml").write_text("recommend: {}\n")
    command = job_command("sweep_gates", ["--method", "conkd", "--space", "conf/wide.yaml", *STORE])
    assert command.files["space.yaml"] == Path("conf/wide.yaml")
    assert shlex.split(command.entrypoint)[-2:] == ["--space", "space.yaml"]
    with pytest.raises(ConfigError, match=r"--space none\.yaml: no such file here"):
        job_command("sweep_gates", ["--space", "none.yaml", *STORE])


@pytest.mark.parametrize(
    ("words", "space"),
    [
        (["mine_rules"], "intent: {search: {rollouts: 20}}"),
        (["sweep_gates"], "intent: {gate: {vote_weights: [1, 3]}}"),
        (["sweep_gates", "--method", "conkd"], "recommend: {sweep: {gammas: [0.5]}}"),
        (["experiment", "text_fraction"], "retrieval: {sweep: {seeds: 1}}"),
    ],
    ids=["rules", "gates", "conkd", "text_fraction"],
)
def test_every_sweep_takes_its_search_space_and_no_other(words: list[str], space: str, tmp_path: Path):
    (tmp_path / "space.yaml").write_text(space)
    (tmp_path / "other.yaml").write_text("serve: {port: 1}")
    verb, *more = words
    command = job_command(verb, [*more, "--space", str(tmp_path / "space.yaml"), *STORE])
    assert command.files["space.yaml"] == tmp_path / "space.yaml"
    with pytest.raises(ConfigError, match=r"other\.yaml: serve"):
        job_command(verb, [*more, "--space", str(tmp_path / "other.yaml"), *STORE])


@pytest.mark.parametrize("verb", sorted(set(JOBS) - {"bench", "experiment"}))
def test_a_job_is_checked_by_the_options_that_it_has(verb: str):
    """`mmd submit` looks for ``add_options``: what a job gives to its own command line by another name is unknown."""
    source = (ROOT / f"jobs/{verb}.py").read_text(encoding="utf-8")
    given = re.findall(r"main\(\"\w+\", __doc__, run(?:, add_options=(\w+))?\)", source)
    assert given in (["add_options"], [""])


def test_an_installed_package_is_sent_no_search_space():
    Path("wide.yaml").write_text("recommend: {}\n")
    with pytest.raises(ConfigError, match=r"--space wide\.yaml: a relative path; with --installed no file is sent"):
        job_command("sweep_gates", ["--space", "wide.yaml", *STORE], installed=True)
    command = job_command("sweep_gates", ["--space", "/etc/mmd/wide.yaml", *STORE], installed=True)
    assert shlex.split(command.entrypoint)[3:5] == ["--space", "/etc/mmd/wide.yaml"]
    assert "space.yaml" not in command.files


def test_an_installed_package_reads_the_settings_of_its_image():
    command = job_command("ingest", STORE, installed=True)
    assert command.entrypoint.endswith(f"--config {IMAGE_SETTINGS}")
    own = job_command("ingest", [*STORE, "--config", "/etc/mmd.yaml"], installed=True)
    assert own.entrypoint.endswith("--config /etc/mmd.yaml")


def test_experiments_and_benchmarks_are_jobs_too():
    command = job_command("experiment", ["shots", "--seeds", "2", *STORE])
    assert command.entrypoint == "python -m jobs.experiments shots --seeds 2 --set store=/mnt/store"
    assert job_command("bench", ["matching"]).entrypoint == "python -m jobs.bench matching"


@pytest.mark.parametrize(
    ("word", "arguments", "told"),
    [
        ("ingst", [], "no job 'ingst'; there are pipeline, ingest"),
        ("serve", [], "no job 'serve'"),
        ("ingest", ["--set", "sed=1", *STORE], "Did you mean 'seed'"),
        ("ingest", ["--profile", "gpus", *STORE], "profile 'gpus': unknown"),
        ("ingest", ["--config", "none.yaml"], "no such settings file"),
        ("ingest", [], "store 'artifacts': a relative path lies in the job's unpacked code"),
        ("ingest", ["--corpus", "taobao=../data", *STORE], "data.corpus.path '../data': data is not sent"),
        ("ingest", ["--set", "data.shop.catalogue_csv=shop.csv", *STORE], "data.shop.catalogue_csv 'shop.csv'"),
        ("experiment", ["shots"], "store 'artifacts'"),
        ("bench", ["probe"], "store 'artifacts'"),
    ],
)
def test_a_mistake_is_told_here(word: str, arguments: list[str], told: str):
    with pytest.raises(ConfigError, match=told):
        job_command(word, arguments)


@pytest.mark.parametrize("arguments", [["--workrs", "2"], ["--workers", "two"], ["--set"]])
def test_an_unknown_option_of_the_job_gets_the_jobs_own_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        job_command("ingest", arguments)
    assert stop.value.code == 2
    assert "usage: mmd ingest" in capsys.readouterr().err


def test_stores_that_every_node_reaches_pass():
    for store in ("s3://bucket/mmd", "/mnt/store", "file:///mnt/store"):
        assert job_command("ingest", ["--set", f"store={store}", "--corpus", "mine:chat=/mnt/chats"]).verb == "ingest"


def test_no_job_has_an_option_that_submit_takes_for_its_own():
    own = {word for action in submit.build_parser()._actions for word in action.option_strings} - {"-h", "--help"}
    for verb in set(JOBS) - {"bench", "experiment"}:
        assert not own & option_words(verb, []), verb
    for verb, suite in (("bench", BENCHES), ("experiment", EXPERIMENTS)):
        for name in suite.names:
            assert not own & option_words(verb, [name]), name


def test_the_commands_of_the_documents_and_the_help_are_valid(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    texts = [(ROOT / "cluster" / "README.md").read_text(encoding="utf-8"), submit.__doc__ or ""]
    lines = [
        line.split("#")[0].split()[2:]
        for text in texts
        for line in text.splitlines()
        if line.strip().startswith("mmd submit ")
    ]
    assert len(lines) > 10
    for words in lines:
        args, rest = submit.build_parser().parse_known_args(words)
        assert args.job or not rest, words
        if args.job:
            job_command(args.job, rest, installed=args.installed)


def option_words(verb: str, arguments: list[str]) -> set[str]:
    parser = parser_of(verb, arguments)
    if arguments:
        groups = [
            action for action in parser._actions if hasattr(action, "choices") and isinstance(action.choices, dict)
        ]
        parser = groups[0].choices[arguments[0]]
    return {word for action in parser._actions for word in action.option_strings}


def test_a_study_without_settings_keeps_its_artefacts_in_the_store_that_it_names():
    assert records.store_of({"store": "/mnt/store"}) == "/mnt/store"
    assert records.store_of({}) == "artifacts"
    assert records.store_of({"config": Path("ray_config.yaml"), "overrides": ["store=/a"]}) == "/a"
