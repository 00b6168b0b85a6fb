"""Adapters go where they belong, and come back from disk with plain PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from mmd.errors import ModelError
from mmd.intent.settings import LoraSettings
from mmd.models.lora import add_lora, load_trained, lora_targets, save_trained
from mmd.models.mllm import Mllm, load_mllm
from mmd.models.prompt import Prompt
from mmd.models.settings import ModelSettings
from mmd.models.tiny import TINY

Load = Callable[[str], Mllm]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("name", TINY)
def test_targets_are_the_projections_of_the_language_model(name: str, tiny: Load):
    """Seven a layer, two layers; none in the vision tower, the connector or the head."""
    mllm = tiny(name)
    targets = lora_targets(mllm.model)
    assert len(targets) == 2 * len(PROJECTIONS)
    assert {t.rpartition(".")[2] for t in targets} == set(PROJECTIONS)
    language = mllm.model.get_decoder()
    assert all(any(mllm.model.get_submodule(t) is m for m in language.modules()) for t in targets)


def disturb(mllm: Mllm, seed: int) -> None:
    """Give every trainable weight a value, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in mllm.model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    mllm.model.eval()


def states(mllm: Mllm, prompts: list[Prompt]) -> torch.Tensor:
    with torch.no_grad():
        return mllm.hidden(mllm.encode(prompts))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks by the old name
@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-smolvlm", "tiny-llama"])
def test_an_adapter_starts_at_zero_effect_trains_alone_and_comes_back_with_plain_peft(
    name: str, models: ModelSettings, prompts: list[Prompt], tmp_path: Path
):
    mllm = load_mllm(name, models)
    plain = states(mllm, prompts)
    add_lora(mllm, LoraSettings(rank=4, alpha=8.0), seed=0)
    mllm.model.eval()
    torch.testing.assert_close(states(mllm, prompts), plain)
    trainable = {n for n, p in mllm.model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in n for n in trainable)

    disturb(mllm, 1)
    adapted = states(mllm, prompts)
    assert (adapted - plain).abs().max() > 1e-3
    save_trained(mllm, tmp_path / "adapter", "lora")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]

    base = load_mllm(name, models)
    base.model = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter"))
    base.model.eval()
    torch.testing.assert_close(states(base, prompts), adapted)


def test_adapters_share_a_base_and_are_switched(models: ModelSettings, prompts: list[Prompt], tmp_path: Path):
    expected = {}
    for seed, task in enumerate(("intent", "scene")):
        mllm = load_mllm("tiny-llama", models)
        add_lora(mllm, LoraSettings(), seed)
        disturb(mllm, seed)
        expected[task] = states(mllm, prompts)
        save_trained(mllm, tmp_path / task, "lora")
    loaded = load_trained("tiny-llama", {task: tmp_path / task for task in expected}, models)
    assert loaded["intent"] is loaded["scene"]
    for task in ("scene", "intent", "scene"):
        loaded[task].use(task)
        torch.testing.assert_close(states(loaded[task], prompts), expected[task])
    with pytest.raises(ModelError, match="no adapter 'other'; loaded: intent, scene"):
        loaded["intent"].use("other")


@pytest.mark.parametrize("name", ["tiny-qwen2.5-vl", "tiny-llama"])
def test_a_full_model_comes_back_with_tokenizer_processor_and_tied_embeddings(
    name: str, models: ModelSettings, prompts: list[Prompt], tmp_path: Path
):
    mllm = load_mllm(name, models, trainable=True)
    disturb(mllm, 0)
    expected = states(mllm, prompts)
    save_trained(mllm, tmp_path / "full", "full")
    back = load_trained("not-needed", {"intent": tmp_path / "full"}, models)["intent"]
    torch.testing.assert_close(states(back, prompts), expected)
    assert back.core.get_output_embeddings().weight is back.core.get_input_embeddings().weight
    assert back.sees_pictures == mllm.sees_pictures
    assert back.dtype == torch.float32


def test_weights_gathered_elsewhere_are_what_is_saved(models: ModelSettings, prompts: list[Prompt], tmp_path: Path):
    """As a sharded run does: the state dictionary of one model, saved through another."""
    source, shell = (load_mllm("tiny-llama", models) for _ in range(2))
    for mllm in (source, shell):
        add_lora(mllm, LoraSettings(), 0)
    disturb(source, 3)
    save_trained(shell, tmp_path / "adapter", "lora", source.model.state_dict())
    back = load_trained("tiny-llama", {"intent": tmp_path / "adapter"}, models)["intent"]
    torch.testing.assert_close(states(back, prompts), states(source, prompts))


def test_the_same_seed_gives_the_same_files(models: ModelSettings, tmp_path: Path):
    for folder in ("one", "two"):
        mllm = load_mllm("tiny-llama", models)
        add_lora(mllm, LoraSettings(), seed=7)
        save_trained(mllm, tmp_path / folder, "lora")
    one, two = ([p.read_bytes() for p in sorted((tmp_path / f).iterdir())] for f in ("one", "two"))
    assert one == two
    assert json.loads(one[0])["base_model_name_or_path"] == "tiny-llama"


def test_targets_by_name_and_a_name_that_is_not_there(models: ModelSettings):
    mllm = load_mllm("tiny-llama", models)
    add_lora(mllm, LoraSettings(targets=("v_proj",)), seed=0)
    adapted = [n for n, _ in mllm.model.named_modules() if n.endswith("lora_A")]
    assert len(adapted) == 2
    with pytest.raises(ModelError, match=r"lora\.targets \['query'\]"):
        add_lora(load_mllm("tiny-llama", models), LoraSettings(targets=("query",)), seed=0)


def test_a_pickled_adapter_is_refused(models: ModelSettings, tmp_path: Path):
    mllm = load_mllm("tiny-llama", models)
    add_lora(mllm, LoraSettings(), seed=0)
    save_trained(mllm, tmp_path, "lora")
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no LoRA adapter with adapter_model\.safetensors"):
        load_trained("tiny-llama", {"intent": tmp_path}, models)


def test_an_adapter_of_another_base_is_refused(models: ModelSettings, tmp_path: Path):
    mllm = load_mllm("tiny-llama", models)
    add_lora(mllm, LoraSettings(), seed=0)
    save_trained(mllm, tmp_path, "lora")
    with pytest.raises(ModelError, match="does not fit 'tiny-qwen2-vl'"):
        load_trained("tiny-qwen2-vl", {"intent": tmp_path}, models)
