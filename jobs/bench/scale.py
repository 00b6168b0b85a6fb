"""How each part grows, in one command: ingest, rules, matcher, retriever, index, ConKD, serving; and what follows.

Each part is measured at growing sizes, each size in a process of its own that is watched from outside (time, processor
time of all processes, memory of all and of the largest). Every measurement writes a record of its own as it ends,
under ``--records``; a run that is broken off, or in which one of them fails, keeps what it has, and the next one goes
on where that stopped. From the measured lines, a cost model says what larger work would take
(:mod:`jobs.bench.cost_model`).

Only ``serving`` needs artefacts: those of a trained corpus.

    mmd bench scale                                      all of it: hours on two cores
    mmd bench scale --sizes small --records /tmp/scale   a minute or two: does it run?
    mmd bench scale --parts ingest index
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.bench import scale_page
from jobs.bench.apart import MeasurementError, apart
from jobs.bench.cost_model import Machine
from jobs.bench.scale_costs import costs_of, lines_of
from jobs.bench.scale_parts import Part, Point, parts_of
from jobs.bench.scale_targets import targets_of
from jobs.glue.entry import console
from jobs.glue.records import OUT, hardware
from mmd.artifacts import code_revision
from mmd.errors import ConfigError

PARTS = ("ingest", "rules", "matcher", "retriever", "index", "conkd", "serving")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add parts, sizes, where records lie, and what the cost model assumes."""
    machine = Machine()
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--points", nargs="+", metavar="NAME", help="of these parts, only points of these names")
    parser.add_argument("--sizes", choices=("small", "full"), default="full", help="default: %(default)s")
    parser.add_argument(
        "--records", type=Path, default=OUT / "scale", help="folder of measurements (default: %(default)s)"
    )
    parser.add_argument("--again", action="store_true", help="measure what is recorded already, too")
    parser.add_argument("--told", action="store_true", help="measure nothing: tell what is recorded")
    parser.add_argument(
        "--index-within-s",
        type=float,
        metavar="S",
        help="seconds after which an index takes no more vectors, and is judged with those it has (default: no bound)",
    )
    parser.add_argument("--store", default="artifacts", help="artefacts to serve (default: %(default)s)")
    parser.add_argument("--corpus", default="shop", help="corpus that they were made of (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=machine.cores, help="of a node (default: %(default)s)")
    parser.add_argument("--memory-gb", type=float, default=machine.memory_gb, help="of a node (default: %(default)s)")
    parser.add_argument(
        "--node-price", type=float, default=machine.price_an_hour, help="an hour (default: %(default)s)"
    )
    parser.add_argument("--within-h", type=float, default=8.0, help="hours a job may take (default: %(default)s)")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Measure what is not recorded yet, and return all that is."""
    records, parts = Path(options["records"]), parts_of(options["store"], options["corpus"], options["index_within_s"])
    chosen = {name: parts[name] for name in PARTS if name in options["parts"]}
    measured: list[str] = []
    failed: dict[str, str] = {}
    for name, part in chosen.items():
        for point in () if options["told"] else points_of(part, options):
            key = f"{name}/{point.name}"
            record = recorded(path_of(records, name, point), point)
            if record and whole(record) and not options["again"]:
                console.print(f"{key}: recorded", markup=False)
                continue
            console.print(f"{key} …", markup=False)
            try:
                measure(point, path_of(records, name, point))
            except MeasurementError as err:
                console.print(f"{key}: {err}", markup=False)
                failed[key] = str(err)[-600:]
            else:
                measured.append(key)
    found = {name: in_order(records, name, part, options) for name, part in chosen.items()}
    machine = Machine(options["cores"], options["memory_gb"], options["node_price"])
    return {
        "config": {
            key: value if not isinstance(value, Path) else str(value)
            for key, value in options.items()
            if key not in {"store", "records"}
        },
        "repeats": 1,
        "measured_now": measured,
        "failed": failed,
        "missing": missing(found, chosen, options),
        "about": {name: part.about for name, part in chosen.items()},
        "parts": found,
        "targets": targets_of(found),
        "lines": lines_of(found),
        # Small sizes tell whether it runs, nothing of what larger work would take.
        "costs": costs_of(found, machine, within_h=options["within_h"]) if options["sizes"] == "full" else [],
        "note": "Every measurement carries its own code, date and load; where the load exceeds the cores, seconds tell "
        "of the load and only cpu_s of the work.",
    }


def points_of(part: Part, options: Mapping[str, Any]) -> Sequence[Point]:
    """Return a part's points that were asked for."""
    wanted = options["points"]
    return [point for point in part.points[options["sizes"]] if not wanted or point.name in wanted]


def path_of(records: Path, part: str, point: Point) -> Path:
    """Return where a point's measurement is recorded."""
    return records / f"{part}-{point.name}.json"


def measure(point: Point, path: Path) -> None:
    """Measure a point and record it.

    Raises:
        MeasurementError: it failed.
    """
    before = os.getloadavg()
    found = apart(point.work, **point.given)
    record = {
        "code": code_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "load_average": {"before": before, "after": os.getloadavg()},
        "given": told_of(point),
        "found": found,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    part.rename(path)


def told_of(point: Point) -> dict[str, Any]:
    """Return a point's arguments as they are recorded, without the place of a store and the patience of a run."""
    kept = {key: value for key, value in point.given.items() if key not in {"store", "within_s"}}
    told: dict[str, Any] = json.loads(json.dumps(kept))
    return told


def whole(record: Mapping[str, Any]) -> bool:
    """Say whether a measurement was of all that it was asked for."""
    found = record["found"]
    return bool(found.get("vectors") == found.get("asked_for", found.get("vectors")))


def recorded(path: Path, point: Point) -> dict[str, Any] | None:
    """Return a point's record, or none if there is none of the same arguments.

    Raises:
        ConfigError: the record cannot be read.
    """
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record if record["given"] == told_of(point) else None
    except (OSError, ValueError, KeyError) as err:
        raise ConfigError(f"{path}: no readable measurement ({err!r}); delete it to measure again.") from err


def in_order(records: Path, name: str, part: Part, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return point → record of those that there are."""
    found = {point.name: recorded(path_of(records, name, point), point) for point in part.points[options["sizes"]]}
    return {point: record for point, record in found.items() if record is not None}


def missing(found: Mapping[str, Mapping[str, Any]], parts: Mapping[str, Part], options: Mapping[str, Any]) -> list[str]:
    """Return the points without a record of the whole."""
    return [
        f"{name}/{point.name}"
        for name, part in parts.items()
        for point in part.points[options["sizes"]]
        if point.name not in found[name] or not whole(found[name][point.name])
    ]


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw the curves and write the page beside them."""
    scale_page.draw(record, path)
    path.with_suffix(".md").write_text(scale_page.page(record, path.name), encoding="utf-8")
