"""Make API keys: ``mmd keys new NAME --file keys.txt`` or ``python -m serve_apps.keys_cli new …``.

Prints the key, which is kept nowhere, and adds its hash to the file; then serve with
``--set serve.api_keys_file=keys.txt``. To take a key back, delete its line: a running service sees it within seconds.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from mmd.errors import ConfigError, MmdError
from serve_apps.keys import hash_key, read_keys

KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def main(argv: Sequence[str] | None = None) -> int:
    """Make a key from the command line; return the exit code (0 done, 2 a user's mistake)."""
    args = build_parser().parse_args(argv)
    try:
        key = add_key(args.file, args.name)
    except MmdError as err:
        sys.stderr.write(f"mmd keys: {err}\n")
        return 2
    sys.stdout.write(f"{key}\n")
    sys.stderr.write(f"mmd keys: this is the only time the key is shown; its hash is in {args.file}\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="mmd keys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a key and add its hash to a file")
    new.add_argument("name", help="for the log and for finding the line again: letters, digits, . _ -")
    new.add_argument("--file", type=Path, required=True, help="file of hashes; made where it is not there yet")
    return parser


def add_key(path: Path, name: str) -> str:
    """Make a key, add its hash to a file that only its owner can read, and return the key.

    Raises:
        ConfigError: the name is none or taken, or the file cannot be read or written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name[:80]!r}: not a name; use up to 64 letters, digits, dots, hyphens, underscores.")
    if path.exists() and name in read_keys(path).values():
        raise ConfigError(f"{path}: has a key named {name!r} already; choose another name, or delete its line.")
    key = f"mmd-{secrets.token_urlsafe(KEY_BYTES)}"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "a", encoding="utf-8") as file:
            unfinished = path.read_bytes()[-1:] not in (b"", b"\n")  # an editor's last line may have no end
            file.write("\n" * unfinished + f"{hash_key(key)} {name}\n")
    except OSError as err:
        raise ConfigError(f"{path}: cannot be written ({err}); name a file in a folder of yours.") from err
    return key


if __name__ == "__main__":
    sys.exit(main())
