"""The frame of every job: parse the command line, read the settings, run, print a summary, set the exit code.

A job module exposes ``run(context) -> Artifact`` (what the pipeline calls) and ends in
``if __name__ == "__main__": sys.exit(main("verb", __doc__, run))``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.glue.cluster import sharing
from jobs.glue.stopping import sigterm_as_interrupt
from mmd.artifacts import Artifact, ArtifactStore, Kind, version_for
from mmd.config import AppConfig, add_settings_options, load_config
from mmd.errors import ConfigError, MmdError
from mmd.log import configure_logging
from mmd.tables import plain_table

console = Console(stderr=False, highlight=False)
_METRICS_SHOWN = 16


@dataclass(frozen=True)
class JobContext:
    """What a job works with.

    ``options`` are the verb's own command-line options; ``pins`` are artefacts by kind that a pipeline's earlier steps
    made or found, to be taken instead of the newest of their kind.
    """

    config: AppConfig
    force: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    pins: Mapping[str, Artifact] = field(default_factory=dict)

    @cached_property
    def store(self) -> ArtifactStore:
        """The artefact store of the settings."""
        return ArtifactStore(self.config.store)

    @property
    def name(self) -> str:
        """Name of the corpus, which names every artefact made from it."""
        return self.config.data.corpus.name

    def scratch(self, folder: str) -> str:
        """Return where runs keep what they need until an artefact is written: a folder or URI beside the artefacts."""
        return f"{self.store.absolute}/{folder}"

    def open(self, kind: Kind) -> Artifact:
        """Open the pinned artefact of this kind, or the corpus's newest."""
        return self.pins.get(kind) or self.store.open(f"{kind}/{self.name}")

    def lineage(self, kind: Kind) -> dict[str, Artifact]:
        """Open an artefact of this kind and the very artefacts it was made from, by role: never a mixture of runs."""
        artifact = self.open(kind)
        return {**self.made_from(artifact), kind: artifact}

    def made_from(self, artifact: Artifact) -> dict[str, Artifact]:
        """Open what an artefact was made from, by role.

        Raises:
            ArtifactError: one of them is gone.
        """
        return {role: self.store.open(ref.split()[0]) for role, ref in artifact.manifest.inputs.items()}

    def pinned(self, artifact: Artifact) -> JobContext:
        """Return the context for the next step of a pipeline, which takes this artefact."""
        return replace(self, pins={**self.pins, artifact.manifest.kind: artifact})

    def existing(
        self,
        kind: Kind,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        seeds: Mapping[str, int],
        name: str | None = None,
    ) -> Artifact | None:
        """Return the artefact that equal settings, inputs and seeds made before, unless ``force`` is on.

        ``name`` is the corpus's unless a job names its artefacts otherwise.
        """
        name, version = name or self.name, version_for(kind, settings, inputs, seeds)
        if self.force or not self.store.exists(kind, name, version):
            return None
        found = self.store.open(f"{kind}/{name}@{version}")
        self.store.ask_for(found)
        return found


def build_parser(verb: str, doc: str) -> argparse.ArgumentParser:
    """Return the parser with the options that every job has."""
    parser = argparse.ArgumentParser(
        prog=f"mmd {verb}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_settings_options(parser)
    parser.add_argument(
        "--corpus",
        metavar="NAME[:READER][=PATH]",
        help="corpus to work on, e.g. taobao=../shared/data/taobao or mine:chat=chats (READER defaults to NAME)",
    )
    parser.add_argument("--force", action="store_true", help="compute again what is already there, from the start")
    return parser


def corpus_overrides(corpus: str | None) -> list[str]:
    """Turn ``--corpus NAME[:READER][=PATH]`` into setting overrides."""
    if not corpus:
        return []
    head, _, path = corpus.partition("=")
    name, _, reader = head.partition(":")
    if not name:
        raise ConfigError(f"--corpus {corpus!r}: no name; write NAME=PATH or NAME:READER=PATH.")
    quoted = "null" if not path else '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return [f"data.corpus.name={name}", f"data.corpus.reader={reader or name}", f"data.corpus.path={quoted}"]


def main(
    verb: str,
    doc: str | None,
    run: Callable[[JobContext], Artifact],
    *,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run one job from the command line; return its exit code.

    0: done; 2: a user's mistake; 130: interrupted; 143: terminated by SIGTERM.
    """
    parser = build_parser(verb, doc or "")
    if add_options:
        add_options(parser)
    args = vars(parser.parse_args(argv))
    common = {key: args.pop(key) for key in ("config", "profile", "overrides", "corpus", "force")}
    configure_logging()
    started = time.perf_counter()
    with sigterm_as_interrupt() as sigterm:
        try:
            overrides = [*corpus_overrides(common["corpus"]), *common["overrides"]]
            config = load_config(common["config"], profile=common["profile"], overrides=overrides)
            warn_of_passing_store(config.store)
            with sharing(config.store):
                artifact = run(JobContext(config, force=common["force"], options=args))
        except MmdError as err:
            console.print(f"mmd {verb}: {err}", style="red", markup=False, soft_wrap=True)
            return 2
        except KeyboardInterrupt:
            what, code = ("terminated", 143) if sigterm.received else ("interrupted", 130)
            way = (
                "with --force the same command starts anew"
                if common["force"]
                else "run the same command again to resume"
            )
            console.print(f"mmd {verb}: {what}; {way}.", markup=False, soft_wrap=True)
            return code
    print_summary(verb, artifact, time.perf_counter() - started, config.store)
    return 0


def warn_of_passing_store(store: str, folder: Path | None = None) -> None:
    """Say so when a submitted job would write into the unpacked copy of the code, which the cluster removes later."""
    inside_package = "runtime_resources" in (folder or Path.cwd()).parts
    if inside_package and "://" not in store and not Path(store).is_absolute():
        console.print(
            f"note: store {store!r} lies in this job's unpacked code and goes with it; to keep the results give "
            "--set store=/ABSOLUTE/PATH or a URI that all nodes reach.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def print_summary(verb: str, artifact: Artifact, seconds: float, store: str | None = None) -> None:
    """Print what a job made: reference, place, time and the first of its metrics; the store where it is named."""
    where = "" if store in (None, AppConfig().store) else f" --store {store}"
    console.print(f"{verb}: {artifact.ref} in {seconds:.1f} s", markup=False, soft_wrap=True)
    table = plain_table("", "", show_header=False)
    scalars = {key: v for key, v in artifact.manifest.metrics.items() if not isinstance(v, (dict, list))}
    for key, value in list(scalars.items())[:_METRICS_SHOWN]:
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    if (more := len(scalars) - _METRICS_SHOWN) > 0:
        console.print(f"… and {more} more: mmd artifacts show {artifact.ref}{where}", markup=False, soft_wrap=True)
    console.print(artifact.path(), markup=False, soft_wrap=True)


def with_options(context: JobContext, **options: Any) -> JobContext:  # noqa: ANN401 (command-line values)
    """Return the context with a verb's options set, for callers that are not the command line."""
    return replace(context, options={**context.options, **options})


__all__ = ["JobContext", "build_parser", "console", "corpus_overrides", "main", "print_summary", "with_options"]
