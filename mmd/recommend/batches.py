"""From samples to the tensors that backbones read: tokens of context and response, entities, masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mmd.recommend.types import Context, LinkedTurn, Mode, ResponseSample
from mmd.recommend.vocabulary import Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmd.recommend.settings import ConversationSettings

_CACHED_TURNS = 200_000
_RESPONSE_COST = 3
"""A response's token costs about this many of a context's: two more attentions, and a distribution over V ∪ I."""


@dataclass(frozen=True)
class DialogueBatch:
    """Responses and what comes before them; every row padded on the right.

    Attributes:
        context: int64 (B, S): the turns oldest first, each opened by its speaker.
        context_mask: bool (B, S): False at padding.
        entities: int64 (B, n): the context's entities in order of last mention, 0 at padding.
        entity_mask: bool (B, n).
        target: int64 (B, T): ``[mode] word … [eos]``, what is said at each step; no token of start. A response longer
            than ``response_tokens`` is cut and has no end.
        target_mask: bool (B, T).
        gold_items: all items of each response, those that were cut off among them; graph positions.
        modes: what each response is.
    """

    context: Tensor
    context_mask: Tensor
    entities: Tensor
    entity_mask: Tensor
    target: Tensor
    target_mask: Tensor
    gold_items: tuple[tuple[int, ...], ...]
    modes: tuple[Mode, ...]

    def __len__(self) -> int:
        """Return B."""
        return len(self.context)

    def to(self, device: torch.device | str) -> DialogueBatch:
        """Return the batch on a device."""
        names = ("context", "context_mask", "entities", "entity_mask", "target", "target_mask")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class BatchMaker:
    """Makes batches; a row looks the same in every batch but for its padding.

    Args:
        tokenizer: of the backbone.
        settings: how much of a dialogue is read, and whether responses begin with their mode.
    """

    def __init__(self, tokenizer: Tokenizer, settings: ConversationSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self._turn = lru_cache(_CACHED_TURNS)(self._encode_turn)  # a turn stands in the contexts of several samples

    def __call__(self, samples: Sequence[ResponseSample]) -> DialogueBatch:
        """Return a batch to learn from.

        Raises:
            ValueError: no samples.
        """
        responses = [self.response_ids(sample.response) for sample in samples]
        batch = self._batch([sample.context for sample in samples], responses)
        gold = tuple(sample.response.items for sample in samples)
        return replace(batch, gold_items=gold, modes=tuple(sample.mode for sample in samples))

    def contexts(self, contexts: Sequence[Context]) -> DialogueBatch:
        """Return a batch to be answered: no targets (T = 0), no items, no modes.

        Raises:
            ValueError: no contexts.
        """
        return self._batch(contexts, [()] * len(contexts))

    def context_ids(self, context: Context) -> tuple[int, ...]:
        """Return the last ``context_tokens`` tokens of the last ``context_turns`` turns."""
        turns = context.turns[-self.settings.context_turns :]
        tokens = [token for turn in turns for token in self._turn(turn)]
        return tuple(tokens[-self.settings.context_tokens :])

    def response_ids(self, response: LinkedTurn) -> tuple[int, ...]:
        """Return a response: its mode, its first ``response_tokens`` words and items, its end unless it was cut."""
        space, settings = self.tokenizer.space, self.settings
        said = self._turn(response)[1:]
        mode = (space.mode_token("rec" if response.items else "gen"),) if settings.mode_tokens else ()
        whole = len(said) <= settings.response_tokens
        return (*mode, *said[: settings.response_tokens], *((space.eos,) if whole else ()))

    def length(self, sample: ResponseSample) -> int:
        """Return about what a sample costs, in tokens of context; samples of like length share batches."""
        return len(self.context_ids(sample.context)) + _RESPONSE_COST * len(self.response_ids(sample.response))

    def _encode_turn(self, turn: LinkedTurn) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode_turn(turn))

    def _batch(self, contexts: Sequence[Context], responses: Sequence[Sequence[int]]) -> DialogueBatch:
        if not contexts:
            raise ValueError("a batch needs at least one sample")
        pad, most = self.tokenizer.space.pad, self.settings.max_entities
        context, context_mask = padded([self.context_ids(context) for context in contexts], pad)
        entities, entity_mask = padded([context.entities[-most:] for context in contexts], 0)
        target, target_mask = padded(responses, pad)
        return DialogueBatch(context, context_mask, entities, entity_mask, target, target_mask, (), ())


def batches_by(keys: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Yield the positions of all keys in batches of neighbours by key: what is alike in length is padded little.

    >>> list(batches_by([7, 2, 9, 2], 2))
    [[1, 3], [0, 2]]
    """
    order = sorted(range(len(keys)), key=keys.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def padded(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Return rows side by side, int64 (B, longest), and where they are no padding."""
    import torch

    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    mask = np.arange(lengths.max(initial=0))[None, :] < lengths[:, None]
    ids = np.full(mask.shape, value, dtype=np.int64)
    ids[mask] = np.fromiter((token for row in rows for token in row), dtype=np.int64, count=int(lengths.sum()))
    return torch.from_numpy(ids), torch.from_numpy(mask)
