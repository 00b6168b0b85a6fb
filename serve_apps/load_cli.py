"""Load a running service and report what came of it: ``mmd load`` or ``python -m serve_apps.load_cli``.

    mmd load --rate 20 --seconds 60                        whole turns at the service of the settings
    mmd load --path /v1/intent --out load.json             one part; the report, and a picture beside it
    mmd load --stream --retries 0 --questions words.txt    your own questions, a line each
    mmd load --url https://shop.example                    one elsewhere; its key in MMD_API_KEY

Requests are sent when they are due, whatever the answers take (an open loop). Questions are the words of the corpus's
training dialogues, each with a number, so that none comes from a cache. The report counts no answer as a latency that
was not one: refused (429) and failed requests stand beside them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmd.artifacts import ArtifactStore
from mmd.config import AppConfig, load_config
from mmd.corpora.store import Corpus
from mmd.errors import ConfigError, MmdError
from mmd.loadtest.generator import Load, Outcome, Request
from mmd.loadtest.questions import CHAT, asked_of, endless, read_questions, text_dialogues
from mmd.loadtest.report import draw, summarise, windows
from mmd.tables import plain_table
from serve_apps.client import ServiceClient, add_service_options

_PATHS = (CHAT, "/v1/intent", "/v1/retrieve", "/v1/recommend")


def main(argv: Sequence[str] | None = None) -> int:
    """Load a service from the command line; return the exit code.

    0: every request was answered; 1: one was refused or failed; 2: a user's mistake.
    """
    args = build_parser().parse_args(argv)
    console = Console(highlight=False)
    try:
        config = load_config(args.config, profile=args.profile, overrides=args.overrides)
        client = ServiceClient(config.serve, args.url)
        client.get("/healthz")
        requests = requests_of(config, args)
        load = Load(client.url, args.rate, args.retries, config.serve.request_timeout_s + 5, client.headers)
        console.print(f"{len(requests):,} requests to {client.url}{args.path}, {args.rate:g} a second", soft_wrap=True)
        outcomes = load.run(requests)
        print_summary(outcomes, console)
        if args.out:
            write(outcomes, args.out, {"url": client.url, **settings_of(args)})
            console.print(f"{args.out}, {args.out.with_suffix('.png')}", markup=False, soft_wrap=True)
    except MmdError as err:
        console.print(f"mmd load: {err}", style="red", markup=False, soft_wrap=True)
        return 2
    return 0 if all(one.answered for one in outcomes) else 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="mmd load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_service_options(parser)
    parser.add_argument("--path", choices=_PATHS, default=CHAT, help="what is asked (default: %(default)s)")
    parser.add_argument("--rate", type=_positive, default=20.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--seconds", type=_positive, default=30.0, help="how long (default: %(default)s)")
    parser.add_argument("--stream", action="store_true", help="ask for streams, and time their first words")
    parser.add_argument(
        "--retries", type=int, default=1, help="times that an unanswered request is sent again (default: %(default)s)"
    )
    parser.add_argument("--corpus", metavar="NAME", help="whose training dialogues are asked (default: the settings')")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="questions, a line each, instead of a corpus")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="report to write, a picture beside it")
    return parser


def _positive(text: str) -> float:
    """Read a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above zero")
    return value


def requests_of(config: AppConfig, args: argparse.Namespace) -> list[Request]:
    """Return what is sent.

    Raises:
        ConfigError: a stream of a single part is asked for.
        MmdError: there are no questions.
    """
    if args.stream and args.path != CHAT:
        raise ConfigError(f"--stream: only streams of {CHAT} are read; leave it, or --path, out.")
    if args.questions:
        turns = read_questions(args.questions)
    else:
        corpus = Corpus(ArtifactStore(config.store).open(f"corpus/{args.corpus or config.data.corpus.name}"))
        turns = [asked_of(dialogue) for dialogue in text_dialogues(corpus)]
    count = max(1, round(args.rate * args.seconds))
    return list(itertools.islice(endless(turns, args.path, stream=args.stream), count))


def settings_of(args: argparse.Namespace) -> dict[str, object]:
    """Return what a report tells of its conditions."""
    return {name: getattr(args, name) for name in ("path", "rate", "seconds", "stream", "retries")}


def print_summary(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print how many were answered, and how fast."""
    found = summarise(outcomes)
    counts = ("answered", "refused", "failed", "asked_again", "hung", "degraded")
    told = ", ".join(f"{found[name]:,} {name.replace('_', ' ')}" for name in counts if found[name])
    pace = f"{found['answered_per_s']:g} answers a second"
    console.print(f"of {found['requests']:,}: {told}; {pace}", markup=False, soft_wrap=True)
    table = plain_table("ms", "p50", "p90", "p99", "max")
    for name, key in (("whole answer", "latency_ms"), ("first words", "first_words_ms")):
        if row := found.get(key):
            table.add_row(name, *(f"{value:,.0f}" for value in row.values()))
    if table.row_count:
        console.print(table)
    for status, count in found["status"].items():
        if status not in ("200", "429"):
            hint = "; set MMD_API_KEY to a key of the service" if status == "401" else ""
            console.print(f"{count:,} × HTTP {status}{hint}", style="yellow", markup=False, soft_wrap=True)
    for problem, count in found["errors"].items():
        console.print(f"{count:,} × {problem}", style="yellow", markup=False, soft_wrap=True)


def write(outcomes: Sequence[Outcome], path: Path, conditions: dict[str, object]) -> None:
    """Write the report, and a picture beside it.

    Raises:
        ConfigError: they cannot be written.
    """
    record = {"config": conditions, **summarise(outcomes), "windows": windows(outcomes)}
    title = f"{conditions['path']}, {conditions['rate']:g} requests a second"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        draw(outcomes, path.with_suffix(".png"), title)
    except OSError as err:
        raise ConfigError(f"{path}: cannot be written ({err.strerror}); name a file in a folder of yours.") from err


if __name__ == "__main__":
    sys.exit(main())
