"""Making an adapter artefact without training: heads on the hidden states of a model that stays as it is.

Reading the samples is all the work. It is done in the driver for few samples, and spread over a pool of Ray Data's
actors, each with a model of its own, for many; the states are the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from jobs.glue.cluster import quiet_data, ray_cluster, worker_errors
from jobs.glue.entry import JobContext, console
from jobs.glue.nodes import own_cores, worker_count
from mmd.artifacts import Artifact, version_for
from mmd.corpora.store import Corpus
from mmd.evaluation.metrics import Confusion
from mmd.intent.frozen import FittedFrozen, FrozenTask, States, fit_frozen, read_samples, save_heads
from mmd.intent.mllm import MllmIndex, MllmTask, save_held_out, save_mllm_index, task_folder
from mmd.intent.samples import ORIGINAL, Sample, Samples
from mmd.models.hidden import Piece, SpanStates, Vector
from mmd.models.mllm import load_mllm
from mmd.models.settings import ModelSettings
from mmd.models.threads import torch_threads
from mmd.tables import plain_table

TRAINING_FILE = "training.json"
_SPREAD_FROM = 4_000  # samples from which starting Ray's processes, each with its model, pays
_TEXTS_A_BATCH = 64


@dataclass(frozen=True)
class FrozenResult:
    """A task's fitted heads and what there is to tell of them."""

    task: FrozenTask
    fitted: FittedFrozen
    samples: int
    weighted_f1: Mapping[str, float]


def make_frozen(
    context: JobContext,
    base: str,
    inputs: Mapping[str, Artifact],
    settings: Mapping[str, Any],
    seeds: Mapping[str, int],
) -> Artifact:
    """Write adapter/NAME: heads for every task that has samples, all folds held out in turn.

    Raises:
        ModelError: the base model is not here, or has no stacked layers.
    """
    started = time.perf_counter()
    intent, corpus = context.config.intent, Corpus(inputs["corpus"])
    samples = read_originals(Samples(inputs["samples"]))
    with open_states(context, base, len(samples)) as (states, layer, dim):
        results = []
        for name in sorted({sample.example.task for sample in samples}):
            own = sorted((s for s in samples if s.example.task == name), key=lambda s: s.id)
            task = FrozenTask(name, tuple(corpus.tasks[name]), intent.finetune.frozen)
            results.append(fit_task(own, states, dim, task))
    with context.store.write(
        "adapter", context.name, settings=settings, inputs=inputs, seeds=seeds, replace=context.force
    ) as writer:
        for result in results:
            save_heads(writer, task_folder(result.task.task), result.fitted, result.task, layer)
        save_held_out(writer, {result.task.task: result.fitted.held_out for result in results})
        entries = {
            r.task.task: MllmTask(folder=task_folder(r.task.task), labels=r.task.labels, temperature=1.0)
            for r in results
        }
        save_mllm_index(writer, MllmIndex(base=base, method="frozen", prompt=intent.prompt, tasks=entries))
        writer.write_json(TRAINING_FILE, {"layer": layer, "heads": {r.task.task: record_of(r) for r in results}})
        for result in results:
            for kind, f1 in result.weighted_f1.items():
                writer.metrics[f"{result.task.task} held-out weighted F1 {kind}"] = f1
        writer.metrics["train_s"] = time.perf_counter() - started
    print_results(results, layer)
    version = version_for("adapter", settings, inputs, seeds)
    return context.store.open(f"adapter/{context.name}@{version}")


def fit_task(samples: Sequence[Sample], states: States, dim: int, task: FrozenTask) -> FrozenResult:
    """Read a task's samples, fit its heads, and score what is held out."""
    fitted = fit_frozen(samples, read_samples(states, dim, samples, task), task)
    gold = {sample.id: str(sample.example.label) for sample in samples}
    return FrozenResult(task, fitted, len(samples), held_out_f1(fitted, gold, task.labels))


def held_out_f1(fitted: FittedFrozen, gold: Mapping[str, str], labels: Sequence[str]) -> dict[str, float]:
    """Return weighted F1 of the held-out answers: ``plain``, and ``hinted``; empty where nothing was held out."""
    ids = list(fitted.held_out)
    if not ids:
        return {}
    scores = {
        "plain": [fitted.held_out[i].plain for i in ids],
        "hinted": [fitted.held_out[i].hinted for i in ids],
    }
    return {
        kind: Confusion.of([gold[i] for i in ids], [labels[int(np.argmax(row))] for row in rows]).weighted_f1
        for kind, rows in scores.items()
    }


def record_of(result: FrozenResult) -> dict[str, Any]:
    """Return what the artefact keeps of a task's fitting."""
    return {
        "samples": result.samples,
        "held_out": len(result.fitted.held_out),
        "temperature": {"plain": result.fitted.plain.temperature, "hinted": result.fitted.hinted.temperature},
        "weighted_f1": dict(result.weighted_f1),
    }


def read_originals(samples: Samples) -> list[Sample]:
    """Return the originals, pictures without their bytes: only their printed text is read."""
    return [
        replace(
            sample,
            example=replace(sample.example, images=tuple(replace(i, data=None) for i in sample.example.images)),
        )
        for sample in samples.read()
        if sample.made_by == ORIGINAL
    ]


def print_results(results: Sequence[FrozenResult], layer: int) -> None:
    """Print what held-out dialogues say of each task's heads."""
    table = plain_table(
        "task", "samples", "weighted F1", "with hints", title=f"heads on layer {layer}, held out by fold"
    )
    for result in results:
        scores = [f"{f1:.3f}" for f1 in result.weighted_f1.values()] or ["–", "–"]
        table.add_row(result.task.task, str(result.samples), *scores)
    console.print(table)


# ---------------------------------------------------------------- reading


@contextmanager
def open_states(
    context: JobContext, base: str, samples: int, spread_from: int = _SPREAD_FROM
) -> Iterator[tuple[States, int, int]]:
    """Yield what reads texts, the layer that it reads and the length of a state.

    Args:
        context: settings.
        base: name of the model.
        samples: how many there are; from ``spread_from`` on actors read.
        spread_from: see ``samples``.
    """
    settings, depth = context.config.models, context.config.intent.finetune.frozen.layer
    own = SpanStates(load_mllm(base, settings), depth)
    layer, dim = own.layer, own.dim
    if samples < spread_from:
        with torch_threads(context.config.intent.finetune.threads or own_cores()):
            yield own.means, layer, dim
        return
    del own  # the actors have theirs
    with ray_cluster(context.config.cluster), quiet_data(), worker_errors():
        yield SpreadStates(base, settings, depth), layer, dim


class SpreadStates:
    """Reads texts with a pool of actors.

    Args:
        base: name of the model.
        settings: of the model.
        depth: share of its layers that are run.
    """

    def __init__(self, base: str, settings: ModelSettings, depth: float) -> None:
        self._arguments = (base, settings, depth)

    def __call__(self, texts: Sequence[Sequence[Piece]]) -> list[Mapping[str, Vector]]:
        """Return span → mean hidden state, one mapping a text, in order."""
        import ray.data

        if not texts:
            return []
        # Texts of like length in a batch; their places bring them back into order.
        order = sorted(range(len(texts)), key=lambda i: sum(len(piece.text) for piece in texts[i]))
        blocks = [pieces_table(texts, order[at : at + _TEXTS_A_BATCH]) for at in range(0, len(order), _TEXTS_A_BATCH)]
        gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
        workers = max(1, min(gpus or worker_count(), len(blocks)))
        states = ray.data.from_arrow(blocks).map_batches(
            StatesActor,
            fn_constructor_args=self._arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
            num_cpus=0.5,  # a pool that held every logical CPU would starve what feeds it
            num_gpus=1 if gpus else None,
        )
        out: list[Mapping[str, Vector]] = [{} for _ in texts]
        for batch in states.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in cast("pa.Table", batch).to_pylist():
                out[row["place"]] = {s["span"]: np.array(s["mean"], dtype=np.float32) for s in row["states"]}
        return out


_STATES = pa.list_(pa.struct([("span", pa.string()), ("mean", pa.list_(pa.float32()))]))


def pieces_table(texts: Sequence[Sequence[Piece]], places: Sequence[int]) -> pa.Table:
    """Return the texts of some places as rows that :class:`StatesActor` reads."""
    rows = [[{"text": p.text, "span": p.span, "limit": p.limit} for p in texts[i]] for i in places]
    piece = pa.struct([("text", pa.string()), ("span", pa.string()), ("limit", pa.int32())])
    return pa.table({"place": pa.array(places, pa.int64()), "pieces": pa.array(rows, pa.list_(piece))})


class StatesActor:
    """A process with a model: texts in, states out."""

    def __init__(self, base: str, settings: ModelSettings, depth: float) -> None:
        import torch

        torch.set_num_threads(1)
        self._states = SpanStates(load_mllm(base, settings), depth)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Read a batch of texts."""
        texts = [[Piece(**piece) for piece in row] for row in batch["pieces"].to_pylist()]
        rows = [[{"span": span, "mean": mean} for span, mean in found.items()] for found in self._states.means(texts)]
        return pa.table({"place": batch["place"], "states": pa.array(rows, _STATES)})
