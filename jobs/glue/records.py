"""Suites of measurements: each run of a module leaves a record that names code, hardware, load and results.

A suite is a package whose modules expose ``run(options) -> dict`` and, if they like, ``add_options(parser)`` and
``plot(record, path)``. ``python -m PACKAGE NAME`` runs one and writes ``NAME-DATE.json`` (and ``NAME-DATE.png``).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast

import psutil

from jobs.glue.cluster import sharing
from jobs.glue.stopping import sigterm_as_interrupt
from mmd.artifacts import code_revision
from mmd.config import AppConfig, load_config
from mmd.errors import ConfigError, MmdError
from mmd.log import configure_logging

OUT = Path("docs/results")


class Study(Protocol):
    """A module of a suite. ``add_options`` and ``plot`` are optional."""

    def run(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Measure and return configuration, repeats and results, JSON-able."""
        ...


@dataclass(frozen=True)
class Suite:
    """A package of studies.

    Attributes:
        noun: what one of them is called, and the key of its name in the record.
        package: where the modules are.
        names: the modules.
    """

    noun: str
    package: str
    names: tuple[str, ...]

    def load(self, name: str) -> Study:
        """Import one study.

        Raises:
            ConfigError: there is no such study.
        """
        if name not in self.names:
            raise ConfigError(f"{self.noun} {name!r}: unknown; there are {', '.join(self.names)}.")
        return cast("Study", importlib.import_module(f"{self.package}.{name}"))

    def run(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Run one study and return its record."""
        study = self.load(name)
        load_before, started = os.getloadavg(), time.perf_counter()
        measured = study.run(options)
        return {
            self.noun: name,
            "code": code_revision(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": hardware(),
            "load_average": {"before": load_before, "after": os.getloadavg()},
            "seconds_in_all": round(time.perf_counter() - started, 1),
            **measured,
        }

    def write(self, record: Mapping[str, Any], out: Path) -> Path:
        """Write a record and its picture; a second one on one day gets a running number.

        Returns:
            Where the record was written.

        Raises:
            ConfigError: the folder cannot be written.
        """
        name = record[self.noun]
        with _writing(out):
            out.mkdir(parents=True, exist_ok=True)
            target = _free_path(out, f"{name}-{datetime.now(UTC):%Y-%m-%d}")
            target.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            draw(self.load(name), record, target)
        return target


def draw(study: Study, record: Mapping[str, Any], target: Path) -> Path | None:
    """Draw a record beside its file, if the study draws; return the picture's path."""
    plot: Callable[[Mapping[str, Any], Path], None] | None = getattr(study, "plot", None)
    if plot is None:
        return None
    picture = target.with_suffix(".png")
    plot(record, picture)
    return picture


def main(suite: Suite, doc: str | None, argv: Sequence[str] | None = None) -> int:
    """Run one study from the command line; return its exit code.

    0: done; 2: a user's mistake; 130: interrupted; 143: terminated by SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = vars(build_parser(suite, doc, arguments).parse_args(arguments))
    configure_logging()
    name, out, redraw = args.pop("name"), args.pop("out"), args.pop("redraw", None)
    with sigterm_as_interrupt() as sigterm:
        try:
            if redraw is not None:
                print(draw(suite.load(name), _read_record(redraw), redraw))
                return 0
            check_folder(out)
            with sharing(store_of(args)):
                record = suite.run(name, args)
            print(json.dumps(record, indent=2, ensure_ascii=False), flush=True)
            print(suite.write(record, out))
        except MmdError as err:
            print(f"{suite.noun}: {err}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            what, code = ("terminated", 143) if sigterm.received else ("interrupted", 130)
            print(f"{suite.noun}: {what} before its record was written.", file=sys.stderr)
            return code
    return 0


def check_folder(out: Path) -> None:
    """Make the folder of the records, and see that it takes files, before hours of work are to end in it.

    Raises:
        ConfigError: it cannot be made or written.
    """
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise ConfigError(
            f"{out}: no record can be written there ({err.strerror or err}); name a folder of yours with --out."
        ) from err


def store_of(options: Mapping[str, Any]) -> str:
    """Return the artefact store that a study's options lead to, or the default where it names none.

    Raises:
        ConfigError: they name settings that are not valid.
    """
    if "config" not in options:
        return str(options.get("store", AppConfig().store))
    return load_config(options["config"], profile=options.get("profile"), overrides=options.get("overrides", ())).store


def build_parser(suite: Suite, doc: str | None, arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of a suite, with the options of that study alone which the arguments name."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {suite.package}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    studies = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    wanted = [a for a in arguments if a in suite.names]
    for name in suite.names:
        sub = studies.add_parser(
            name, help=f"{suite.package}.{name}", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.add_argument("--out", type=Path, default=OUT, help="folder of the record (default: %(default)s)")
        if wanted[:1] == [name]:  # its options need its module, whose imports the others should not pay for
            study = suite.load(name)
            sub.description = getattr(study, "__doc__", None)
            add_options(study, sub)
            if hasattr(study, "plot"):
                sub.add_argument("--redraw", type=Path, metavar="RECORD", help="only draw this record again")
    return parser


def add_options(study: Study, parser: argparse.ArgumentParser) -> None:
    """Let a study add its own command-line options, if it has any."""
    adder: Callable[[argparse.ArgumentParser], None] | None = getattr(study, "add_options", None)
    if adder:
        adder(parser)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as err:
        raise ConfigError(f"{path}: no readable record ({err}); name a JSON file that an earlier run wrote.") from err


def _free_path(out: Path, stem: str) -> Path:
    target, number = out / f"{stem}.json", 1
    while target.exists():
        number += 1
        target = out / f"{stem}-{number}.json"
    return target


def hardware() -> dict[str, Any]:
    """Describe the machine: processor, cores, memory, platform."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, min and max of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def timed(work: Callable[[], object]) -> float:
    """Return the wall seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
