"""What trying out intents and trying out retrieval have in common: counting, and printing a dialogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from mmd.schema import Turn


@dataclass(frozen=True, slots=True)
class Trial:
    """How questions of one kind fared; ``latencies_ms`` are of the answered ones, in order, from request to answer."""

    asked: int = 0
    right: int = 0
    degraded: int = 0
    latencies_ms: tuple[float, ...] = ()

    def __add__(self, other: Trial) -> Trial:
        """Return how both fared together."""
        return Trial(
            self.asked + other.asked,
            self.right + other.right,
            self.degraded + other.degraded,
            self.latencies_ms + other.latencies_ms,
        )

    @property
    def all_answered(self) -> bool:
        """Whether every question got an answer."""
        return len(self.latencies_ms) == self.asked


def print_turns(console: Console, turns: Sequence[Turn]) -> None:
    """Print a dialogue."""
    for turn in turns:
        pictures = "".join(f" [picture {image_id[:8]}]" for image_id in turn.image_ids)
        style = "cyan" if turn.speaker == "user" else "dim"
        text = escape(turn.text.replace("\n", " ") + pictures)
        console.print(Padding(f"[{style}]{turn.speaker:>5}[/]  {text}", (0, 0, 0, 2)))
