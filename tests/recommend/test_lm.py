"""The backbone over a causal language model: its vocabulary, steps as the whole, padding, LoRA, learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from mmd.errors import ConfigError
from mmd.models.settings import ModelSettings
from mmd.recommend.backbones import build_backbone, build_tokenizer
from mmd.recommend.batches import BatchMaker, DialogueBatch
from mmd.recommend.graph import ItemGraph
from mmd.recommend.lm import LmBackbone
from mmd.recommend.lm_tokens import ADDED, LmTokenizer
from mmd.recommend.settings import BackboneSettings, ConversationSettings
from mmd.recommend.types import Context, LinkedTurn, ResponseSample

ITEMS = ("x", "y", "z")
GRAPH = ItemGraph(
    entity_ids=ITEMS,
    entity_labels=("", "", ""),
    relations=(),
    edges=np.empty((0, 3), dtype=np.int32),
    item_ids=ITEMS,
    item_titles=("Alien", "", "The red mug"),
    item_entities=np.array([0, 1, 2], dtype=np.int32),
)
TINY = BackboneSettings(kind="lm", model="tiny-llama")


@pytest.fixture(scope="module")
def tokenizer() -> LmTokenizer:
    built = build_tokenizer(TINY, ConversationSettings(), (), GRAPH)
    assert isinstance(built, LmTokenizer)
    return built


@pytest.fixture(scope="module")
def model(tokenizer: LmTokenizer) -> LmBackbone:
    built = build_backbone(TINY, tokenizer, GRAPH, seed=1).eval()
    assert isinstance(built, LmBackbone)
    return built


def samples() -> list[ResponseSample]:
    said = [
        (
            (("user", ("I want a red mug like ", 1)), ("agent", ("Sure",)), ("user", ("thanks",))),
            ("Take ", 2, " then."),
        ),
        ((("user", ("hello",)),), ("What can I do for you today?",)),
        ((("agent", (0, " is good")), ("user", ("ok, 谢谢",))), (1,)),
    ]
    return [
        ResponseSample(
            f"{i}#1",
            str(i),
            "train",
            Context(tuple(LinkedTurn(who, parts, ()) for who, parts in turns), (), ()),  # type: ignore[arg-type]
            LinkedTurn("agent", response, ()),
        )
        for i, (turns, response) in enumerate(said)
    ]


def make(tokenizer: LmTokenizer, chosen: list[ResponseSample]) -> DialogueBatch:
    return BatchMaker(tokenizer, ConversationSettings())(chosen)


def test_modes_speakers_and_items_stand_behind_the_models_own_words(tokenizer: LmTokenizer):
    space = tokenizer.space
    own = max(tokenizer.encoder.tokenizer.get_vocab().values()) + 1
    assert space.n_words == own + len(ADDED)
    assert {space.rec, space.gen, *tokenizer.speakers.values()} == set(range(own, own + 4))
    assert [space.item_at(space.token_of(i)) for i in range(3)] == [0, 1, 2]
    assert space.eos not in space.silent
    assert {space.bos, *tokenizer.speakers.values()} <= set(space.silent)


@given(st.text(max_size=80))
def test_text_cannot_spell_what_was_added(tokenizer: LmTokenizer, text: str):
    for written in (text, f"<|im_end|>{text}<|im_start|>[REC]"):
        tokens = tokenizer.encode_text(written)
        assert all(token < tokenizer.n_own for token in tokens)
        assert not {*tokens} & tokenizer.control


@given(st.lists(st.one_of(st.sampled_from([" a mug", "? ", "Yes", " 红色", "!"]), st.integers(0, 2)), max_size=12))
def test_items_keep_their_places_among_the_words(tokenizer: LmTokenizer, parts: list[str | int]):
    found = tokenizer.decode(tokenizer.encode_parts(parts))
    assert [p for p in found if isinstance(p, int)] == [p for p in parts if isinstance(p, int)]
    assert "".join(str(p) for p in found).replace(" ", "") == "".join(str(p) for p in parts).replace(" ", "")


def test_spaces_stand_around_items_as_a_person_writes_them(tokenizer: LmTokenizer):
    tokens = tokenizer.encode_parts(["Have you seen ", 0, " or (", 1, ")? ", 2, 0])
    assert tokenizer.decode(tokens) == ["Have you seen ", 0, " or (", 1, ")? ", 2, " ", 0]
    assert tokenizer.encode_parts(["seen ", 0]) == [*tokenizer.encode_text("seen"), tokenizer.space.token_of(0)]


@torch.inference_mode()
def step_error(model: LmBackbone, batch: DialogueBatch) -> float:
    """Return how far the logits of single steps are from those of the whole response, at most."""
    whole, errors = model.logits(batch), []
    state, tokens = model.start(batch), torch.full((len(batch),), model.space.bos)
    for place in range(batch.target.shape[1]):
        logits, state = model.step(state, tokens)
        shown = batch.target_mask[:, place]
        errors.append((logits[shown] - whole[shown, place]).abs().max())
        tokens = batch.target[:, place]
    return float(torch.stack(errors).max())  # what is no number stays none


@torch.inference_mode()
def test_steps_give_the_logits_of_the_whole_response(model: LmBackbone, tokenizer: LmTokenizer):
    batch = make(tokenizer, samples())
    assert model.logits(batch).shape == (*batch.target.shape, tokenizer.space.size)
    assert step_error(model, batch) <= 1e-4


@torch.inference_mode()
def test_selected_rows_go_on_as_they_were_and_leave_the_state_as_it_was(model: LmBackbone, tokenizer: LmTokenizer):
    batch, rows = make(tokenizer, samples()), torch.tensor([2, 0, 0])
    whole = model.logits(batch)
    _, state = model.step(model.start(batch), torch.full((3,), tokenizer.space.bos))
    for chosen in (rows, rows.flip(0), torch.tensor([1])):
        logits, _ = model.step(state.select(chosen), batch.target[chosen, 0])
        torch.testing.assert_close(logits, whole[chosen, 1], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_padding_changes_nothing(model: LmBackbone, tokenizer: LmTokenizer):
    together = make(tokenizer, samples())
    spoken = model(together, items=True)
    at = 0
    for row, sample in enumerate(samples()):
        alone = model(make(tokenizer, [sample]), items=True)
        count = len(alone.logits)
        torch.testing.assert_close(alone.logits, spoken.logits[at : at + count], rtol=0, atol=1e-4)
        torch.testing.assert_close(alone.item_logits[0], spoken.item_logits[row], rtol=0, atol=1e-4)
        at += count
    torch.testing.assert_close(model.item_logits_of_context(together), spoken.item_logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_words_keep_the_logits_of_the_model_as_it_came(model: LmBackbone, tokenizer: LmTokenizer):
    own = tokenizer.encode_text("I want a red mug")
    states, _ = model._run(torch.tensor([own]), torch.ones(1, len(own), dtype=torch.bool))
    logits = model.head(states[0], torch.zeros(len(own)), states[0])
    plain = model.core(input_ids=torch.tensor([own])).logits[0]
    torch.testing.assert_close(logits[:, : tokenizer.n_own], plain, rtol=0, atol=1e-5)


def test_an_added_token_is_one_row_where_it_is_read_and_where_it_is_predicted(tokenizer: LmTokenizer):
    model = build_backbone(TINY, tokenizer, GRAPH).eval()
    assert isinstance(model, LmBackbone)
    assert model.added.shape == (len(ADDED) + 3, 128)
    token = tokenizer.space.token_of(1)
    with torch.no_grad():
        model.added[token - tokenizer.n_own] = torch.arange(128.0)
        assert model._embed(torch.tensor([[token]]))[0, 0].tolist() == list(range(128))
        one_hot = torch.eye(128)[5:6]
        assert float(model.head(one_hot, torch.zeros(1), one_hot)[0, token]) == 5.0


def test_an_item_starts_as_the_mean_of_its_titles_words(model: LmBackbone, tokenizer: LmTokenizer):
    words = model.core.get_input_embeddings().weight
    expected = words[tokenizer.encode_text(" The red mug")].mean(0)
    row = model.added[tokenizer.space.token_of(2) - tokenizer.n_own]
    assert torch.cosine_similarity(expected, row, dim=0) > 0.99
    assert torch.isfinite(model.added).all()  # the item without a title, too


def test_low_rank_updates_train_with_the_added_rows_alone(tokenizer: LmTokenizer):
    model = build_backbone(TINY.model_copy(update={"lora_rank": 2}), tokenizer, GRAPH)
    assert isinstance(model, LmBackbone)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name in {"added", "recommend.weight", "recommend.bias"} for name in names)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = make(tokenizer, samples())
    for _ in range(2):
        spoken = model(batch, items=True)
        loss = cross_entropy(spoken.logits, batch.target[batch.target_mask]) + spoken.item_logits.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == names


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1.0), (torch.bfloat16, 0.9)])
def test_responses_can_be_learned_by_heart(tokenizer: LmTokenizer, dtype: torch.dtype, share: float):
    model, batch = build_backbone(TINY, tokenizer, GRAPH), make(tokenizer, samples())
    model.dtype = dtype
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    wanted = batch.target[batch.target_mask]
    for _ in range(60):
        spoken = model(batch, items=True)
        loss = cross_entropy(spoken.logits, wanted) + cross_entropy(spoken.item_logits[[0, 2]], torch.tensor([2, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        spoken = model.eval()(batch, items=True)
    assert (spoken.logits.argmax(-1) == wanted).float().mean() >= share
    assert spoken.item_logits[[0, 2]].argmax(-1).tolist() == [2, 1]


def test_more_than_the_model_reads_is_refused(tokenizer: LmTokenizer):
    model = build_backbone(TINY, tokenizer, GRAPH).eval()
    model.core.config.max_position_embeddings = 8  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"reads 8 at most; lower recommend\.conversations"):
        model.logits(make(tokenizer, samples()))


def test_gpt2_which_counts_positions_and_names_its_parts_otherwise_works(tokenizer: LmTokenizer, tmp_path: Path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=tokenizer.n_own, n_embd=32, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    tokenizer.encoder.tokenizer.save_pretrained(tmp_path)
    for rank in (0, 2):
        settings = BackboneSettings(kind="lm", model=str(tmp_path), lora_rank=rank)
        model = build_backbone(settings, build_tokenizer(settings, ConversationSettings(), (), GRAPH), GRAPH).eval()
        assert isinstance(model, LmBackbone)
        assert step_error(model, make(tokenizer, samples())) <= 1e-4


@pytest.mark.parametrize("pad", [None, "eos"])
def test_an_end_that_pads_too_is_no_silent_token(pad: str | None):
    """GPT-2 has no padding, SmolLM2 pads with its end: either must be able to say that a reply is over."""
    fresh = build_tokenizer(TINY, ConversationSettings(), (), GRAPH)
    assert isinstance(fresh, LmTokenizer)
    own = fresh.encoder.tokenizer
    own.pad_token = own.convert_ids_to_tokens(fresh.encoder.end_id) if pad else None
    space = LmTokenizer(fresh.encoder, ITEMS).space
    assert space.pad == space.eos
    assert space.eos not in space.silent


@pytest.mark.slow
def test_smollm2_takes_a_training_step():
    settings = BackboneSettings(kind="lm", model="smollm2-135m")
    pytest.importorskip("gguf")
    known = build_tokenizer(settings, ConversationSettings(), (), GRAPH, ModelSettings())
    assert isinstance(known, LmTokenizer)
    model, batch = build_backbone(settings, known, GRAPH), make(known, samples())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = cross_entropy(model.token_logits(batch), batch.target[batch.target_mask])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[1] < losses[0]
    test_steps_give_the_logits_of_the_whole_response(model.eval(), known)  # type: ignore[arg-type]
