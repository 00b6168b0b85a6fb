"""Make the training samples of the intent model: the few-shot set, and rule-guided augmented copies of it.

Makes samples/NAME from the training split of corpus/NAME, features/NAME and rulebase/NAME: one Parquet table with each
original followed by its copies. A sample holds its words, its pictures' bytes, label, parent, fold, and a hint: what
rules found and judged without it say of it. Rules guide the copies: the words that they know a label by are spared,
and a copy that contradicts a rule of high precision is dropped and counted.

Small corpora are done in this process; large ones are spread by Ray Data, with the same result, byte for byte.

    mmd augment                                           the built-in shop corpus
    mmd augment --corpus taobao=../shared/data/taobao
    mmd augment --set intent.augment.copies=0             originals only
    mmd augment --set intent.augment.methods=[paraphrase,picture] --set intent.augment.paraphraser=smollm2-135m
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from jobs.fit_intent import lineage_of_rules
from jobs.glue.cluster import quiet_data, ray_cluster, worker_errors
from jobs.glue.entry import JobContext, console, main
from jobs.glue.nodes import worker_count
from jobs.glue.progress import progress
from mmd.artifacts import Artifact, ArtifactWriter, version_for
from mmd.config import AppConfig
from mmd.corpora.store import Corpus
from mmd.errors import ConfigError, CorpusError
from mmd.features.store import Features
from mmd.intent.augment import Augmenter, Counts, Dropped, content_key
from mmd.intent.augment.originals import held_out_hints, make_originals, with_bytes
from mmd.intent.examples import load_examples
from mmd.intent.firings import load_firings
from mmd.intent.rulebase import RuleBase
from mmd.intent.samples import FOLDER, ORIGINAL, SAMPLES, Sample, sample_to_row
from mmd.intent.settings import AugmentSettings
from mmd.models.resolve import require_kind
from mmd.models.settings import ModelSettings
from mmd.tables import plain_table

ROWS_PER_SHARD = 256  # rows carry pictures
ORIGINALS_PER_CHUNK = 64
_SPREAD_FROM = 6_000  # pictures to transform from which starting Ray's processes pays
_TEXTS_A_PICTURE = 20  # copies of words that cost as much as one picture

_DROPPED = pa.field("dropped", pa.list_(pa.struct([("reason", pa.string()), ("rule", pa.string())])))
FAMILIES = SAMPLES.append(_DROPPED)
"""Samples as workers hand them on; an original's row tells which of its copies were dropped."""


def run(context: JobContext) -> Artifact:
    """Write samples/NAME unless the same was made before."""
    config = context.config
    inputs = lineage_of_rules(context)
    settings = augment_settings(config)
    seeds = {"folds": config.seed, "augment": config.seed}
    if found := context.existing("samples", settings, inputs, seeds):
        return found
    check_methods(config.intent.augment, config.models)
    corpus, base = Corpus(inputs["corpus"]), RuleBase.load(inputs["rulebase"])
    originals = load_originals(config, corpus, Features(inputs["features"]), base, inputs["rulebase"])
    worker = ChunkAugmenter(corpus, base, config.intent.augment, config.models, config.seed, known_keys(originals))
    with context.store.write(
        "samples", context.name, settings=settings, inputs=inputs, seeds=seeds, replace=context.force
    ) as writer:
        counts = write_families(context, worker, originals, writer)
        writer.metrics = metrics_of(counts)
    print_counts(counts)
    return context.store.open(f"samples/{context.name}@{version_for('samples', settings, inputs, seeds)}", verify=False)


def augment_settings(config: AppConfig) -> dict[str, Any]:
    """Return the settings that the samples depend on."""
    intent = config.intent
    return {"augment": intent.augment.model_dump(mode="json"), "folds": intent.folds, "hints": intent.prompt.hints}


def check_methods(settings: AugmentSettings, models: ModelSettings) -> None:
    """Refuse the method `paraphrase` without a model, or with one that is not here, before the work begins.

    Raises:
        ConfigError: saying which setting is missing.
        ModelError: the model is not here, or of another kind.
    """
    if not settings.copies or "paraphrase" not in settings.methods:
        return
    if settings.paraphraser is None:
        raise ConfigError(
            "intent.augment.methods: paraphrase needs a language model; set intent.augment.paraphraser to one, e.g. "
            "smollm2-135m, or leave the method out."
        )
    require_kind(settings.paraphraser, models, ("language",))


def load_originals(
    config: AppConfig, corpus: Corpus, features: Features, base: RuleBase, rulebase: Artifact
) -> list[Sample]:
    """Return the originals of every task, still without their pictures' bytes.

    Raises:
        CorpusError: no training dialogue has a label.
    """
    intent = config.intent
    originals: list[Sample] = []
    for task in sorted(corpus.tasks):
        examples = load_examples(corpus, features, task, "train")
        hints = held_out_hints(load_firings(rulebase, task), base, examples, intent.prompt.hints)
        originals += make_originals(examples, hints, folds=intent.folds, seed=config.seed)
    if not originals:
        raise CorpusError(
            f"{corpus.artifact.ref}: no training dialogue has an intent label; its tasks: "
            f"{', '.join(corpus.tasks) or 'none'}. Label some dialogues, or work on a corpus such as shop or taobao."
        )
    return originals


def known_keys(originals: Iterable[Sample]) -> frozenset[str]:
    """Return the content keys of the originals, which no copy may repeat."""
    return frozenset(content_key(sample.example) for sample in originals)


# ---------------------------------------------------------------- the work


class ChunkAugmenter:
    """Makes the families of a chunk of originals; a process of its own where Ray spreads the work.

    Args:
        corpus: where the pictures' bytes are.
        base: the rules that guide.
        settings: of augmentation.
        models: where a paraphraser's weights come from.
        seed: of every choice.
        known: content keys of all originals.
    """

    def __init__(
        self,
        corpus: Corpus,
        base: RuleBase,
        settings: AugmentSettings,
        models: ModelSettings,
        seed: int,
        known: frozenset[str],
    ) -> None:
        self._arguments = (corpus, base, settings, models, seed, known)
        self._corpus = corpus
        self._augmenter: Augmenter | None = None

    def __reduce__(self) -> tuple[type[ChunkAugmenter], tuple[Any, ...]]:
        """Travel to another process as the arguments; models are loaded there."""
        return type(self), self._arguments

    def __call__(self, chunk: Sequence[Sample]) -> pa.Table:
        """Return the chunk's families as rows of :data:`FAMILIES`, each original before its copies."""
        rows: list[dict[str, Any]] = []
        for sample in with_bytes(chunk, self._corpus):
            family = self._ready.family(sample)
            dropped = [{"reason": drop.reason, "rule": drop.rule} for drop in family.dropped]
            rows.append({**sample_to_row(family.original), "dropped": dropped})
            rows += [{**sample_to_row(copy), "dropped": []} for copy in family.copies]
        return pa.Table.from_pylist(rows, FAMILIES)

    @property
    def _ready(self) -> Augmenter:
        """The augmenter, built where the work is done."""
        if self._augmenter is None:
            _, base, settings, models, seed, known = self._arguments
            paraphraser = None
            if settings.copies and "paraphrase" in settings.methods and settings.paraphraser:
                from mmd.models.language import LanguageModel

                paraphraser = LanguageModel(settings.paraphraser, models)
            self._augmenter = Augmenter(base, settings, seed, known=known, paraphraser=paraphraser)
        return self._augmenter


def is_large(originals: Sequence[Sample], settings: AugmentSettings) -> bool:
    """Say whether the work is worth starting Ray's processes."""
    if settings.copies and "paraphrase" in settings.methods:
        return True
    pictures = sum(len(sample.example.images) for sample in originals) if "picture" in settings.methods else 0
    return settings.copies * (pictures + len(originals) / _TEXTS_A_PICTURE) >= _SPREAD_FROM


def chunked(originals: Sequence[Sample]) -> list[Sequence[Sample]]:
    """Cut the originals into the pieces that are worked on together."""
    return [originals[start : start + ORIGINALS_PER_CHUNK] for start in range(0, len(originals), ORIGINALS_PER_CHUNK)]


def families_here(worker: ChunkAugmenter, chunks: Iterable[Sequence[Sample]]) -> Iterator[pa.Table]:
    """Yield the families of each chunk, made one after another in this process."""
    yield from map(worker, chunks)


def families_spread(worker: ChunkAugmenter, chunks: Sequence[Sequence[Sample]]) -> Iterator[pa.Table]:
    """Yield what :func:`families_here` does, made by a pool of processes; the order is kept."""
    import ray
    import ray.data

    # References travel, not samples: a process fetches a chunk when it comes to it.
    references = [ray.put(list(chunk)) for chunk in chunks]
    with quiet_data(), worker_errors():
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        numbers = ray.data.from_items([{"chunk": n} for n in range(len(chunks))], override_num_blocks=len(chunks))
        families = numbers.map_batches(
            _Fetching,
            fn_constructor_args=(worker, references),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(worker_count(), len(chunks)))),
            num_cpus=0.5,  # a pool that held every logical CPU would starve what feeds it
        )
        for batch in families.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield cast("pa.Table", batch).cast(FAMILIES)


class _Fetching:
    """A pool's process: takes numbers of chunks, fetches them, returns their families."""

    def __init__(self, worker: ChunkAugmenter, references: Sequence[Any]) -> None:
        self._worker = worker
        self._references = references

    def __call__(self, batch: pa.Table) -> pa.Table:
        import ray

        return pa.concat_tables([self._worker(ray.get(self._references[n])) for n in batch["chunk"].to_pylist()])


def write_families(
    context: JobContext, worker: ChunkAugmenter, originals: Sequence[Sample], writer: ArtifactWriter
) -> Counts:
    """Make and write all families, a few chunks in memory; return what came of them."""
    chunks = chunked(originals)
    with progress("augment", len(originals), "originals") as advance:
        if not is_large(originals, context.config.intent.augment):
            return write_shards(families_here(worker, chunks), writer, advance)
        with ray_cluster(context.config.cluster):
            return write_shards(families_spread(worker, chunks), writer, advance)


def write_shards(tables: Iterable[pa.Table], writer: ArtifactWriter, advance: Any) -> Counts:  # noqa: ANN401 (a callback)
    """Write rows as they come, in shards of equal length whatever the tables' lengths; return their counts."""
    counts, written = Counts(), 0
    waiting = FAMILIES.empty_table()
    for table in tables:
        tally(table, counts)
        advance(pc.sum(pc.equal(table["made_by"], ORIGINAL)).as_py() or 0, samples=table.num_rows)
        waiting = pa.concat_tables([waiting, table])
        while waiting.num_rows >= ROWS_PER_SHARD:
            write_shard(writer, written, waiting.slice(0, ROWS_PER_SHARD))
            waiting, written = waiting.slice(ROWS_PER_SHARD), written + 1
    if waiting.num_rows:
        write_shard(writer, written, waiting)
    return counts


def write_shard(writer: ArtifactWriter, number: int, table: pa.Table) -> None:
    """Write one shard of samples."""
    import pyarrow.parquet as pq

    with writer.open(f"{FOLDER}/part-{number:05d}.parquet") as handle:
        pq.write_table(table.select(SAMPLES.names).combine_chunks(), handle, compression="zstd")


def tally(table: pa.Table, counts: Counts) -> None:
    """Add a table's originals, copies and dropped copies to the counts."""
    for row in table.select(["task", "made_by", "dropped"]).to_pylist():
        if row["made_by"] == ORIGINAL:
            counts.add(row["task"], (), [Dropped(drop["reason"], drop["rule"]) for drop in row["dropped"]])
        else:
            counts.copies[row["task"], row["made_by"]] += 1


# ---------------------------------------------------------------- what it came to


def metrics_of(counts: Counts) -> dict[str, Any]:
    """Return the totals, and the details by task."""
    return {
        "originals": counts.originals.total(),
        "copies": counts.copies.total(),
        "dropped": counts.dropped.total(),
        "contradicting a rule": counts.contradicted.total(),
        "tasks": counts.to_json(),
    }


def print_counts(counts: Counts) -> None:
    """Print how many samples each task has, by what made them."""
    table = plain_table("task", "originals", "copies", "dropped", title="training samples")
    for task, told in counts.to_json().items():
        copies, dropped = (", ".join(f"{n} {name}" for name, n in told[key].items()) for key in ("copies", "dropped"))
        table.add_row(task, str(told["originals"]), copies or "none", dropped or "none")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main("augment", __doc__, run))
