"""Measure a student and its teachers on the test split, which is read here and nowhere else, and write the report.

Makes the artefact report/NAME-recommend with report.html (self-contained), metrics.json, every rank, every reply's
items and the item mass at every token: recall of all rankers on all and on novel mentions, beside popularity, echo and
co-mention; ReR, PrR and F1 of the items that replies name, perplexity, distinct n-grams, item ratio, time a token; what
replies would be worth with the right mode given; example conversations.

    mmd evaluate_recommend                                 the newest student of the built-in shop corpus
    mmd evaluate_recommend --student student/shop@VERSION
    mmd evaluate_recommend --split validation              its held-out part of the training split, for choices
    mmd evaluate_recommend --set evaluation.show_dialogues=always          the examples' words, too
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pyarrow as pa

from jobs.evaluate import pictures_of
from jobs.glue.entry import JobContext, console, main
from jobs.glue.reporting import add_artifact, add_split, reported
from mmd.artifacts import Artifact, ArtifactWriter, version_for
from mmd.corpora.store import Corpus
from mmd.evaluation.recommend_bench import Bench, in_places, listen_to_all, parameters, rank_by_all, student_words
from mmd.evaluation.recommend_findings import (
    REFERENCES,
    RecommendFindings,
    headline,
    module_rows,
    speaker_row,
    to_json,
)
from mmd.evaluation.recommend_report import (
    RecommendContent,
    masses_by_place,
    module_table,
    pick_examples,
    render_recommend,
    speaker_table,
)
from mmd.evaluation.recommend_systems import Ranked, Speaker

_DICTIONARY = pa.dictionary(pa.int32(), pa.string())

RANKS = pa.schema(
    [
        ("system", _DICTIONARY),
        ("mention_id", pa.string()),
        ("item_id", pa.string()),
        ("novel", pa.bool_()),
        ("rank", pa.int64()),
        ("open_rank", pa.int64()),
    ]
)
"""``rank``: 1-based, among all items; ``open_rank``: among those that no prior turn mentions; the largest int64 where
the right item is no candidate, or was cut off."""
REPLIES = pa.schema(
    [
        ("system", _DICTIONARY),
        ("sample_id", pa.string()),
        ("right_mode", _DICTIONARY),
        ("mode", _DICTIONARY),
        ("right_item_ids", pa.list_(pa.string())),
        ("item_ids", pa.list_(pa.string())),
        ("tokens", pa.int32()),
        ("ms", pa.float32()),
        ("text", pa.string()),
    ]
)
"""``text`` is null unless the report may show words of dialogues."""
TRACES = pa.schema(
    [
        ("system", _DICTIONARY),
        ("sample_id", pa.string()),
        ("mode", _DICTIONARY),
        ("nll", pa.float64()),
        ("tokens", pa.int32()),
        ("item_masses", pa.list_(pa.float32())),
        ("is_item", pa.list_(pa.bool_())),
    ]
)
"""Right responses, teacher-forced: ``nll`` in nats over all ``tokens``; masses at each token after the mode."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add which student, and on what."""
    add_artifact(parser, "student")
    add_split(parser)


def run(context: JobContext) -> Artifact:
    """Write report/NAME-recommend unless the same student was reported before.

    Raises:
        CorpusError: the split has no response to evaluate.
    """
    asked = reported(context, "student", "recommend")
    context, split, name = asked.context, asked.split, asked.name
    inputs, config = context.lineage("student"), context.config
    settings = {
        "split": split,
        "generation": config.recommend.generation.model_dump(mode="json"),
        "evaluation": config.evaluation.model_dump(mode="json", include={"show_dialogues", "bootstrap_resamples"}),
    }
    seeds = {"bootstrap": config.seed}
    if found := context.existing("report", settings, inputs, seeds, name):
        return found
    with context.store.write(
        "report", name, settings=settings, inputs=inputs, seeds=seeds, replace=context.force
    ) as writer:
        evaluate(context, Bench(inputs, config, split), writer)
    report = context.store.open(f"report/{name}@{version_for('report', settings, inputs, seeds)}")
    console.print(report.path("report.html"), markup=False, soft_wrap=True)
    return report


def evaluate(context: JobContext, bench: Bench, writer: ArtifactWriter) -> None:
    """Measure everything and fill the report."""
    evaluation, seed = context.config.evaluation, context.config.seed
    resamples = evaluation.bootstrap_resamples
    asked, speakers = bench.questions, list(listen_to_all(bench))
    rankers = [*rank_by_all(bench), *in_places(speakers, asked.mentions)]
    findings = RecommendFindings(
        split=asked.split,
        mentions=asked.mentions,
        responses=asked.responses,
        modules=module_rows(asked.mentions, rankers, resamples, seed),
        speakers=[
            speaker_row(speaker, asked.responses, resamples, seed) for speaker in (*speakers, Speaker(REFERENCES, None))
        ],
        parameters=parameters(bench),
    )
    student, teacher = speakers[0], speakers[-1]
    content = RecommendContent(
        name=context.name,
        student=student_words(bench),
        findings=findings,
        examples=pick_examples(asked.responses, student, [teacher], evaluation.examples, seed),
        masses=masses_by_place(teacher.reading.traces) if teacher.reading else None,
        provenance={role: a.ref for role, a in bench.inputs.items()} | {"code": bench.inputs["student"].manifest.code},
        resamples=resamples,
    )
    console.print(module_table(findings))
    console.print(speaker_table(findings))
    # Pictures play no part here, but where they may be shown words may, too.
    shown = pictures_of(context, Corpus(context.made_from(bench.inputs["graph"])["corpus"])) is not None
    page = render_recommend(content, bench.graph, bench.student.tokenizer, show=shown)
    writer.write_bytes("report.html", page.encode())
    writer.write_json("metrics.json", to_json(findings) | {"made_from": {r: a.ref for r, a in bench.inputs.items()}})
    writer.write_table("ranks", rank_table(rankers, bench))
    writer.write_table("replies", reply_table(speakers, bench, shown=shown))
    writer.write_table("traces", trace_table(speakers, bench))
    writer.metrics = {
        "responses": len(asked.responses),
        "mentions": len(asked.mentions),
        **headline(findings),
    }


# ---------------------------------------------------------------- tables


def rank_table(rankers: Sequence[Ranked], bench: Bench) -> pa.Table:
    """Return every rank as rows of :data:`RANKS`."""
    mentions, ids = bench.questions.mentions, bench.graph.item_ids
    tables = [
        pa.table(
            {
                "system": [ranked.name] * len(mentions),
                "mention_id": [mention.id for mention in mentions],
                "item_id": [ids[mention.item] for mention in mentions],
                "novel": [mention.novel for mention in mentions],
                "rank": ranked.ranks,
                "open_rank": ranked.open_ranks,
            }
        ).cast(RANKS)
        for ranked in rankers
    ]
    return pa.concat_tables(tables).unify_dictionaries()


def reply_table(speakers: Sequence[Speaker], bench: Bench, *, shown: bool) -> pa.Table:
    """Return every reply as rows of :data:`REPLIES`."""
    ids = bench.graph.item_ids
    rows = [
        {
            "system": speaker.name,
            "sample_id": sample.id,
            "right_mode": sample.mode,
            "mode": reply.mode,
            "right_item_ids": [ids[item] for item in sample.response.items],
            "item_ids": [ids[item] for item in reply.items],
            "tokens": reply.tokens,
            "ms": reply.ms,
            "text": reply.text if shown else None,
        }
        for speaker in speakers
        for sample, reply in zip(bench.questions.responses, speaker.replies or (), strict=bool(speaker.replies))
    ]
    return pa.Table.from_pylist(rows, schema=REPLIES)


def trace_table(speakers: Sequence[Speaker], bench: Bench) -> pa.Table:
    """Return what speakers make of the right responses as rows of :data:`TRACES`."""
    rows = [
        {
            "system": speaker.name,
            "sample_id": sample.id,
            "mode": sample.mode,
            "nll": likelihood.nll,
            "tokens": likelihood.tokens,
            "item_masses": trace.masses,
            "is_item": trace.is_item,
        }
        for speaker in speakers
        if speaker.reading
        for sample, likelihood, trace in zip(
            bench.questions.responses, speaker.reading.likelihoods, speaker.reading.traces, strict=True
        )
    ]
    return pa.Table.from_pylist(rows, schema=TRACES)


if __name__ == "__main__":
    sys.exit(main("evaluate_recommend", __doc__, run, add_options=add_options))
