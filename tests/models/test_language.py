"""The language model's two calls, on a tiny random model made here; the packaged ones are marked slow."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mmd.errors import ModelError
from mmd.models.language import LanguageModel
from mmd.models.resolve import known_models
from mmd.models.settings import ModelSettings

WORDS = ["[PAD]", "[EOS]", "[UNK]", "red", "blue", "green", "shirt", "shoe", "ships", "today"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A two-layer Llama of ten words with seeded random weights, stored and loaded as a folder."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[2]))
    words.pre_tokenizer = Whitespace()
    special = {"pad_token": WORDS[0], "eos_token": WORDS[1], "unk_token": WORDS[2]}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return LanguageModel(str(folder))


def test_scores_of_every_next_word_sum_to_one(tiny: LanguageModel):
    """The ten words are all there is, so their probabilities after any prompt make a distribution."""
    scores = tiny.score("red shirt", WORDS)
    assert sum(math.exp(s) for s in scores) == pytest.approx(1.0, abs=1e-5)


def test_a_longer_continuation_is_the_product_of_its_steps(tiny: LanguageModel):
    """P(shoe today | red) = P(shoe | red) x P(today | red shoe)."""
    both = tiny.score("red", ["shoe today"])[0]
    steps = tiny.score("red", ["shoe"])[0] + tiny.score("red shoe", ["today"])[0]
    assert both == pytest.approx(steps, abs=1e-5)


def test_scores_do_not_depend_on_their_neighbours(tiny: LanguageModel):
    """Rows of a batch are padded to the longest; padding must not show."""
    continuations = ["shoe", "shoe today ships green", "blue"]
    together = tiny.score("red", continuations)
    alone = [tiny.score("red", [c])[0] for c in continuations]
    one_by_one = tiny.score("red", continuations, batch=1)
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(one_by_one, abs=1e-5)


def test_greedy_text_is_the_likeliest_word_at_each_step(tiny: LanguageModel):
    first = tiny.generate(["red shirt"], max_new_tokens=1)[0]
    scores = tiny.score("red shirt", WORDS)
    best = WORDS[max(range(len(WORDS)), key=lambda i: scores[i])]
    assert first == ("" if best in WORDS[:2] else best)


def test_generation_does_not_depend_on_the_batch(tiny: LanguageModel):
    prompts = ["red", "blue shirt ships today green shoe", "shoe today"]
    assert tiny.generate(prompts, 6) == [tiny.generate([p], 6)[0] for p in prompts]


def test_a_model_without_a_chat_template_gets_the_bare_message(tiny: LanguageModel):
    assert tiny.chat(["red shirt"], 4) == tiny.generate(["red shirt"], 4)


def test_an_empty_continuation_is_refused(tiny: LanguageModel):
    with pytest.raises(ValueError, match="continuation is empty"):
        tiny.score("red", ["shoe", ""])


def test_a_folder_that_is_no_language_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        LanguageModel(str(tmp_path))


def test_vision_weights_are_no_language_model():
    if not next(m for m in known_models() if m.name == "efficientnet-lite0").installed:
        pytest.skip("efficientnet-lite0 is not installed")
    with pytest.raises(ModelError, match="no language model"):
        LanguageModel("efficientnet-lite0")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_a_packaged_model_prefers_sense_and_loads_from_its_conversion(name: str, tmp_path: Path):
    if not next(m for m in known_models() if m.name == name).installed:
        pytest.skip(f"{name} is not installed")
    settings = ModelSettings(cache_dir=str(tmp_path))
    first = LanguageModel(name, settings)
    sense, nonsense = first.score("The opposite of hot is", [" cold", " trousers"])
    assert sense > nonsense + 2
    again = LanguageModel(name, settings)
    assert again.score("The opposite of hot is", [" cold"]) == pytest.approx([sense], abs=1e-5)
    assert len(list((tmp_path / "converted").iterdir())) == 1
