"""Folders of base models that somebody else wrote: nothing in them runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from mmd.errors import ModelError
from mmd.retrieval.bases import load_text
from mmd.retrieval.tokens import load_tokenizer

TINY = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BertModel(TINY).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_weights_are_read_from_safetensors(folder: Path):
    assert load_text(folder).config.hidden_size == 8


def test_a_pickle_of_weights_is_not_opened(folder: Path):
    weights = {name: tensor.clone() for name, tensor in BertModel(TINY).state_dict().items()}
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"safetensors"):
        load_text(folder)


def test_code_that_comes_with_a_folder_does_not_run_and_nobody_is_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # who would say yes to everything
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}), encoding="utf-8"
    )
    for load in (load_text, load_tokenizer):
        with pytest.raises(ModelError):
            load(folder)
    assert not (tmp_path / "ran").exists()
