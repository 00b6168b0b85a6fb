"""Plots of the report as SVG that goes straight into the page.

Plots carry numbers and ASCII only: labels in any script stand in the page's tables, where the browser's fonts render
them, so no plot depends on a font. Lines and text are mid-grey on no background: readable on light and dark pages.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmd.evaluation.metrics import Calibration, Interval, RuleRecord

INK = "#7d8590"
BLUE, GREEN, AMBER, PURPLE, PINK = "#4c8dff", "#2ea043", "#d29922", "#a371f7", "#db61a2"
TEAL, RED = "#33b3ae", "#e5534b"
COLOURS = {
    "rules": AMBER,
    "classifier": BLUE,
    "probe": BLUE,
    "MLLM": PURPLE,
    "probe + MLLM": PINK,
    "rules+classifier": GREEN,
    "gated": GREEN,
}
"""By the names that the report gives systems."""
ARM_COLOURS = {"override": AMBER, "verdict": PINK, "vote": GREEN, "prompt": PURPLE}
_SVG: Any = {
    "svg.hashsalt": "mmd",  # equal plots, equal bytes
    "svg.fonttype": "path",
    "savefig.transparent": True,
}


def plot_style(ink: str = INK) -> Any:  # noqa: ANN401 (Matplotlib types keys by a list of all of them)
    """Return Matplotlib's settings for every plot of the project, on a page or in a file.

    Args:
        ink: colour of text, axes and grid, fit for the plot's background.
    """
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    return dict.fromkeys(inked, ink) | {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
    }


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Any, list[str]]]:
    """Yield figure, axes and a list that receives the SVG on leaving."""
    import matplotlib as mpl  # noqa: PLC0415 (slow to import)
    from matplotlib.figure import Figure  # noqa: PLC0415

    out: list[str] = []
    with mpl.rc_context(plot_style() | _SVG):
        figure = Figure(figsize=(width, height), layout="constrained")  # no pyplot: no global state, no display
        yield figure, figure.add_subplot(), out
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        out.append(_inline(buffer.getvalue()))


def _inline(svg: str) -> str:
    """Cut the XML prologue off and let the page decide the width."""
    svg = svg[svg.index("<svg") :]
    return re.sub(r'<svg([^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"<svg\1\2", svg, count=1)


def score_bars(
    rows: Mapping[str, Mapping[str, Interval]],
    systems: Mapping[str, str],
    *,
    measure: str = "weighted F1",
    colours: Mapping[str, str] = COLOURS,
    limit: float = 1.0,
) -> str:
    """Draw each system's score with its 95 % interval, grouped by row (task, or overall).

    Args:
        rows: row → system → score; a row may lack systems.
        systems: system → its name in the legend, in order.
        measure: what is scored.
        colours: name in the legend → colour.
        limit: right end of the axis.
    """
    step = 0.75 / len(systems)
    columns = min(4 if len(systems) <= 4 else 3, len(systems))
    legend_rows = -(-len(systems) // columns)
    with _figure(6.4, 0.5 + 0.2 * legend_rows + (0.11 + 0.17 * len(systems)) * len(rows)) as (figure, axes, out):
        names = list(rows)
        for number, (system, called) in enumerate(systems.items()):
            found = [(row, rows[name][system]) for row, name in enumerate(names) if system in rows[name]]
            values = [value for _, value in found]
            places = [row + (number - (len(systems) - 1) / 2) * step for row, _ in found]
            # Resampling biases F1 a little downwards, so the value may lie outside of its own interval.
            below = [max(0.0, v.value - v.low) for v in values]
            above = [max(0.0, v.high - v.value) for v in values]
            colour = colours.get(called, INK)
            axes.barh(places, [v.value for v in values], height=step - 0.03, color=colour, label=called, alpha=0.85)
            axes.errorbar(
                [v.value for v in values], places, xerr=[below, above], fmt="none", ecolor=INK, elinewidth=1, capsize=2
            )
        axes.set_yticks(range(len(names)), [_ascii(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, limit)
        axes.set_xlabel(f"{measure}, 95 % interval")
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper center", ncols=columns)
    return out[0]


def size_curves(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, measure: str, colours: Mapping[str, str]
) -> str:
    """Draw recall against the size of the pool, on a logarithmic axis.

    Args:
        curves: name → sizes and their recall.
        measure: what is on the y axis.
        colours: name → colour.
    """
    with _figure(4.2, 3.2) as (_, axes, out):
        for name, (sizes, values) in curves.items():
            axes.plot(sizes, values, marker=".", linewidth=1.2, color=colours.get(name, INK), label=_ascii(name))
        axes.set_xscale("log")
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("responses a modality in the pool")
        axes.set_ylabel(measure)
        axes.legend(loc="upper right", fontsize=7.5)
    return out[0]


def mass_histogram(by_kind: Mapping[str, Sequence[float]], *, measure: str, colours: Mapping[str, str]) -> str:
    """Draw how a number in [0, 1] is distributed over tokens of several kinds, on a logarithmic axis of shares.

    Args:
        by_kind: kind of token → its numbers.
        measure: what they are.
        colours: kind → colour.
    """
    edges = [number / 20 for number in range(21)]
    with _figure(4.2, 3.0) as (_, axes, out):
        for kind, values in by_kind.items():
            weights = [1 / len(values)] * len(values)
            colour = colours.get(kind, INK)
            axes.hist(values, bins=edges, weights=weights, color=colour, alpha=0.55, label=_ascii(kind))
        axes.set_yscale("log")
        axes.set_xlim(0, 1)
        axes.set_xlabel(measure)
        axes.set_ylabel("share of tokens")
        axes.legend(loc="upper right")
    return out[0]


def rule_curve(record: RuleRecord, tau: float) -> str:
    """Draw precision against coverage of the rules' verdict as τ falls, and the working point."""
    with _figure(4.2, 3.0) as (_, axes, out):
        points = sorted((coverage, precision) for _, coverage, precision in record.curve())
        axes.plot([c for c, _ in points], [p for _, p in points], color=COLOURS["rules"], marker=".", linewidth=1.2)
        axes.scatter(
            [record.coverage(tau).value],
            [record.precision(tau).value],
            s=70,
            facecolors="none",
            edgecolors=GREEN,
            linewidths=2,
            zorder=3,
            label=f"working point, tau = {tau:.2f}",
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("coverage")
        axes.set_ylabel("precision")
        axes.legend(loc="lower left")
    return out[0]


def tau_curves(curves: Mapping[str, Sequence[Sequence[float]]], arm: str, tau: float) -> str:
    """Draw held-out weighted F1 over τ by arm; the dashed line hears no rule, a ring marks what was chosen.

    Args:
        curves: arm → (τ, weighted F1), ascending in τ; the last point, above 1, hears no rule.
        arm: the chosen arm.
        tau: the chosen τ.
    """
    with _figure(4.2, 3.0) as (_, axes, out):
        for name, points in curves.items():
            heard = [(t, f1) for t, f1 in points if t <= 1]
            colour = ARM_COLOURS.get(name, INK)
            axes.plot([t for t, _ in heard], [f1 for _, f1 in heard], color=colour, label=name, linewidth=1.2)
            if name == arm and tau <= 1:
                nearest = min(heard, key=lambda point: abs(point[0] - tau))
                axes.scatter(*nearest, s=70, facecolors="none", edgecolors=colour, linewidths=2, zorder=3)
            axes.axhline(points[-1][1], color=colour, linestyle="--", linewidth=0.7, alpha=0.7)
        axes.set_xlim(0, 1)
        axes.set_xlabel("tau")
        axes.set_ylabel("weighted F1, held out")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(1, len(curves)), fontsize=8)
    return out[0]


def reliability(by_system: Mapping[str, Calibration]) -> str:
    """Draw accuracy against confidence; marks grow with the number of predictions."""
    with _figure(4.2, 3.0) as (_, axes, out):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
        for system, calibration in by_system.items():
            bins = calibration.bins
            total = sum(n for _, _, n in bins) or 1
            axes.plot([c for c, _, _ in bins], [a for _, a, _ in bins], color=COLOURS.get(system, INK), linewidth=1)
            axes.scatter(
                [c for c, _, _ in bins],
                [a for _, a, _ in bins],
                s=[20 + 300 * n / total for _, _, n in bins],
                color=COLOURS.get(system, INK),
                alpha=0.8,
                label=f"{system} (ECE {calibration.error:.3f})",
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.legend(loc="upper left", markerscale=0.5)
    return out[0]


def class_bars(before: Sequence[float], after: Sequence[float], before_name: str, after_name: str) -> str:
    """Draw F1 by class number: without rules (hollow) and with them (filled), joined by a line."""
    with _figure(6.4, 0.6 + 0.17 * len(before)) as (_, axes, out):
        rows = range(1, len(before) + 1)
        for row, low, high in zip(rows, before, after, strict=True):
            axes.plot([low, high], [row, row], color=INK, linewidth=1.4, zorder=1)
        colour = COLOURS.get(before_name, BLUE)
        axes.scatter(before, rows, s=26, facecolors="none", edgecolors=colour, label=before_name, zorder=2)
        axes.scatter(after, rows, s=26, color=COLOURS.get(after_name, GREEN), label=after_name, zorder=3)
        axes.set_yticks(list(rows))
        axes.set_ylim(len(before) + 0.7, 0.3)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("F1 by class number (names: the table)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return out[0]


def _ascii(name: str) -> str:
    """Return a name that any font can draw."""
    return name if name.isascii() else "".join(c if c.isascii() else "?" for c in name)
