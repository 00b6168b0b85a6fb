"""What the jobs that write a report share: whose it is, on which split, and what it is called."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from jobs.glue.entry import JobContext
from mmd.artifacts import Kind
from mmd.evaluation.recommend_systems import Judged


@dataclass(frozen=True)
class Reported:
    """What shall be reported.

    Attributes:
        context: the job's, with the artefact pinned that ``--KIND`` names.
        split: whose dialogues judge; ``validation`` is the held-out part of the training split.
        name: of the report.
    """

    context: JobContext
    split: Judged
    name: str


def add_artifact(parser: argparse.ArgumentParser, kind: Kind) -> None:
    """Add ``--KIND``, which names the artefact to report on."""
    parser.add_argument(f"--{kind}", metavar="REF", help=f"{kind}/NAME@VERSION; default: the corpus's newest")


def add_split(parser: argparse.ArgumentParser) -> None:
    """Add ``--split``."""
    parser.add_argument(
        "--split",
        choices=("test", "validation"),
        default="test",
        help="validation: the held-out part of the training split, for choices; the test split is not opened",
    )


def reported(context: JobContext, kind: Kind, what: str) -> Reported:
    """Return what the options say: an artefact of ``kind``, and a report NAME-``what``, or NAME-``what``-validation.

    Raises:
        ArtifactError: there is no such artefact, or it is of another kind.
    """
    if wanted := context.options.get(kind):
        context = context.pinned(context.store.open(wanted).of_kind(kind, "name one of `mmd artifacts list`."))
    split: Judged = context.options.get("split") or "test"
    name = f"{context.name}-{what}"
    return Reported(context, split, name if split == "test" else f"{name}-{split}")
