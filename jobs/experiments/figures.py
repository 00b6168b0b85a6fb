"""Pictures of experiments: PNG on white, so in darker ink than the report's, and readable at the width of a README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmd.evaluation.plots import plot_style

INK = "#3c434b"
COLOURS = ("#4c8dff", "#d29922", "#2ea043", "#a371f7", "#db6d6d", "#39a0a0", "#8b949e")
"""Blue is the classifier's or in domain, amber the rules' or out of domain, green the two together."""
_DIGITS = 4
_STYLE: Any = plot_style(INK) | {"font.size": 9.5, "axes.titlesize": 10, "figure.titlesize": 11}


@contextmanager
def figure(
    path: Path, title: str, *, rows: int = 1, columns: int = 1, height: float = 3.2, width: float = 8.0
) -> Iterator[list[Any]]:
    """Yield the axes, row by row, and write the picture on leaving.

    Args:
        path: of the PNG.
        title: what is shown, not what follows from it.
        rows: of axes.
        columns: of axes.
        height: of one row, inches.
        width: of all, inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        drawn = Figure(figsize=(width, height * rows + 0.4), layout="constrained")  # no pyplot: no display is needed
        yield list(drawn.subplots(rows, columns, squeeze=False).flat)
        drawn.suptitle(title)
        drawn.savefig(path, dpi=130, metadata={"Software": None})


def interval_bars(
    axes: Any,  # noqa: ANN401 (matplotlib's axes)
    groups: Sequence[str],
    series: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    label: str,
    colours: Sequence[str] = COLOURS,
) -> None:
    """Draw grouped bars with whiskers.

    Args:
        axes: where.
        groups: names along the x axis.
        series: name → one ``{mean, low, high}`` a group.
        label: of the y axis.
        colours: one a series.
    """
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        means = [v["mean"] for v in values]
        whiskers = [[max(0.0, v["mean"] - v["low"]) for v in values], [max(0.0, v["high"] - v["mean"]) for v in values]]
        axes.bar(places, means, width * 0.92, label=name, color=colours[number % len(colours)])
        axes.errorbar(places, means, yerr=whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel(label)
    axes.grid(visible=False, axis="x")


def band(
    axes: Any,  # noqa: ANN401 (matplotlib's axes)
    places: Sequence[float],
    values: Sequence[Mapping[str, float]],
    *,
    name: str,
    colour: str,
    style: str = "-",
) -> None:
    """Draw a line of means with marks and its band from ``low`` to ``high``."""
    axes.plot(places, [v["mean"] for v in values], style, marker=".", color=colour, label=name)
    axes.fill_between(places, [v["low"] for v in values], [v["high"] for v in values], color=colour, alpha=0.18, lw=0)


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Return mean, low (minimum) and high (maximum) of repeats; all 0 without any."""
    if not values:
        return {"mean": 0.0, "low": 0.0, "high": 0.0}
    told = {"mean": sum(values) / len(values), "low": min(values), "high": max(values)}
    return {name: round(value, _DIGITS) for name, value in told.items()}


def crowded(axes: Any) -> None:  # noqa: ANN401 (matplotlib's axes)
    """Make room for long names: the ticks' are tilted, the legend stands above the axes."""
    for label in axes.get_xticklabels():
        label.set(rotation=30, ha="right", rotation_mode="anchor")
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(handles))


def plain_log(axes: Any) -> None:  # noqa: ANN401 (matplotlib's axes)
    """Make the y axis logarithmic, its numbers written as one reads them."""
    from matplotlib.ticker import StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))


def legend_below(axes: Any) -> None:  # noqa: ANN401 (matplotlib's axes)
    """Put the legend of one of a figure's axes below all of them."""
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)))
