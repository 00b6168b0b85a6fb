"""A re-ranker is written beside its retriever, and answers when the artefact is opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from jobs.glue.retriever import RetrieverJob, open_inputs, write_reranker
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import build_config
from mmd.corpora.store import Corpus
from mmd.retrieval.rerank import load_reranker
from mmd.retrieval.samples import load_samples
from mmd.retrieval.saving import load_retriever


def test_a_re_ranker_is_trained_on_the_training_part_and_kept_with_the_retriever(
    tiny_store: Path, tmp_path: Path, make_tiny_retriever: Callable[..., Artifact]
):
    shutil.copytree(tiny_store, tmp_path / "store")
    store = ArtifactStore(str(tmp_path / "store"))
    artifact = make_tiny_retriever(store)
    retriever = load_retriever(artifact)
    config = build_config(
        {
            "store": store.uri,
            "data": {"corpus": {"name": "tiny"}},
            "features": {"ocr": "none", "vision": "descriptor", "text": "none"},
            "retrieval": {
                "towers": {"text": "tiny-bert", "dim": 16, "hidden": 16},
                "rerank": {"enabled": True, "depth": 3, "epochs": 1.0, "samples": 6},
            },
        }
    )
    job = RetrieverJob(
        config=config,
        store=store.uri,
        inputs={role: ref.split(" ")[0] for role, ref in artifact.manifest.inputs.items()},
        plan=cast("Any", None),  # of the training, which is over
        passes=(),
        modalities=retriever.spec.modalities,
        mined=False,
        held_out=True,
        on_cpu=True,
    )
    with store.write("retriever", "with-rerank", settings={}) as writer:
        write_reranker(writer, job, retriever)
    written = store.open("retriever/with-rerank")
    told = written.read_json("rerank/training.json")
    assert told["lists"] == 6
    assert told["after"] >= told["before"]
    maker, _ = open_inputs(job)
    reranker = load_reranker(written, retriever, maker)
    assert reranker
    assert reranker.depth == 3
    given = load_samples(Corpus(store.open("corpus/tiny")), None, retriever.spec.samples)
    responses = list(given.responses.values())[:4]
    assert reranker.scores(given.samples[0].query, responses).shape == (4,)
