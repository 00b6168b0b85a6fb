"""Where a backbone's vectors of entities and items come from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmd.recommend.rgcn import Block, FixedSparse, GraphTensors, RelationalGraphConv

if TYPE_CHECKING:
    from mmd.recommend.graph import ItemGraph
    from mmd.recommend.settings import BackboneSettings


class EntityVectors(nn.Module):
    """No graph: entities say nothing, items have their own vectors alone."""

    def forward(self, entities: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors of entities and of all items.

        Args:
            entities: int64 (B, n).
            own: (n_items, dim), the items' own vectors.

        Returns:
            (B, n, dim) and (n_items, dim).
        """
        return own.new_zeros((*entities.shape, own.shape[1])), own


class EntityTable(EntityVectors):
    """A vector an entity, without edges; an item's vector is its own plus its entity's."""

    item_entities: Tensor

    def __init__(self, graph: ItemGraph, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(graph.n_entities, dim)
        nn.init.normal_(self.table.weight, std=dim**-0.5)
        self.register_buffer("item_entities", torch.from_numpy(graph.item_entities).long(), persistent=False)

    def forward(self, entities: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors of entities and of all items."""
        return self.table(entities), own + self.table(self.item_entities)


class EntityGraph(EntityVectors):
    """States that the graph's edges make of vectors; an item's vector is its own plus its entity's state.

    Items' entities and their neighbours have a vector each. What lies further from all items tells nothing of them: it
    has none, and its state is zero. Every step needs the states of all items, whose part of the graph is cut out once,
    and those of the batch's few other entities, whose part is cut out on the spot.
    """

    place_of: Tensor
    item_place: Tensor

    def __init__(self, graph: ItemGraph, settings: BackboneSettings) -> None:
        super().__init__()
        nodes, self.n_rows = _near_items(graph)
        place_of = np.full(graph.n_entities, -1, np.int64)
        place_of[nodes] = np.arange(len(nodes))
        self.tensors = _edges_among(graph, place_of, len(nodes))
        self._items = _over_all(self.tensors.block(range(self.n_rows)), len(nodes))
        self.vectors = nn.Parameter(torch.randn(len(nodes), settings.dim) * settings.dim**-0.5)
        self.convolution = RelationalGraphConv(settings.dim, self.tensors.n_relations, settings.bases)
        self.register_buffer("place_of", torch.from_numpy(place_of), persistent=False)
        item_place = torch.from_numpy(place_of[graph.item_entities])
        self.register_buffer("item_place", item_place, persistent=False)

    def forward(self, entities: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return states of entities, and vectors of all items."""
        of_items = self._states_of_items(own.device)
        places = self.place_of[entities]
        is_other = places >= self.n_rows
        others, row = torch.unique(places[is_other], return_inverse=True)
        known = [of_items]
        if len(others):
            known.append(self._states(self.tensors.block(others.tolist()).to(own.device)))
        known.append(of_items.new_zeros(1, of_items.shape[1]))
        rows = places.masked_scatter(is_other, row + self.n_rows)  # -1, nobody's place, is the last row
        return torch.cat(known)[rows], own + of_items[self.item_place]

    def _states_of_items(self, device: torch.device) -> Tensor:
        if self._items.rows.device != device:
            self._items = self._items.to(device)
        return cast("Tensor", self.convolution(self._look_up(self._items.rows), self.vectors, self._items))

    def _states(self, block: Block) -> Tensor:
        # In float32: a kernel for products in bfloat16 is compiled for each new shape, and no two batches' are alike.
        with torch.autocast(block.rows.device.type, enabled=False):
            return cast("Tensor", self.convolution(self._look_up(block.rows), self._look_up(block.columns), block))

    def _look_up(self, nodes: Tensor) -> Tensor:
        """Return vectors of some nodes; their gradient is added row by row to that of the table as a whole."""
        whole = bool(sum(self._items.pairs))  # without edges nothing reads the table as a whole
        return nn.functional.embedding(nodes, self.vectors, sparse=whole)


def _over_all(block: Block, n_nodes: int) -> Block:
    """Return the block with all nodes as its columns, so that the whole table is read without looking rows up."""
    counts = torch.zeros(n_nodes, dtype=torch.int64)
    counts[block.columns] = block.means.columns[0].diff()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    first, index, weight = block.means.rows
    means = FixedSparse((first, block.columns[index], weight), (offsets, *block.means.columns[1:]))
    return replace(block, columns=torch.arange(n_nodes), means=means)


def _near_items(graph: ItemGraph) -> tuple[NDArray[np.int64], int]:
    """Return items' entities, then their other neighbours, and how many are items' entities."""
    items = np.unique(graph.item_entities).astype(np.int64)
    is_item = np.zeros(graph.n_entities, bool)
    is_item[items] = True
    head, _, tail = graph.edges.astype(np.int64).T
    neighbours = np.unique(np.concatenate([tail[is_item[head]], head[is_item[tail]]]))
    return np.concatenate([items, neighbours[~is_item[neighbours]]]), len(items)


def _edges_among(graph: ItemGraph, place_of: NDArray[np.int64], n_nodes: int) -> GraphTensors:
    """Return the edges whose both ends have a place, both ways."""
    head, relation, tail = graph.edges.astype(np.int64).T
    head, tail = place_of[head], place_of[tail]
    kept = (head >= 0) & (tail >= 0)
    head, relation, tail = head[kept], relation[kept], tail[kept]
    both = np.concatenate([relation, relation + graph.n_relations])
    ends = np.concatenate([head, tail]), np.concatenate([tail, head])
    return GraphTensors(n_nodes, *ends, both, 2 * graph.n_relations if len(head) else 0)


def build_entities(graph: ItemGraph, settings: BackboneSettings) -> EntityVectors:
    """Return the vectors that ``backbone.graph`` asks for."""
    if settings.graph == "none":
        return EntityVectors()
    if settings.graph == "embedding":
        return EntityTable(graph, settings.dim)
    return EntityGraph(graph, settings)
