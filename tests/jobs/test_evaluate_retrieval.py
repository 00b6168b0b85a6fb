"""evaluate_retrieval on a tiny corpus: what it stores can be counted again, and errors tell the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import evaluate_retrieval
from jobs.evaluate_retrieval import POOLS, RANKS
from jobs.glue.entry import JobContext, with_options
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import build_config
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError, CorpusError
from mmd.features.store import Features
from mmd.retrieval.ranks import MISS
from mmd.retrieval.rerank import PairReader, Reranker, RerankNet, save_reranker
from mmd.retrieval.types import Query, Response
from mmd.schema import Turn


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> ArtifactStore:
    shutil.copytree(tiny_store, tmp_path / "store")
    return ArtifactStore(str(tmp_path / "store"))


def context(store: ArtifactStore, show: str = "auto") -> JobContext:
    values = {
        "store": store.uri,
        "data": {"corpus": {"name": "tiny"}},
        "features": {"ocr": "none", "vision": "descriptor", "text": "none"},
        "retrieval": {"pools": {"size": 4}},
        "evaluation": {"bootstrap_resamples": 10, "show_dialogues": show},
    }
    return JobContext(build_config(values))


@pytest.fixture(scope="module")
def reports(
    tiny_store: Path, tmp_path_factory: pytest.TempPathFactory, make_tiny_retriever: Callable[..., Artifact]
) -> dict[str, Artifact]:
    """The reports of an untrained mdr and an untrained sdr."""
    folder = tmp_path_factory.mktemp("reports") / "store"
    shutil.copytree(tiny_store, folder)
    made = {}
    for method in ("mdr", "sdr"):
        make_tiny_retriever(ArtifactStore(str(folder)), method)
        made[method] = evaluate_retrieval.run(context(ArtifactStore(str(folder))))
    return made


def ranks_of(report: Artifact, **wanted: Any) -> dict[str, int]:
    rows = report.read_table("ranks", RANKS).to_pylist()
    return {r["sample_id"]: r["rank"] for r in rows if all(r[key] == value for key, value in wanted.items())}


def test_a_report_holds_page_and_numbers(reports: dict[str, Artifact]):
    report = reports["mdr"]
    assert report.ref.startswith("report/tiny-retrieval@")
    metrics = json.loads(report.read_bytes("metrics.json"))
    assert metrics["made_from"]["retriever"].startswith("retriever/tiny@")
    assert metrics["parameters"]["total"] > 0
    systems = {row["system"] for row in metrics["rows"]}
    assert systems == {"mdr", "BM25", "BM25, last turn", "tiny-bert", "tiny-bert, last turn"}
    page = report.read_bytes("report.html").decode()
    assert "Retrieval on <em>tiny</em> by mdr" in page
    assert "First five" in page


def test_recall_can_be_counted_again_from_the_stored_ranks(reports: dict[str, Artifact]):
    table = reports["mdr"].read_table("ranks", RANKS).to_pylist()
    for row in json.loads(reports["mdr"].read_bytes("metrics.json"))["rows"]:
        key = (row["system"], row["pool"], row["oracle_intent"])
        ranks = np.array([r["rank"] for r in table if (r["system"], r["pool"], r["oracle_intent"]) == key])
        for k in (1, 5, 10):
            assert row["scores"]["multimodal"][f"R@{k}"]["value"] == pytest.approx((ranks <= k).mean())


def test_pools_hold_the_right_response_once_and_no_test_sample_is_missing(reports: dict[str, Artifact]):
    report = reports["mdr"]
    pools = report.read_table("pools", POOLS).to_pylist()
    assert {pool["kind"] for pool in pools} == {"union", "half"}
    assert all(pool["candidates"].count(pool["gold"]) == 1 for pool in pools)
    assert {p["sample_id"] for p in pools} == set(ranks_of(report, system="mdr", pool="corpus", oracle_intent=False))
    assert all(rank <= len(pools[0]["candidates"]) for rank in ranks_of(report, system="mdr", pool="union").values())


def test_two_steps_never_beat_oracle_intent_on_any_sample(reports: dict[str, Artifact]):
    for pool in ("union", "half", "corpus"):
        plain = ranks_of(reports["sdr"], system="sdr", pool=pool, oracle_intent=False)
        oracle = ranks_of(reports["sdr"], system="sdr", pool=pool, oracle_intent=True)
        assert all(plain[key] in (rank, MISS) for key, rank in oracle.items())


@pytest.mark.parametrize("method", ["mdr", "sdr"])
def test_a_re_ranker_beside_the_retriever_is_measured(
    store: ArtifactStore,
    make_tiny_retriever: Callable[..., Artifact],
    capsys: pytest.CaptureFixture[str],
    method: str,
):
    """A fresh one keeps the retriever's order: R@1 as counted from ranks (sdr: with oracle intent), bounded by R@5."""
    plain = make_tiny_retriever(store, method)
    retriever, maker, _ = evaluate_retrieval.open_retriever(
        context(store), plain, Corpus(store.open("corpus/tiny")), Features(store.open("features/tiny"))
    )
    reader = PairReader(retriever, maker)
    query, response = Query((Turn("user", "hello"),)), Response("text:x", "text", "x", "x")
    width = reader.read(query, [response])[0].shape[1]
    inputs = {kind: store.open(f"{kind}/tiny") for kind in ("corpus", "features")}
    with store.write("retriever", "tiny", settings={"reranked": True}, inputs=inputs, seeds={}) as writer:
        for file in plain.manifest.files:
            writer.write_bytes(file, plain.read_bytes(file))
        save_reranker(writer, Reranker(RerankNet(width), reader, depth=5))
    report = evaluate_retrieval.run(context(store))
    told = report.read_json("metrics.json")["reranked"]
    ranks = np.array(list(ranks_of(report, system=method, pool="corpus", oracle_intent=method == "sdr").values()))
    assert told["depth"] == 5
    assert told["before"] == told["after"] == pytest.approx((ranks <= 1).mean(), abs=0.02)  # ties stand elsewhere
    assert told["within"] == pytest.approx((ranks <= 5).mean(), abs=0.05)
    assert report.manifest.metrics[f"{method} R@1, whole corpus, re-ranked"] == told["after"]
    assert "re-ranking the first 5 of the whole corpus" in capsys.readouterr().out
    assert "A second look at the first 5" in report.read_bytes("report.html").decode()


def test_without_a_re_ranker_none_is_measured(reports: dict[str, Artifact]):
    assert reports["mdr"].read_json("metrics.json")["reranked"] is None


def test_the_report_tells_how_its_pools_were_drawn(reports: dict[str, Artifact]):
    drawn = reports["mdr"].read_json("metrics.json")["drawn"]
    assert (drawn["wanted_size"], drawn["wanted_source"]) == (4, "test")
    assert (
        f"{drawn['size']} responses a modality, distractors from" in reports["mdr"].read_bytes("report.html").decode()
    )


def test_an_earlier_retriever_can_be_asked_for_and_dialogues_stay_out_when_told_so(
    store: ArtifactStore, make_tiny_retriever: Callable[..., Artifact]
):
    first = make_tiny_retriever(store, seed=1)
    make_tiny_retriever(store, "sdr", seed=2)
    asked = with_options(context(store, show="never"), retriever=first.ref)
    report = evaluate_retrieval.run(asked)
    assert report.manifest.inputs["retriever"].startswith(first.ref)
    page = report.read_bytes("report.html").decode()
    assert "First five" not in page
    assert "data:image" not in page
    assert evaluate_retrieval.run(asked).manifest == report.manifest
    with pytest.raises(ArtifactError, match="no artefact of kind retriever"):
        evaluate_retrieval.run(with_options(context(store), retriever="corpus/tiny"))


def test_a_corpus_without_test_answers_cannot_be_reported(
    store: ArtifactStore, make_tiny_retriever: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
):
    make_tiny_retriever(store)
    monkeypatch.setattr(
        "mmd.corpora.store.Corpus.dialogues",
        lambda self, _=None, read=evaluate_retrieval.Corpus.dialogues: read(self, "train"),
    )
    with pytest.raises(CorpusError, match="no sample to evaluate retrieval on"):
        evaluate_retrieval.run(context(store))
    assert not store.find("report")
