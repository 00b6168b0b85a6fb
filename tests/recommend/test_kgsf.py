"""The backbone trained from scratch: step by step as all at once, padding unseen, learning, shapes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mmd.recommend.attention import Pooling
from mmd.recommend.batches import BatchMaker, DialogueBatch
from mmd.recommend.graph import ItemGraph
from mmd.recommend.kgsf import KgsfBackbone
from mmd.recommend.settings import BackboneSettings, ConversationSettings
from mmd.recommend.types import Context, LinkedTurn, ResponseSample
from mmd.recommend.words import WordTokenizer

WORDS = tuple("abcdefgh")
ITEMS = ("x", "y", "z")
TOKENIZER = WordTokenizer(WORDS, ITEMS)
GRAPH = ItemGraph(
    entity_ids=tuple("01234"),
    entity_labels=tuple("01234"),
    relations=("r", "s"),
    edges=np.array([(0, 0, 3), (1, 0, 3), (2, 1, 4)], dtype=np.int32),
    item_ids=ITEMS,
    item_titles=("Alien", "", "Heat"),
    item_entities=np.array([0, 1, 2], dtype=np.int32),
)
GRAPHS = ("rgcn", "embedding", "none")


def build(graph: str = "embedding", seed: int = 0, **more: float) -> KgsfBackbone:
    settings = BackboneSettings(dim=16, hidden=32, graph=graph, dropout=more.pop("dropout", 0.0))  # type: ignore[arg-type]
    return KgsfBackbone(TOKENIZER.space, GRAPH, settings, seed).eval()


def samples() -> list[ResponseSample]:
    said = [
        ((("user", ("a b ", 1)), ("agent", ("c",)), ("user", ("d e f",))), (1, 3), ("g ", 2, "h")),
        ((("user", ("h",)),), (), ("a b c d e",)),
        ((("agent", (0, "b")), ("user", ("c d",))), (0,), (1,)),
    ]
    return [
        ResponseSample(
            f"{i}#1",
            str(i),
            "train",
            Context(tuple(LinkedTurn(who, parts, ()) for who, parts in turns), entities, ()),  # type: ignore[arg-type]
            LinkedTurn("agent", response, ()),
        )
        for i, (turns, entities, response) in enumerate(said)
    ]


def make(chosen: list[ResponseSample]) -> DialogueBatch:
    return BatchMaker(TOKENIZER, ConversationSettings())(chosen)


@pytest.mark.parametrize("graph", GRAPHS)
@torch.inference_mode()
def test_steps_give_the_logits_of_the_whole_response(graph: str):
    model, batch = build(graph), make(samples())
    whole = model.logits(batch)
    assert whole.shape == (3, batch.target.shape[1], TOKENIZER.space.size)
    state, tokens = model.start(batch), torch.full((3,), TOKENIZER.space.bos)
    for place in range(batch.target.shape[1]):
        logits, state = model.step(state, tokens)
        torch.testing.assert_close(logits, whole[:, place], rtol=0, atol=1e-5)
        tokens = batch.target[:, place]


@torch.inference_mode()
def test_selected_rows_go_on_as_they_were():
    model, batch = build(), make(samples())
    whole, rows = model.logits(batch), torch.tensor([2, 0, 0])
    _, state = model.step(model.start(batch), torch.full((3,), TOKENIZER.space.bos))
    logits, _ = model.step(state.select(rows), batch.target[rows, 0])
    torch.testing.assert_close(logits, whole[rows, 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("graph", GRAPHS)
@torch.inference_mode()
def test_padding_changes_nothing(graph: str):
    model, all_rows = build(graph), make(samples())
    together, of_context = model.logits(all_rows), model.item_logits_of_context(all_rows)
    for row, sample in enumerate(samples()):
        alone = make([sample])
        torch.testing.assert_close(model.logits(alone)[0], together[row, : alone.target.shape[1]], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.item_logits_of_context(alone)[0], of_context[row], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_what_is_in_the_padding_is_never_read():
    model, batch = build(), make(samples())
    dirty = dataclasses.replace(
        batch,
        context=batch.context.masked_fill(~batch.context_mask, 9),
        entities=batch.entities.masked_fill(~batch.entity_mask, 4),
        target=batch.target.masked_fill(~batch.target_mask, 11),
    )
    assert torch.equal(model.token_logits(batch), model.token_logits(dirty))


@torch.inference_mode()
def test_logits_of_tokens_are_those_of_the_unpadded_targets():
    model, batch = build(), make(samples())
    spoken = model(batch, items=True)
    torch.testing.assert_close(spoken.logits, model.logits(batch)[batch.target_mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(spoken.item_logits, model.item_logits_of_context(batch))
    assert spoken.logits.dtype == spoken.item_logits.dtype == torch.float32


@torch.inference_mode()
def test_a_position_does_not_see_what_comes_after_it():
    model, batch = build(), make(samples())
    changed = dataclasses.replace(batch, target=batch.target.clone())
    changed.target[:, 2] = TOKENIZER.space.token_of(0)
    before, after = model.logits(batch), model.logits(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_without_a_graph_entities_are_not_read():
    batch = make(samples())
    other = dataclasses.replace(batch, entities=(batch.entities + 1) % 5)
    reads = {}
    for graph in ("embedding", "none"):
        with torch.inference_mode():
            model = build(graph)
            reads[graph] = not torch.allclose(model.logits(batch), model.logits(other))
    assert reads == {"embedding": True, "none": False}


def test_equal_seeds_give_equal_networks_and_leave_the_generator_alone():
    before = torch.random.get_rng_state()
    one, same, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.words.weight, other.words.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("graph", GRAPHS)
def test_responses_can_be_learned_by_heart(graph: str, dtype: torch.dtype):
    model, batch = build(graph, dropout=0.1).train(), make(samples())
    model.dtype = dtype
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    wanted = batch.target[batch.target_mask]
    for _ in range(60):
        spoken = model(batch, items=True)
        loss = cross_entropy(spoken.logits, wanted) + cross_entropy(spoken.item_logits[[0, 2]], torch.tensor([2, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        spoken = model.eval()(batch, items=True)
    assert spoken.logits.argmax(-1).tolist() == wanted.tolist()
    assert spoken.item_logits[[0, 2]].argmax(-1).tolist() == [2, 1]


def test_every_weight_is_trained():
    model, batch = build("embedding").train(), make(samples())
    spoken = model(batch, items=True)
    (spoken.logits.square().sum() + spoken.item_logits.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_nothing_pooled_is_zero_and_one_thing_is_itself():
    states = torch.randn(3, 2, 4)
    mask = torch.tensor([[False, False], [True, False], [True, True]])
    pooled = Pooling(4)(states, mask)
    assert pooled[0].tolist() == [0.0] * 4
    torch.testing.assert_close(pooled[1], states[1, 0])
    assert Pooling(4)(states[:, :0], mask[:, :0]).tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_catalogue_without_edges_is_enough(graph: str):
    settings = BackboneSettings(dim=16, hidden=32, graph=graph)  # type: ignore[arg-type]
    backbone = KgsfBackbone(TOKENIZER.space, GRAPH.without_edges(), settings, 0).eval()
    loss = backbone.logits(make(samples())).square().sum()
    loss.backward()
    assert loss.isfinite()
    assert not any(weight.grad.is_sparse for weight in backbone.parameters() if weight.grad is not None)


def test_what_is_read_and_what_is_said_are_one_table():
    """Neither words nor items have output weights of their own: a changed row changes its own logit and no other."""
    made, batch = build(), make(samples())
    with torch.no_grad():
        states, memory = made.states(batch)
        said, rows = states[:, 0], torch.arange(len(batch))
        before, item = made.head(said, rows, memory), made.space.first_item + 1
        made.words.weight[5] += 1.0
        memory.table[item] += 1.0
        changed = (made.head(said, rows, memory) - before).abs().amax(dim=0)
    assert changed.nonzero()[:, 0].tolist() == [5, item]
