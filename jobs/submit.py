"""Send a job to a running Ray cluster over its Jobs API; follow, list and stop the jobs there.

    mmd submit pipeline --profile gpu --set store=s3://bucket/mmd --address http://HEAD:8265 --follow
    mmd submit mine_rules --corpus taobao=/mnt/data/taobao --set store=/mnt/store --env AWS_PROFILE
    mmd submit experiment conkd_table --seeds 3 --set store=/mnt/store --out /mnt/records
    mmd submit --list
    mmd submit --logs ID --follow
    mmd submit --status ID
    mmd submit --stop ID

What follows JOB is the job's own, but for the options listed here; all that follows `--` is. The job's arguments and
settings are checked before anything is sent. Sent is the code (mmd, jobs, serve_apps, as they are on disk), the
settings file and the file of --space, never data: all other paths in the job's arguments are the cluster's, and the
record of a benchmark or an experiment is in its log alone unless --out leads to a shared disk. --installed sends
nothing and runs the package that the cluster's image has, with the settings file that lies there.

The address is that of the dashboard: --address, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else
http://127.0.0.1:8265. A cluster that asks for a token gets RAY_AUTH_TOKEN or ~/.ray/auth_token.

Exit code: with --follow the job's own (143 if it was stopped), else 0 once it is sent; 2 for mistakes and where the
cluster cannot be reached; 130 if Ctrl-C ended the following, which leaves the job running.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Column

from jobs.glue.following import follow
from jobs.glue.job_command import job_command
from jobs.glue.packing import packed_code
from jobs.glue.submission import JobServer, SubmittedJob, address_of
from mmd.errors import ClusterError, ConfigError, MmdError
from mmd.tables import plain_table

_STOP_WAIT_S = 30.0  # Ray kills what has not ended 3 s after SIGTERM, unless the cluster is told otherwise
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mmd submit``; return the exit code that the module's docstring tells."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    console, notes = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        return Submit(args, console, notes).run(rest[1:] if rest[:1] == ["--"] else rest)
    except MmdError as err:
        notes.print(f"mmd submit: {err}", style="red", markup=False, soft_wrap=True)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options that are not the job's."""
    parser = argparse.ArgumentParser(
        prog="mmd submit",
        usage="mmd submit JOB [job arguments] [options] | --list | --status ID | --logs ID | --stop ID",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a shortened option is the job's
    )
    parser.add_argument("job", nargs="?", metavar="JOB", help="a job of `mmd --help`")
    parser.add_argument("--address", metavar="URL", help="the cluster's dashboard, as http://HEAD:8265")
    waiting = parser.add_mutually_exclusive_group()
    waiting.add_argument("--follow", action="store_true", help="print the log until the job ends; exit with its code")
    waiting.add_argument("--no-wait", action="store_true", help="return once the job is sent (the default)")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="variable of the job; without VALUE that of this shell. Who may use the cluster's dashboard can read it",
    )
    parser.add_argument(
        "--installed", action="store_true", help="send no code: run the package that the cluster's image has"
    )
    asking = parser.add_mutually_exclusive_group()
    asking.add_argument("--list", action="store_true", help="list the jobs that the cluster knows")
    asking.add_argument("--status", metavar="ID", help="tell how a job stands")
    asking.add_argument("--logs", metavar="ID", help="print the log of a job; with --follow until it ends")
    asking.add_argument("--stop", metavar="ID", help="end a job; the same command resumes it later")
    return parser


class Submit:
    """One run of the command.

    Args:
        args: of :func:`build_parser`.
        console: what was asked for.
        notes: what is said beside it.
    """

    def __init__(self, args: argparse.Namespace, console: Console, notes: Console) -> None:
        self._args, self._console, self._notes = args, console, notes

    def run(self, rest: Sequence[str]) -> int:
        """Do what was asked for.

        Args:
            rest: the job's arguments.
        """
        args = self._args
        if asked := args.status or args.logs or args.stop or args.list:
            if args.job or rest:
                given = " ".join([*([args.job] if args.job else []), *rest])
                raise ConfigError(f"{given}: no job is sent together with --list, --status, --logs or --stop.")
            server = JobServer(address_of(args.address))
            if args.list:
                return self._list(server)
            if args.logs:
                return self._logs(server, asked)
            return self._status(server, asked) if args.status else self._stop(server, asked)
        if not args.job:
            raise ConfigError("no job: write `mmd submit JOB …`, or --list, --status, --logs or --stop (see --help).")
        return self._submit(rest)

    def _submit(self, rest: Sequence[str]) -> int:
        args = self._args
        command = job_command(args.job, rest, installed=args.installed)
        environment = environment_of(args.env)
        with ExitStack() as stack:
            code = None if args.installed else stack.enter_context(packed_code(command.files))
            server = JobServer(address_of(args.address))
            job_id = server.submit(command.verb, command.entrypoint, code=code, environment=environment)
        self._console.print(job_id, markup=False, soft_wrap=True)
        self._note(f"follow: {self._command('--logs', job_id, '--follow')}")
        self._note(f"stop:   {self._command('--stop', job_id)}")
        return self._follow(server, job_id) if args.follow else 0

    def _follow(self, server: JobServer, job_id: str) -> int:
        try:
            job = follow(server, job_id, self._write, self._note)
        except KeyboardInterrupt:
            self._note(f"{job_id} goes on. To end it: {self._command('--stop', job_id)}")
            return 130
        if job.driver_exit_code is None and job.status == "FAILED":
            self._note(job.message)
        self._note(f"{job_id}: {ending(job)}")
        return job.exit_code

    def _logs(self, server: JobServer, job_id: str) -> int:
        if self._args.follow:
            return self._follow(server, job_id)
        self._write(server.log(job_id))
        return 0

    def _list(self, server: JobServer) -> int:
        rows = [row_of(job) for job in server.jobs()]
        if not self._console.is_terminal:  # for scripts: a line a job, nothing cut
            for row in rows:
                self._write("\t".join(row) + "\n")
            return 0
        heads = [Column(head, no_wrap=True) for head in ("job", "state", "since (UTC)", "took")]
        table = plain_table(*heads, Column("command", no_wrap=True, overflow="ellipsis"))  # --status has all of it
        for row in rows:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        self._console.print(table)
        return 0

    def _status(self, server: JobServer, job_id: str) -> int:
        job = server.job(job_id)
        _, _, since, took, entrypoint = row_of(job)
        rows = {"job": job.id, "state": ending(job), "since (UTC)": since, "took": took, "command": entrypoint}
        for name, value in rows.items():
            self._console.print(f"{name:<12} {value}", markup=False, soft_wrap=True)
        if job.message:
            self._console.print(job.message, markup=False, soft_wrap=True)
        return 0

    def _stop(self, server: JobServer, job_id: str) -> int:
        if not server.stop(job_id):
            self._note(f"{job_id} had ended: {ending(server.job(job_id))}")
            return 0
        until = time.monotonic() + _STOP_WAIT_S
        while not (job := server.job(job_id)).ended:
            if time.monotonic() > until:
                raise ClusterError(f"{job_id}: asked to end {_STOP_WAIT_S:.0f} s ago and is still {job.status}.")
            time.sleep(0.5)
        self._note(f"{job_id}: {ending(job)}")
        return 0

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _note(self, text: str) -> None:
        self._notes.print(text, markup=False, soft_wrap=True)

    def _command(self, *words: str) -> str:
        address = ("--address", self._args.address) if self._args.address else ()
        return " ".join(["mmd submit", *words, *address])


def environment_of(given: Sequence[str]) -> Mapping[str, str]:
    """Turn ``NAME=VALUE`` and ``NAME``, whose value is this shell's, into variables.

    Raises:
        ConfigError: a name is none, or this shell has no such variable. Values are never told.
    """
    found = {}
    for one in given:
        name, separator, value = one.partition("=")
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"--env {name!r}: not the name of a variable; write NAME or NAME=VALUE.")
        if not separator and name not in os.environ:
            raise ConfigError(f"--env {name}: not set here; export it, or write {name}=VALUE.")
        found[name] = value if separator else os.environ[name]
    return found


def ending(job: SubmittedJob) -> str:
    """Say how a job stands."""
    if job.status == "FAILED" and job.driver_exit_code is not None:
        return f"failed with exit code {job.exit_code}"
    return {"FAILED": "failed before it started"}.get(job.status, job.status.lower())


def row_of(job: SubmittedJob) -> tuple[str, str, str, str, str]:
    """Return a job's line in the list: id, state, start, duration, command."""
    since, took = "", ""
    if job.started_unix_s:
        since = datetime.fromtimestamp(job.started_unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
        took = f"{(job.ended_unix_s or time.time()) - job.started_unix_s:.0f} s"
    return job.id, ending(job), since, took, job.entrypoint


if __name__ == "__main__":
    sys.exit(main())
