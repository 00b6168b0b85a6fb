"""Time of a student's step that learns from cached teachers, beside a plain fine-tuning step.

Both train the same network on the same batches in one process with the same threads: the plain one on the responses'
words alone, the other on the mixture of both teachers, whose outputs come from the cache. Making the batch is part of
a step. Blocks of steps alternate, so that what else the machine does weighs on both. Dialogues are drawn words and
items; graph, vocabulary and lengths are of the size that is asked for (by default ReDial's), teachers are untrained.

    python -m jobs.bench distill
    python -m jobs.bench distill --top-tokens 64 --top-items 512
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.glue.records import spread
from mmd.models.devices import choose_device, choose_dtype
from mmd.models.settings import ModelSettings
from mmd.models.threads import torch_threads
from mmd.recommend.graph import ItemGraph
from mmd.recommend.settings import BackboneSettings, ConversationSettings, DistillSettings, StepSettings
from mmd.recommend.types import Context, LinkedTurn, MentionSample, ResponseSample
from mmd.schema import Speaker

if TYPE_CHECKING:
    from mmd.recommend.batches import BatchMaker
    from mmd.recommend.cache import TeacherOutputs
    from mmd.recommend.recommender import LoadedRecommender
    from mmd.recommend.teachers import DialogueTask

_TURNS = 5
_TARGET = 1.15
_RATE = 1e-3
_RELATIONS = 26
_ITEM_SHARE = 0.5
_SHAPE = 2.0  # of the gamma variables: most turns are short, a few long


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add sizes and repeats."""
    parser.add_argument("--batch", type=int, default=64, help="responses a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a block (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="blocks of each side (default: %(default)s)")
    parser.add_argument("--items", type=int, default=6_924, help="items of the graph (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=64_362, help="its entities (default: %(default)s)")
    parser.add_argument("--edges", type=int, default=141_236, help="its edges (default: %(default)s)")
    parser.add_argument("--words", type=int, default=2_413, help="known words (default: %(default)s)")
    parser.add_argument("--context", type=int, default=60, help="words of a context (default: %(default)s)")
    parser.add_argument("--response", type=int, default=12, help="words of a response (default: %(default)s)")
    parser.add_argument("--top-tokens", type=int, default=DistillSettings().top_tokens, help="kept of the one teacher")
    parser.add_argument("--top-items", type=int, default=DistillSettings().top_items, help="kept of the other")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores (default: %(default)s)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Time blocks of steps of both sides in turn."""
    import torch

    with torch_threads(options["threads"] or len(os.sched_getaffinity(0))):
        sides, outputs, samples = make_sides(options)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side(samples[:2])  # warm-up
        for repeat in range(options["repeats"]):
            # Each goes first in turn: what the other leaves in caches favours neither.
            for name, side in list(sides.items())[:: 1 if repeat % 2 == 0 else -1]:
                started = time.perf_counter()
                side(samples)
                seconds[name].append((time.perf_counter() - started) / len(samples))
        threads = torch.get_num_threads()
    ratios = [taught / plain for plain, taught in zip(*seconds.values(), strict=True)]
    responses = len(outputs.index)
    return {
        "config": dict(options),
        "threads": threads,
        "warmup": 2,
        "repeats": options["repeats"],
        "step_s": {name: spread(values) for name, values in seconds.items()},
        "ratio": spread(ratios),
        "target_ratio": _TARGET,
        "reached": statistics.median(ratios) <= _TARGET,
        "outputs_bytes_a_response": outputs.nbytes / responses,
        "outputs_positions_a_response": len(outputs.masses) / responses,
    }


class Side:
    """One way to train, a step a batch."""

    def __init__(self, task: DialogueTask, steps: StepSettings) -> None:
        from mmd.models.engines import PlainEngine

        self._task = task
        self._engine = PlainEngine(task.model, steps)

    def __call__(self, batches: Sequence[Sequence[ResponseSample]]) -> None:
        """Make a step of each batch."""
        for samples in batches:
            batch = self._task.batch(samples)
            self._engine.step([lambda batch=batch: self._mean(batch)], _RATE)  # type: ignore[misc]  # bound early

    def _mean(self, batch: Any) -> Any:  # noqa: ANN401 (the task's batch, and a tensor)
        loss, units = self._task.loss(batch)
        return loss / units


def make_sides(
    options: Mapping[str, Any],
) -> tuple[dict[str, Side], TeacherOutputs, list[list[ResponseSample]]]:
    """Return both sides, what the teachers say, and the batches of a block."""
    import torch

    from mmd.recommend.batches import BatchMaker
    from mmd.recommend.cache import TeacherOutputs, TeacherSpeaker
    from mmd.recommend.distill import StudentTask
    from mmd.recommend.kgsf import KgsfBackbone
    from mmd.recommend.teachers import DialogueTask
    from mmd.recommend.words import WordTokenizer

    rng = np.random.default_rng(0)
    graph = draw_graph(options, rng)
    tokenizer = WordTokenizer([f"w{n}" for n in range(options["words"])], graph.item_ids)
    maker = BatchMaker(tokenizer, ConversationSettings())
    count = options["batch"] * options["steps"]
    samples = [draw_sample(number, options, rng) for number in range(count)]
    device = choose_device(ModelSettings())

    def backbone(seed: int) -> KgsfBackbone:
        made = KgsfBackbone(tokenizer.space, graph, BackboneSettings(), seed).to(device)
        made.dtype = choose_dtype(ModelSettings(dtype=options["dtype"]), torch.device(device))
        return made

    distill = DistillSettings(top_tokens=options["top_tokens"], top_items=options["top_items"])
    ranker = draw_ranker(graph, samples)
    outputs = TeacherOutputs.from_tables([TeacherSpeaker(backbone(1), ranker, maker, distill)(samples)])
    steps = StepSettings()
    sides = {
        "plain": Side(DialogueTask(backbone(2), maker, []), steps),
        "distilled": Side(StudentTask(backbone(2), maker, [], distill, outputs), steps),
    }
    return sides, outputs, batches_of(samples, maker, options["batch"])


def batches_of(samples: Sequence[ResponseSample], maker: BatchMaker, batch: int) -> list[list[ResponseSample]]:
    """Return batches of like length, as a training has them."""
    from mmd.recommend.cache import by_length

    return list(by_length(samples, maker, batch))


def draw_graph(options: Mapping[str, Any], rng: np.random.Generator) -> ItemGraph:
    """Return a graph of drawn edges in 26 relations; items are its first entities."""
    entities, items = options["entities"], options["items"]
    ends = rng.integers(entities, size=(options["edges"], 2))
    edges = np.column_stack([ends[:, 0], rng.integers(_RELATIONS, size=len(ends)), ends[:, 1]])
    edges = np.unique(edges[ends[:, 0] != ends[:, 1]], axis=0)
    ids = tuple(f"e{number}" for number in range(entities))
    return ItemGraph(
        entity_ids=ids,
        entity_labels=ids,
        relations=tuple(f"r{number}" for number in range(_RELATIONS)),
        edges=edges.astype(np.int32),
        item_ids=ids[:items],
        item_titles=ids[:items],
        item_entities=np.arange(items, dtype=np.int32),
    )


def draw_sample(number: int, options: Mapping[str, Any], rng: np.random.Generator) -> ResponseSample:
    """Return a response to turns of drawn words, an item in every second turn; lengths vary as gamma variables do."""

    def turn(speaker: Speaker, mean: float) -> LinkedTurn:
        count = 1 + round(rng.gamma(_SHAPE, mean / _SHAPE))
        said = " ".join(f"w{rng.integers(options['words'])}" for _ in range(count))
        items = (int(rng.integers(options["items"])),) if rng.random() < _ITEM_SHARE else ()
        return LinkedTurn(speaker, (said, *items), items)

    turns = tuple(turn("agent" if n % 2 else "user", options["context"] / _TURNS) for n in range(_TURNS))
    named = tuple(dict.fromkeys(item for one in turns for item in one.items))
    sample_id = f"{number:06}#{_TURNS}"
    return ResponseSample(
        sample_id, f"{number:06}", "train", Context(turns, named, named), turn("agent", options["response"])
    )


def draw_ranker(graph: ItemGraph, samples: Sequence[ResponseSample]) -> LoadedRecommender:
    """Return an untrained recommendation teacher."""
    from mmd.recommend.recommender import LoadedRecommender, build_recommender
    from mmd.recommend.settings import RecommenderSettings

    settings = RecommenderSettings()
    model = build_recommender(graph, mentions_of(samples), settings, ConversationSettings(), 0).eval()
    return LoadedRecommender(model, model.spec.maker())


def mentions_of(samples: Sequence[ResponseSample]) -> list[MentionSample]:
    """Return the items that responses name."""
    return [
        MentionSample(sample.id, sample.dialogue_id, "train", "agent", sample.context, item, novel=True)
        for sample in samples
        for item in sample.response.items
    ]
