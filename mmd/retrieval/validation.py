"""Validation while training: multimodal R@1 in union pools of held-out dialogues, which choices are made on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmd.errors import CorpusError
from mmd.models.workers import Workers
from mmd.retrieval.pools import make_pools
from mmd.retrieval.ranks import MISS, Ranks, rank_all
from mmd.retrieval.settings import PoolSettings
from mmd.retrieval.steps import Chunk, ChunkMaker, encode
from mmd.retrieval.types import Pool, Response, Sample, SampleSet

if TYPE_CHECKING:
    import torch

    from mmd.retrieval.methods import Retriever

Floats = NDArray[np.float32]
_ROWS = 512  # whose inputs, pixels say, are held at a time


def validation_set(
    samples: Sequence[Sample], responses: Mapping[str, Response], modalities: Sequence[str]
) -> SampleSet:
    """Return held-out samples with their right responses alone: pools then hold nothing that was trained on."""
    wanted = dict.fromkeys(r for sample in samples for r in (sample.response_id, *sample.also))
    present = {sample.modality for sample in samples}
    return SampleSet(
        samples=tuple(samples),
        responses={r: responses[r] for r in wanted if r in responses},
        modalities=tuple(name for name in modalities if name in present),
    )


def validation_pools(held_out: SampleSet, settings: PoolSettings) -> list[Pool]:
    """Return union pools of the settings' size, or, where a modality has too few responses, of the next half of it.

    Where even two are too many, every pool is all there is.
    """
    size = settings.size
    while size >= 2:
        try:
            return make_pools(held_out.samples, held_out, "union", size, settings.seed, split_responses="all")
        except CorpusError:
            size //= 2
    return make_pools(held_out.samples, held_out, "corpus", settings.size, settings.seed, split_responses="all")


@dataclass(frozen=True)
class Validation:
    """What a validation found; shares in [0, 1].

    Attributes:
        r1: multimodal R@1; for two-step methods a wrong modality is a miss.
        by_modality: R@1 of the samples of each modality, ranked as ``r1`` is.
        intent: how often the modality was predicted right; None for MDR.
    """

    r1: float
    by_modality: Mapping[str, float]
    intent: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON."""
        return {"r1": self.r1, "by_modality": dict(self.by_modality), "intent_accuracy": self.intent}


class Judge:
    """Ranks validation samples in their pools; workers share the encoding, and all of them get the result.

    Args:
        held_out: samples and responses.
        settings: of the pools.
        chunks: makes tower inputs.
        workers: who encode.
        device: of the retriever.
    """

    def __init__(
        self,
        held_out: SampleSet,
        settings: PoolSettings,
        chunks: ChunkMaker,
        workers: Workers,
        device: torch.device | str = "cpu",
    ) -> None:
        self._samples, self._chunks, self._workers, self._device = held_out.samples, chunks, workers, device
        self._responses = [held_out.responses[key] for key in sorted(held_out.responses)]
        self._rows = {response.id: row for row, response in enumerate(self._responses)}
        self._pools = validation_pools(held_out, settings)

    def __call__(self, retriever: Retriever) -> Validation:
        """Return the numbers of a retriever as it is."""
        spec = retriever.spec
        queries = share_queries(retriever, self._workers, self._samples, self._chunks, self._device)
        responses = share_encoding(
            retriever,
            self._workers,
            len(self._responses),
            lambda part: self._chunks.responses(self._responses[part]),
            self._device,
        )
        golds = np.array([spec.modalities.index(sample.modality) for sample in self._samples])
        predicted = queries[:, spec.towers.dim :].argmax(axis=1) if retriever.two_step else None
        ranks = self._ranks(queries[:, : spec.towers.dim], responses, restricted=retriever.two_step)
        if predicted is not None:
            ranks = np.where(predicted == golds, ranks, MISS)
        hits = ranks == 1
        return Validation(
            r1=float(hits.mean()),
            by_modality={
                name: float(hits[golds == kind].mean())
                for kind, name in enumerate(spec.modalities)
                if (golds == kind).any()
            },
            intent=None if predicted is None else float((predicted == golds).mean()),
        )

    def _ranks(self, queries: Floats, responses: Floats, *, restricted: bool) -> Ranks:
        """Return ranks within whole pools, or among the responses of the right one's modality."""
        pools, golds = [], []
        for pool in self._pools:
            rows = [self._rows[candidate] for candidate in pool.candidates]
            gold = self._rows[pool.gold]
            if restricted:
                rows = [row for row in rows if self._responses[row].modality == self._responses[gold].modality]
            pools.append(np.array(rows))
            golds.append(gold)
        return rank_all(queries, responses, pools, golds)


def share_queries(
    retriever: Retriever,
    workers: Workers,
    samples: Sequence[Sample],
    chunks: ChunkMaker,
    device: torch.device | str,
) -> Floats:
    """Return the embeddings of samples' queries, two-step methods' intent logits beside them; float32 (n, width)."""
    return share_encoding(
        retriever,
        workers,
        len(samples),
        lambda part: chunks.queries([s.query for s in samples[part]], [s.modality for s in samples[part]]),
        device,
        logits=retriever.two_step,
    )


def share_encoding(
    retriever: Retriever,
    workers: Workers,
    rows: int,
    chunks_of: Callable[[slice], Sequence[Chunk]],
    device: torch.device | str,
    *,
    logits: bool = False,
) -> Floats:
    """Return the embeddings of all rows, each worker encoding its part, float32 (rows, width).

    Args:
        retriever: encodes.
        workers: who share.
        rows: how many there are.
        chunks_of: makes the chunks of a slice of them.
        device: of the retriever.
        logits: whether intent logits stand beside them: for queries of a two-step method.
    """
    import torch

    bounds = [worker * rows // workers.world for worker in range(workers.world + 1)]
    counts = [end - start for start, end in pairwise(bounds)]
    spec = retriever.spec
    parts = [torch.zeros((0, spec.towers.dim + logits * len(spec.modalities)), device=device)]
    last = bounds[workers.rank + 1]
    for start in range(bounds[workers.rank], last, _ROWS):
        part = slice(start, min(start + _ROWS, last))
        chunks = [chunk.to(device) for chunk in chunks_of(part)]
        parts.append(encode(retriever, chunks, part.stop - part.start))
    out: Floats = workers.gather(torch.cat(parts), counts).float().cpu().numpy()
    return out
