"""Curves and the page of the scale suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.bench.scale_targets import peak_of
from jobs.experiments import figures

Found = Sequence[Mapping[str, Any]]
"""What was found at each size of a part, small ones first."""


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draw two pictures a part that was measured, one part a row."""
    rows = [(row, found) for part, row in _ROWS if (found := found_of(record, part))]
    if not rows:
        return
    with figures.figure(path, "How each part grows", rows=len(rows), columns=2, height=3.0, width=10.0) as axes:
        for number, (row, found) in enumerate(rows):
            row(axes[2 * number], axes[2 * number + 1], found)


def found_of(record: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """Return what was found at each size of a part."""
    return [one["found"] for one in record["parts"].get(part, {}).values()]


def _sized(axes: Any, sizes: Sequence[float], title: str, x: str, y: str) -> None:  # noqa: ANN401 (matplotlib's axes)
    """Head a picture whose x axis is logarithmic, its ticks the sizes that were measured."""
    from matplotlib.ticker import NullLocator

    axes.set(title=title, xlabel=x, ylabel=y, xscale="log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(sizes), [_short(size) for size in sizes])


def _short(size: float) -> str:
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{size / unit:.3g}{letter}"
    return f"{size:g}"


def _log_y(axes: Any) -> None:  # noqa: ANN401 (matplotlib's axes)
    """Make the y axis logarithmic, its numbers written as one reads them and none between the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high / low < 30  # else there would be a single number, or none
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _curve(
    axes: Any,  # noqa: ANN401 (matplotlib's axes)
    xs: Sequence[float],
    ys: Sequence[float],
    colour: int = 0,
    name: str | None = None,
) -> None:
    axes.plot(xs, ys, marker="o", markersize=4, color=figures.COLOURS[colour], label=name)


def _linear(axes: Any, xs: Sequence[float], ys: Sequence[float]) -> None:  # noqa: ANN401 (matplotlib's axes)
    """Draw growth in proportion, through the largest point, to compare with."""
    axes.plot([xs[0], xs[-1]], [ys[-1] * xs[0] / xs[-1], ys[-1]], "--", lw=1, color=figures.INK, label="in proportion")
    axes.legend(fontsize=8)


def _ingest(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    xs = [one["dialogues"] for one in found]
    _sized(left, xs, "Ingest: time, a fixed start included", "dialogues", "processor seconds")
    _curve(left, xs, [one["cpu_s"] for one in found], name="measured")
    _linear(left, xs, [one["cpu_s"] for one in found])
    _log_y(left)
    _sized(right, xs, "Ingest: memory and spill", "dialogues", "GiB")
    _curve(right, xs, [one["peak_pss_gb"] for one in found], 0, "peak of all processes")
    _curve(right, xs, [one["peak_pss_of_one_process_gb"] for one in found], 1, "peak of the largest")
    _curve(right, xs, [one["spilled_bytes"] / 2**30 for one in found], 4, "spilled to disk")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)


def _rules(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    searched = [one for one in found if "evaluations_per_s" in one]
    mined = [one for one in found if "mining_s" in one]
    xs = [one["examples"] for one in searched]
    _sized(left, xs, "Rule search: one core", "examples", "evaluations a second")
    _curve(left, xs, [one["evaluations_per_s"]["median"] for one in searched])
    _log_y(left)
    names = [f"{one['examples']:,} examples\n{one['labels']} labels" for one in mined]
    times = [one["times_one_worker"] for one in mined]
    workers = sorted({count for one in times for count in one}, key=int)
    series = {
        f"{count} workers": [
            {"mean": one[count]["median"], "low": one[count]["min"], "high": one[count]["max"]} for one in times
        ]
        for count in workers
    }
    if series:
        figures.interval_bars(right, names, series, label="times as fast as one worker")
        right.axhline(1.7, ls="--", lw=1, color=figures.INK, label="target, 2 workers")
        right.set_ylim(0, 2.5)
        right.legend(fontsize=8, ncols=2)
    right.set_title("Mining by several workers")
    left.set_visible(bool(searched))
    right.set_visible(bool(mined))


def _matcher(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    largest = found[-1]
    sizes = [one["rules"] for one in largest["languages"]["en"]["growth"]]
    _sized(left, sizes, f"Matcher: {largest['dialogues']:,} dialogues", "rules", "µs a dialogue")
    _sized(right, sizes, "Matcher: building", "rules", "seconds")
    for colour, (language, told) in enumerate(largest["languages"].items()):
        xs = [one["rules"] for one in told["growth"]]
        _curve(left, xs, [one["matcher_us_per_dialogue"] for one in told["growth"]], colour, language)
        _curve(
            left, xs, [one["unrolled_loop_us_per_dialogue"] for one in told["growth"]], 4 + colour, f"{language}, loop"
        )
        _curve(right, xs, [one["build_s"] for one in told["growth"]], colour, language)
    for axes in (left, right):
        _log_y(axes)
    left.legend(fontsize=8)
    right.legend(fontsize=8)


def _retriever(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    _pair(left, right, found, "batch", "pairs a step", "Retriever")
    left.set_ylabel("pairs a second")
    _curve(left, [one["batch"] for one in found], [one["examples_per_s"]["median"] for one in found])
    left.set_ylim(bottom=0)


def _index(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    xs = [one["vectors"] for one in found]
    _pair(left, right, found, "vectors", "vectors", "Index, building")
    left.set_ylabel("processor seconds")
    _curve(left, xs, [one["build_cpu_s"] for one in found], name="measured")
    _linear(left, xs, [one["build_cpu_s"] for one in found])
    _log_y(left)
    right.axhline(8.0, ls="--", lw=1, color=figures.INK, label="8 GiB")
    right.autoscale(axis="y")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)


def _asked(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    xs = [one["vectors"] for one in found]
    _sized(left, xs, "Index: a query", "vectors", "milliseconds")
    _curve(left, xs, [one["one_query_ms"]["p50"] for one in found], 0, "one alone, p50")
    _curve(left, xs, [one["query_cpu_ms"] for one in found], 2, "of many, processor time")
    _log_y(left)
    left.legend(fontsize=8)
    _sized(right, xs, "Index: what it finds", "vectors", "recall@10")
    _curve(right, xs, [one["recall_at_10"] for one in found])
    right.axhline(0.9, ls="--", lw=1, color=figures.INK, label="target")
    right.set_ylim(0, 1.03)
    right.legend(fontsize=8, loc="lower right")


def _conkd(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    xs = [one["entities"] for one in found]
    _pair(left, right, found, "entities", "entities", "R-GCN")
    left.set_ylabel("processor seconds a step")
    ys = [one["step_cpu_s"]["median"] for one in found]
    _curve(left, xs, ys, name="measured")
    _linear(left, xs, ys)
    _log_y(left)


def _pair(left: Any, right: Any, found: Found, units: str, x: str, what: str) -> None:  # noqa: ANN401 (matplotlib's)
    """Head a part's two pictures; the right one is its memory."""
    xs = [one[units] for one in found]
    _sized(left, xs, f"{what}: time", x, "")
    _sized(right, xs, f"{what}: memory", x, "peak of the process, GiB")
    _curve(right, xs, [peak_of(one) for one in found])
    right.set_ylim(bottom=0)


def _serving(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    left.set(title="Serving: turns answered", xlabel="replicas of each model", ylabel="answered a second")
    _curve(left, [one["replicas"] for one in found], [one["answered_per_s"] for one in found])
    left.set_xticks([one["replicas"] for one in found])
    left.set_ylim(bottom=0)
    right.set(title="Serving: latency by rate", xlabel="sent a second", ylabel="p99, ms", yscale="log")
    for colour, one in enumerate(found):
        told = {float(rate): at["latency_ms"].get("p99") for rate, at in one["by_rate"].items()}
        shown = {rate: ms for rate, ms in told.items() if ms}
        _curve(right, list(shown), list(shown.values()), colour, f"{one['replicas']} replicas")
    right.legend(fontsize=8)


_ROWS: Sequence[tuple[str, Callable[[Any, Any, Found], None]]] = (
    ("ingest", _ingest),
    ("rules", _rules),
    ("matcher", _matcher),
    ("retriever", _retriever),
    ("index", _index),
    ("index", _asked),
    ("conkd", _conkd),
    ("serving", _serving),
)


# ---------------------------------------------------------------- the page


def page(record: Mapping[str, Any], picture: str) -> str:
    """Return the page in Markdown: the picture, a table a part, the lines, and what larger work would take."""
    sections = [
        "# Scale\n",
        f"`mmd bench scale`, {record['date'][:10]}. {record['note']}\n",
        f"![How each part grows]({picture})\n",
    ]
    sections += ["## Targets\n", _targets(record["targets"])]
    for part, about in record["about"].items():
        sections += [f"## {part}\n", f"Grows: {about}.\n", _table(_COLUMNS[part], record["parts"].get(part, {}))]
    if record["missing"]:
        sections.append(f"Not measured: {', '.join(record['missing'])}.\n")
    sections += ["## What larger work would take\n", _COSTS_TEXT, _lines(record["lines"]), _costs(record["costs"])]
    return "\n".join(sections)


_COSTS_TEXT = """No card and no second machine was at hand. Rows that are *measured* rest on two \
cores and go on to machines of equally fast ones, ingest by the lines below, an index by what the largest one that was \
measured took a vector; rows that are *published* follow from a card's published rate \
and the share of it that is assumed. Every assumption stands in the record and is an option or an argument \
(`jobs/bench/cost_model.py`); prices are round figures to compare rows with.
"""

Cell = Callable[[Mapping[str, Any]], str]


def _number(*path: str, digits: int = 3) -> Cell:
    def told(found: Mapping[str, Any]) -> str:
        value: Any = found
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return _said(value, digits)

    return told


def _said(value: Any, digits: int = 3) -> str:  # noqa: ANN401 (a number, or what a record holds)
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    return "" if value is None else str(value)


def _peak(found: Mapping[str, Any]) -> str:
    return _said(peak_of(found))


_WATCHED: Mapping[str, Cell] = {
    "s": _number("seconds"),
    "processor s": _number("cpu_s"),
    "peak GiB": _number("peak_pss_gb"),
}
_COLUMNS: Mapping[str, Mapping[str, Cell]] = {
    "ingest": {
        "dialogues": _number("dialogues"),
        "pictures": _number("pictures"),
        **_WATCHED,
        "largest process GiB": _number("peak_pss_of_one_process_gb"),
        "spilled bytes": _number("spilled_bytes"),
        "all ids there": _number("ids_all_there"),
        "all pictures there": _number("pictures_all_there"),
        "quarantined": _number("quarantined"),
    },
    "rules": {
        "examples": _number("examples"),
        "evaluations/s": _number("evaluations_per_s", "median"),
        "a processor second": _number("evaluations_per_cpu_s", "median"),
        "labels": _number("labels"),
        "searches": _number("searches"),
        "1 worker s": _number("mining_s", "1", "median"),
        "2 workers s": _number("mining_s", "2", "median"),
        "1 worker processor s": _number("mining_cpu_s", "1", "median"),
        "2 workers": _number("mining_cpu_s", "2", "median"),
        "times as fast": _number("times_one_worker", "2", "median"),
        "by processor time": _number("times_one_worker_by_cpu", "2", "median"),
        "same rules": _number("same_rules"),
        "peak GiB": _peak,
    },
    "matcher": {
        "dialogues": _number("dialogues"),
        "1,000 rules, en: times a loop": _number("languages", "en", "headline", "speedup_over_unrolled_loop"),
        "zh": _number("languages", "zh", "headline", "speedup_over_unrolled_loop"),
        "growth with rules, en": _number("languages", "en", "time_exponent_100_to_10000"),
        " zh": _number("languages", "zh", "time_exponent_100_to_10000"),
        "peak GiB": _peak,
    },
    "retriever": {
        "pairs a step": _number("batch"),
        "pairs/s": _number("examples_per_s", "median"),
        "peak GiB": _peak,
    },
    "index": {
        "vectors": _number("vectors"),
        "lists": _number("parameters", "lists"),
        "recall@10": _number("recall_at_10"),
        "p50 ms": _number("one_query_ms", "p50"),
        "p99 ms": _number("one_query_ms", "p99"),
        "processor ms a query": _number("query_cpu_ms"),
        "queries/s": _number("queries_per_s"),
        "build s": _number("build_s"),
        "build processor s": _number("build_cpu_s"),
        "peak GiB": _peak,
    },
    "conkd": {
        "copies": _number("copies"),
        "entities": _number("entities"),
        "edges": _number("edges"),
        "step s": _number("step_s", "median"),
        "step processor s": _number("step_cpu_s", "median"),
        "peak GiB": _peak,
    },
    "serving": {
        "replicas": _number("replicas"),
        "all answered up to, a second": _number("held_per_s"),
        "p50 ms there": _number("p50_ms"),
        "p99 ms there": _number("p99_ms"),
        "answered a second at most": _number("answered_per_s"),
        "memory MiB": _number("memory", "peak_mib", digits=4),
    },
}


def _table(columns: Mapping[str, Cell], records: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["point", *columns, "load", "code"]
    rows = [
        [name, *(cell(one["found"]) for cell in columns.values()), _load(one), one["code"].split()[-1]]
        for name, one in records.items()
    ]
    return _markdown(head, rows) if rows else "Not measured.\n"


def _targets(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of targets; one that was measured at a smaller size is neither reached nor missed yet."""
    rows = []
    for one in verdicts:
        whole = one["measured"] >= one["size"]
        said = "not measured" if one["reached"] is None else _said(one["reached"]) if whole else "not at this size"
        rows.append([one["target"], *(_said(one[key]) for key in ("size", "measured", "found")), said])
    return _markdown(["target", "at", "measured up to", "found there", "reached"], rows)


def _load(record: Mapping[str, Any]) -> str:
    """Return the load average around a measurement, its own part included."""
    load = record["load_average"]
    return f"{load['before'][0]:.0f} to {load['after'][0]:.0f}"


def _lines(lines: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [name, f"{one['fixed']:.3g}", f"{one['each']:.3g}", f"{one['from']:,.0f} to {one['to']:,.0f}"]
        for name, one in lines.items()
    ]
    return _markdown(["line", "fixed", "each", "measured from"], rows) if rows else ""


def _costs(costs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            one["work"],
            one["basis"],
            _said(one["nodes"]),
            _said(one["hours"]) if one["hours"] else "",
            f"{one['price']:,.2f} {one['per']}",
            ", ".join(f"{name.replace('_', ' ')} {_said(value)}" for name, value in one["told"].items()),
        ]
        for one in costs
    ]
    return _markdown(["work", "rests on", "nodes or cards", "hours", "price", "besides"], rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n"
