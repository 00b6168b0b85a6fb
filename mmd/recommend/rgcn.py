"""The relational graph convolution (R-GCN) over the item graph.

Source: Schlichtkrull et al. 2018 (arXiv 1703.06103), eq. 2 with the basis decomposition of eq. 3, one layer, as KBRD
and KGSF use it: ``h_i = W_0 x_i + Σ_r mean_{j in N_r(i)} W_r x_j`` with ``W_r = Σ_b a_rb V_b``; every relation goes
both ways, each way with weights of its own.

What it costs is decided by two habits. States are computed only for the nodes that are asked for (a :class:`Block`),
and neighbours are averaged *before* they are multiplied, by a matrix whose numbers are fixed: no gradient is taken with
respect to sparse values, which is what makes learned coefficients in a sparse matrix slow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from mmd.recommend.graph import ItemGraph

Relations = Literal["typed", "blind", "none"]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class FixedSparse:
    """A sparse matrix with numbers that are not trained; products with dense matrices, and gradients of these.

    Attributes:
        rows: of the matrix, as bags: ``offsets`` (n_rows + 1,), ``indices`` (nnz,), ``weights`` (nnz,).
        columns: the same of its transpose, for the gradient.
    """

    rows: tuple[Tensor, Tensor, Tensor]
    columns: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, row: Indices, column: Indices, weight: NDArray[np.float32], shape: tuple[int, int]) -> FixedSparse:
        """Return the matrix that has ``weight[k]`` at ``(row[k], column[k])``; repeats add up."""
        return cls(_bags(row, column, weight, shape[0]), _bags(column, row, weight, shape[1]))

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Return the product with (n_columns, dim): (n_rows, dim)."""
        return cast("Tensor", _Product.apply(dense, self))  # type: ignore[no-untyped-call]

    def to(self, device: torch.device) -> FixedSparse:
        """Return the matrix on a device."""
        rows, columns = (tuple(part.to(device) for part in bags) for bags in (self.rows, self.columns))
        return FixedSparse(cast("Any", rows), cast("Any", columns))


def _bags(row: Indices, column: Indices, weight: NDArray[np.float32], n_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    order = np.lexsort((column, row))
    offsets = np.searchsorted(row[order], np.arange(n_rows + 1))
    return torch.from_numpy(offsets), torch.from_numpy(column[order]), torch.from_numpy(weight[order])


def _sum_bags(bags: tuple[Tensor, Tensor, Tensor], dense: Tensor) -> Tensor:
    """Return the sums of weighted rows; 4 times as fast on CPUs as torch's CSR product."""
    offsets, indices, weights = bags
    if not len(indices):
        return dense.new_zeros(len(offsets) - 1, dense.shape[1])
    return functional.embedding_bag(
        indices, dense, offsets, mode="sum", per_sample_weights=weights.to(dense.dtype), include_last_offset=True
    )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, matrix: FixedSparse) -> Tensor:  # noqa: ANN401 (torch's context)
        ctx.matrix = matrix
        return _sum_bags(matrix.rows, dense)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 (torch's context)
        return _sum_bags(ctx.matrix.columns, gradients[0].contiguous()), None


@dataclass(frozen=True)
class Block:
    """The part of a graph that the states of some nodes depend on.

    A *pair* is a node and a relation by which it has neighbours.

    Attributes:
        rows: (n_rows,) nodes whose states are computed.
        columns: (n_columns,) nodes that are their neighbours.
        means: (n_pairs, n_columns), 1 / number of neighbours.
        sums: (n_rows, n_pairs), adds up a node's pairs; pairs are sorted by relation.
        pairs: number of pairs of each relation, both ways; empty without edges.
    """

    rows: Tensor
    columns: Tensor
    means: FixedSparse
    sums: FixedSparse
    pairs: tuple[int, ...]

    def to(self, device: torch.device) -> Block:
        """Return the block on a device."""
        tensors = self.rows.to(device), self.columns.to(device)
        return Block(*tensors, self.means.to(device), self.sums.to(device), self.pairs)


class GraphTensors:
    """The edges of a graph, sorted by the node that they lead to.

    Args:
        n_nodes: number of nodes.
        source: (n_edges,) node that an edge leaves.
        target: (n_edges,) node that it leads to.
        relation: (n_edges,) its relation.
        n_relations: number of relations.
    """

    def __init__(self, n_nodes: int, source: Indices, target: Indices, relation: Indices, n_relations: int) -> None:
        order = np.lexsort((source, relation, target))
        self.n_nodes, self.n_relations = n_nodes, n_relations
        self._source, self._relation = source[order], relation[order]
        self._first = np.searchsorted(target[order], np.arange(n_nodes + 1))

    @classmethod
    def from_graph(cls, graph: ItemGraph, relations: Relations = "typed") -> GraphTensors:
        """Return the edges of an item graph, both ways.

        Args:
            graph: the item graph.
            relations: ``typed``: relation r forwards is r, backwards r + n; ``blind``: all are one; ``none``: no edge.
        """
        head, relation, tail = graph.edges.astype(np.int64).T
        if relations == "none" or not len(head):
            empty = np.empty(0, np.int64)
            return cls(graph.n_entities, empty, empty, empty, 0)
        source, target = np.concatenate([head, tail]), np.concatenate([tail, head])
        both = np.concatenate([relation, relation + graph.n_relations])
        if relations == "typed":
            return cls(graph.n_entities, source, target, both, 2 * graph.n_relations)
        return cls(graph.n_entities, source, target, np.zeros_like(both), 1)

    def block(
        self, nodes: Iterable[int] | None = None, neighbours: int = 0, rng: np.random.Generator | None = None
    ) -> Block:
        """Return what the states of some nodes depend on.

        Args:
            nodes: distinct; None: all.
            neighbours: drawn at most for a node, without replacement; 0: all are taken.
            rng: draws them.
        """
        rows = np.arange(self.n_nodes) if nodes is None else np.fromiter(nodes, np.int64)
        counts = self._first[rows + 1] - self._first[rows]
        row = np.repeat(np.arange(len(rows)), counts)
        edge = np.arange(len(row)) + np.repeat(self._first[rows] - (np.cumsum(counts) - counts), counts)
        if neighbours:
            kept = _drawn(row, neighbours, rng or np.random.default_rng(0))
            row, edge = row[kept], edge[kept]
        return self._block(rows, row, self._relation[edge], self._source[edge])

    def _block(self, rows: Indices, row: Indices, relation: Indices, source: Indices) -> Block:
        columns, column = np.unique(source, return_inverse=True)
        pairs, pair, sizes = np.unique(relation * len(rows) + row, return_inverse=True, return_counts=True)
        means = FixedSparse.of(pair, column, (1.0 / sizes[pair]).astype(np.float32), (len(pairs), len(columns)))
        ones = np.ones(len(pairs), np.float32)
        sums = FixedSparse.of(pairs % max(1, len(rows)), np.arange(len(pairs)), ones, (len(rows), len(pairs)))
        sizes_of = np.bincount(pairs // max(1, len(rows)), minlength=self.n_relations)
        return Block(torch.from_numpy(rows), torch.from_numpy(columns), means, sums, tuple(sizes_of.tolist()))


def _drawn(row: Indices, most: int, rng: np.random.Generator) -> Indices:
    """Return the positions of at most ``most`` edges of each row, every edge of a row as likely as another.

    Args:
        row: (n,) of each edge, ascending.
        most: edges of a row.
        rng: draws them.
    """
    shuffled = np.lexsort((rng.random(len(row)), row))
    place = np.arange(len(row)) - np.searchsorted(row, row)
    return np.sort(shuffled[place < most])


class RelationalGraphConv(nn.Module):
    """One layer: a node's own state and the mean of its neighbours by relation, each through its matrix.

    Args:
        dim: numbers of a state, before and after.
        n_relations: relations, both ways counted; 0: nodes alone.
        bases: matrices that the relations' matrices are sums of.
    """

    def __init__(self, dim: int, n_relations: int, bases: int) -> None:
        super().__init__()
        self.n_relations = n_relations
        self.self_loop = nn.Linear(dim, dim)
        self.bases = nn.Parameter(torch.randn(bases, dim, dim) * (0.5 * dim**-0.5))
        self.shares = nn.Parameter(torch.randn(n_relations, bases) * bases**-0.5)
        with torch.no_grad():  # a node starts as itself, and what neighbours add is learned
            self.self_loop.weight.copy_(torch.eye(dim))
            self.self_loop.bias.zero_()

    def matrices(self) -> Tensor:
        """Return ``W_r`` of every relation, (n_relations, dim, dim)."""
        return torch.einsum("rb,bij->rij", self.shares, self.bases)

    def forward(self, own: Tensor, others: Tensor, block: Block) -> Tensor:
        """Return states (n_rows, dim).

        Args:
            own: (n_rows, dim), vectors of ``block.rows``.
            others: (n_columns, dim), vectors of ``block.columns``.
            block: how they hang together.
        """
        states = self.self_loop(own)
        if not sum(block.pairs):  # no edges: a plain catalogue
            return cast("Tensor", states)
        parts = torch.split(block.means @ others, list(block.pairs))
        messages = [part @ matrix for part, matrix in zip(parts, self.matrices(), strict=True) if len(part)]
        return cast("Tensor", states + block.sums @ torch.cat(messages))


class EntityStates(nn.Module):
    """A vector an entity, and the states that the graph makes of them.

    Args:
        tensors: the edges.
        dim: numbers of a vector.
        bases: of the convolution.
        std: of the vectors at the start.
    """

    def __init__(self, tensors: GraphTensors, dim: int, bases: int, std: float = 0.1) -> None:
        super().__init__()
        self.tensors = tensors
        self.vectors = nn.Parameter(torch.randn(tensors.n_nodes, dim) * std)
        self.convolution = RelationalGraphConv(dim, tensors.n_relations, bases)

    def forward(self, block: Block, extra: Tensor | None = None) -> Tensor:
        """Return states (n_rows, dim) of a block's rows.

        Args:
            block: of ``tensors``, on the module's device.
            extra: (n_entities, dim), what else is known of the entities; added to their vectors.
        """
        own, others = self.vectors[block.rows], self.vectors[block.columns]
        if extra is not None:
            own, others = own + extra[block.rows], others + extra[block.columns]
        return cast("Tensor", self.convolution(own, others, block))
