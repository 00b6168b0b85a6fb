"""Where a backbone's vectors of entities and items come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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


def build_entities(graph: ItemGraph, settings: BackboneSettings) -> EntityVectors:
    """Return the vectors that ``backbone.graph`` asks for."""
    if settings.graph == "none":
        return EntityVectors()
    return EntityTable(graph, settings.dim)
