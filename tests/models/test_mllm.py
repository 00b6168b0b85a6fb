"""Every architecture behind the one door: the same numbers as transformers gives, whatever the batch."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from mmd.errors import ModelError
from mmd.models.encoder import IGNORED, PromptEncoder
from mmd.models.language import LanguageModel
from mmd.models.lora import save_trained
from mmd.models.mllm import Mllm, answer_loss, load_encoder, load_mllm
from mmd.models.prompt import Prompt
from mmd.models.resolve import resolve
from mmd.models.settings import ModelSettings
from mmd.models.tiny import TINY

VISION = [name for name, model in TINY.items() if model.sees_pictures]
ANSWERS = ["ask_size", "退款", "other"]
Load = Callable[..., Mllm]


@pytest.mark.parametrize("name", TINY)
def test_the_answer_loss_is_the_loss_of_transformers(name: str, tiny: Load, prompts: list[Prompt]):
    mllm = tiny(name)
    batch = mllm.encode(prompts, ANSWERS)
    with torch.no_grad():
        expected = mllm.model(**batch).loss
        assert float(answer_loss(mllm, batch)) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_a_row_does_not_depend_on_its_batch(name: str, tiny: Load, prompts: list[Prompt]):
    mllm = tiny(name)
    with torch.no_grad():
        together = mllm.hidden(mllm.encode(prompts))
        for row, prompt in zip(together, prompts, strict=True):
            alone = mllm.hidden(mllm.encode([prompt]))[0]
            torch.testing.assert_close(row[: len(alone)], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", TINY)
def test_labels_are_the_answer_and_its_end_and_nothing_else(name: str, tiny: Load, prompts: list[Prompt]):
    mllm = tiny(name)
    batch = mllm.encode(prompts, ANSWERS)
    for ids, mask, labels, answer in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], ANSWERS, strict=True
    ):
        asked = labels != IGNORED
        assert labels[asked].tolist() == mllm.encoder.answer_ids(answer)
        assert ids[asked].tolist() == labels[asked].tolist()
        assert mllm.tokenizer.decode(labels[asked][:-1]) == answer
        assert int(labels[asked][-1]) == mllm.encoder.end_id
        # The answer ends the row: what follows is padding.
        assert asked.nonzero().max() + 1 == mask.sum()


@pytest.mark.parametrize("name", TINY)
def test_an_answer_leaves_the_tokens_of_its_prompt_as_they_are(name: str, tiny: Load, prompts: list[Prompt]):
    encoder = tiny(name).encoder
    for prompt, answer in zip(prompts, ANSWERS, strict=True):
        asked, answered = encoder.encode_one(prompt), encoder.encode_one(prompt, answer)
        width = asked["input_ids"].shape[1]
        assert torch.equal(answered["input_ids"][:, :width], asked["input_ids"])


@pytest.mark.parametrize("name", VISION)
def test_a_picture_changes_what_comes_after_it(name: str, tiny: Load, prompts: list[Prompt]):
    mllm = tiny(name)
    first, *rest = prompts
    recoloured = replace(first, parts=(first.parts[0], prompts[2].pictures[0], first.parts[2]))
    same_size = mllm.encode([first])["input_ids"].shape == mllm.encode([recoloured])["input_ids"].shape
    with torch.no_grad():
        one, other = (mllm.hidden(mllm.encode([p]))[0, -1] for p in (first, recoloured))
    assert (one - other).abs().max() > 1e-3
    assert same_size or name.startswith("tiny-qwen")  # Qwen keeps a picture's shape: sizes differ, so do the tokens
    assert rest


@pytest.mark.parametrize("name", VISION)
def test_order_and_number_of_pictures_reach_the_model(name: str, tiny: Load, prompts: list[Prompt]):
    mllm = tiny(name)
    blue, green = prompts[2].pictures
    with torch.no_grad():
        states = [mllm.hidden(mllm.encode([Prompt("", parts)]))[0, -1] for parts in ((blue, green), (green, blue))]
    assert (states[0] - states[1]).abs().max() > 1e-3


def test_a_text_only_model_passes_pictures_over(tiny: Load, prompts: list[Prompt]):
    mllm = tiny("tiny-llama")
    assert not mllm.sees_pictures
    assert mllm.processor is None
    words = Prompt(prompts[0].system, tuple(p for p in prompts[0].parts if isinstance(p, str)))
    assert torch.equal(mllm.encode([prompts[0]])["input_ids"], mllm.encode([words])["input_ids"])


@pytest.mark.parametrize("name", TINY)
def test_words_cannot_write_control_tokens(name: str, tiny: Load):
    """A user who types the end of turn, or a picture's placeholder, has typed characters."""
    encoder = tiny(name).encoder
    specials = set(encoder.tokenizer.all_special_ids)
    calm = encoder.encode_one(Prompt("Name it.", ("hello",)))["input_ids"][0].tolist()
    forged = "".join(encoder.tokenizer.all_special_tokens)
    wild = encoder.encode_one(Prompt(f"Name it. {forged}", (f"hello {forged}",)))["input_ids"][0].tolist()
    assert [t for t in wild if t in specials] == [t for t in calm if t in specials]
    assert len(wild) > len(calm)
    assert encoder.answer_ids(forged)[-1] == encoder.end_id
    assert not specials & set(encoder.answer_ids(forged)[:-1])


@pytest.mark.parametrize("name", TINY)
def test_any_text_survives_the_tokenizer(name: str, tiny: Load):
    tokenizer = tiny(name).tokenizer
    text = "Ünïcode ✓ 🙂 请问 \t\n \x01 naïve"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_tokenizer_is_short_for_shop_talk(tiny: Load):
    tokenizer = tiny("tiny-llama").tokenizer
    english = "Could you tell me what this one is made of?"
    chinese = "请问这款水杯是什么材质的？"
    assert len(tokenizer(english)["input_ids"]) <= len(english) / 2.5
    assert len(tokenizer(chinese)["input_ids"]) <= len(chinese)
    assert len(tokenizer("logistics_exception")["input_ids"]) <= 3


def test_the_head_scales_logits_as_the_architecture_does(tiny: Load):
    """Gemma 2's soft cap: c * tanh(x / c)."""
    mllm = tiny("tiny-llama")
    states = torch.randn(3, mllm.core.config.hidden_size, generator=torch.Generator().manual_seed(0))
    plain = mllm.core.lm_head(states)
    mllm.core.config.final_logit_softcapping = 0.5
    try:
        torch.testing.assert_close(mllm.head(states), 0.5 * torch.tanh(plain / 0.5))
    finally:
        del mllm.core.config.final_logit_softcapping


def test_a_base_model_without_a_template_gets_the_plain_one(tmp_path: Path, models: ModelSettings, tiny: Load):
    folder = tmp_path / "base"
    save_trained(tiny("tiny-llama"), folder, "full")
    (folder / "chat_template.jinja").unlink()
    encoder = load_encoder(str(folder), models)
    ids = encoder.encode_one(Prompt("Name the intent.", ("Is it wool?",)))["input_ids"][0]
    assert encoder.tokenizer.decode(ids) == "Name the intent.\n\nIs it wool?\n\nAnswer:\n"
    assert encoder.end_id == encoder.tokenizer.eos_token_id


def test_a_template_that_refuses_instructions_gets_them_with_the_question(tiny: Load):
    """Gemma's and others' templates raise on a system message."""
    tokenizer = copy.deepcopy(tiny("tiny-llama").tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tokenizer.chat_template
    )
    encoder = PromptEncoder("strict", "llama", tokenizer, None)
    text = tokenizer.decode(encoder.encode_one(Prompt("Name it.", ("Wool?",)))["input_ids"][0])
    assert text == "<|im_start|>user\nName it.\n\nWool?<|im_end|>\n<|im_start|>assistant\n"


def test_a_loaded_model_is_frozen_unless_it_shall_be_trained(models: ModelSettings):
    frozen, trained = (load_mllm("tiny-llama", models, trainable=flag) for flag in (False, True))
    assert not any(p.requires_grad for p in frozen.model.parameters())
    assert all(p.requires_grad for p in trained.model.parameters())
    assert (frozen.model.training, trained.model.training) == (False, True)


def test_prompts_and_answers_must_be_as_many(tiny: Load, prompts: list[Prompt]):
    with pytest.raises(ValueError, match="3 prompts and 1 answers"):
        tiny("tiny-llama").encode(prompts, ["one"])


def test_a_broken_picture_is_named(tiny: Load):
    with pytest.raises(ModelError, match="picture cannot be read"):
        tiny("tiny-qwen2-vl").encode([Prompt("", (b"not a picture",))])


def test_plain_transformers_reads_a_tiny_folder(models: ModelSettings):
    for name, model in TINY.items():
        door = AutoModelForImageTextToText if model.sees_pictures else AutoModelForCausalLM
        ours, theirs = (
            load_mllm(name, models).model,
            door.from_pretrained(resolve(name, models).path, local_files_only=True),
        )
        expected = ours.state_dict()
        assert theirs.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key].to(value.dtype)) for key, value in theirs.state_dict().items())


@pytest.fixture
def folder(tmp_path: Path, tiny: Load) -> Path:
    path = tmp_path / "model"
    save_trained(tiny("tiny-llama"), path, "full")
    return path


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_that_asks_to_run_its_own_code_is_refused_and_none_of_it_runs(folder: Path, tmp_path: Path):
    trap = tmp_path / "ran"
    (folder / "modeling.py").write_text(f"open({str(trap)!r}, 'w')\nclass C: ...\nclass M: ...\n")
    edit_config(folder, model_type="own", auto_map={"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M"})
    with pytest.raises(ModelError, match=r"asks to run code of its own \(auto_map\)"):
        load_mllm(str(folder))
    assert not trap.exists()


def test_code_beside_a_known_architecture_is_passed_over(folder: Path, tmp_path: Path):
    trap = tmp_path / "ran"
    (folder / "modeling.py").write_text(f"open({str(trap)!r}, 'w')\nclass C: ...\nclass M: ...\n")
    edit_config(folder, auto_map={"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M"})
    assert load_mllm(str(folder)).core.config.model_type == "llama"
    assert not trap.exists()


def test_a_tokenizer_that_asks_for_code_runs_none(folder: Path, tmp_path: Path):
    trap = tmp_path / "ran"
    (folder / "tok.py").write_text(f"open({str(trap)!r}, 'w')\nclass T: ...\n")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["tok.T", "tok.T"]}}))
    with contextlib.suppress(ModelError):  # refused or passed over: either will do
        load_mllm(str(folder))
    assert not trap.exists()


def test_pickled_weights_are_refused(folder: Path):
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_mllm(str(folder))


def test_a_folder_that_lacks_weights_is_refused_not_filled_with_noise(folder: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights \(model\.layers\.1\.mlp\.up_proj\.weight"):
        load_mllm(str(folder))


def test_an_architecture_that_transformers_does_not_know_is_refused(folder: Path):
    edit_config(folder, model_type="unheard_of")
    with pytest.raises(ModelError, match="unheard_of"):
        load_mllm(str(folder))


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Serve a folder as revision ``v1`` of ``someone/some-model``; what was asked for is listed."""
    asked = []

    def from_hub(own: Callable[..., object]) -> Callable[..., object]:
        def from_pretrained(place: str | Path, **options: object) -> object:
            if place == folder:  # a tokenizer asks for its model's config
                return own(place, **options)
            asked.append((str(place), options.pop("revision", None)))
            if asked[-1] != ("someone/some-model", "v1"):
                raise OSError(f"the hub has no {place} at {asked[-1][1]}")
            return own(folder, **options | {"local_files_only": True})

        return from_pretrained

    for door in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        monkeypatch.setattr(door, "from_pretrained", from_hub(door.from_pretrained))
    return asked


def test_the_revision_of_a_hub_id_goes_to_every_door(hub: list[tuple[str, str | None]]):
    settings = ModelSettings(allow_hub=True)
    assert load_mllm("someone/some-model@v1", settings).name == "someone/some-model@v1"
    assert hub == [("someone/some-model", "v1")] * 3
    assert LanguageModel("someone/some-model@v1", settings).generate(["a"], 1)
    assert hub == [("someone/some-model", "v1")] * 5


@pytest.mark.parametrize("load", [load_mllm, LanguageModel])
def test_a_revision_that_is_not_there_is_named_with_its_model(hub: list[tuple[str, str | None]], load: Load):
    with pytest.raises(ModelError, match=r"'someone/some-model@v2': .*no someone/some-model at v2"):
        load("someone/some-model@v2", ModelSettings(allow_hub=True))
