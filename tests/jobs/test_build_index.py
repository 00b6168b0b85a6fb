"""The build_index job: what it stores finds what brute force finds, in one part or several, and tells why it is so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from jobs import build_index
from jobs.build_index import choice_of
from jobs.glue.encoding import Encoding, ResponseEncoder
from jobs.glue.entry import JobContext, with_options
from jobs.glue.index_shards import sharded_search
from mmd.artifacts import ArtifactStore
from mmd.config import build_config
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError, RequestError
from mmd.features.settings import FeatureSettings
from mmd.features.store import Features
from mmd.models.settings import ModelSettings
from mmd.retrieval.bases import load_bases
from mmd.retrieval.encode import encode_responses
from mmd.retrieval.facts import Facts
from mmd.retrieval.index import ResponseIndex
from mmd.retrieval.methods import Retriever, spec_of
from mmd.retrieval.pictures import ResponsePictures
from mmd.retrieval.samples import load_samples
from mmd.retrieval.saving import encoder_hash, save_retriever
from mmd.retrieval.settings import IndexSettings, RetrievalSettings, TowerSettings
from mmd.retrieval.sharded import ShardedIndex, load_index
from mmd.retrieval.sources import build_maker, training_sources
from mmd.retrieval.types import RESPONSES

TOWERS = TowerSettings(text="tiny-bert", dim=16, hidden=16)
DESCRIPTOR = FeatureSettings(ocr="none", vision="descriptor", text="none")


@pytest.fixture(scope="module")
def trained(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store with an untrained mdr retriever."""
    folder = tmp_path_factory.mktemp("trained") / "store"
    shutil.copytree(tiny_store, folder)
    store = ArtifactStore(str(folder))
    inputs = {kind: store.open(f"{kind}/tiny") for kind in ("corpus", "features")}  # type: ignore[misc]
    corpus, features = Corpus(inputs["corpus"]), Features(inputs["features"])
    settings, bases = RetrievalSettings(method="mdr", towers=TOWERS), load_bases(TOWERS)
    samples = load_samples(corpus, features, settings.samples)
    sources = training_sources(corpus, features, TOWERS, DESCRIPTOR, ModelSettings())
    facts = Facts.load(corpus, features, settings.samples)
    maker = build_maker(TOWERS, samples.modalities, facts, sources, bases)
    with store.write("retriever", "tiny", settings={}, inputs=inputs, seeds={"seed": 0}) as writer:
        save_retriever(writer, Retriever(spec_of(settings, maker, bases), bases, seed=0), bases)
    return folder


@pytest.fixture
def job(trained: Path, tmp_path: Path) -> Callable[..., JobContext]:
    """A context on a copy of the store, with settings of the index."""
    shutil.copytree(trained, tmp_path / "store")

    def make(*, force: bool = False, **index: Any) -> JobContext:
        values = {
            "store": str(tmp_path / "store"),
            "data": {"corpus": {"name": "tiny"}},
            "features": DESCRIPTOR.model_dump(),
            "retrieval": {"index": index},
        }
        return JobContext(build_config(values), force=force)

    return make


def encoding_of(context: JobContext) -> Encoding:
    return Encoding(context.config, context.lineage("retriever"))


def hash_of(context: JobContext) -> str:
    return encoder_hash(context.store.open("retriever/tiny"))


def test_each_modality_finds_what_brute_force_finds(job: Callable[..., JobContext]):
    context = job()
    artifact = build_index.run(context)
    encoding = encoding_of(context)
    for modality in ("text", "image", "product"):
        own = sorted((r for r in encoding.samples.responses.values() if r.modality == modality), key=lambda r: r.id)
        index = load_index(artifact, modality, encoder=hash_of(context))
        assert len(index) == len(own)
        queries, vectors = encoding.queries(modality)[:20], encoding.responses(own)
        order = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :3]
        found = index.search(queries, 3)
        np.testing.assert_allclose(found.scores, np.take_along_axis(queries @ vectors.T, order, 1), atol=1e-5)
        near = np.abs(found.scores - np.take_along_axis(queries @ vectors.T, order, 1)) < 1e-5
        assert near.all()


def test_responses_and_their_pictures_come_along(job: Callable[..., JobContext]):
    context = job()
    artifact = build_index.run(context)
    rows = artifact.read_table("responses", RESPONSES).to_pylist()
    assert {row["id"] for row in rows} == set(encoding_of(context).samples.responses)
    shown = {row["image_id"] for row in rows} - {None}
    assert shown
    assert set(ResponsePictures(artifact)) == shown
    assert artifact.manifest.metrics["responses"] == len(rows)
    assert artifact.manifest.metrics["product structure"] == "flat"


def test_the_same_retriever_is_indexed_once(job: Callable[..., JobContext]):
    first = build_index.run(job())
    assert build_index.run(job()).manifest.created_unix_s == first.manifest.created_unix_s
    assert build_index.run(job(force=True)).manifest.digest == first.manifest.digest
    assert build_index.run(job(kind="hnsw")).ref != first.ref


def test_another_retrievers_queries_are_refused(job: Callable[..., JobContext]):
    with pytest.raises(ArtifactError, match="run `mmd build_index` for this retriever"):
        load_index(build_index.run(job()), "text", encoder="f" * 64)


def test_an_artefact_that_is_no_retriever_is_refused(job: Callable[..., JobContext]):
    with pytest.raises(ArtifactError, match="is no artefact of kind retriever"):
        build_index.run(with_options(job(), retriever="corpus/tiny"))


def test_parts_answer_as_the_whole(job: Callable[..., JobContext]):
    context = job(shards=3)
    whole, spread = build_index.run(job()), build_index.run(context)
    parts = load_index(spread, "text", encoder=hash_of(context))
    assert isinstance(parts, ShardedIndex)
    queries = encoding_of(context).queries("text")
    one, many = ResponseIndex.load(whole, "text").search(queries, 10), parts.search(queries, 10)
    assert many.ids == one.ids
    np.testing.assert_array_equal(many.scores, one.scores)


def test_named_structures_are_taken_as_named():
    assert choice_of(IndexSettings(kind="sq8"), 1000, 16).kind == "sq8"
    assert choice_of(IndexSettings(), 1000, 16).kind == "flat"


def test_an_actor_encodes_as_the_plain_call(job: Callable[..., JobContext]):
    context = job()
    encoding = encoding_of(context)
    some = list(encoding.samples.responses.values())[:9]
    config = context.config.model_copy(update={"store": context.store.absolute})
    encoder = ResponseEncoder(config, {role: artifact.ref for role, artifact in encoding.inputs.items()})
    table = encoder(pa.Table.from_pylist([asdict(r) for r in some], schema=RESPONSES))
    assert table["id"].to_pylist() == [r.id for r in some]
    retriever, maker, _ = encoding._loaded
    np.testing.assert_allclose(table["vector"].to_pylist(), encode_responses(retriever, maker, some), rtol=1e-6)


@pytest.mark.ray
def test_a_pool_of_actors_makes_the_same_index(
    job: Callable[..., JobContext], ray_local: None, monkeypatch: pytest.MonkeyPatch
):
    plain = build_index.run(job())
    monkeypatch.setattr(build_index, "SPREAD_FROM", 1)
    pooled = build_index.run(job(force=True))
    for modality in ("text", "image", "product"):
        one, many = (ResponseIndex.load(a, modality) for a in (plain, pooled))
        assert one.ids() == many.ids()
        np.testing.assert_allclose(one.vectors(one.ids()), many.vectors(one.ids()), atol=1e-6)


@pytest.mark.ray
def test_actors_that_hold_parts_answer_as_the_whole(job: Callable[..., JobContext], ray_local: None):
    context = job(shards=2)
    whole, spread = build_index.run(job()), build_index.run(context)
    index, queries = ResponseIndex.load(whole, "text"), encoding_of(context).queries("text")
    with sharded_search(context.store.absolute, spread, "text", encoder=hash_of(context)) as actors:
        assert len(actors) == len(index)
        for k in (1, 10, 10_000):
            one, many = index.search(queries, k), actors.search(queries, k)
            assert many.ids == one.ids
            np.testing.assert_array_equal(many.scores, one.scores)
        gone, new = one.ids[0][:5], queries[:3]
        for changed in (index, actors):
            changed.delete(gone)
            changed.add(["text:new0", "text:new1", "text:new2"], new)
        assert actors.search(queries, 7).ids == index.search(queries, 7).ids
        with pytest.raises(RequestError, match="the first is 'nobody'"):
            actors.delete(["nobody", "text:new0"])
        with pytest.raises(RequestError, match="NaN"):
            actors.search(np.full((1, 16), np.nan), 1)
        assert len(actors) == len(index)
    with (
        pytest.raises(ArtifactError, match="run `mmd build_index` for this retriever"),
        sharded_search(context.store.absolute, spread, "text", encoder="f"),
    ):
        pass


@pytest.mark.ray
def test_a_part_that_is_lost_comes_back_with_what_was_changed(job: Callable[..., JobContext], ray_local: None):
    context = job(shards=2)
    whole, spread = build_index.run(job()), build_index.run(context)
    index, queries = ResponseIndex.load(whole, "text"), encoding_of(context).queries("text")
    gone, new = index.search(queries, 1).ids[0], queries[:3]
    with sharded_search(context.store.absolute, spread, "text") as actors:
        for changed in (index, actors):
            changed.delete(gone)
            changed.add(["text:new0", "text:new1", "text:new2"], new)
        own = psutil.Process().children(recursive=True)
        lost = [one for one in own if "ray::IndexShard" in " ".join(one.cmdline())]
        for one in lost:
            one.kill()
        one, many = index.search(queries, 7), actors.search(queries, 7)
        assert many.ids == one.ids
        np.testing.assert_array_equal(many.scores, one.scores)
        assert (actors.losses, len(actors)) == (len(lost), len(index)) == (2, len(index))
