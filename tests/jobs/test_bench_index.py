"""The bench of the index: what it draws and what it reports, on few vectors."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from jobs.bench import index as bench


def options(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    bench.add_options(parser)
    small = ["--vectors", "3000", "--dim", "24", "--latent", "6", "--threads", "1", "--repeats", "1"]
    return vars(parser.parse_args([*small, *arguments]))


def test_drawn_vectors_are_unit_equal_by_seed_and_of_low_dimension():
    one, two = (bench.sentence_like(4000, 64, 6, 0.1, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, rtol=1e-5)
    variance = np.linalg.svd(one - one.mean(0), compute_uv=False) ** 2
    assert variance[:12].sum() / variance.sum() > 0.8


def test_every_structure_is_measured_next_to_exact_search():
    record = bench.run(options("--structures", "hnsw", "ivf_pq"))
    assert set(record["structures"]) == {"hnsw", "ivf_pq"}
    for measured in record["structures"].values():
        assert measured["times_exact"]["median"] > 0
        assert 0 < measured["recall_at_10"] <= 1
    assert record["structures"]["hnsw"]["recall_at_10"] > 0.9
    assert record["structures"]["ivf_pq"]["bytes_a_vector"] < record["float_bytes_a_vector"]


@pytest.mark.parametrize("name", ["hnswlib", "usearch"])
def test_others_find_as_much(name: str):
    pytest.importorskip(name)
    measured = bench.run(options("--structures", name))["structures"][name]
    assert measured["recall_at_10"] > 0.9
