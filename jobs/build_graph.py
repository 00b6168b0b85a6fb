"""Build the item graph of a corpus and link its dialogues to it.

Makes the artefact graph/NAME from corpus/NAME: entities, the edges of relations that are frequent enough, items with
their entities, and the dialogues in which items and entities are found: by marks, by titles of stated items, by names
in the text (`recommend.graph` says which). A plain catalogue without a graph does as well: every item is then an entity
without edges. Prints what was kept, what was found, and the denominators of every later measure: responses with a
context, and mentions, all and novel (of items that no prior turn mentions).

    mmd build_graph                                     the built-in shop corpus
    mmd build_graph --corpus redial=../shared/data/redial
    mmd build_graph --set recommend.graph.link_text=false
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from jobs.glue.cluster import ray_cluster
from jobs.glue.entry import JobContext, console, main
from jobs.glue.linking import LinkPlan, ShardLinker, coverage_of
from jobs.glue.nodes import worker_count
from jobs.glue.progress import progress
from jobs.ingest import spread
from mmd.artifacts import Artifact, version_for
from mmd.corpora.store import Corpus
from mmd.recommend.conversations import DIALOGUES, LINKING_FILE, SAMPLE_COUNTS, SUMMARY_FILE, titles_are_mentions
from mmd.recommend.graph import GraphCounts, ItemGraph, build_counted, save_graph
from mmd.recommend.linking import Coverage
from mmd.schema import Split

SPREAD_FROM = 10
"""Shards of the corpus from which starting Ray's processes pays: 20,000 dialogues, about 20 s for one process."""
_NAMES_KEPT = 1_000
_UNKNOWN_KEPT = 100
_UNKNOWN_SHOWN = 5
SPLITS: tuple[Split, ...] = ("train", "test")


def run(context: JobContext) -> Artifact:
    """Write graph/NAME unless the same corpus was linked so before.

    Raises:
        CorpusError: the corpus has no items.
    """
    recommend, artifact = context.config.recommend, context.open("corpus")
    settings = {"graph": recommend.graph.model_dump(mode="json")}
    inputs = {"corpus": artifact}
    if found := context.existing("graph", settings, inputs, {}):
        return found
    corpus = Corpus(artifact)
    graph, counts = build_counted(corpus.graph(), corpus.items(), recommend.graph)
    titles = titles_are_mentions(recommend.graph, corpus)
    with context.store.write("graph", context.name, settings=settings, inputs=inputs, replace=context.force) as writer:
        save_graph(writer, graph)
        writer.write_json(LINKING_FILE, {"settings": settings["graph"], "titles": titles})
        plan = LinkPlan(context.store.absolute, artifact.ref, writer.path(DIALOGUES), recommend.graph, titles)
        coverage = link(context, plan, graph, corpus)
        writer.write_json(SUMMARY_FILE, summary_of(counts, coverage, titles=titles))
        writer.metrics |= metrics_of(counts, coverage)
    print_summary(counts, coverage)
    return context.store.open(f"graph/{context.name}@{version_for('graph', settings, inputs, {})}", verify=False)


def link(context: JobContext, plan: LinkPlan, graph: ItemGraph, corpus: Corpus) -> Coverage:
    """Link every shard of the corpus's dialogues; return what was found in all."""
    shards = corpus.artifact.shards("dialogues")
    coverage = Coverage()
    with progress("link", len(shards), "shards") as advance:
        for found in _linked(context, plan, graph, shards):
            coverage.add(found)
            advance(dialogues=sum(found.counts[f"{split}/dialogues"] for split in SPLITS))
    return coverage


def _linked(context: JobContext, plan: LinkPlan, graph: ItemGraph, shards: Sequence[str]) -> Iterator[Coverage]:
    """Yield what each shard holds, in any order: linked in this process where shards are few, else over Ray's."""
    if len(shards) < SPREAD_FROM:
        linker = ShardLinker(plan, graph)
        yield from map(linker.link, shards)
        return
    with ray_cluster(context.config.cluster):
        rows = spread([{"shard": shard} for shard in shards], ShardLinker, (plan, graph), worker_count())
        yield from (coverage_of(row["found"]) for row in rows)


# ---------------------------------------------------------------- summary


def summary_of(counts: GraphCounts, coverage: Coverage, *, titles: bool) -> dict[str, Any]:
    """Return what ``summary.json`` says of the graph, of what was linked, of denominators, and of the names found."""
    linked = {name: count for name, count in sorted(coverage.counts.items()) if "/" not in name}
    names = sorted(coverage.names.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "graph": asdict(counts),
        "titles_are_mentions": titles,
        "linked": linked,
        "denominators": {split: denominators(coverage, split) for split in SPLITS},
        "unknown_items": dict(coverage.unknown.most_common(_UNKNOWN_KEPT)),
        "names": {"distinct": len(names), "most_frequent": dict(names[:_NAMES_KEPT])},
    }


def denominators(coverage: Coverage, split: Split) -> dict[str, int]:
    """Return name → count of a split."""
    return {name: coverage.counts[f"{split}/{name}"] for name in SAMPLE_COUNTS}


def metrics_of(counts: GraphCounts, coverage: Coverage) -> dict[str, Any]:
    """Return what the manifest tells."""
    found = coverage.counts
    return {
        "entities": counts.entities,
        "items": counts.items,
        "relations": counts.relations_kept,
        "edges": counts.edges_kept,
        "turns": found["turns"],
        "turns_with_entities": found["turns_with_entities"],
        "distinct_names": len(coverage.names),
        **{f"{split}.{name}": n for split in SPLITS for name, n in denominators(coverage, split).items()},
    }


def print_summary(counts: GraphCounts, coverage: Coverage) -> None:
    """Print what was kept of the graph, what was found in the dialogues; the denominators are among the metrics."""
    found = coverage.counts
    console.print(
        f"graph: {counts.edges_kept:,} of {counts.edges_given:,} edges in {counts.relations_kept} of "
        f"{counts.relations_given} relations, {counts.entities:,} entities; {counts.items_without_link:,} of "
        f"{counts.items:,} items have no entity of the graph, {counts.items_without_title:,} no title",
        markup=False,
        soft_wrap=True,
    )
    stated, unknown = found["items_stated"], found["items_unknown"]
    console.print(
        f"linked: {stated - unknown:,} of {stated:,} stated mentions, {found['items_behind_text']:,} of them not shown "
        f"by the words; {found['items_by_title']:,} mentions by title; {found['names']:,} names of "
        f"{len(coverage.names):,} kinds; {found['turns_with_entities']:,} of {found['turns']:,} turns name an entity",
        markup=False,
        soft_wrap=True,
    )
    for note in notes(coverage):
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


def notes(coverage: Coverage) -> Iterator[str]:
    """Yield what somebody should know before training."""
    if coverage.unknown:
        shown = ", ".join(item_id for item_id, _ in coverage.unknown.most_common(_UNKNOWN_SHOWN))
        yield (
            f"{coverage.unknown.total():,} stated mentions are of {len(coverage.unknown):,} items that the catalogue "
            f"lacks, such as {shown}; their marks stay words. Add them to the catalogue to have them recommended."
        )
    if not coverage.counts["train/agent_mentions"]:
        yield (
            "no answer of the agent in a training dialogue names an item, so there is nothing to learn from; state "
            "items, or find them by title with --set recommend.graph.items=titles."
        )


if __name__ == "__main__":
    sys.exit(main("build_graph", __doc__, run))
