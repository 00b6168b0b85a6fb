"""From measurements to lines, and from lines to what larger work would take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from jobs.bench.cost_model import (
    CARDS,
    IndexCosts,
    Line,
    Machine,
    batch_work,
    build_of_index,
    fine_tuning,
    service_of_index,
)
from jobs.bench.scale_targets import Parts, peak_of

DIALOGUES, RESPONSES, WEIGHTS, TOKENS = 1e8, 1e9, 7e9, 1e9
_GB = 2**30
_LINES: Mapping[str, tuple[str, str, Callable[[Mapping[str, Any]], float]]] = {
    "ingest, processor seconds a dialogue": ("ingest", "dialogues", lambda found: found["cpu_s"]),
    "ingest, GiB of the largest process a dialogue": (
        "ingest",
        "dialogues",
        lambda found: found["peak_pss_of_one_process_gb"],
    ),
    "ingest, stored bytes a dialogue": ("ingest", "dialogues", lambda found: found["artefact_bytes"]),
    "index, processor seconds to add a vector": ("index", "vectors", lambda found: found["build_cpu_s"]),
    "index, GiB of the process a vector": ("index", "vectors", peak_of),
    "ConKD, processor seconds of a step an entity": ("conkd", "entities", lambda found: found["step_cpu_s"]["median"]),
    "ConKD, GiB of the process an entity": ("conkd", "entities", peak_of),
}
"""Line → part, what its sizes are counted in, and the cost."""


def lines_of(parts: Parts) -> dict[str, dict[str, float]]:
    """Return the line of each cost of which two sizes were measured."""
    lines = {}
    for name, (part, units, cost) in _LINES.items():
        found = list(found_of(parts, part))
        sizes = [float(one[units]) for one in found]
        if len(set(sizes)) > 1:
            line = Line.through(sizes, [cost(one) for one in found])
            lines[name] = {**asdict(line), "from": min(sizes), "to": max(sizes)}
    return lines


def found_of(parts: Parts, part: str) -> Iterable[Mapping[str, Any]]:
    """Yield what was found at each size of a part."""
    return (record["found"] for record in parts.get(part, {}).values())


def costs_of(parts: Parts, machine: Machine, *, within_h: float) -> list[dict[str, Any]]:
    """Return rows of the cost model, of what was measured; those of cards stand on published figures alone."""
    lines = lines_of(parts)
    rows = []
    if cpu := lines.get("ingest, processor seconds a dialogue"):
        # The line without what is fixed, which does not grow: a single start.
        core_s = DIALOGUES * cpu["each"] + cpu["fixed"]
        ingested = batch_work(f"ingest of {DIALOGUES:.3g} dialogues", core_s, machine, within_h=within_h)
        memory = lines["ingest, GiB of the largest process a dialogue"]
        stored = lines["ingest, stored bytes a dialogue"]
        largest_gb = memory["fixed"] + memory["each"] * DIALOGUES
        ingested.told["memory_of_the_largest_process_gb"] = largest_gb
        # The receipts of all parts meet in one process, which must fit a node: else the corpus is taken in pieces.
        ingested.told["pieces_one_after_the_other"] = math.ceil(largest_gb / (machine.memory_gb * machine.usable))
        ingested.told["stored_tb"] = (stored["fixed"] + stored["each"] * DIALOGUES) / 1e12
        pictures = max((one["pictures"] for one in found_of(parts, "ingest")), default=0)
        ingested.assumed["pictures"] = (
            f"no more distinct ones than were measured ({pictures:,}, small): text is what is many here. "
            "Each further one takes its own size on disk, and the time that `mmd bench ingest` tells."
        )
        rows.append(ingested)
    if index := largest(parts, "index", "vectors"):
        costs = IndexCosts(
            bytes_each=peak_of(index) * _GB / index["vectors"],
            build_core_s_each=index["build_cpu_s"] / index["vectors"],
            query_core_s_each=index["query_cpu_ms"] / 1000 / index["vectors"],
            part=index["vectors"],
        )
        rows += [build_of_index(RESPONSES, costs, machine), service_of_index(RESPONSES, costs, machine)]
    rows += [fine_tuning(WEIGHTS, TOKENS, card, within_h=within_h) for card in CARDS]
    rows += [fine_tuning(WEIGHTS, TOKENS, CARDS[1], method="full", within_h=within_h)]
    return [asdict(row) for row in rows]


def largest(parts: Parts, part: str, units: str) -> Mapping[str, Any] | None:
    """Return what was found at the largest size of a part."""
    return max(found_of(parts, part), key=lambda found: float(found[units]), default=None)
