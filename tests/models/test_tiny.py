"""Tiny models are the same everywhere, and cost seconds once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from mmd.errors import ModelError
from mmd.models import tiny
from mmd.models.resolve import known_models, resolve
from mmd.models.settings import ModelSettings


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-llava", "tiny-bert", "tiny-vit"])
def test_two_builds_are_equal_to_the_byte_whatever_the_generator_s_state(name: str, cache: Path, tmp_path: Path):
    first = tiny.build_tiny(name, cache)
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    second = tiny.build_tiny(name, tmp_path)
    assert digests(first) == digests(second)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_second_build_is_a_look_up(cache: Path):
    path = tiny.build_tiny("tiny-llama", cache) / "config.json"
    written = path.stat().st_mtime_ns
    assert tiny.build_tiny("tiny-llama", cache) == path.parent
    assert path.stat().st_mtime_ns == written
    assert not list(path.parent.parent.glob("*.tmp"))


def test_names_resolve_and_are_listed(models: ModelSettings):
    listed = {m.name: m for m in known_models()}
    for name in tiny.tiny_models():
        assert resolve(name, models).format == "folder"
        assert listed[name].installed


def test_an_unknown_tiny_name_lists_the_known_ones():
    with pytest.raises(ModelError, match="tiny-qwen2-vl"):
        resolve("tiny-nothing")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ModelError, match=r"models\.cache_dir"):
        tiny.build_tiny("tiny-llama", blocked)
