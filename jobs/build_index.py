"""Encode all responses of a corpus with its retriever and make them searchable.

Makes the artefact index/NAME from retriever/NAME: for each modality an index (a structure chosen by size, memory and
wanted recall unless `retrieval.index.kind` names one; the reason is printed), the responses, and the pictures that they
show. It carries the hash of its encoder: another retriever's queries are refused. With `retrieval.index.shards` above
1 each modality is stored in parts, for actors on several nodes.

    mmd build_index                                    the newest retriever of the built-in shop corpus
    mmd build_index --retriever retriever/shop@VERSION
    mmd build_index --set retrieval.index.kind=ivf_pq --set retrieval.index.memory_mb=256
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from jobs.glue.cluster import quiet_data, ray_cluster, worker_errors
from jobs.glue.encoding import Encoding, ResponseEncoder
from jobs.glue.entry import JobContext, console, main
from jobs.glue.nodes import worker_count
from jobs.glue.progress import progress
from mmd.artifacts import Artifact, ArtifactWriter, version_for
from mmd.corpora.store import Corpus
from mmd.retrieval.gpu import gpus
from mmd.retrieval.index import ResponseIndex
from mmd.retrieval.settings import IndexSettings
from mmd.retrieval.sharded import SHARDS_FILE, deal, shard_folder
from mmd.retrieval.structures import Choice, Vectors, choose_kind, describe_kind
from mmd.retrieval.tuning import build_index
from mmd.retrieval.types import RESPONSES, Response, SampleSet
from mmd.schema import IMAGES, image_to_row
from mmd.tables import plain_table

if TYPE_CHECKING:
    pass

SPREAD_FROM = 4_000
"""Responses from which starting Ray's processes, each with the retriever, pays."""
_BATCH = 256


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add which retriever."""
    parser.add_argument("--retriever", metavar="REF", help="retriever/NAME@VERSION; default: the corpus's newest")


def run(context: JobContext) -> Artifact:
    """Write index/NAME unless the same retriever was indexed so before."""
    from mmd.retrieval.saving import encoder_hash

    if wanted := context.options.get("retriever"):
        context = context.pinned(context.store.open(wanted).of_kind("retriever", "name one of `mmd artifacts list`."))
    inputs = context.lineage("retriever")
    index = context.config.retrieval.index
    settings = {"index": index.model_dump(mode="json", exclude={"threads"})}
    if found := context.existing("index", settings, inputs, {}):
        return found
    encoding = Encoding(context.config, inputs)
    given = encoding.samples
    with context.store.write("index", context.name, settings=settings, inputs=inputs, replace=context.force) as writer:
        rows: list[tuple[str, ResponseIndex]] = []
        for modality, (ids, vectors) in encode(context, encoding).items():
            queries = None if len(ids) < SPREAD_FROM else encoding.queries(modality)
            parts = build_parts(ids, vectors, index, encoder_hash(inputs["retriever"]), queries)
            save_parts(writer, modality, parts)
            rows += [(modality, part) for part in parts]
        write_responses(writer, given, Corpus(inputs["corpus"]))
        writer.metrics |= metrics_of(rows)
    print_indices(rows)
    return context.store.open(f"index/{context.name}@{version_for('index', settings, inputs, {})}", verify=False)


# ---------------------------------------------------------------- vectors


def encode(context: JobContext, encoding: Encoding) -> dict[str, tuple[list[str], Vectors]]:
    """Return modality → ids, sorted, and their vectors (n, dim); every modality of the retriever is there."""
    responses = sorted(encoding.samples.responses.values(), key=lambda r: r.id)
    table = pa.Table.from_pylist([asdict(r) for r in responses], schema=RESPONSES)
    encoded: dict[str, Vectors] = {}
    with progress("encode", len(responses), "responses") as advance:
        for ids, vectors in _vectors(context, encoding, table):
            encoded |= dict(zip(ids, vectors, strict=True))
            advance(len(ids), done=len(ids), errors=0)
    out: dict[str, tuple[list[str], Vectors]] = {}
    for modality in encoding.samples.modalities:
        own = [r.id for r in responses if r.modality == modality]
        out[modality] = (own, np.stack([encoded.pop(i) for i in own]))
    return out


def _vectors(context: JobContext, encoding: Encoding, table: pa.Table) -> Iterator[tuple[list[str], Vectors]]:
    """Yield ids and vectors in any order: in this process where responses are few, else over a pool of actors."""
    if table.num_rows < SPREAD_FROM:
        for start in range(0, table.num_rows, _BATCH):
            rows = table.slice(start, _BATCH).to_pylist()
            yield [row["id"] for row in rows], encoding.responses([Response(**row) for row in rows])
        return
    import ray.data

    config = context.config.model_copy(update={"store": context.store.absolute})
    refs = {role: artifact.ref for role, artifact in encoding.inputs.items()}
    with ray_cluster(context.config.cluster), quiet_data(), worker_errors():
        blocks = [table.slice(start, _BATCH) for start in range(0, table.num_rows, _BATCH)]
        found = ray.data.from_arrow(blocks).map_batches(
            ResponseEncoder,
            fn_constructor_args=(config, refs),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(worker_count(), len(blocks)))),
            num_cpus=0.5,  # a pool that held every logical CPU would starve the tasks that feed it
            num_gpus=1 if _has_gpu() else 0,
        )
        batches: Iterator[Any] = iter(found.iter_batches(batch_size=None, batch_format="pyarrow"))
        for batch in batches:
            width = len(batch["vector"][0])
            flat = batch["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            yield batch["id"].to_pylist(), flat.reshape(-1, width)


def _has_gpu() -> bool:
    import ray

    return bool(ray.cluster_resources().get("GPU"))  # type: ignore[no-untyped-call]


# ---------------------------------------------------------------- indices


def build_parts(
    ids: Sequence[str], vectors: Vectors, settings: IndexSettings, encoder: str, queries: Vectors | None
) -> list[ResponseIndex]:
    """Return the index of a modality, in as many parts as the settings say."""
    dealt = deal(ids, settings.shards)
    rows = [dealt.get(shard, []) for shard in range(settings.shards)]
    return [
        build_index(
            [ids[row] for row in own],
            vectors[own],
            choice_of(settings, len(own), vectors.shape[1]),
            recall=settings.recall,
            queries=queries,
            encoder=encoder,
            threads=settings.threads,
        )
        for own in rows
    ]


def choice_of(settings: IndexSettings, n: int, dim: int) -> Choice:
    """Return the structure that the settings name or lead to."""
    if settings.kind == "auto":
        return choose_kind(n, dim, settings.memory_mb, settings.recall, gpus=gpus())
    return describe_kind(settings.kind, n, dim)


def save_parts(writer: ArtifactWriter, modality: str, parts: Sequence[ResponseIndex]) -> None:
    """Write a modality's index, or its parts."""
    if len(parts) == 1:
        parts[0].save(writer, modality)
        return
    writer.write_json(f"{modality}/{SHARDS_FILE}", {"shards": len(parts)})
    for shard, part in enumerate(parts):
        part.save(writer, shard_folder(modality, shard))


def write_responses(writer: ArtifactWriter, given: SampleSet, corpus: Corpus) -> None:
    """Write the responses and the pictures that they show, so that what answers needs no corpus."""
    responses = sorted(given.responses.values(), key=lambda r: (r.modality, r.id))
    writer.write_table("responses", pa.Table.from_pylist([asdict(r) for r in responses], schema=RESPONSES))
    shown = {r.image_id for r in responses if r.image_id}
    pictures = sorted(corpus.images(shown), key=lambda image: image.id) if shown else []
    writer.write_table(
        "images", pa.Table.from_pylist([image_to_row(image) for image in pictures], schema=IMAGES), 1_000
    )


def metrics_of(rows: Sequence[tuple[str, ResponseIndex]]) -> dict[str, Any]:
    """Return what the manifest tells of the indices."""
    out: dict[str, Any] = {"responses": sum(len(index) for _, index in rows)}
    for modality in dict.fromkeys(modality for modality, _ in rows):
        own = [index for name, index in rows if name == modality]
        out[f"{modality} responses"] = sum(map(len, own))
        out[f"{modality} structure"] = own[0].kind if len(own) == 1 else f"{own[0].kind} in {len(own)} parts"
        out[f"{modality} bytes"] = sum(index.choice.bytes for index in own)
        out[f"{modality} recall@10"] = min(index.tuned.recall for index in own)
    return out


def print_indices(rows: Sequence[tuple[str, ResponseIndex]]) -> None:
    """Print each index's structure, the reason for it, and what it finds."""
    table = plain_table("modality", "responses", "structure", "recall@10", "why")
    for modality, index in rows:
        found = f"{index.tuned.recall:.3f}" if index.tuned.queries else "exact"
        table.add_row(modality, f"{len(index):,}", index.kind, found, index.choice.reason)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main("build_index", __doc__, run, add_options=add_options))
