"""Eight items, a dozen dialogues and networks of a few thousand weights: enough to follow a distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from mmd.recommend.batches import BatchMaker
from mmd.recommend.graph import ItemGraph
from mmd.recommend.kgsf import KgsfBackbone
from mmd.recommend.settings import BackboneSettings, ConversationSettings
from mmd.recommend.types import Context, LinkedTurn, ResponseSample
from mmd.recommend.words import WordTokenizer

N_ITEMS = 8
CONVERSATIONS = ConversationSettings(min_word_count=1)
BACKBONE = BackboneSettings(dim=16, layers=1, heads=2, hidden=32, dropout=0.0, graph="embedding")
_LIKES = ("funny", "scary", "old", "new")


def toy_graph() -> ItemGraph:
    ids = tuple(f"i{n}" for n in range(N_ITEMS))
    return ItemGraph(
        entity_ids=ids,
        entity_labels=ids,
        relations=("near",),
        edges=np.array([[n, 0, n + 1] for n in range(N_ITEMS - 1)], dtype=np.int32),
        item_ids=ids,
        item_titles=tuple(f"Title {n}" for n in range(N_ITEMS)),
        item_entities=np.arange(N_ITEMS, dtype=np.int32),
    )


def toy_samples(count: int = 12) -> list[ResponseSample]:
    """Return responses of which two in three name the item that the asked-for word stands for."""
    return [_sample(n) for n in range(count)]


def _sample(n: int) -> ResponseSample:
    kind = n % len(_LIKES)
    asked = LinkedTurn("user", (f"something {_LIKES[kind]} " + "please " * (n % 3), N_ITEMS - 1 - kind), (7 - kind,))
    said = LinkedTurn("agent", ("try", kind, "!") if n % 3 else ("what do you like ?",), (kind,) if n % 3 else ())
    context = Context((asked,), asked.entities, asked.items)
    return ResponseSample(f"d{n:02}#1", f"d{n:02}", "train", context, said)


class CountingRanker:
    """ψ by hand: items of the context's last entity's neighbourhood are likelier."""

    def __init__(self, n_items: int = N_ITEMS) -> None:
        self.n_items = n_items

    def item_log_probs(
        self, contexts: Sequence[Context], temperature: float = 1.0, own: Sequence[Sequence[int]] | None = None
    ) -> NDArray[np.float32]:
        assert own is None or len(own) == len(contexts)
        centres = np.array([context.entities[-1] if context.entities else 0 for context in contexts])
        scores = -np.abs(np.arange(self.n_items)[None] - centres[:, None]) / temperature
        out: NDArray[np.float32] = (scores - np.log(np.exp(scores).sum(1, keepdims=True))).astype(np.float32)
        return out


@dataclass(frozen=True)
class Toy:
    """Samples, and networks that read them."""

    samples: list[ResponseSample]
    ranker: CountingRanker

    def backbone(self, seed: int = 0) -> tuple[KgsfBackbone, BatchMaker]:
        graph = toy_graph()
        tokenizer = WordTokenizer.build(self.samples, graph.item_ids, CONVERSATIONS)
        return KgsfBackbone(tokenizer.space, graph, BACKBONE, seed), BatchMaker(tokenizer, CONVERSATIONS)


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy(toy_samples(), CountingRanker())
