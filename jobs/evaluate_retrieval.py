"""Measure a retriever on the test split, on which nothing is learnt or chosen, and write the report.

Makes the artefact report/NAME-retrieval with report.html (self-contained), metrics.json, the pools and every rank:
recall and reciprocal rank by modality and over all, in pools of 50 a modality, of 25, and in the whole corpus, with
oracle intent too; how the modality is predicted; BM25 and an encoder off the shelf in the same pools; recall against
the size of the pool; R@1 before and after the re-ranker that the retriever has, if any; weights by part; example
retrievals.

    mmd evaluate_retrieval                                    the newest retriever of the built-in shop corpus
    mmd evaluate_retrieval --retriever retriever/shop@VERSION
    mmd evaluate_retrieval --set evaluation.show_dialogues=always    the examples' words and pictures, too
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.evaluate import pictures_of
from jobs.glue.entry import JobContext, console, main
from jobs.glue.reporting import add_artifact, reported
from mmd.artifacts import Artifact, ArtifactWriter, version_for
from mmd.corpora.store import Corpus
from mmd.evaluation.ranking import CORPUS, Questions
from mmd.evaluation.report import PictureSource
from mmd.evaluation.retrieval import Findings, summarise, to_json
from mmd.evaluation.retrieval_report import (
    RetrievalContent,
    headline,
    render_retrieval,
    rerank_words,
    retrieval_table,
)
from mmd.evaluation.retrieval_systems import make_questions, pick_retrieved, retriever_system, word_systems
from mmd.evaluation.shelf import shelf_encoders
from mmd.features.store import Features
from mmd.retrieval.facts import Facts
from mmd.retrieval.samples import find_samples
from mmd.retrieval.types import Sample, SampleSet

if TYPE_CHECKING:
    from mmd.retrieval.inputs import InputMaker
    from mmd.retrieval.methods import Retriever
    from mmd.retrieval.rerank import Reranked

POOLS = pa.schema(
    [
        ("kind", pa.dictionary(pa.int32(), pa.string())),
        ("sample_id", pa.string()),
        ("gold", pa.string()),
        ("candidates", pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    ]
)
RANKS = pa.schema(
    [
        ("system", pa.dictionary(pa.int32(), pa.string())),
        ("pool", pa.dictionary(pa.int32(), pa.string())),
        ("oracle_intent", pa.bool_()),
        ("sample_id", pa.string()),
        ("modality", pa.dictionary(pa.int32(), pa.string())),
        ("rank", pa.int64()),
    ]
)
"""``rank``: 1-based; the largest int64 where the wrong modality was ranked."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add which retriever."""
    add_artifact(parser, "retriever")


def run(context: JobContext) -> Artifact:
    """Write report/NAME-retrieval unless the same retriever was reported before."""
    asked = reported(context, "retriever", "retrieval")
    context, name = asked.context, asked.name
    inputs, config = context.lineage("retriever"), context.config
    settings = {
        "evaluation": config.evaluation.model_dump(mode="json", include={"show_dialogues", "bootstrap_resamples"}),
        "pools": config.retrieval.pools.model_dump(mode="json"),
    }
    seeds = {"bootstrap": config.seed}
    if found := context.existing("report", settings, inputs, seeds, name):
        return found
    with context.store.write(
        "report", name, settings=settings, inputs=inputs, seeds=seeds, replace=context.force
    ) as writer:
        evaluate(context, inputs, writer)
    report = context.store.open(f"report/{name}@{version_for('report', settings, inputs, seeds)}")
    console.print(report.path("report.html"), markup=False, soft_wrap=True)
    return report


def evaluate(context: JobContext, inputs: Mapping[str, Artifact], writer: ArtifactWriter) -> None:
    """Measure everything and fill the report.

    Raises:
        CorpusError: the test split has no sample.
        ModelError: a model that the retriever needs is not here.
    """
    config, corpus = context.config, Corpus(inputs["corpus"])
    features = Features(inputs["features"]) if "features" in inputs else None
    retriever, maker, facts = open_retriever(context, inputs["retriever"], corpus, features)
    given = find_samples(corpus.dialogues(), facts, retriever.spec.samples)
    tested = [sample for sample in given.samples if sample.split == "test"]
    questions = make_questions(given, tested, config.retrieval.pools, "test")
    name = retriever.spec.method
    encoders = shelf_encoders(config.retrieval.pools.encoder, retriever.spec.towers, config.features, config.models)
    system = retriever_system(name, retriever, maker, questions, given)
    systems = [system, *word_systems(questions, given, facts, encoders)]
    findings = summarise(questions, systems, resamples=config.evaluation.bootstrap_resamples, seed=config.seed)
    content = RetrievalContent(
        name=context.name,
        findings=findings,
        retrieved=pick_retrieved(system, questions, given, config.retrieval.pools.examples, config.seed),
        provenance={role: a.ref for role, a in inputs.items()}
        | {"code": inputs["retriever"].manifest.code, "pools": str(questions.drawn)},
        parameters=retriever.parameter_counts(),
        resamples=config.evaluation.bootstrap_resamples,
        reranked=reranked_by(inputs["retriever"], retriever, maker, tested, given),
    )
    print_content(content)
    write_report(writer, content, render_retrieval(content, shown_pictures(context, corpus)), inputs)


def reranked_by(
    artifact: Artifact, retriever: Retriever, maker: InputMaker, samples: Sequence[Sample], given: SampleSet
) -> Reranked | None:
    """Return what the re-ranker beside a retriever, which the service answers with, is worth; None without one."""
    from mmd.retrieval.rerank import judge_reranker, load_reranker

    reranker = load_reranker(artifact, retriever, maker)
    return judge_reranker(reranker, samples, given) if reranker else None


def shown_pictures(context: JobContext, corpus: Corpus) -> PictureSource | None:
    """Return where the report's pictures come from, if it may show any; those that the corpus lacks are left out."""
    source = pictures_of(context, corpus)
    if source is None:
        return None
    known = set(corpus.image_table(["id"])["id"].to_pylist())
    return lambda ids: source([i for i in ids if i in known])


def open_retriever(
    context: JobContext, artifact: Artifact, corpus: Corpus, features: Features | None
) -> tuple[Retriever, InputMaker, Facts]:
    """Return a trained retriever on its device, what makes its inputs, and what puts its corpus into words."""
    import torch

    from mmd.models.devices import choose_device, choose_dtype
    from mmd.retrieval.saving import load_maker, load_retriever
    from mmd.retrieval.sources import training_sources

    config = context.config
    retriever = load_retriever(artifact, config.models)
    device = choose_device(config.models)
    retriever.to(device).use_dtype(choose_dtype(config.models, torch.device(device)))
    facts = Facts.load(corpus, features, retriever.spec.samples)
    sources = training_sources(
        corpus, features, retriever.spec.towers, config.features, config.models, context.store.absolute
    )
    return retriever, load_maker(artifact, facts, sources, config.models), facts


def print_content(content: RetrievalContent) -> None:
    """Print recall, what a reader must know of the pools, and what the re-ranker is worth."""
    for pool in ("union", CORPUS):
        console.print(retrieval_table(content.findings, pool))
    for note in content.notes:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    if content.reranked:
        console.print(rerank_words(content.reranked), markup=False, soft_wrap=True)


def write_report(writer: ArtifactWriter, content: RetrievalContent, page: str, inputs: Mapping[str, Artifact]) -> None:
    """Write the page, the numbers, the pools and the ranks."""
    findings = content.findings
    writer.write_bytes("report.html", page.encode())
    metrics = to_json(findings) | {
        "parameters": dict(content.parameters),
        "reranked": asdict(content.reranked) if content.reranked else None,
        "made_from": {role: a.ref for role, a in inputs.items()},
    }
    writer.write_json("metrics.json", metrics)
    writer.write_table("pools", pool_table(findings.questions))
    writer.write_table("ranks", rank_table(findings), rows_per_shard=1_000_000)
    writer.metrics = {"samples": len(findings.questions.samples), **headline(content)}


def pool_table(questions: Questions) -> pa.Table:
    """Return the drawn pools as rows of :data:`POOLS`."""
    ids = questions.layout.ids
    rows = [
        {
            "kind": kind,
            "sample_id": sample.id,
            "gold": sample.response_id,
            "candidates": [ids[column] for column in columns],
        }
        for kind, pools in questions.pools.items()
        for sample, columns in zip(questions.samples, pools, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=POOLS)


def rank_table(findings: Findings) -> pa.Table:
    """Return the rank of every right response as rows of :data:`RANKS`."""
    questions, tables = findings.questions, []
    for system in findings.systems:
        for pool in (*questions.pools, CORPUS):
            for oracle in (False, True):
                n = len(questions.samples)
                columns: dict[str, Any] = {
                    "system": [system.name] * n,
                    "pool": [pool] * n,
                    "oracle_intent": [oracle] * n,
                    "sample_id": [sample.id for sample in questions.samples],
                    "modality": [sample.modality for sample in questions.samples],
                    "rank": system.ranks(questions, pool, oracle=oracle),
                }
                tables.append(pa.table(columns).cast(RANKS))
    return pa.concat_tables(tables).unify_dictionaries()


if __name__ == "__main__":
    sys.exit(main("evaluate_retrieval", __doc__, run, add_options=add_options))
