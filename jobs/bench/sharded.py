"""Search over an index in parts that actors on several nodes hold, beside the whole index in this process.

Both are artefacts of one retriever (``mmd build_index`` with and without ``retrieval.index.shards``). Random vectors
are asked for, batch after batch; each answer must be the whole index's, whatever happens to a node meanwhile. Prints a
line a tenth of the way. On a cluster: ``mmd submit bench sharded …``.

    mmd bench sharded --parts index/shop@1a2b3c4d5e6f --whole index/shop@6f5e4d3c2b1a
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.glue.cluster import ray_cluster
from jobs.glue.entry import console
from jobs.glue.index_shards import sharded_search
from jobs.glue.records import spread
from mmd.artifacts import ArtifactStore
from mmd.config import ClusterSettings
from mmd.retrieval.index import Found, read_info
from mmd.retrieval.sharded import load_index
from mmd.retrieval.structures import Vectors

TOLD = "searched"
"""First word of a line of progress: ``searched 10 of 100 batches``."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the two indices and how much is asked."""
    parser.add_argument("--store", default="artifacts", help="artefact store (default: %(default)s)")
    parser.add_argument("--parts", required=True, metavar="REF", help="index in parts, index/NAME@VERSION")
    parser.add_argument("--whole", required=True, metavar="REF", help="the same responses in one index")
    parser.add_argument("--modality", default="text", help="whose index (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=200, help="searches (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="queries of a search (default: %(default)s)")
    parser.add_argument("--pause-s", type=float, default=0.0, help="between searches (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the queries (default: %(default)s)")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Ask both and compare."""
    store = ArtifactStore(str(options["store"]))
    parts, whole = store.open(options["parts"]), load_index(store.open(options["whole"]), options["modality"])
    dim = int(read_info(store.open(options["whole"]), options["modality"], None)["dim"])
    draw, times_ms, different = np.random.default_rng(options["seed"]), [], 0
    with (
        ray_cluster(ClusterSettings()),
        sharded_search(store.absolute, parts, options["modality"]) as actors,
    ):
        nodes = [actors.nodes()]
        for number in range(options["batches"]):
            queries = unit_vectors(draw, options["batch"], dim)
            started = time.perf_counter()
            found = actors.search(queries, 10)
            times_ms.append((time.perf_counter() - started) * 1000)
            different += not equal(found, whole.search(queries, 10))
            if (number + 1) % max(1, options["batches"] // 10) == 0:
                console.print(f"{TOLD} {number + 1} of {options['batches']} batches", markup=False)
            time.sleep(options["pause_s"])
        nodes.append(actors.nodes())
        losses = actors.losses
    return {
        "config": {key: value for key, value in options.items() if key != "store"},
        "responses": len(whole),
        "parts": len(nodes[0]),
        "nodes": {"at the start": len(set(nodes[0])), "in the end": len(set(nodes[1]))},
        "parts_lost": losses,
        "searches": options["batches"],
        "searches_unlike_the_whole": different,
        "search_ms": spread(times_ms),
    }


def unit_vectors(draw: np.random.Generator, n: int, dim: int) -> Vectors:
    """Draw unit vectors (n, dim), float32."""
    vectors = draw.standard_normal((n, dim), dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def equal(one: Found, other: Found) -> bool:
    """Say whether the same responses were found, in the same order, with the same scores."""
    return one.ids == other.ids and bool(np.array_equal(one.scores, other.scores))
