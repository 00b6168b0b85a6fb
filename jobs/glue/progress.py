"""Progress of long work: counts, rate and time left on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from jobs.glue.entry import console

Advance = Callable[..., None]
"""``advance(steps, **counts)``: move the bar; counts are added up and shown with their rate."""


class _Counts(ProgressColumn):
    """What was done so far and how fast, e.g. ``12,000 records (1,350/s)``."""

    def render(self, task: Task) -> Text:
        seconds = task.elapsed or 0.0
        counts: dict[str, int] = task.fields["counts"]
        parts = [f"{n:,} {name} ({n / seconds:,.0f}/s)" if seconds else f"{n:,} {name}" for name, n in counts.items()]
        return Text("  ".join(parts), style="cyan")


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Show a bar for ``total`` steps of ``unit`` and yield what moves it; silent when output is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        _Counts(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        counts: dict[str, int] = {}
        task = bar.add_task(title, total=total, counts=counts)

        def advance(steps: int = 1, **more: int) -> None:
            for name, count in more.items():
                counts[name] = counts.get(name, 0) + count
            bar.update(task, advance=steps, counts=counts)

        yield advance
