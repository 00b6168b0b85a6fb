"""Vectors of entities and items: those that the graph as a whole gives, however little of it is computed."""

from __future__ import annotations

import numpy as np
import torch

from mmd.recommend.entities import EntityGraph
from mmd.recommend.graph import ItemGraph
from mmd.recommend.settings import BackboneSettings

# Items x and y share entity 4, z is entity 1; 0 and 3 are neighbours of items, 2 hangs on 3 alone, 5 on nothing.
GRAPH = ItemGraph(
    entity_ids=tuple("012345"),
    entity_labels=tuple("012345"),
    relations=("r", "s"),
    edges=np.array([(0, 0, 4), (1, 0, 3), (1, 1, 4), (2, 1, 3), (3, 0, 4)], dtype=np.int32),
    item_ids=("x", "y", "z"),
    item_titles=("X", "Y", "Z"),
    item_entities=np.array([4, 4, 1], dtype=np.int32),
)


def build() -> EntityGraph:
    torch.manual_seed(0)
    return EntityGraph(GRAPH, BackboneSettings(dim=8, bases=3))


def test_states_are_those_of_the_whole_graph_near_the_items():
    model = build()
    own = torch.randn(3, 8)
    entities, items = model(torch.tensor([[4, 0, 3], [1, 1, 2]]), own)
    whole = model.tensors.block()
    states = model.convolution(model.vectors[whole.rows], model.vectors[whole.columns], whole)
    place = model.place_of
    torch.testing.assert_close(entities[0], states[place[[4, 0, 3]]])
    torch.testing.assert_close(entities[1, :2], states[place[[1, 1]]])
    torch.testing.assert_close(items, own + states[place[[4, 4, 1]]])


def test_what_is_no_neighbour_of_an_item_has_no_state():
    entities, _ = build()(torch.tensor([[2, 5]]), torch.zeros(3, 8))
    assert not entities.any()


def test_gradients_are_those_of_the_whole_graph():
    model, whole = build(), build()
    wanted = torch.tensor([[4, 0, 3]])
    model(wanted, torch.zeros(3, 8))[0].square().sum().backward()
    block = whole.tensors.block()
    states = whole.convolution(whole.vectors[block.rows], whole.vectors[block.columns], block)
    states[whole.place_of[wanted]].square().sum().backward()
    for (name, got), expected in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert got.grad is not None, name
        assert expected.grad is not None, name
        torch.testing.assert_close(got.grad.to_dense(), expected.grad.to_dense())


def test_a_graph_without_edges_leaves_each_entity_to_itself():
    model = EntityGraph(GRAPH.without_edges(), BackboneSettings(dim=8))
    entities, items = model(torch.tensor([[4, 0]]), torch.zeros(3, 8))
    torch.testing.assert_close(items[0], items[1])
    torch.testing.assert_close(entities[0, 0], items[0])
    assert not entities[0, 1].any()
