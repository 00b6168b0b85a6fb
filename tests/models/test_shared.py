"""Bases in memory: loaded once, seen by each user through modules of its own, refused where they do not fit."""

from __future__ import annotations

import gc
import json
import struct
import weakref
from pathlib import Path

import pytest

from mmd.errors import ModelError
from mmd.intent.settings import LoraSettings
from mmd.models.lora import add_lora
from mmd.models.memory import count_weights, free_bytes, require_memory
from mmd.models.prompt import Prompt
from mmd.models.settings import ModelSettings
from mmd.models.shared import shared_mllm

torch = pytest.importorskip("torch")


def test_users_share_tensors_but_not_modules():
    first, second = shared_mllm("tiny-llama"), shared_mllm("tiny-llama")
    assert first.model is not second.model
    ours, theirs = (dict(mllm.model.named_parameters()) for mllm in (first, second))
    assert all(ours[name] is theirs[name] for name in ours)
    batch = first.encode([Prompt("", ("hello",))])
    before = second.hidden(batch)
    add_lora(first, LoraSettings(rank=2, dropout=0.0), seed=0)
    assert not any("lora" in name for name, _ in second.model.named_parameters())
    assert torch.equal(second.hidden(batch), before)


def test_another_arithmetic_is_another_base():
    exact = shared_mllm("tiny-llama", ModelSettings(dtype="float32"))
    half = shared_mllm("tiny-llama", ModelSettings(dtype="bfloat16"))
    assert (exact.dtype, half.dtype) == (torch.float32, torch.bfloat16)


def test_the_weights_go_with_their_last_user():
    first, second = shared_mllm("tiny-llama"), shared_mllm("tiny-llama")
    weight = weakref.ref(next(first.model.parameters()))
    del first
    gc.collect()
    assert weight() is next(second.model.parameters())
    del second
    gc.collect()
    assert weight() is None


def write_header(folder: Path, header: dict[str, object]) -> None:
    data = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data)


def test_weights_are_counted_by_their_headers(tmp_path: Path):
    """2 x 3 + 4 + a scalar = 11 numbers."""
    entry = {"dtype": "F32", "data_offsets": [0, 0]}
    shapes = {"a": [2, 3], "b": [4], "c": []}
    write_header(tmp_path, {"__metadata__": {"format": "pt"}, **{k: entry | {"shape": s} for k, s in shapes.items()}})
    assert count_weights(tmp_path) == 11


def test_what_does_not_fit_is_refused_with_both_sizes(tmp_path: Path):
    """2^40 numbers in four bytes each are 4,096 GiB."""
    write_header(tmp_path, {"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 0]}})
    cpu = torch.device("cpu")
    assert 0 < free_bytes(cpu) < 2**42
    with pytest.raises(ModelError, match=r"need 4096\.0 GiB on cpu and .* GiB are free.*bfloat16 halves it"):
        require_memory("big", tmp_path, torch.float32, cpu)
    require_memory("small", Path("/no/such/folder"), torch.float32, cpu)  # a hub's model: nothing is known of it


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 3) + b"{{{")
    with pytest.raises(ModelError, match="not a safetensors file"):
        count_weights(tmp_path)
