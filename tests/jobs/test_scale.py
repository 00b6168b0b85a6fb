"""The scale suite: measurements apart, records that a broken run keeps, and what is told of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.bench import distill, scale
from jobs.bench.apart import MeasurementError, apart
from jobs.bench.cost_model import Machine
from jobs.bench.scale_costs import costs_of, lines_of
from jobs.bench.scale_index import DEPTH, Nearest, index_streamed, pieces
from jobs.bench.scale_parts import Point, held_of, parts_of, repeated
from jobs.bench.scale_rules import Mining, total
from jobs.bench.scale_targets import growth, targets_of
from mmd.errors import ConfigError

OPTIONS: dict[str, Any] = {
    "parts": ["index"],
    "points": ["2000"],
    "sizes": "small",
    "again": False,
    "told": False,
    "store": "artifacts",
    "corpus": "shop",
    "cores": 16,
    "memory_gb": 64.0,
    "node_price": 1.0,
    "within_h": 8.0,
    "index_within_s": None,
}


def test_a_measurement_apart_brings_its_answer_and_its_memory():
    found = apart(index_streamed, vectors=50_000, kind="flat", dim=256, threads=1)
    assert found["vectors"] == 50_000
    assert 0.05 < found["own_peak_rss_gb"] < 2.0  # the vectors alone are .048 GiB
    assert found["peak_pss_of_one_process_gb"] == found["peak_pss_gb"]
    assert found["seconds"] > 0
    assert found["cpu_s"] > 0


def test_a_failure_apart_is_told_with_its_trace():
    with pytest.raises(MeasurementError, match=r"(?s)index_streamed.*Traceback.*learns from at least 39 vectors"):
        apart(index_streamed, vectors=10, kind="sq8", dim=8)


def test_nearest_of_chunks_are_those_of_all_at_once():
    draw = np.random.default_rng(0)
    vectors, queries = draw.standard_normal((500, 8), np.float32), draw.standard_normal((7, 8), np.float32)
    nearest = Nearest.none(queries)
    for first in (0, 5, 200):  # the first chunk holds fewer than are wanted
        stop = {0: 5, 5: 200, 200: 500}[first]
        nearest = nearest.seen(vectors[first:stop], first)
    right = np.argsort(-(queries @ vectors.T), axis=1)[:, :DEPTH]
    np.testing.assert_array_equal(nearest.right, right)
    assert nearest.recalls(right).tolist() == [1.0] * 7
    half = np.concatenate([right[:, :5], np.full((7, 5), -1)], axis=1)
    assert nearest.recalls(half).tolist() == [0.5] * 7


def test_pieces_cover_all_vectors_once():
    cut = list(pieces(1_234_567))
    assert cut[0] == (0, 300_000)
    assert [first for first, _ in cut[1:]] == [first + count for first, count in cut[:-1]]
    assert sum(count for _, count in cut) == 1_234_567


def test_a_streamed_index_reaches_the_recall_it_tells():
    found = index_streamed(3_000, "sq8", dim=16, recall=0.95)
    assert found["vectors"] == 3_000
    assert found["recall_at_10"] > 0.9
    assert set(found["spent"]) == {"draw", "train, add", "exact", "tune"}
    assert index_streamed(3_000, "flat", dim=16)["recall_at_10"] == 1.0


def test_a_mining_tells_results_and_processor_time_apart():
    rows = [{"rule": 1, "seconds": 2.0}, {"process": "a", "cpu_s": 1.0}, {"rule": 2, "seconds": 3.0}]
    rows += [{"process": "b", "cpu_s": 4.0}, {"process": "a", "cpu_s": 0.5}]
    run = Mining.of(9.0, rows)
    assert run.by_process == {"a": 1.5, "b": 4.0}
    assert run.results == [{"rule": 1, "seconds": 0.0}, {"rule": 2, "seconds": 0.0}]
    assert total(run) == 5.5


def test_copies_of_a_graph_are_joined_by_no_edge():
    one = distill.draw_graph({"entities": 50, "items": 10, "edges": 120}, np.random.default_rng(0))
    three = repeated(one, 3)
    assert (three.n_entities, three.n_items, len(three.edges)) == (150, 30, 3 * len(one.edges))
    assert (three.edges[:, 0] // 50 == three.edges[:, 2] // 50).all()
    assert len(set(three.entity_ids)) == 150
    assert three.item_entities.tolist() == [n + 50 * copy for copy in range(3) for n in range(10)]
    assert repeated(one, 1).item_ids == one.item_ids


def test_a_service_holds_the_highest_rate_at_which_all_are_answered():
    tried: dict[str, Any] = {
        rate: {"requests": 10, "answered": answered, "latency_ms": {"p50": ms, "p99": 2 * ms}}
        for rate, answered, ms in (("8", 10, 30.0), ("16", 10, 40.0), ("32", 9, 90.0))
    }
    assert held_of(tried) == {"held_per_s": 16.0, "p50_ms": 40.0, "p99_ms": 80.0}
    assert held_of({"32": tried["32"]}) == {}


def test_what_is_recorded_is_not_measured_again(tmp_path: Path):
    options = {**OPTIONS, "records": tmp_path / "records"}
    first = scale.run(options)
    assert first["measured_now"] == ["index/2000"]
    assert first["missing"] == ["index/4000"]
    assert not first["failed"]
    second = scale.run(options)
    assert second["measured_now"] == []
    assert second["parts"] == first["parts"]


def test_what_was_measured_in_part_is_told_and_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    point = parts_of("artifacts", "shop", within_s=60.0)["index"].named("2000", "small")
    record = {"given": scale.told_of(point), "found": PARTS["index"]["1000000"]["found"] | {"asked_for": 2_000_000}}
    scale.path_of(tmp_path, "index", point).write_text(json.dumps(record))
    told = scale.run({**OPTIONS, "told": True, "records": tmp_path})
    assert "2000" in told["parts"]["index"]
    assert "index/2000" in told["missing"]
    monkeypatch.setattr(scale, "measure", lambda *_: None)
    assert scale.run({**OPTIONS, "records": tmp_path})["measured_now"] == ["index/2000"]


def test_a_measurement_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = []

    def measure(point: Point, path: Path) -> None:
        if point.name == "2000":
            raise MeasurementError("no memory")
        measured.append(path.name)

    monkeypatch.setattr(scale, "measure", measure)
    found = scale.run({**OPTIONS, "points": None, "records": tmp_path})
    assert found["failed"] == {"index/2000": "no memory"}
    assert measured == ["index-4000.json"]


def test_records_of_other_arguments_are_measured_anew_and_broken_ones_named(tmp_path: Path):
    point = parts_of("artifacts", "shop")["index"].named("2000", "small")
    path = scale.path_of(tmp_path, "index", point)
    assert scale.recorded(path, point) is None
    path.write_text(json.dumps({"given": {"vectors": 3}, "found": {}}))
    assert scale.recorded(path, point) is None
    path.write_text("{")
    with pytest.raises(ConfigError, match="delete it to measure again"):
        scale.recorded(path, point)


def test_names_of_points_are_unique_and_small_ones_are_few():
    for part in parts_of("artifacts", "shop").values():
        for points in part.points.values():
            assert len({point.name for point in points}) == len(points)
        assert len(part.points["small"]) <= 3


def measured(**found: Any) -> dict[str, Any]:
    """Return a record as the suite keeps it."""
    return {"code": "mmd 0", "load_average": {"before": [1.0], "after": [2.0]}, "given": {}, "found": found}


PARTS = {
    "ingest": {
        str(n): measured(
            dialogues=n,
            pictures=n // 10,
            seconds=0.01 * n,
            cpu_s=5.0 + 0.002 * n,
            peak_pss_gb=1.0,
            peak_pss_of_one_process_gb=0.2 + 1e-6 * n,
            spilled_bytes=0,
            artefact_bytes=1000 * n,
            ids_all_there=True,
            pictures_all_there=True,
            quarantined=0,
        )
        for n in (1_000, 10_000)
    },
    "index": {
        "1000000": measured(
            vectors=1_000_000,
            parameters={"lists": 4},
            recall_at_10=0.95,
            one_query_ms={"p50": 1.0, "p99": 2.0},
            query_cpu_ms=2.0,
            queries_per_s=500.0,
            build_s=100.0,
            build_cpu_s=100.0,
            peak_pss_gb=1.0,
        )
    },
}


def test_lines_leave_out_what_is_fixed():
    line = lines_of(PARTS)["ingest, processor seconds a dialogue"]
    assert (line["fixed"], line["each"]) == pytest.approx((5.0, 0.002))
    assert (line["from"], line["to"]) == (1_000, 10_000)
    assert not any("index" in name for name in lines_of(PARTS))  # one size has no slope


def test_costs_continue_the_measured_lines():
    """100M dialogues at 2 ms are 200,000 core seconds; a node of 16 cores, .8 of them at work, ends in 4.34 h."""
    rows = {row["work"]: row for row in costs_of(PARTS, Machine(), within_h=8.0)}
    ingest = rows["ingest of 1e+08 dialogues"]
    assert ingest["nodes"] == 1
    assert ingest["hours"] == pytest.approx(200_005 / (16 * 0.8 * 3600))
    assert ingest["told"]["memory_of_the_largest_process_gb"] == pytest.approx(100.2)
    assert ingest["told"]["pieces_one_after_the_other"] == 2  # of 51.2 GiB
    assert "1,000, small" in ingest["assumed"]["pictures"]
    answering = rows["index of 1e+09 responses: answering"]
    assert answering["nodes"] == 20  # 1,000 GiB over 51.2
    assert answering["told"]["core_ms_a_query"] == pytest.approx(2000.0)
    assert {row["basis"] for work, row in rows.items() if "fine-tuning" in work} == {"published"}


def test_targets_are_judged_at_the_largest_size_and_tell_it():
    told = {one["target"]: one for one in targets_of(PARTS)}
    recall = told["index: recall@10 ≥ .9"]
    assert (recall["size"], recall["measured"], recall["found"]) == (10_000_000, 1_000_000, 0.95)
    assert recall["reached"]
    assert told["mine_rules: times as fast with 2 workers as with 1, ≥ 1.7"]["reached"] is None
    lost = told["ingest: dialogues lost, doubled or quarantined"]
    assert (lost["found"], lost["reached"]) == (0.0, True)


def test_growth_compares_slopes_so_that_a_fixed_start_is_none():
    """5 s and 2 ms each up to 10,000; then 4 ms each: twice the slope."""
    assert growth(PARTS) is None  # two sizes have one slope
    more = measured(dialogues=20_000, cpu_s=25.0 + 40.0)
    assert growth({"ingest": {**PARTS["ingest"], "20000": more}}) == pytest.approx(2.0)


def test_the_page_shows_each_part_and_says_what_is_missing(tmp_path: Path):
    record = {
        "date": "2026-01-02",
        "note": "a note",
        "about": {"ingest": "dialogues", "index": "vectors", "conkd": "graphs"},
        "parts": PARTS,
        "missing": ["conkd/1"],
        "targets": targets_of(PARTS),
        "lines": lines_of(PARTS),
        "costs": costs_of(PARTS, Machine(), within_h=8.0),
    }
    scale.plot(record, tmp_path / "scale.png")
    page = (tmp_path / "scale.md").read_text()
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    assert "| 10000 | 10,000 | 1,000 |" in page
    assert "Not measured: conkd/1." in page
    assert "| index: recall@10 ≥ .9 | 10,000,000 | 1,000,000 | 0.95 | not at this size |" in page
    assert "| ingest of 1e+08 dialogues | measured | 1 |" in page


@pytest.mark.slow
@pytest.mark.ray
def test_the_small_suite_runs_but_for_what_needs_artefacts(tmp_path: Path):
    parts = [name for name in scale.PARTS if name != "serving"]
    found = scale.run({**OPTIONS, "parts": parts, "points": None, "records": tmp_path / "records"})
    assert not found["failed"]
    assert not found["missing"]
    for record in found["parts"]["ingest"].values():
        told = record["found"]
        assert told["ids_all_there"]
        assert told["pictures_all_there"]
        assert told["quarantined"] == 0
    assert found["parts"]["rules"]["mining-200-3"]["found"]["same_rules"]
    scale.plot({**found, "date": "2026-01-02"}, tmp_path / "scale.png")
