"""Run a benchmark and write its record to docs/results.

Example: ``python -m jobs.bench matching --out docs/results``. Each benchmark has its own options:
``python -m jobs.bench NAME --help``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.bench import BENCHES, add_options, load_bench, run_bench
from mmd.errors import MmdError
from mmd.log import configure_logging


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark from the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benches = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    wanted = [a for a in (sys.argv[1:] if argv is None else argv) if a in BENCHES]
    for name in BENCHES:
        sub = benches.add_parser(name, help=f"jobs.bench.{name}")
        sub.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the record")
        if wanted[:1] == [name]:  # its options need its module, whose imports the others should not pay for
            add_options(load_bench(name), sub)
    args = vars(parser.parse_args(argv))
    configure_logging()
    try:
        target, record = run_bench(args.pop("name"), args, args.pop("out"))
    except MmdError as err:
        print(f"bench: {err}", file=sys.stderr)
        return 2
    print(json.dumps(record, indent=2, ensure_ascii=False))
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
