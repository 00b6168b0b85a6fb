"""A retriever that was saved is the retriever that was trained, and refuses what it was not trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from mmd.artifacts import Artifact, ArtifactStore
from mmd.errors import ArtifactError, ModelError
from mmd.features.extract import ExtractorInfo
from mmd.models.resolve import resolve
from mmd.retrieval.methods import METHODS
from mmd.retrieval.saving import encoder_hash, load_maker, load_retriever, save_retriever
from mmd.retrieval.settings import Method
from mmd.retrieval.types import Query, Response

Make = Callable[..., Any]
TOWERS: dict[str, dict[str, Any]] = {
    "vectors": {},
    "bert": {"text": "tiny-bert", "vision": "none"},
    "lora": {"text": "tiny-bert", "vision": "none", "train_text": "lora", "lora_rank": 2},
    "bert and vit": {"text": "tiny-bert", "vision": "tiny-vit", "train_vision": "full"},
    "frozen": {"text": "tiny-bert", "vision": "tiny-vit", "train_text": "frozen"},
}


def trained(made: Any) -> Any:
    """Move every weight that training may change."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.retriever.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.05)
    return made


def saved(made: Any, folder: Path, name: str = "small") -> Artifact:
    store = ArtifactStore(str(folder))
    with store.write("retriever", name, settings={"folder": folder.name}) as writer:
        save_retriever(writer, made.retriever, made.bases)
    return store.open(f"retriever/{name}")


@pytest.mark.parametrize("towers", TOWERS)
@pytest.mark.parametrize("method", ["dr", "mdr"])
def test_embeddings_after_loading_are_the_same_bit_for_bit(
    method: Method,
    towers: str,
    make_retriever: Make,
    queries: Sequence[Query],
    responses: Sequence[Response],
    tmp_path: Path,
):
    made = trained(make_retriever(method, **TOWERS[towers]))
    artifact = saved(made, tmp_path)
    retriever, maker = load_retriever(artifact), load_maker(artifact, made.maker, made.maker.sources)
    assert not retriever.training
    assert retriever.spec == made.retriever.spec
    for modality in ("text", "image"):
        before = made.retriever.embed_queries(made.maker.queries(queries), modality)
        assert torch.equal(retriever.embed_queries(maker.queries(queries), modality), before)
    before = made.retriever.encode_responses(made.maker.responses(responses))
    assert torch.equal(retriever.encode_responses(maker.responses(responses)), before)


@pytest.mark.parametrize("method", METHODS)
def test_the_intent_head_is_saved_where_there_is_one(
    method: Method, make_retriever: Make, queries: Sequence[Query], tmp_path: Path
):
    made = trained(make_retriever(method))
    retriever = load_retriever(saved(made, tmp_path))
    assert retriever.two_step == (method != "mdr")
    if retriever.two_step:
        inputs = made.maker.queries(queries)
        assert torch.equal(retriever.intent_logits(inputs), made.retriever.intent_logits(inputs))


def test_a_fully_trained_model_needs_no_base_to_load(make_retriever: Make, tmp_path: Path, queries: Sequence[Query]):
    """The base is a folder that is gone when the retriever is loaded."""
    folder = shutil.copytree(Path(str(resolve("tiny-bert").path)), tmp_path / "base")
    made = trained(make_retriever("mdr", text=str(folder), vision="none"))
    artifact = saved(made, tmp_path / "store")
    before = made.retriever.embed_queries(made.maker.queries(queries), "text")
    shutil.rmtree(folder)
    maker = load_maker(artifact, made.maker, made.maker.sources)
    assert torch.equal(load_retriever(artifact).embed_queries(maker.queries(queries), "text"), before)


def test_an_adapter_leaves_the_base_out_and_refuses_another_one(make_retriever: Make, tmp_path: Path):
    folder = shutil.copytree(Path(str(resolve("tiny-bert").path)), tmp_path / "base")
    artifact = saved(
        make_retriever("mdr", text=str(folder), vision="none", train_text="lora", lora_rank=2), tmp_path / "store"
    )
    assert not [name for name in load(artifact.read_bytes("weights.safetensors")) if "word_embeddings" in name]
    load_retriever(artifact)
    weights = folder / "model.safetensors"
    state = load(weights.read_bytes())
    next(iter(state.values())).add_(1.0)
    weights.write_bytes(save(state, metadata={"format": "pt"}))
    with pytest.raises(ModelError, match="its files differ"):
        load_retriever(artifact)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="base"):
        load_retriever(artifact)


def test_features_of_another_extractor_are_refused(make_retriever: Make, tmp_path: Path):
    made = make_retriever("mdr")
    artifact = saved(made, tmp_path)
    made.maker.sources.extractors = made.maker.sources.extractors | {"text": ExtractorInfo("other", 16)}
    with pytest.raises(ModelError, match=r"text: trained with hash.*here other"):
        load_maker(artifact, made.maker, made.maker.sources)


def test_the_hash_of_an_encoder_tells_weights_apart_and_not_names(make_retriever: Make, tmp_path: Path):
    one = saved(make_retriever("mdr", seed=0), tmp_path / "one", "first")
    same = saved(make_retriever("mdr", seed=0), tmp_path / "two", "second")
    other = saved(make_retriever("mdr", seed=1), tmp_path / "three")
    assert encoder_hash(one) == encoder_hash(same) != encoder_hash(other)


def test_a_spec_of_another_format_is_refused_with_the_way_out(make_retriever: Make, tmp_path: Path):
    artifact = saved(make_retriever("mdr"), tmp_path)
    path = Path(artifact.path("retriever.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(ArtifactError, match="train_retriever"):
        load_retriever(artifact)


def test_weights_that_do_not_fit_are_refused(make_retriever: Make, tmp_path: Path):
    artifact = saved(make_retriever("mdr"), tmp_path)
    Path(artifact.path("weights.safetensors")).write_bytes(save({"odd": torch.zeros(2)}))
    with pytest.raises(ArtifactError, match="disagree"):
        load_retriever(artifact)


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    with store.write("corpus", "c", settings={}) as writer:
        writer.write_json("tasks.json", {})
    with pytest.raises(ArtifactError, match="train_retriever"):
        load_retriever(store.open("corpus/c"))
