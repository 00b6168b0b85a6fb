"""Benchmarks of recommending at toy sizes: what they time is the real thing, and their verdict follows from it."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from jobs import build_graph
from jobs.bench import distill, rgcn
from jobs.glue.entry import JobContext
from mmd.config import build_config
from mmd.errors import ArtifactError


def options_of(bench: ModuleType, *words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    bench.add_options(parser)
    return vars(parser.parse_args(words))


def test_a_taught_step_is_timed_beside_a_plain_one_on_the_same_batches():
    sizes = "--batch 4 --steps 2 --repeats 3 --items 20 --entities 40 --edges 60 --words 30 --context 20 --response 5"
    record = distill.run(options_of(distill, *sizes.split(), "--top-items", "8", "--threads", "1"))
    assert set(record["step_s"]) == {"plain", "distilled"}
    assert record["step_s"]["plain"]["min"] > 0
    assert record["reached"] == (record["ratio"]["median"] <= record["target_ratio"])
    assert record["outputs_positions_a_response"] >= 3  # mode, a word or an item, end


def test_all_ways_of_a_graph_convolution_compute_the_same_and_are_timed(monkeypatch: pytest.MonkeyPatch):
    sizes = options_of(distill, *["--items", "20", "--entities", "40", "--edges", "60", "--words", "30"])
    rng = np.random.default_rng(0)
    graph = distill.draw_graph(sizes, rng)
    samples = distill.mentions_of([distill.draw_sample(number, sizes, rng) for number in range(20)])
    monkeypatch.setattr(rgcn, "_ground", lambda _: (graph, samples))
    words = "--samples 40 --batch 8 --repeats 1 --steps 1 --slow-repeats 1 --threads 1"
    record = rgcn.run(options_of(rgcn, *words.split()))
    assert record["steps_an_epoch"] == 5
    assert record["largest_difference_of_states"] < 1e-4
    assert set(record["step_s"]) == set(rgcn.VARIANTS)
    assert record["epoch_s"]["typed"] == pytest.approx(5 * record["step_s"]["typed"]["median"])
    assert record["reached"] == (record["epoch_s"]["typed"] <= record["target_s"])


def test_a_graph_without_edges_is_refused(tiny_store: Path, tmp_path: Path):
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    build_graph.run(JobContext(build_config({"store": str(store), "data": {"corpus": {"name": "tiny"}}})))
    with pytest.raises(ArtifactError, match=r"graph/tiny@\w+: has no edges, so there is nothing to time"):
        rgcn.run(options_of(rgcn, "--store", str(store), "--graph", "tiny"))
