"""Curves and the page of the scale suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.experiments import figures

Found = Sequence[Mapping[str, Any]]
"""What was found at each size of a part, small ones first."""


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draw two pictures a part that was measured, one part a row."""
    drawn = {name: found for name in _ROWS if (found := found_of(record, name))}
    if not drawn:
        return
    with figures.figure(path, "How each part grows", rows=len(drawn), columns=2, height=3.0, width=10.0) as axes:
        for row, (name, found) in enumerate(drawn.items()):
            _ROWS[name](axes[2 * row], axes[2 * row + 1], found)


def found_of(record: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """Return what was found at each size of a part."""
    return [one["found"] for one in record["parts"].get(part, {}).values()]


def _loglog(axes: Any, title: str, x: str, y: str) -> None:  # noqa: ANN401 (matplotlib's axes)
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")


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
    _loglog(left, "Ingest: time", "dialogues", "processor seconds")
    _curve(left, xs, [one["cpu_s"] for one in found], name="measured")
    _linear(left, xs, [one["cpu_s"] for one in found])
    right.set(title="Ingest: memory and spill", xlabel="dialogues", ylabel="GiB", xscale="log")
    _curve(right, xs, [one["peak_pss_gb"] for one in found], 0, "peak of all processes")
    _curve(right, xs, [one["peak_pss_of_one_process_gb"] for one in found], 1, "peak of the largest")
    _curve(right, xs, [one["spilled_bytes"] / 2**30 for one in found], 4, "spilled to disk")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)


def _rules(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    searched = [one for one in found if "evaluations_per_s" in one]
    mined = [one for one in found if "mining_s" in one]
    _loglog(left, "Rule search: one core", "examples", "evaluations a second")
    _curve(left, [one["examples"] for one in searched], [one["evaluations_per_s"]["median"] for one in searched])
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
        right.legend(fontsize=8)
    right.set_title("Mining by several workers")


def _matcher(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    largest = found[-1]
    _loglog(left, f"Matcher: {largest['dialogues']:,} dialogues", "rules", "µs a dialogue")
    _loglog(right, "Matcher: building", "rules", "seconds")
    for colour, (language, told) in enumerate(largest["languages"].items()):
        xs = [one["rules"] for one in told["growth"]]
        _curve(left, xs, [one["matcher_us_per_dialogue"] for one in told["growth"]], colour, language)
        _curve(
            left, xs, [one["unrolled_loop_us_per_dialogue"] for one in told["growth"]], 4 + colour, f"{language}, loop"
        )
        _curve(right, xs, [one["build_s"] for one in told["growth"]], colour, language)
    left.legend(fontsize=8)
    right.legend(fontsize=8)


def _retriever(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    _pair(left, right, found, "batch", "pairs a step", "Retriever")
    left.set_ylabel("pairs a second")
    _curve(left, [one["batch"] for one in found], [one["examples_per_s"]["median"] for one in found])
    left.set_ylim(bottom=0)


def _index(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    xs = [one["vectors"] for one in found]
    _loglog(left, "Index: building, and memory", "vectors", "processor seconds; GiB")
    _curve(left, xs, [one["build_cpu_s"] for one in found], 0, "building, processor seconds")
    _curve(left, xs, [one["peak_pss_gb"] for one in found], 1, "peak of the process, GiB")
    left.axhline(8.0, ls="--", lw=1, color=figures.INK, label="8 GiB")
    left.legend(fontsize=8)
    _loglog(right, "Index: a query", "vectors", "milliseconds")
    _curve(right, xs, [one["one_query_ms"]["p50"] for one in found], 0, "one alone, p50")
    _curve(right, xs, [one["query_cpu_ms"] for one in found], 2, "of many, processor time")
    for x, one in zip(xs, found, strict=True):
        right.annotate(
            f"recall {one['recall_at_10']:.3f}",
            (x, one["one_query_ms"]["p50"]),
            textcoords="offset points",
            xytext=(0, 6),
            ha="center",
            fontsize=7.5,
        )
    right.margins(x=0.15, y=0.2)
    right.legend(fontsize=8, loc="lower right")


def _conkd(left: Any, right: Any, found: Found) -> None:  # noqa: ANN401 (matplotlib's axes)
    xs = [one["entities"] for one in found]
    _pair(left, right, found, "entities", "entities", "R-GCN")
    left.set(ylabel="processor seconds a step", yscale="log")
    ys = [one["step_cpu_s"]["median"] for one in found]
    _curve(left, xs, ys, name="measured")
    _linear(left, xs, ys)


def _pair(left: Any, right: Any, found: Found, units: str, x: str, what: str) -> None:  # noqa: ANN401 (matplotlib's)
    """Head a part's two pictures; the right one is its memory."""
    left.set(title=f"{what}: time", xlabel=x, xscale="log")
    right.set(title=f"{what}: memory", xlabel=x, ylabel="peak of the process, GiB", xscale="log")
    _curve(right, [one[units] for one in found], [one["peak_pss_gb"] for one in found])
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


_ROWS: Mapping[str, Callable[[Any, Any, Found], None]] = {
    "ingest": _ingest,
    "rules": _rules,
    "matcher": _matcher,
    "retriever": _retriever,
    "index": _index,
    "conkd": _conkd,
    "serving": _serving,
}


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


_COSTS_TEXT = """No card and no second machine was at hand. Rows that are *measured* continue the lines below, \
found on two cores, to machines of equally fast cores; rows that are *published* follow from a card's published rate \
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
        "labels": _number("labels"),
        "searches": _number("searches"),
        "1 worker s": _number("mining_s", "1", "median"),
        "2 workers s": _number("mining_s", "2", "median"),
        "times as fast": _number("times_one_worker", "2", "median"),
        "same rules": _number("same_rules"),
        "peak GiB": _number("peak_pss_gb"),
    },
    "matcher": {
        "dialogues": _number("dialogues"),
        "1,000 rules, en: times a loop": _number("languages", "en", "headline", "speedup_over_unrolled_loop"),
        "zh": _number("languages", "zh", "headline", "speedup_over_unrolled_loop"),
        "growth with rules, en": _number("languages", "en", "time_exponent_100_to_10000"),
        " zh": _number("languages", "zh", "time_exponent_100_to_10000"),
        "peak GiB": _number("peak_pss_gb"),
    },
    "retriever": {
        "pairs a step": _number("batch"),
        "pairs/s": _number("examples_per_s", "median"),
        "peak GiB": _number("peak_pss_gb"),
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
        "peak GiB": _number("peak_pss_gb"),
    },
    "conkd": {
        "copies": _number("copies"),
        "entities": _number("entities"),
        "edges": _number("edges"),
        "step s": _number("step_s", "median"),
        "step processor s": _number("step_cpu_s", "median"),
        "peak GiB": _number("peak_pss_gb"),
    },
    "serving": {
        "replicas": _number("replicas"),
        "answered/s": _number("answered_per_s"),
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
