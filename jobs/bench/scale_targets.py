"""What the suite is to reach, and what the records say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.bench.cost_model import Line

Parts = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Part → point → record."""

_LINEAR = 1.15


@dataclass(frozen=True)
class Verdict:
    """A target, and how the largest measurement stands to it.

    Attributes:
        target: in words.
        size: that it is set for.
        measured: the largest size measured; 0: none.
        found: the figure at that size.
        reached: whether the figure is good enough there; None: nothing was measured.
    """

    target: str
    size: int
    measured: int = 0
    found: float | None = None
    reached: bool | None = None


def targets_of(parts: Parts) -> list[dict[str, Any]]:
    """Return each target with its verdict; one that was measured at a smaller size only says so by its sizes."""
    dialogues, vectors = 1_000_000, 10_000_000
    return [
        asdict(verdict)
        for verdict in (
            _verdict(
                parts, "ingest: dialogues lost, doubled or quarantined", "ingest", "dialogues", dialogues, _lost, _none
            ),
            _verdict(
                parts,
                "ingest: peak of all processes, GiB < 6",
                "ingest",
                "dialogues",
                dialogues,
                peak_of,
                lambda gb: gb < 6,
            ),
            _verdict(
                parts,
                f"ingest: processor time of a further dialogue, last step in size against the one before, < {_LINEAR}",
                "ingest",
                "dialogues",
                dialogues,
                None,
                lambda ratio: ratio < _LINEAR,
                growth(parts),
            ),
            _verdict(
                parts, "index: recall@10 ≥ .9", "index", "vectors", vectors, _recall, lambda recall: recall >= 0.9
            ),
            _verdict(
                parts, "index: peak of the process, GiB ≤ 8", "index", "vectors", vectors, peak_of, lambda gb: gb <= 8
            ),
            _mining(parts),
        )
    ]


def growth(parts: Parts) -> float | None:
    """Return the slope of ingest's processor time over its two largest sizes against that over the two before.

    1 is linear; what is fixed plays no part. None where fewer than three sizes were measured.
    """
    found = sorted((one["found"] for one in parts.get("ingest", {}).values()), key=lambda one: float(one["dialogues"]))
    if len(found) < 3:
        return None
    slopes = [
        Line.through([a["dialogues"], b["dialogues"]], [a["cpu_s"], b["cpu_s"]]).each
        for a, b in ((found[-3], found[-2]), (found[-2], found[-1]))
    ]
    return slopes[1] / slopes[0]


def _verdict(
    parts: Parts,
    target: str,
    part: str,
    units: str,
    size: int,
    figure: Callable[[Mapping[str, Any]], float] | None,
    good: Callable[[float], bool],
    given: float | None = None,
) -> Verdict:
    found = max((one["found"] for one in parts.get(part, {}).values()), key=lambda one: float(one[units]), default=None)
    if found is None:
        return Verdict(target, size)
    value = figure(found) if figure else given
    return Verdict(target, size, found[units], value, None if value is None else good(value))


def _mining(parts: Parts) -> Verdict:
    """Return the verdict on two workers: of the mining with most searches."""
    target = "mine_rules: times as fast with 2 workers as with 1, ≥ 1.7"
    mined = [one["found"] for one in parts.get("rules", {}).values() if "times_one_worker" in one["found"]]
    if not mined:
        return Verdict(target, 2)
    found = max(mined, key=lambda one: int(one["searches"]))["times_one_worker"]["2"]["median"]
    return Verdict(target, 2, 2, found, found >= 1.7)


def peak_of(found: Mapping[str, Any]) -> float:
    """Return the memory that a measurement took, GiB: as sampled, or the first process's own peak if that is more.

    The kernel keeps the latter, which samples of a short measurement miss.
    """
    return max(float(found["peak_pss_gb"]), float(found.get("own_peak_rss_gb", 0.0)))


def _recall(found: Mapping[str, Any]) -> float:
    return float(found["recall_at_10"])


def _lost(found: Mapping[str, Any]) -> float:
    return float(found["quarantined"] + (not found["ids_all_there"]) + (not found["pictures_all_there"]))


def _none(count: float) -> bool:
    return count == 0
