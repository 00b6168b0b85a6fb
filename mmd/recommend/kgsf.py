"""The backbone that is trained from scratch: a Transformer that reads entities and copies items from the graph.

After KGSF (Zhou et al. 2020), with the faults of its public code mended: its copy logits are part of the loss as they
are of decoding, padding is masked in every attention, and every item that is ranked is a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from mmd.recommend.attention import (
    Attention,
    Dropout,
    FeedForward,
    KeysValues,
    Norm,
    Pooling,
    bias_of,
    causal_bias,
    sinusoids,
)
from mmd.recommend.backbone import Backbone, DecoderState
from mmd.recommend.batches import DialogueBatch

if TYPE_CHECKING:
    from mmd.recommend.graph import ItemGraph
    from mmd.recommend.settings import BackboneSettings
    from mmd.recommend.vocabulary import TokenSpace


@dataclass(frozen=True)
class Memory:
    """What contexts amount to.

    Attributes:
        words: keys and values of the context's tokens, a layer each.
        word_bias: float32 (B, 1, 1, S), very low at padding.
        entities: keys and values of the context's entities and of nobody, a layer each.
        entity_bias: float32 (B, 1, 1, n + 1).
        user: (B, dim), the entities and the words, each pooled.
        table: (size, dim), the vectors of words, then of items.
    """

    words: tuple[KeysValues, ...]
    word_bias: Tensor
    entities: tuple[KeysValues, ...]
    entity_bias: Tensor
    user: Tensor
    table: Tensor


@dataclass(frozen=True)
class KgsfState(DecoderState):
    """The contexts, and keys and values of what was said, a layer each."""

    memory: Memory
    said: tuple[KeysValues, ...]
    length: int

    def select(self, rows: Tensor) -> KgsfState:
        """Return the state of some rows."""
        memory = self.memory
        chosen = Memory(
            _rows(memory.words, rows),
            memory.word_bias[rows],
            _rows(memory.entities, rows),
            memory.entity_bias[rows],
            memory.user[rows],
            memory.table,
        )
        return KgsfState(chosen, _rows(self.said, rows), self.length)


def _rows(layers: tuple[KeysValues, ...], rows: Tensor) -> tuple[KeysValues, ...]:
    return tuple((keys[rows], values[rows]) for keys, values in layers)


class EncoderLayer(nn.Module):
    """Attention among the context's tokens, then a feed-forward part."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        dim, dropout = settings.dim, settings.dropout
        self.norms = nn.ModuleList(Norm(dim) for _ in range(2))
        self.attention = Attention(dim, settings.heads)
        self.feed = FeedForward(dim, settings.hidden)
        self.dropout = Dropout(dropout)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """Return (B, S, dim); the bias is (B, 1, 1, S)."""
        normed = self.norms[0](states)
        states = states + self.dropout(self.attention(normed, self.attention.keys_values(normed), bias))
        return cast("Tensor", states + self.dropout(self.feed(self.norms[1](states))))


class DecoderLayer(nn.Module):
    """Attention over what was said, the context's entities and its tokens, then a feed-forward part."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        dim, dropout = settings.dim, settings.dropout
        self.norms = nn.ModuleList(Norm(dim) for _ in range(4))
        self.said, self.entities, self.words = (Attention(dim, settings.heads) for _ in range(3))
        self.feed = FeedForward(dim, settings.hidden)
        self.dropout = Dropout(dropout)

    def forward(
        self, states: Tensor, memory: Memory, layer: int, before: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Return (B, T, dim) and the keys and values of all that was said.

        Args:
            states: (B, T, dim); with ``before`` T is 1.
            memory: of the contexts.
            layer: whose keys and values of the memory are looked at.
            before: keys and values of what was said before; None: this is the beginning.
        """
        normed = self.norms[0](states)
        said = self.said.keys_values(normed)
        if before is not None:
            said = (torch.cat([before[0], said[0]], dim=2), torch.cat([before[1], said[1]], dim=2))
        # One state alone, or states that each look at what came before them.
        bias = causal_bias(states.shape[1], states.device) if before is None else memory.word_bias.new_zeros(1, 1, 1, 1)
        states = states + self.dropout(self.said(normed, said, bias))
        found = self.entities(self.norms[1](states), memory.entities[layer], memory.entity_bias)
        states = states + self.dropout(found)
        found = self.words(self.norms[2](states), memory.words[layer], memory.word_bias)
        states = states + self.dropout(found)
        return states + self.dropout(self.feed(self.norms[3](states))), said


class KgsfBackbone(Backbone[Memory]):
    """The network.

    Args:
        space: its vocabulary.
        graph: whose entities and items it knows.
        settings: its shape.
        seed: of the weights; torch's own generator is left as it was.
    """

    def __init__(self, space: TokenSpace, graph: ItemGraph, settings: BackboneSettings, seed: int) -> None:
        super().__init__(space)
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(graph)

    def _build(self, graph: ItemGraph) -> None:
        from mmd.recommend.entities import build_entities

        settings, dim = self.settings, self.settings.dim
        self.words = nn.Embedding(self.space.n_words, dim)
        self.own_items = nn.Embedding(self.space.n_items, dim)
        for table in (self.words, self.own_items):
            nn.init.normal_(table.weight, std=dim**-0.5)
        self.entities = build_entities(graph, settings)
        self.encoder = nn.ModuleList(EncoderLayer(settings) for _ in range(settings.layers))
        self.decoder = nn.ModuleList(DecoderLayer(settings) for _ in range(settings.layers))
        self.norms = nn.ModuleDict({name: Norm(dim) for name in ("context", "said", "entities")})
        self.nobody = nn.Parameter(torch.zeros(1, 1, dim))
        self.entity_pool, self.word_pool = Pooling(dim), Pooling(dim)
        self.copy = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.bias = nn.Parameter(torch.zeros(self.space.size))
        self.item_bias = nn.Parameter(torch.zeros(self.space.n_items))
        self.dropout = Dropout(settings.dropout)

    def memory(self, batch: DialogueBatch) -> Memory:
        """Encode the contexts once."""
        entities, items = self.entities(batch.entities, self.own_items.weight)
        table = torch.cat([self.words.weight, items])
        word_bias = bias_of(batch.context_mask)[:, None, None, :]
        states = self._embed(batch.context, _from_the_end(batch.context_mask), table)
        for layer in self.encoder:
            states = layer(states, word_bias)
        states = self.norms["context"](states)
        known = torch.cat([self.nobody.expand(len(batch), 1, -1), self.norms["entities"](entities)], dim=1)
        somebody = torch.nn.functional.pad(batch.entity_mask, (1, 0), value=True)
        layers = [cast("DecoderLayer", layer) for layer in self.decoder]
        return Memory(
            words=tuple(layer.words.keys_values(states) for layer in layers),
            word_bias=word_bias,
            entities=tuple(layer.entities.keys_values(known) for layer in layers),
            entity_bias=bias_of(somebody)[:, None, None, :],
            user=self.entity_pool(entities, batch.entity_mask) + self.word_pool(states, batch.context_mask),
            table=table,
        )

    def states(self, batch: DialogueBatch) -> tuple[Tensor, Memory]:
        """Return the decoder's states; see :meth:`Backbone.states`."""
        memory = self.memory(batch)
        said = self.with_start(batch.target)
        places = torch.arange(said.shape[1], device=said.device).expand_as(said)
        states = self._embed(said, places, memory.table)
        for index, layer in enumerate(self.decoder):
            states, _ = layer(states, memory, index)
        return self.norms["said"](states), memory

    def head(self, states: Tensor, rows: Tensor, memory: Memory) -> Tensor:
        """Return logits: words by the tied table, items by a query that knows the user."""
        query = states + self.copy(torch.cat([states, memory.user[rows]], dim=-1))
        first = self.space.first_item
        words = nn.functional.linear(states, self.words.weight, self.bias[:first])
        items = nn.functional.linear(query, memory.table[first:], self.bias[first:])
        return torch.cat([words, items], dim=-1)

    def item_head(self, memory: Memory) -> Tensor:
        """Return the user's vector times the items', plus a bias of its own."""
        return nn.functional.linear(memory.user, memory.table[self.space.items], self.item_bias)

    def start(self, batch: DialogueBatch) -> KgsfState:
        """Read the contexts."""
        with self.arithmetic():
            return KgsfState(self.memory(batch), (), 0)

    def step(self, state: KgsfState, tokens: Tensor) -> tuple[Tensor, KgsfState]:
        """Go on by one token a row."""
        memory = state.memory
        with self.arithmetic():
            place = torch.full_like(tokens, state.length)
            states = self._embed(tokens[:, None], place[:, None], memory.table)
            said = []
            for index, layer in enumerate(self.decoder):
                states, now = layer(states, memory, index, state.said[index] if state.said else None)
                said.append(now)
            rows = torch.arange(len(tokens), device=tokens.device)
            logits = self.head(self.norms["said"](states[:, 0]), rows, memory)
        return logits.float(), KgsfState(memory, tuple(said), state.length + 1)

    def _embed(self, tokens: Tensor, places: Tensor, table: Tensor) -> Tensor:
        """Return (B, n, dim) of tokens (B, n) that stand at places (B, n)."""
        dim = self.settings.dim
        states = nn.functional.embedding(tokens, table) * math.sqrt(dim) + sinusoids(places, dim)
        return cast("Tensor", self.dropout(states))


def _from_the_end(mask: Tensor) -> Tensor:
    """Return how many tokens follow each, (B, S): the place of a word counts from the response."""
    return (mask.sum(dim=1, keepdim=True) - 1 - torch.arange(mask.shape[1], device=mask.device)).clamp(min=0)
