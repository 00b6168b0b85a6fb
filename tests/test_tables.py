"""Tables: a name that does not fit goes on in the next line, and is never cut."""

from __future__ import annotations

import io

from rich.console import Console

from mmd.tables import plain_table


def test_a_name_longer_than_the_terminal_is_told_whole():
    name = "report/a-corpus-with-a-long-name-recommend-validation@0123456789ab"
    table = plain_table("artefact", "MiB")
    table.add_row(name, "1.0")
    console = Console(file=io.StringIO(), width=40)
    console.print(table)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in printed
    first_column = "".join(line[:35].strip() for line in printed.splitlines()[2:])
    assert name in first_column.replace("1.0", "")
