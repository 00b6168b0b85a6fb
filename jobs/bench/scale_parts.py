"""What the scale suite measures: parts, each of points of growing size; every point is one call in its own process.

Sources are drawn, so that nothing but the serving part needs an artefact.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jobs.bench import distill, matching, retriever, rgcn
from jobs.bench.harness import Bench, Memory, meanwhile
from jobs.bench.ingest import ingest_shop
from jobs.bench.scale_index import index_streamed
from jobs.bench.scale_rules import mine_sized, search_sized
from jobs.glue.records import spread
from mmd.loadtest.report import summarise

if TYPE_CHECKING:
    from mmd.recommend.graph import ItemGraph

Size = Literal["small", "full"]
SHOP: Mapping[str, Any] = {"items": 1800, "image_side_px": 64}
"""About 100,000 distinct pictures at a million dialogues; small ones, since the text is what is many."""
_RATES = [8.0, 16.0, 24.0, 32.0, 48.0]
_REDIAL: Mapping[str, int] = {"items": 6_924, "entities": 64_362, "edges": 141_236, "words": 2_413}


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        name: of its record, unique in its part.
        work: called in a fresh process.
        given: its arguments.
    """

    name: str
    work: Callable[..., dict[str, Any]]
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Measurements of one thing.

    Attributes:
        about: what grows, and what is measured.
        points: by size of the suite, small ones first.
    """

    about: str
    points: Mapping[Size, Sequence[Point]]

    def named(self, name: str, size: Size) -> Point:
        """Return one point."""
        return next(point for point in self.points[size] if point.name == name)


# ---------------------------------------------------------------- ingest


def ingest_sized(dialogues: int) -> dict[str, Any]:
    """Ingest a simulated shop into a store that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="mmd-scale-") as folder:
        return ingest_shop(dialogues, str(Path(folder) / "store"), SHOP)


# ---------------------------------------------------------------- matcher


def match_sized(dialogues: int, repeats: int = 3) -> dict[str, Any]:
    """Match growing rule bases on so many dialogues."""
    options = {"dialogues": dialogues, "baseline_dialogues": min(dialogues, 200), "repeats": repeats}
    found = matching.run(options)
    return {"dialogues": dialogues, "languages": found["results"]}


# ---------------------------------------------------------------- retriever


def train_sized(batch: int, steps: int, model: str, repeats: int = 2) -> dict[str, Any]:
    """Train the retriever with batches of one size on one core."""
    from mmd.models.threads import torch_threads

    options = {"model": model, "batch": batch, "steps": steps, "context": 40, "response": 12, "tokens": 128}
    task = retriever.make_task({**options, "dtype": "auto"})
    side = retriever.OurSide(task)
    with torch_threads(1):
        rates = [batch * steps / side.seconds() for _ in range(repeats)]
    dtype = str(task.dtype).removeprefix("torch.")
    return {**options, "dtype": dtype, "threads": 1, "examples_per_s": spread(rates)}


# ---------------------------------------------------------------- ConKD


def convolve_sized(copies: int, sizes: Mapping[str, int], steps: int, batch: int = 256) -> dict[str, Any]:
    """Train the recommendation teacher on one core on a drawn graph that is repeated beside itself."""
    from mmd.models.threads import torch_threads

    rng = np.random.default_rng(0)
    one = distill.draw_graph(sizes, rng)
    options = {**sizes, "context": 60, "response": 12}
    samples = distill.mentions_of([distill.draw_sample(number, options, rng) for number in range(4 * batch)])
    graph = repeated(one, copies)
    way = rgcn.Way(graph, samples, "typed")
    with torch_threads(1):
        way.steps(1, batch)  # warm-up
        for _ in range(steps):
            way.measure(1, batch)
    return {
        "copies": copies,
        "entities": graph.n_entities,
        "edges": len(graph.edges),
        "batch": batch,
        "step_s": spread(way.wall_s),
        "step_cpu_s": spread(way.cpu_s),
    }


def repeated(graph: ItemGraph, copies: int) -> ItemGraph:
    """Return a graph of so many copies of another, which no edge joins; the first copy comes first."""
    n = graph.n_entities
    edges = np.concatenate([graph.edges + np.array([n * copy, 0, n * copy], np.int32) for copy in range(copies)])
    return replace(
        graph,
        entity_ids=tuple(_copied(graph.entity_ids, copies)),
        entity_labels=tuple(_copied(graph.entity_labels, copies)),
        edges=edges,
        item_ids=tuple(_copied(graph.item_ids, copies)),
        item_titles=tuple(_copied(graph.item_titles, copies)),
        item_entities=np.concatenate([graph.item_entities + n * copy for copy in range(copies)]).astype(np.int32),
        item_aliases=graph.item_aliases * copies,
    )


def _copied(names: Sequence[str], copies: int) -> list[str]:
    return [name if copy == 0 else f"{name}~{copy}" for copy in range(copies) for name in names]


# ---------------------------------------------------------------- serving


def serve_sized(replicas: int, store: str, corpus: str, seconds: float, rates: Sequence[float]) -> dict[str, Any]:
    """Ask for turns of intent and retrieval, with so many replicas of each model, at growing rates.

    Held is the highest rate at which all are answered. Of the overloaded service, turns are counted up to the last
    answer.
    """
    bench = Bench({"rate": 1.0, "seconds": seconds, "turns": 1, "corpus": corpus, "store": store})
    serve = bench.config.serve.model_copy(update={"min_replicas": replicas, "max_replicas": replicas})
    bench.config = bench.config.model_copy(update={"serve": serve})
    memory, tried = Memory(), {}
    with bench.without("recommendation") as kept, bench.service(kept) as service, meanwhile(memory.watch):
        for rate in rates:
            found = summarise(bench.load(service, rate=rate, seconds=seconds))
            keys = ("requests", "answered", "refused", "failed", "degraded", "answered_per_s", "latency_ms")
            tried[f"{rate:g}"] = {key: found[key] for key in keys}
            if found["failed"] or found["answered"] < 0.9 * found["requests"]:
                break
    return {
        "replicas": replicas,
        **held_of(tried),
        "answered_per_s": max(one["answered_per_s"] for one in tried.values()),
        "by_rate": tried,
        "memory": memory.told(),
    }


def held_of(tried: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the highest rate at which all requests were answered, and its latencies; nothing if there is none."""
    held = [rate for rate, found in tried.items() if found["answered"] == found["requests"]]
    if not held:
        return {}
    rate = max(held, key=float)
    return {"held_per_s": float(rate), **{f"{key}_ms": tried[rate]["latency_ms"][key] for key in ("p50", "p99")}}


# ---------------------------------------------------------------- the suite

_SMALL_GRAPH: Mapping[str, int] = {"items": 60, "entities": 300, "edges": 900, "words": 80}


def _ingest(*sizes: int) -> list[Point]:
    return [Point(str(n), ingest_sized, {"dialogues": n}) for n in sizes]


def _index(*sizes: int, **given: Any) -> list[Point]:  # noqa: ANN401 (arguments of the measurement)
    return [Point(str(n), index_streamed, {"vectors": n, "kind": "sq8", **given}) for n in sizes]


def _mining(examples: int, labels: int, workers: Sequence[int], repeats: int, rollouts: int) -> Point:
    given = {
        "examples": examples,
        "labels": labels,
        "workers": list(workers),
        "repeats": repeats,
        "rollouts": rollouts,
    }
    return Point(f"mining-{examples}-{labels}", mine_sized, given)


def parts_of(store: str, corpus: str, within_s: float | None = None) -> dict[str, Part]:
    """Return the suite.

    Args:
        store: of the artefacts that are served.
        corpus: whose artefacts they are.
        within_s: seconds after which an index takes no more vectors; none: as long as it takes.
    """
    bound = {} if within_s is None else {"within_s": within_s}
    served = {"store": str(Path(store).resolve()), "corpus": corpus}
    quick = {"predicates": 20, "rollouts": 20, "repeats": 1}
    return {
        "ingest": Part(
            "dialogues of the simulated shop: time, memory, spilled bytes, and whether every record arrived",
            {"small": _ingest(100, 300), "full": _ingest(1_000, 10_000, 100_000, 1_000_000)},
        ),
        "rules": Part(
            "examples of a search on one core; labels and workers of mining",
            {
                "small": [
                    *(Point(f"search-{n}", search_sized, {"examples": n, **quick}) for n in (200, 400)),
                    _mining(200, 3, (1, 2), 1, 10),
                ],
                "full": [
                    *(Point(f"search-{n}", search_sized, {"examples": n}) for n in (1_000, 10_000, 100_000, 1_000_000)),
                    _mining(2_000, 4, (1, 2), 2, 400),
                    _mining(6_000, 8, (1, 2), 3, 400),
                ],
            },
        ),
        "matcher": Part(
            "rules and dialogues that they are matched on, one thread",
            {
                "small": [Point("50", match_sized, {"dialogues": 50, "repeats": 1})],
                "full": [Point(str(n), match_sized, {"dialogues": n}) for n in (1_000, 10_000)],
            },
        ),
        "retriever": Part(
            "pairs a training step",
            {
                "small": [
                    Point(str(n), train_sized, {"batch": n, "steps": 2, "model": "tiny-bert", "repeats": 1})
                    for n in (4, 8)
                ],
                "full": [
                    Point(str(n), train_sized, {"batch": n, "steps": 4, "model": "minilm-l6-v2"})
                    for n in (32, 128, 512)
                ],
            },
        ),
        "index": Part(
            "stored vectors: recall, time of a query, build time, memory of the process",
            {
                "small": _index(2_000, 4_000, dim=16),
                "full": [*_index(10_000, 100_000, 1_000_000, **bound), *_index(10_000_000, lists=4096, **bound)],
            },
        ),
        "conkd": Part(
            "copies of a graph of ReDial's size: a step of the recommendation teacher",
            {
                "small": [
                    Point(str(n), convolve_sized, {"copies": n, "sizes": _SMALL_GRAPH, "steps": 1, "batch": 4})
                    for n in (1, 2)
                ],
                "full": [
                    Point(str(n), convolve_sized, {"copies": n, "sizes": _REDIAL, "steps": 5}) for n in (1, 4, 16)
                ],
            },
        ),
        "serving": Part(
            "replicas of each model on the same two cores: turns of intent and retrieval a second, latency",
            {
                "small": [Point("1", serve_sized, {"replicas": 1, "seconds": 2.0, "rates": [1.0, 2.0], **served})],
                "full": [
                    Point(str(n), serve_sized, {"replicas": n, "seconds": 20.0, "rates": _RATES, **served})
                    for n in (1, 2, 3, 4)
                ],
            },
        ),
    }
