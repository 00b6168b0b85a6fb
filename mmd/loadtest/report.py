"""What a load says of a service: percentiles, shares, a line over time."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmd.evaluation import plots
from mmd.loadtest.generator import Outcome

HUNG_MS = 5_000.0
"""An answer that takes longer is counted as hanging."""
_WINDOW_S = 10.0
_ON_WHITE = "#3a3f4b"  # the page's ink is too light for a white file


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """Return the median, 90th and 99th percentile and the maximum, in milliseconds; of nothing, nothing."""
    if not times_ms:
        return {}
    if len(times_ms) == 1:
        times_ms = [*times_ms, *times_ms]
    cuts = statistics.quantiles(times_ms, n=100, method="inclusive")
    found = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(times_ms)}
    return {name: round(value, 2) for name, value in found.items()}


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the numbers of a load.

    Latencies are of answered requests, asking again included; ``refused`` were told that the service is busy (429),
    ``failed`` had neither an answer nor that.
    """
    good = [one for one in outcomes if one.answered]
    refused = [one for one in outcomes if one.refused]
    stages: dict[str, list[float]] = {}
    for one in good:
        for stage, ms in one.stages_ms.items():
            stages.setdefault(stage, []).append(ms)
    found = {
        "requests": len(outcomes),
        "answered": len(good),
        "refused": len(refused),
        "failed": len(outcomes) - len(good) - len(refused),
        "asked_again": sum(one.tries > 1 for one in outcomes),
        "hung": sum(one.ms > HUNG_MS for one in outcomes),
        "degraded": sum(bool(one.degraded) for one in good),
        "answered_per_s": round(len(good) / seconds(outcomes), 2) if good else 0.0,
        "latency_ms": percentiles([one.ms for one in good]),
        "status": dict(sorted(Counter(str(one.status) for one in outcomes).items())),
        "errors": dict(Counter(one.error for one in outcomes if one.error).most_common()),
        "stage_ms_median": {stage: round(statistics.median(values), 2) for stage, values in stages.items()},
    }
    if first := [one.first_ms for one in good if one.first_ms is not None]:
        found["first_words_ms"] = percentiles(first)
    return found


def seconds(outcomes: Sequence[Outcome]) -> float:
    """Return how long the load took, to its last answer."""
    return max((one.due_s + one.ms / 1000 for one in outcomes), default=0.0)


def windows(outcomes: Sequence[Outcome], width_s: float = _WINDOW_S) -> list[dict[str, float]]:
    """Return a row for every ``width_s`` seconds in which requests were due."""
    by_window: dict[int, list[Outcome]] = {}
    for one in outcomes:
        by_window.setdefault(int(one.due_s // width_s), []).append(one)
    return [
        {
            "from_s": number * width_s,
            "requests": len(some),
            "answered": sum(one.answered for one in some),
            "refused": sum(one.refused for one in some),
            **percentiles([one.ms for one in some if one.answered]),
        }
        for number, some in sorted(by_window.items())
    ]


def draw(
    outcomes: Sequence[Outcome], path: Path, title: str, marks: Mapping[str, Sequence[float]] | None = None
) -> None:
    """Draw every answer over the time that it was due.

    Args:
        outcomes: of the load.
        path: of the picture.
        title: above it.
        marks: what happened meanwhile → when, in seconds from the start.
    """
    import matplotlib as mpl  # noqa: PLC0415 (slow to import)
    from matplotlib.figure import Figure  # noqa: PLC0415

    groups = {
        "answered": ([one for one in outcomes if one.answered and one.tries == 1], plots.BLUE),
        "answered, asked again": ([one for one in outcomes if one.answered and one.tries > 1], plots.AMBER),
        "busy (429)": ([one for one in outcomes if one.refused], plots.PURPLE),
        "failed": ([one for one in outcomes if not one.answered and not one.refused], plots.RED),
    }
    with mpl.rc_context(plots.plot_style(_ON_WHITE)):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, (some, colour) in groups.items():
            if some:
                places, label = [one.due_s for one in some], f"{name} ({len(some):,})"
                axes.scatter(places, [one.ms for one in some], s=5, color=colour, label=label, alpha=0.6)
        for number, (name, times) in enumerate((marks or {}).items()):
            for place, at in enumerate(times):
                axes.axvline(
                    at,
                    color=plots.INK,
                    linewidth=0.8,
                    linestyle=("--", ":")[number % 2],
                    alpha=0.6,
                    label=None if place else name,
                )
        axes.set_yscale("log")
        axes.set_xlabel("due, s after the start")
        axes.set_ylabel("to the end of the answer, ms")
        axes.set_title(title, loc="left")
        if axes.get_legend_handles_labels()[0]:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False)
        figure.savefig(path, dpi=120)
