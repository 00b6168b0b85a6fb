"""A job's command line, checked here before it is sent to a cluster, where mistakes would show minutes later."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jobs.glue import entry, records
from mmd.cli import JOBS, job_module
from mmd.config import DEFAULT_PATH, AppConfig, load_config
from mmd.errors import ConfigError
from mmd.sweeps.kinds import KINDS, SweepKind, read_space

IMAGE_SETTINGS = "/opt/mmd/ray_config.yaml"
"""Where the image of ``cluster/Dockerfile`` has the settings file."""

_SPACE = "space.yaml"


@dataclass(frozen=True)
class JobCommand:
    """What is run on the cluster.

    Attributes:
        verb: the job.
        entrypoint: shell command.
        files: name in the folder that it runs in → file here: its settings, and its search space if it has one.
    """

    verb: str
    entrypoint: str
    files: Mapping[str, Path]


def job_command(word: str, arguments: Sequence[str], *, installed: bool = False) -> JobCommand:
    """Check a job and its arguments as the job itself would, and what it takes to run elsewhere.

    Args:
        word: a verb of ``mmd``.
        arguments: of the job; wrong ones end the program with the job's own usage, as argparse does.
        installed: whether the cluster's own package runs, with the settings file that lies there.

    Raises:
        ConfigError: there is no such job, a setting or the search space is wrong, or a path is relative.
    """
    verb = word.replace("-", "_")
    if verb not in JOBS:
        raise ConfigError(f"no job {word!r}; there are {', '.join(JOBS)}.")
    args = vars(parser_of(verb, arguments).parse_args(arguments))
    given = Path(args.get("config") or DEFAULT_PATH)
    if not installed or given.is_file():
        check_settings(args if verb != "bench" else {**args, "corpus": None}, given)  # whose corpora are plain names
    files = {str(DEFAULT_PATH): given}
    words = [*arguments]  # of an option that is there twice, the last one counts
    if "config" in args and installed == (given == DEFAULT_PATH):
        words += ["--config", IMAGE_SETTINGS if installed else str(DEFAULT_PATH)]
    space = args.get("space")
    if space is not None and installed and not space.is_absolute():
        raise ConfigError(
            f"--space {space}: a relative path; with --installed no file is sent. Give the absolute path that the file "
            "has on the cluster's machines, or leave out --installed."
        )
    if space is not None and not installed:
        if not space.is_file():
            raise ConfigError(f"--space {space}: no such file here; it is sent with the job.")
        if kind := sweep_of(verb, args):
            read_space(space, kind)
        files[_SPACE] = space
        words += ["--space", _SPACE]
    return JobCommand(verb, shlex.join(["python", "-m", job_module(verb), *words]), files)


def parser_of(verb: str, arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return a job's own parser; that of benchmarks and experiments has the options of the one that is named."""
    loaded = importlib.import_module(job_module(verb))
    if suite := getattr(loaded, "SUITE", None):
        return records.build_parser(suite, loaded.__doc__, arguments)
    parser = entry.build_parser(verb, loaded.__doc__ or "")
    adder = cast("Callable[[argparse.ArgumentParser], None] | None", getattr(loaded, "add_options", None))
    if adder:
        adder(parser)
    return parser


def sweep_of(verb: str, args: Mapping[str, Any]) -> SweepKind | None:
    """Return the sweep that a job makes; None: it makes none."""
    kinds = [kind for kind in KINDS.values() if kind.module == job_module(verb)]
    by_method = [kind for kind in kinds if args.get("method") in kind.arguments]
    return next(iter(by_method or kinds), None)


def check_settings(args: Mapping[str, Any], path: Path) -> None:
    """Read the settings as the job will.

    Args:
        args: parsed arguments of the job.
        path: settings file.

    Raises:
        ConfigError: a setting is wrong, or names a place that only this machine has.
    """
    overrides = [*entry.corpus_overrides(args.get("corpus")), *(args.get("overrides") or ())]
    config = load_config(path, profile=args.get("profile"), overrides=overrides)
    check_places(config if "config" in args else config.model_copy(update={"store": args.get("store", "/")}))


def check_places(config: AppConfig) -> None:
    """Refuse relative paths: a job runs in an unpacked copy of its code, which the cluster removes.

    Raises:
        ConfigError: naming the setting.
    """
    if _is_relative(config.store):
        raise ConfigError(
            f"store {config.store!r}: a relative path lies in the job's unpacked code and goes with it; give "
            "--set store=s3://BUCKET/PREFIX, or --set store=/ABSOLUTE/PATH of a disk that all nodes mount."
        )
    data = config.data
    for key, path in (
        ("data.corpus.path", data.corpus.path),
        ("data.shop.catalogue_csv", data.shop.catalogue_csv),
        ("data.shop.catalogue_images", data.shop.catalogue_images),
    ):
        if path and _is_relative(path):
            raise ConfigError(
                f"{key} {path!r}: data is not sent with a job, and a relative path means nothing on the cluster; give "
                "the absolute path of the folder as the nodes see it (a disk that all of them mount)."
            )


def _is_relative(place: str) -> bool:
    return "://" not in place and not Path(place).is_absolute()
