"""Backbones on disk: what comes back says the same, and what does not belong together is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmd.artifacts import Artifact, ArtifactStore
from mmd.errors import ArtifactError, ConfigError
from mmd.recommend.backbones import build_backbone, build_tokenizer, load_backbone, save_backbone
from mmd.recommend.batches import BatchMaker
from mmd.recommend.graph import ItemGraph
from mmd.recommend.settings import BackboneSettings, ConversationSettings
from mmd.recommend.types import Context, LinkedTurn, ResponseSample
from mmd.recommend.vocabulary import Tokenizer, load_tokenizer

GRAPH = ItemGraph(
    entity_ids=tuple("abcd"),
    entity_labels=tuple("abcd"),
    relations=("r",),
    edges=np.array([(0, 0, 3), (1, 0, 3)], dtype=np.int32),
    item_ids=tuple("xyz"),
    item_titles=("Alien", "", "Heat"),
    item_entities=np.array([0, 1, 2], dtype=np.int32),
)
CONVERSATIONS = ConversationSettings(min_word_count=1)
SAMPLES = [
    ResponseSample(
        "d#1",
        "d",
        "train",
        Context((LinkedTurn("user", ("a film like ", 1, "?"), (1,)),), (1, 3), (1,)),
        LinkedTurn("agent", ("take ", 2), (2,)),
    )
]
KINDS = {
    "rgcn": BackboneSettings(dim=16, hidden=32),
    "table": BackboneSettings(dim=16, hidden=32, graph="embedding"),
    "lm": BackboneSettings(kind="lm", model="tiny-llama"),
    "lora": BackboneSettings(kind="lm", model="tiny-llama", lora_rank=2),
}


def tokenizer_for(settings: BackboneSettings) -> Tokenizer:
    return build_tokenizer(settings, CONVERSATIONS, SAMPLES, GRAPH)


def shaken(settings: BackboneSettings, tokenizer: Tokenizer) -> Any:
    """A backbone whose trained weights are not those that it starts with."""
    backbone = build_backbone(settings, tokenizer, GRAPH, seed=3)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    return backbone.eval()


def saved(path: Path, backbone: Any, tokenizer: Tokenizer) -> Artifact:
    store = ArtifactStore(str(path))
    with store.write("student", "x", settings={}) as writer:
        tokenizer.save(writer, "tokenizer")
        save_backbone(writer, "backbone", backbone, GRAPH)
    return store.open("student/x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_backbone_says_the_same(kind: str, tmp_path: Path):
    settings = KINDS[kind]
    tokenizer = tokenizer_for(settings)
    backbone = shaken(settings, tokenizer)
    artifact = saved(tmp_path, backbone, tokenizer)
    known = load_tokenizer(artifact, "tokenizer")
    loaded = load_backbone(artifact, "backbone", known, GRAPH)
    assert not loaded.training
    with torch.inference_mode():
        before = backbone(BatchMaker(tokenizer, CONVERSATIONS)(SAMPLES), items=True)
        after = loaded(BatchMaker(known, CONVERSATIONS)(SAMPLES), items=True)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.item_logits, after.item_logits)


def test_low_rank_updates_are_saved_without_their_base(tmp_path: Path):
    sizes = {}
    for kind in ("lm", "lora"):
        tokenizer = tokenizer_for(KINDS[kind])
        artifact = saved(tmp_path / kind, shaken(KINDS[kind], tokenizer), tokenizer)
        sizes[kind] = artifact.manifest.files["backbone/weights.safetensors"].bytes
    assert sizes["lora"] < 0.1 * sizes["lm"]


def test_other_words_or_another_graph_are_refused(tmp_path: Path):
    settings = KINDS["table"]
    tokenizer = tokenizer_for(settings)
    artifact = saved(tmp_path, shaken(settings, tokenizer), tokenizer)
    other = build_tokenizer(settings, ConversationSettings(min_word_count=2), SAMPLES, GRAPH)
    with pytest.raises(ArtifactError, match="vocabulary mismatch: backbone was made over other words"):
        load_backbone(artifact, "backbone", other, GRAPH)
    linked_otherwise = replace(GRAPH, item_entities=GRAPH.item_entities[::-1].copy())
    with pytest.raises(ArtifactError, match="backbone was made over another item graph"):
        load_backbone(artifact, "backbone", tokenizer, linked_otherwise)


def test_a_tokenizer_of_words_is_none_for_a_language_model():
    with pytest.raises(ConfigError, match="train teacher and student of one kind"):
        build_backbone(KINDS["lm"], tokenizer_for(KINDS["table"]), GRAPH)


def test_a_folder_without_a_backbone_is_named(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    with store.write("student", "x", settings={}) as writer:
        writer.write_json("backbone/backbone.json", {"format_version": 1})
    with pytest.raises(ArtifactError, match=r"backbone/backbone\.json is malformed"):
        load_backbone(store.open("student/x"), "backbone", tokenizer_for(KINDS["table"]), GRAPH)
