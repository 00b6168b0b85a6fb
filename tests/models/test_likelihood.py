"""Exact label likelihoods: one pass for all labels equals a pass a label, whatever the architecture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForCausalLM, BloomConfig, Gemma3TextConfig, MambaConfig, MistralConfig

from mmd.models.likelihood import LabelScorer, TokenTrie
from mmd.models.mllm import Mllm, load_mllm
from mmd.models.prompt import Prompt
from mmd.models.tiny import TINY

LABELS = ("refund", "refund status", "broken on arrival", "size", "是否会生锈", "是否好用")
LONG = Prompt("Label it.", ("User: is this the right size for me, or shall I take the larger one? " * 3,))


def picture(colour: str, side: int = 40) -> bytes:
    out = io.BytesIO()
    image = Image.new("RGB", (side, side + 16), "white")
    ImageDraw.Draw(image).rectangle((8, 8, 24, 30), fill=colour)
    image.save(out, "PNG")
    return out.getvalue()


def prompts(mllm: Mllm) -> list[Prompt]:
    asked = [Prompt("Label it.", ("User: where is my money?",)), LONG, Prompt("", ("这个会生锈吗？",))]
    if mllm.sees_pictures:
        asked += [
            Prompt("Label it.", ("User: ", picture("red"), "broken!")),
            Prompt("", (picture("blue", 90), "User: and ", picture("green"), " this one?")),
        ]
    return asked


@pytest.fixture(scope="module")
def llama() -> Mllm:
    return load_mllm("tiny-llama")


def with_model(llama: Mllm, config: object) -> Mllm:
    """A random model of another architecture behind the tiny tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    return Mllm(f"random {config.model_type}", model, llama.encoder)


# ---------------------------------------------------------------- the trie


def test_sequences_share_their_beginnings():
    """1 2 9, 1 3 9 and 1 9: nodes are 1, 1 2 and 1 3; what may follow is listed at the beginning it follows."""
    trie = TokenTrie.of([(1, 2, 9), (1, 3, 9), (1, 9)])
    assert trie.tokens.tolist() == [1, 2, 3]
    assert trie.depth.tolist() == [0, 1, 1]
    assert trie.sees.tolist() == [[True, False, False], [True, True, False], [True, False, True]]
    assert [sorted(set(row)) for row in trie.branches.tolist()] == [[0, 1], [2, 3, 9], [0, 9], [0, 9]]
    values = np.zeros((1, *trie.branches.shape))
    values[0, 0, 0] = 0.5  # root → 1
    values[0, 1, trie.branches[1].tolist().index(9)] = 0.25  # 1 → 9
    values[0, 2, 0] = 0.125  # 1 2 → 9
    assert trie.sequence_sums(values).tolist() == [[0.625, 0.5, 0.75]]


def test_equal_sets_of_sequences_give_equal_tries():
    one, two = TokenTrie.of([(4, 1), (2, 1), (2, 3, 1)]), TokenTrie.of([(2, 3, 1), (4, 1), (2, 1)])
    for name in ("tokens", "depth", "sees", "branches"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


# ---------------------------------------------------------------- congruence


@pytest.mark.parametrize("name", sorted(TINY))
def test_reading_the_prompt_once_equals_a_pass_a_label(name: str):
    mllm = load_mllm(name)
    scorer = LabelScorer(mllm, LABELS, batch=3)
    assert scorer.shares_prefix
    asked = prompts(mllm)
    shared, plain = scorer.log_likelihoods(asked), scorer.log_likelihoods_plain(asked)
    assert shared.shape == (len(asked), len(LABELS))
    np.testing.assert_allclose(shared, plain, atol=1e-4, rtol=0)


def test_a_likelihood_is_what_training_minimises(llama: Mllm):
    """The mean loss of the answer's tokens times their number, negated."""
    from mmd.models.mllm import answer_loss

    batch = llama.encode([LONG], [LABELS[2]])
    tokens = int((batch["labels"] != -100).sum())
    with torch.no_grad():
        expected = -float(answer_loss(llama, batch)) * tokens
    assert LabelScorer(llama, LABELS).log_likelihoods([LONG])[0, 2] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            Gemma3TextConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=4,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                sliding_window=9,
                layer_types=["sliding_attention", "full_attention"] * 2,
            ),
            id="windows in some layers",
        ),
        pytest.param(
            MistralConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                sliding_window=9,
            ),
            id="windows in all layers",
        ),
    ],
)
def test_sliding_windows_see_as_far_as_alone(llama: Mllm, config: object):
    """The window is shorter than the prompt, and than one label."""
    config.vocab_size = llama.core.config.vocab_size
    mllm = with_model(llama, config)
    scorer = LabelScorer(mllm, (*LABELS, "a label of more than nine tokens, for sure"))
    assert scorer.shares_prefix
    asked = prompts(mllm)
    np.testing.assert_allclose(scorer.log_likelihoods(asked), scorer.log_likelihoods_plain(asked), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4), id="state space"),
        pytest.param(BloomConfig(hidden_size=32, n_layer=2, n_head=2), id="positions by the mask"),
    ],
)
def test_architectures_without_a_tree_are_found_out_and_scored_label_by_label(llama: Mllm, config: object):
    config.vocab_size = llama.core.config.vocab_size
    mllm = with_model(llama, config)
    mllm.core.model = mllm.core.base_model
    scorer = LabelScorer(mllm, LABELS)
    assert not scorer.shares_prefix
    np.testing.assert_array_equal(scorer.log_likelihoods([LONG]), scorer.log_likelihoods_plain([LONG]))


# ---------------------------------------------------------------- invariances


def test_a_batch_changes_nothing():
    """Neither who else is in it nor whether the others have pictures."""
    mllm = load_mllm("tiny-qwen2-vl")
    asked = prompts(mllm)
    together = LabelScorer(mllm, LABELS, batch=8).log_likelihoods(asked)
    alone = np.concatenate([LabelScorer(mllm, LABELS).log_likelihoods([prompt]) for prompt in asked])
    backwards = LabelScorer(mllm, LABELS, batch=2).log_likelihoods(asked[::-1])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-4, rtol=0)
    np.testing.assert_allclose(together, backwards, atol=1e-4, rtol=0)


def test_the_order_of_labels_and_the_other_labels_change_nothing(llama: Mllm):
    scores = LabelScorer(llama, LABELS).log_likelihoods([LONG])[0]
    backwards = LabelScorer(llama, LABELS[::-1]).log_likelihoods([LONG])[0][::-1]
    np.testing.assert_array_equal(scores, backwards)
    few = LabelScorer(llama, LABELS[:2]).log_likelihoods([LONG])[0]
    np.testing.assert_allclose(scores[:2], few, atol=1e-4, rtol=0)


def test_after_the_shorter_label_the_end_token_decides(llama: Mllm):
    """``refund`` begins ``refund status``: their likelihoods part where one ends and the other goes on."""
    tokens = llama.encoder.answer_ids("refund")
    assert llama.encoder.answer_ids("refund status")[: len(tokens) - 1] == tokens[:-1]
    batch = llama.encode([LONG], ["refund"])
    batch.pop("labels")
    with torch.no_grad():
        log_probs = llama.head(llama.hidden(batch)[0]).double().log_softmax(dim=1)
    start = batch["input_ids"].shape[1] - len(tokens) - 1
    expected = sum(float(log_probs[start + i, token]) for i, token in enumerate(tokens))
    shorter, longer = LabelScorer(llama, LABELS).log_likelihoods([LONG])[0, :2]
    assert shorter == pytest.approx(expected, abs=1e-4)
    up_to_the_end = expected - float(log_probs[-2, tokens[-1]])
    assert longer < up_to_the_end  # it also goes through the beginning that both share


def test_pictures_count():
    mllm = load_mllm("tiny-qwen2-vl")
    scorer = LabelScorer(mllm, LABELS)
    red, blue = scorer.log_likelihoods([Prompt("", (picture(colour), "what is it?")) for colour in ("red", "blue")])
    assert np.abs(red - blue).max() > 1e-5


def test_training_goes_on_in_its_mode(llama: Mllm):
    """Dropout is off while scoring and on again afterwards."""
    llama.model.train()
    try:
        scorer = LabelScorer(llama, LABELS)
        scorer.log_likelihoods([LONG])
        assert llama.model.training
    finally:
        llama.model.eval()
    scorer.log_likelihoods([LONG])
    assert not llama.model.training


def test_no_prompts_give_no_rows(llama: Mllm):
    assert LabelScorer(llama, LABELS).log_likelihoods([]).shape == (0, len(LABELS))


# ---------------------------------------------------------------- refusals


def test_duplicate_labels_are_refused(llama: Mllm):
    with pytest.raises(ValueError, match="'size' and 'size' are the same tokens"):
        LabelScorer(llama, ("size", "refund", "size"))


@pytest.mark.parametrize("labels", [(), ("size", " ")])
def test_empty_labels_are_refused(llama: Mllm, labels: tuple[str, ...]):
    with pytest.raises(ValueError, match="at least one character"):
        LabelScorer(llama, labels)
