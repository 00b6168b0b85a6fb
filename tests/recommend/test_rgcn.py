"""The relational graph convolution against its definition, written as loops, and against another implementation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from mmd.recommend.graph import ItemGraph
from mmd.recommend.rgcn import Block, EntityStates, FixedSparse, GraphTensors, RelationalGraphConv

N_ENTITIES, N_RELATIONS, DIM = 30, 3, 6


@pytest.fixture
def graph() -> ItemGraph:
    """Thirty entities, the first ten are items; the last two have no edge."""
    rng = np.random.default_rng(0)
    edges = {(int(h), int(r), int(t)) for h, r, t in rng.integers((0, 0, 0), (28, N_RELATIONS, 28), (80, 3)) if h != t}
    return ItemGraph(
        entity_ids=tuple(f"e{i}" for i in range(N_ENTITIES)),
        entity_labels=tuple(f"entity {i}" for i in range(N_ENTITIES)),
        relations=tuple("rst"),
        edges=np.array(sorted(edges), np.int32),
        item_ids=tuple(f"i{i}" for i in range(10)),
        item_titles=tuple(f"item {i}" for i in range(10)),
        item_entities=np.arange(10, dtype=np.int32),
    )


def dense_loop(graph: ItemGraph, x: Tensor, layer: RelationalGraphConv) -> Tensor:
    """h_i = W_0 x_i + b + Σ_r mean over N_r(i) of x_j W_r, a node, a relation and a neighbour at a time."""
    matrices = [
        sum(layer.shares[r, b] * layer.bases[b] for b in range(len(layer.bases))) for r in range(layer.n_relations)
    ]
    both = [(int(h), int(r), int(t)) for h, r, t in graph.edges]
    both += [(t, r + graph.n_relations, h) for h, r, t in both]
    states = []
    for node in range(graph.n_entities):
        state = layer.self_loop(x[node])
        for relation, matrix in enumerate(matrices):
            neighbours = [h for h, r, t in both if r == relation and t == node]
            for other in neighbours:
                state = state + x[other] @ matrix / len(neighbours)
        states.append(state)
    return torch.stack(states)


def whole(tensors: GraphTensors, x: Tensor, layer: RelationalGraphConv, block: Block | None = None) -> Tensor:
    block = block or tensors.block()
    return layer(x[block.rows], x[block.columns], block)


def test_states_and_gradients_equal_the_definition_in_loops(graph: ItemGraph) -> None:
    tensors = GraphTensors.from_graph(graph)
    torch.manual_seed(0)
    layer = RelationalGraphConv(DIM, tensors.n_relations, bases=2)
    x = torch.randn(N_ENTITIES, DIM, requires_grad=True)
    expected = dense_loop(graph, x, layer)
    found = whole(tensors, x, layer)
    torch.testing.assert_close(found, expected)

    inputs = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_states_equal_torch_geometrics(graph: ItemGraph) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn = pytest.importorskip("torch_geometric.nn", reason="the dev extra installs torch-geometric")
        theirs = nn.RGCNConv(DIM, DIM, 2 * N_RELATIONS, num_bases=2, aggr="mean")
    tensors = GraphTensors.from_graph(graph)
    layer = RelationalGraphConv(DIM, tensors.n_relations, bases=2)
    with torch.no_grad():
        theirs.weight.copy_(layer.bases)
        theirs.comp.copy_(layer.shares)
        theirs.root.copy_(layer.self_loop.weight.T)
        theirs.bias.copy_(layer.self_loop.bias)
    x = torch.randn(N_ENTITIES, DIM)
    edges = torch.from_numpy(graph.edges).long()
    index = torch.cat([edges[:, [0, 2]], edges[:, [2, 0]]]).T
    kinds = torch.cat([edges[:, 1], edges[:, 1] + N_RELATIONS])
    torch.testing.assert_close(whole(tensors, x, layer), theirs(x, index, kinds))


def test_states_of_some_nodes_are_those_of_the_whole_graph(graph: ItemGraph) -> None:
    tensors = GraphTensors.from_graph(graph)
    layer = RelationalGraphConv(DIM, tensors.n_relations, bases=2)
    x = torch.randn(N_ENTITIES, DIM)
    torch.testing.assert_close(
        whole(tensors, x, layer, tensors.block([29, 4, 17])), whole(tensors, x, layer)[[29, 4, 17]]
    )


def test_drawing_as_many_neighbours_as_there_are_changes_nothing(graph: ItemGraph) -> None:
    tensors = GraphTensors.from_graph(graph)
    layer = RelationalGraphConv(DIM, tensors.n_relations, bases=2)
    x = torch.randn(N_ENTITIES, DIM)
    drawn = tensors.block(neighbours=1_000, rng=np.random.default_rng(1))
    torch.testing.assert_close(whole(tensors, x, layer, drawn), whole(tensors, x, layer), rtol=0, atol=0)


def test_drawn_neighbours_are_few_real_and_each_as_likely(graph: ItemGraph) -> None:
    tensors = GraphTensors.from_graph(graph)
    neighbours = {(int(t), int(h)) for h, _, t in graph.edges} | {(int(h), int(t)) for h, _, t in graph.edges}
    hub = max(range(N_ENTITIES), key=lambda node: sum(target == node for target, _ in neighbours))
    rng = np.random.default_rng(0)
    counts = np.zeros(N_ENTITIES)
    for _ in range(600):
        block = tensors.block([hub], neighbours=2, rng=rng)
        assert len(block.means.rows[1]) == 2
        assert all((hub, node) in neighbours for node in block.columns.tolist())
        counts[block.columns] += 1
    edges = sum(int(hub in (h, t)) for h, _, t in graph.edges)
    singles = [other for other in range(N_ENTITIES) if sum({h, t} == {hub, other} for h, _, t in graph.edges) == 1]
    assert counts[singles] / 600 == pytest.approx(2 / edges, abs=0.06)


def test_a_node_without_edges_keeps_its_own_state(graph: ItemGraph) -> None:
    tensors = GraphTensors.from_graph(graph)
    layer = RelationalGraphConv(DIM, tensors.n_relations, bases=2)
    x = torch.randn(N_ENTITIES, DIM)
    torch.testing.assert_close(whole(tensors, x, layer)[28:], layer.self_loop(x[28:]))
    torch.testing.assert_close(whole(tensors, x, layer, tensors.block([29])), layer.self_loop(x[29:]))


def test_without_relations_every_node_stands_alone(graph: ItemGraph) -> None:
    x = torch.randn(N_ENTITIES, DIM)
    for tensors in (GraphTensors.from_graph(graph, "none"), GraphTensors.from_graph(graph.without_edges())):
        layer = RelationalGraphConv(DIM, tensors.n_relations, bases=2)
        torch.testing.assert_close(whole(tensors, x, layer), layer.self_loop(x))


def test_blind_relations_are_one(graph: ItemGraph) -> None:
    """Node 0's state is its own plus the mean of all its neighbours, an edge each, through one matrix."""
    tensors = GraphTensors.from_graph(graph, "blind")
    assert tensors.n_relations == 1
    layer = RelationalGraphConv(DIM, 1, bases=1)
    x = torch.randn(N_ENTITIES, DIM)
    others = [int(t) for h, _, t in graph.edges if h == 0] + [int(h) for h, _, t in graph.edges if t == 0]
    expected = layer.self_loop(x[0]) + x[others].mean(0) @ layer.matrices()[0]
    torch.testing.assert_close(whole(tensors, x, layer)[0], expected)


def test_a_fixed_sparse_product_is_the_dense_one() -> None:
    """[[2, 0, 1], [0, 0, 0]] times [[1, 0], [0, 1], [3, 4]] is [[5, 4], [0, 0]]."""
    matrix = FixedSparse.of(np.array([0, 0]), np.array([2, 0]), np.array([1, 2], np.float32), (2, 3))
    dense = torch.tensor([[1.0, 0], [0, 1], [3, 4]], requires_grad=True)
    product = matrix @ dense
    assert product.tolist() == [[5, 4], [0, 0]]
    product.sum().backward()
    assert dense.grad is not None
    assert dense.grad.tolist() == [[2, 2], [0, 0], [1, 1]]


def test_further_knowledge_is_added_to_the_vectors(graph: ItemGraph) -> None:
    states = EntityStates(GraphTensors.from_graph(graph), DIM, bases=2)
    block = states.tensors.block([3, 1])
    extra = torch.randn(N_ENTITIES, DIM)
    with_extra = states(block, extra)
    with torch.no_grad():
        states.vectors += extra
    torch.testing.assert_close(with_extra, states(block))
