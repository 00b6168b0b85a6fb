"""Compute what rules and classifiers see of pictures and texts: OCR lines, image vectors, sentence vectors.

Makes the artefact features/NAME from corpus/NAME, with tables ocr, image_vectors and text_vectors and features.json
(which extractor made what). OCR runs only for pictures that came without; sentence vectors are made for the texts
that intent examples ask for. Which extractors run is set in `features`; each takes one CPU thread an actor.

Results are cached by content hash under STORE/cache, batch by batch: after an interruption, or with a grown corpus,
the same command computes only what is missing. A row that fails keeps its reason and never stops the job.

    mmd featurize                                         the built-in shop corpus
    mmd featurize --corpus taobao=../shared/data/taobao
    mmd featurize --set features.ocr=none --set features.vision=descriptor
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.glue.cluster import hold_cluster, quiet_data, ray_cluster, worker_errors
from jobs.glue.entry import JobContext, main
from jobs.glue.nodes import worker_count
from jobs.glue.progress import progress
from mmd.artifacts import Artifact, ArtifactWriter, version_for
from mmd.corpora.store import Corpus
from mmd.features.cache import CachedStage, FeatureCache
from mmd.features.extract import TABLES, Extractors, Role, build_extractors, build_stage
from mmd.features.settings import FeatureSettings
from mmd.features.store import INFO_FILE, ocr_lines
from mmd.intent.examples import TEXT_KINDS, wanted_texts

UNITS: dict[Role, str] = {"ocr": "pictures", "vision": "pictures", "text": "texts"}


def run(context: JobContext) -> Artifact:
    """Write features/NAME unless the same corpus and extractors were featurized before."""
    artifact = context.open("corpus")
    extractors = build_extractors(context.config.features)
    settings = {
        "extractors": {role: info and asdict(info) for role, info in extractors.describe().items()},
        "texts": list(TEXT_KINDS),
    }
    inputs = {"corpus": artifact}
    if found := context.existing("features", settings, inputs, {}):
        return found
    with context.store.write(
        "features", context.name, settings=settings, inputs=inputs, replace=context.force
    ) as writer:
        writer.write_json(INFO_FILE, settings)
        Featurize(context, Corpus(artifact), extractors, writer).run()
    return context.store.open(f"features/{context.name}@{version_for('features', settings, inputs, {})}", verify=False)


@dataclass(frozen=True)
class Counts:
    """What became of one role's pictures or texts."""

    wanted: int
    cached: int
    computed: int
    errors: int


class Featurize:
    """One run: per role, compute what the cache lacks, then copy the cache's rows into the artefact.

    Args:
        context: settings and store.
        corpus: whose pictures and texts are wanted.
        extractors: in force; the driver uses their names only, actors build their own.
        writer: of the artefact.
    """

    def __init__(self, context: JobContext, corpus: Corpus, extractors: Extractors, writer: ArtifactWriter) -> None:
        self._config = context.config
        self._settings = context.config.features
        self._store = context.store.absolute
        self._corpus = corpus
        self._extractors = extractors
        self._writer = writer

    def run(self) -> None:
        """Fill the writer."""
        pictures = self._corpus.image_table(["id", "ocr"])
        without_ocr = pictures.filter(pc.is_null(pictures["ocr"]))["id"].to_pylist()
        self._writer.metrics |= {"pictures": pictures.num_rows, "ocr_given": pictures.num_rows - len(without_ocr)}
        with hold_cluster():  # one for all roles, none when the cache has everything
            recognised = self._role("ocr", without_ocr)
            self._role("vision", pictures["id"].to_pylist())
            texts = wanted_texts(self._corpus, ocr_lines(recognised) if recognised else {})
            self._role("text", list(texts), texts)

    def _role(self, role: Role, ids: Sequence[str], texts: dict[str, str] | None = None) -> pa.Table | None:
        """Return the role's rows of these ids; None where no extractor has the role."""
        info = self._extractors.describe()[role]
        if info is None:
            return None
        cache = FeatureCache(self._store, role, info.name)
        known = cache.known() & set(ids)
        missing = sorted(set(ids) - known)
        if missing:
            with ray_cluster(self._config.cluster), progress(role, len(missing), UNITS[role]) as advance:
                for receipt in self._compute(role, missing, texts):
                    advance(receipt["rows"], done=receipt["rows"], errors=receipt["errors"])
        table = cache.read(ids)
        self._writer.write_table(TABLES[role], table)
        failed = pc.sum(pc.not_equal(table["error"], "")).as_py() or 0
        self._summarise(role, Counts(len(set(ids)), len(known), len(missing), failed))
        return table

    def _compute(self, role: Role, missing: Sequence[str], texts: dict[str, str] | None) -> Iterator[dict[str, int]]:
        """Map the missing rows over a pool of actors; yield the counts of each batch as it completes."""
        if texts is not None:
            yield from compute_texts(self._settings, self._store, {text_id: texts[text_id] for text_id in missing})
            return
        rows = self._settings.batch_images
        with quiet_data():
            pictures = self._pictures(missing, rows)
            yield from _extract(pictures, role, self._settings, self._store, -(-len(missing) // rows))

    def _pictures(self, ids: Sequence[str], batch_rows: int) -> Any:  # noqa: ANN401 (ray.data.Dataset)
        """Read the pictures of these ids from the shards that hold some, in blocks of a batch."""
        import ray.data

        artifact = self._corpus.artifact
        wanted = pa.array(ids, pa.string())
        local = artifact.protocol == "file"
        pictures = ray.data.read_parquet(
            [artifact.path(s) if local else f"{artifact.root}/{s}" for s in _shards_with(artifact, wanted)],
            filesystem=None if local else artifact.fs,
        ).select_columns(["id", "data"])
        kept = pictures.map_batches(_Keep(wanted), batch_size=None, batch_format="pyarrow")
        return kept.repartition(target_num_rows_per_block=batch_rows)

    def _summarise(self, role: Role, counts: Counts) -> None:
        self._writer.metrics |= {f"{role}_{name}": n for name, n in asdict(counts).items()}


def compute_texts(settings: FeatureSettings, store: str, texts: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Compute sentence vectors into the cache of a store; yield the counts of each batch as it completes.

    Args:
        settings: of the extractor.
        store: URI that workers find the store by.
        texts: id → text.
    """
    rows = settings.batch_texts
    with quiet_data():
        yield from _extract(_texts(list(texts), texts, rows), "text", settings, store, -(-len(texts) // rows))


def _extract(source: Any, role: Role, settings: FeatureSettings, store: str, batches: int) -> Iterator[dict[str, int]]:  # noqa: ANN401 (ray.data.Dataset)
    """Map blocks of pictures or texts over a pool of actors; yield the counts of each block."""
    import ray.data

    actors = max(1, min(settings.actors_max, worker_count(), batches))
    receipts = source.map_batches(
        FeatureActor,
        fn_constructor_args=(role, settings, store),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=0.5,  # a pool that held every logical CPU would starve the readers that feed it
    )
    with worker_errors():
        for batch in receipts.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from batch.to_pylist()


class FeatureActor:
    """A process with one warm extractor: batches in, cached results, counts out."""

    def __init__(self, role: Role, settings: FeatureSettings, store: str) -> None:
        extractors = build_extractors(settings)
        info = extractors.describe()[role]
        self._stage = CachedStage(build_stage(role, extractors), FeatureCache(store, role, info.name if info else ""))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Extract and store a batch; return its counts."""
        return self._stage(batch)


class _Keep:
    """Keeps the rows of wanted ids."""

    def __init__(self, wanted: pa.Array) -> None:
        self._wanted = wanted

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch.filter(pc.is_in(batch["id"], self._wanted))


def _texts(ids: Sequence[str], texts: Mapping[str, str], batch_rows: int) -> Any:  # noqa: ANN401 (ray.data.Dataset)
    import ray.data

    blocks = [
        pa.table({"id": list(some), "text": [texts[i] for i in some]})
        for some in (ids[start : start + batch_rows] for start in range(0, len(ids), batch_rows))
    ]
    return ray.data.from_arrow(blocks)


def _shards_with(artifact: Artifact, wanted: pa.Array) -> list[str]:
    """Return the image shards that hold a wanted picture, so that the others are not read."""
    found = []
    for shard in artifact.shards("images"):
        with artifact.fs.open(f"{artifact.root}/{shard}", "rb") as handle:
            if pc.any(pc.is_in(pq.read_table(handle, columns=["id"])["id"], wanted)).as_py():
                found.append(shard)
    return found


if __name__ == "__main__":
    sys.exit(main("featurize", __doc__, run))
