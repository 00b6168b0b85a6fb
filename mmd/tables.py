"""Tables for the terminal that tell names whole, however narrow it is."""

from __future__ import annotations

from rich import box
from rich.table import Column, Table


def plain_table(*heads: str | Column, title: str | None = None, show_header: bool = True) -> Table:
    """Return a table without frame; what does not fit into a cell goes on in its next line and is never cut.

    Args:
        heads: of the columns; a :class:`~rich.table.Column` where one shall behave otherwise.
        title: above the table.
        show_header: whether heads are printed.
    """
    columns = [Column(head, overflow="fold") if isinstance(head, str) else head for head in heads]
    return Table(
        *columns,
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD if show_header else None,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_header=show_header,
    )
