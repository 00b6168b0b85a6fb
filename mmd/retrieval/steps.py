"""One optimisation step: a worker's share in chunks, encoded, gathered, and gradients brought back.

The loss is that of the whole batch: every worker computes it on everybody's embeddings, takes the gradient of its own
rows, and the workers' gradients are summed. Whatever their number, the step is the same.

The loss never reaches into an encoder directly. It is differentiated by the embeddings first, and each chunk is then
differentiated by its weights with that. So a chunk's graph may be kept from the first pass, or, to fit a large batch
into little memory, made again in a second one (GradCache). The second pass starts from the seed of the first, so that
dropout is the same.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mmd.models.workers import Workers
from mmd.retrieval.inputs import InputMaker, TowerInputs
from mmd.retrieval.losses import batch_loss, duplicate_mask
from mmd.retrieval.types import Query, Response

if TYPE_CHECKING:
    import torch

    from mmd.retrieval.batches import SampleKey
    from mmd.retrieval.methods import Retriever

Side = Literal["query", "response"]
_DROPOUT = 4  # stream of random numbers
_TOKEN_ROWS = 32  # rows of tokens a chunk on a CPU, where short texts should not be padded to the longest of the batch


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows that are encoded in one pass.

    Attributes:
        side: queries or responses.
        rows: int64 (n,), places in the worker's matrix of that side.
        inputs: n rows.
        kinds: int64 (n,), index of the modality of the row's (right) response.
    """

    side: Side
    rows: torch.Tensor
    inputs: TowerInputs
    kinds: torch.Tensor

    def to(self, device: torch.device | str) -> Chunk:
        """Return the chunk with what is encoded on a device."""
        return Chunk(self.side, self.rows.to(device), self.inputs.to(device), self.kinds.to(device))


class ChunkMaker:
    """Cuts queries and responses into chunks.

    Args:
        maker: makes tower inputs.
        micro_batch: rows a chunk at most; 0: as many as there are (tokens on a CPU: a few, sorted by length).
        on_cpu: whether encoders run on a CPU.
    """

    def __init__(self, maker: InputMaker, micro_batch: int, *, on_cpu: bool) -> None:
        self._maker = maker
        self._rows, self._on_cpu = micro_batch, on_cpu

    def queries(self, queries: Sequence[Query], modalities: Sequence[str]) -> list[Chunk]:
        """Return the chunks of queries, in the order of their matrix, with the modalities of their right responses."""
        import torch

        kinds = torch.tensor([self._maker.modalities.index(name) for name in modalities], dtype=torch.int64)
        return list(self._cut("query", self._maker.queries(queries), kinds)) if queries else []

    def responses(self, responses: Sequence[Response]) -> list[Chunk]:
        """Return the chunks of responses, in the order of their matrix."""
        if not responses:
            return []
        inputs = self._maker.responses(responses)
        return list(self._cut("response", inputs, inputs.kind))

    def _cut(self, side: Side, inputs: TowerInputs, kinds: torch.Tensor) -> Iterator[Chunk]:
        import torch

        tokens = inputs.text.tokens
        size = self._rows or (_TOKEN_ROWS if tokens is not None and self._on_cpu else len(kinds))
        order = torch.arange(len(kinds))
        if size < len(kinds) and tokens is not None:
            order = tokens["attention_mask"].sum(1).argsort(stable=True)
        for part in order.split(size):  # type: ignore[no-untyped-call]
            yield Chunk(side, part, inputs.rows(part) if size < len(kinds) else inputs, kinds[part])


@dataclass(frozen=True, eq=False)
class Share:
    """A worker's part of a step, ready to be encoded.

    Attributes:
        queries: chunks of its b queries.
        positives: chunks of their right responses, b in all.
        negatives: chunks of its mined negatives; may be empty.
    """

    queries: list[Chunk]
    positives: list[Chunk]
    negatives: list[Chunk]

    def to(self, device: torch.device | str) -> Share:
        """Return the share on a device."""
        parts = (self.queries, self.positives, self.negatives)
        return Share(*([chunk.to(device) for chunk in part] for part in parts))


@dataclass(frozen=True)
class StepKeys:
    """What is known of a whole step without encoding, the same on every worker.

    Attributes:
        samples: of the batch, in order.
        negatives: ids of mined negatives, in the order of workers.
        negative_kinds: their modalities.
        shares: samples of each worker.
        negative_shares: mined negatives of each worker.
    """

    samples: tuple[SampleKey, ...]
    shares: tuple[int, ...]
    negatives: tuple[str, ...] = ()
    negative_kinds: tuple[str, ...] = ()
    negative_shares: tuple[int, ...] = ()


def forward(retriever: Retriever, chunk: Chunk) -> torch.Tensor:
    """Return a chunk's embeddings (n, dim); queries of a two-step method have intent logits beside them."""
    import torch

    if chunk.side == "response":
        return retriever.encode_responses(chunk.inputs)
    vectors, logits = retriever.encode_queries(chunk.inputs, chunk.kinds)
    return vectors if logits is None else torch.cat([vectors, logits.float()], dim=1)


def encode(retriever: Retriever, chunks: Sequence[Chunk], rows: int) -> torch.Tensor:
    """Return the rows of chunks as one matrix (rows, width), without gradients and without dropout."""
    import torch

    training = retriever.training
    retriever.eval()
    with torch.no_grad():
        out = [forward(retriever, chunk) for chunk in chunks]
    retriever.train(training)
    return _joined(chunks, out, rows)


def _joined(chunks: Sequence[Chunk], outputs: Sequence[torch.Tensor], rows: int) -> torch.Tensor:
    import torch

    if not outputs:
        return torch.zeros((rows, 0))
    joined = outputs[0].new_zeros((rows, outputs[0].shape[1]))
    for chunk, output in zip(chunks, outputs, strict=True):
        joined[chunk.rows] = output.detach()
    return joined


class StepMaker:
    """Computes loss and gradients of steps.

    Args:
        retriever: in training; on its device.
        workers: who share a step.
        seed: of dropout.
        weights: (n_modalities,) of the intent's classes.
        cached: whether graphs are dropped and made again (GradCache).
    """

    def __init__(
        self, retriever: Retriever, workers: Workers, seed: int, weights: torch.Tensor | None, *, cached: bool
    ) -> None:
        self._retriever, self._workers = retriever, workers
        self._seed, self._weights, self._cached = seed, weights, cached

    def gradients(self, step: int, share: Share, keys: StepKeys) -> dict[str, float]:
        """Leave the gradient of a step's loss in the weights and return the loss and its parts.

        Args:
            step: 0-based; dropout depends on it.
            share: of this worker.
            keys: of the whole step.
        """
        import torch

        rank, rows = self._workers.rank, keys.shares
        chunks = [*share.queries, *share.positives, *share.negatives]
        outputs = [self._forward(step, place, chunk, grad=not self._cached) for place, chunk in enumerate(chunks)]
        cuts = np.cumsum([len(share.queries), len(share.positives)]).tolist()
        parts = [(slice(0, cuts[0]), rows), (slice(cuts[0], cuts[1]), rows)]
        if keys.negatives:
            parts.append((slice(cuts[1], len(chunks)), keys.negative_shares))
        leaves = [self._gathered(chunks[part], outputs[part], counts) for part, counts in parts]
        losses = self._loss(leaves, keys)
        losses[0].backward()  # type: ignore[no-untyped-call]
        self._share_own_weights()
        for (part, counts), leaf in zip(parts, leaves, strict=True):
            start = sum(counts[:rank])
            own = leaf.grad[start : start + counts[rank]] if leaf.grad is not None else None
            if own is None:
                continue
            for place in range(*part.indices(len(chunks))):
                output = outputs[place] if not self._cached else self._forward(step, place, chunks[place], grad=True)
                torch.autograd.backward(output, own[chunks[place].rows].to(output.dtype))
        self._workers.sum_gradients(self._retriever.parameters())
        total, retrieval, intent = (float(loss.detach()) for loss in losses)
        return {"loss": total, "retrieval_loss": retrieval, "intent_loss": intent}

    def _forward(self, step: int, place: int, chunk: Chunk, *, grad: bool) -> torch.Tensor:
        import torch

        # Dropout depends on the place in the run alone: a second pass, and a resumed run, draw what the first one drew.
        draw = np.random.SeedSequence([self._seed, _DROPOUT, step, place, self._workers.rank])
        torch.manual_seed(int(draw.generate_state(1)[0]))
        with torch.set_grad_enabled(grad):
            return forward(self._retriever, chunk)

    def _gathered(
        self, chunks: Sequence[Chunk], outputs: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> torch.Tensor:
        """Return all workers' rows as a leaf that collects their gradient."""
        joined = _joined(chunks, outputs, counts[self._workers.rank])
        if not outputs:  # a worker without a negative of its own
            joined = self._retriever.log_temperature.new_zeros((0, self._retriever.spec.towers.dim))
        return self._workers.gather(joined, counts).clone().requires_grad_()

    def _loss(self, leaves: Sequence[torch.Tensor], keys: StepKeys) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        spec = self._retriever.spec
        queries, logits = leaves[0], None
        if self._retriever.two_step:
            queries, logits = queries[:, : spec.towers.dim], queries[:, spec.towers.dim :]
        device = queries.device
        kinds = {name: kind for kind, name in enumerate(spec.modalities)}
        query_kinds = torch.tensor([kinds[key.modality] for key in keys.samples], device=device)
        negative_kinds = torch.tensor([kinds[name] for name in keys.negative_kinds], dtype=torch.int64, device=device)
        ids = [key.response_id for key in keys.samples]
        found = batch_loss(
            spec.method,
            queries=queries,
            responses=torch.cat(list(leaves[1:])),
            positives=torch.arange(len(ids), device=device),
            mask=duplicate_mask(ids, [key.also for key in keys.samples], [*ids, *keys.negatives]).to(device),
            query_kinds=query_kinds,
            response_kinds=torch.cat([query_kinds, negative_kinds]),
            temperature=self._retriever.temperature(),
            logits=logits,
            weights=self._weights,
        )
        return found.total, found.retrieval, found.intent

    def _share_own_weights(self) -> None:
        """Divide the gradients of weights that the loss itself holds (the temperature) by the number of workers.

        Every worker has them in full, and gradients are summed later.
        """
        for parameter in self._retriever.parameters():
            if parameter.grad is not None:
                parameter.grad /= self._workers.world
