"""What the teachers say of every training response, computed once and kept: the student then learns without them.

Of φ the likeliest tokens at each position and m_t, of ψ the likeliest items of each context. Log-probabilities are
float16, whose rounding moves a distribution by at most 2⁻¹¹ times its entropy (in nats) in L1; what the kept ones lack
of 1 is the tail (:mod:`mmd.recommend.losses`). m_t is float32, as it was computed: no hard gate is thrown by the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmd.errors import ArtifactError
from mmd.recommend.batches import BatchMaker, batches_by
from mmd.recommend.gates import item_mass
from mmd.recommend.settings import DistillSettings
from mmd.recommend.types import Context, ResponseSample

if TYPE_CHECKING:
    from torch import Tensor

    from mmd.recommend.backbone import Backbone
    from mmd.recommend.losses import TeacherBatch

_TOKENS, _LOG_PROBS, _MASSES = pa.list_(pa.int32()), pa.list_(pa.float16()), pa.list_(pa.float32())
OUTPUTS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("tokens", _TOKENS),
        ("log_probs", _LOG_PROBS),
        ("masses", _MASSES),
        ("items", _TOKENS),
        ("item_log_probs", _LOG_PROBS),
    ]
)
"""A row a response of T positions: T·k ``tokens`` and ``log_probs``, T ``masses``; j ``items`` (tokens)."""


class Ranker(Protocol):
    """The recommendation teacher: :class:`mmd.recommend.recommender.LoadedRecommender`."""

    def item_log_probs(
        self, contexts: Sequence[Context], temperature: float = 1.0, own: Sequence[Sequence[int]] | None = None
    ) -> NDArray[np.float32]:
        """Return log P_ψ over the items, (n, n_items); ``own``: items of the training dialogues that they are of."""
        ...


class TeacherSpeaker:
    """Asks both teachers about responses; neither changes.

    Args:
        dialogue: φ.
        recommender: ψ.
        maker: makes φ's batches.
        settings: temperature, and how many tokens and items are kept.
        batch: responses that φ reads together.
        mentioned: items of each dialogue that ψ learnt from, by its id: of a training response it is told what other
            dialogues mention together, as it is elsewhere.
    """

    def __init__(
        self,
        dialogue: Backbone[Any],
        recommender: Ranker,
        maker: BatchMaker,
        settings: DistillSettings,
        batch: int = 64,
        mentioned: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._mentioned = mentioned or {}
        self._dialogue = dialogue.eval().requires_grad_(requires_grad=False)
        self._recommender, self._maker = recommender, maker
        self._settings, self._batch = settings, batch

    def __call__(self, samples: Sequence[ResponseSample]) -> pa.Table:
        """Return rows of :data:`OUTPUTS` in the order of the samples."""
        parts = [samples[i : i + self._batch] for i in range(0, len(samples), self._batch)]
        return pa.concat_tables([self._speak(part) for part in parts]) if parts else OUTPUTS.empty_table()

    def _speak(self, samples: Sequence[ResponseSample]) -> pa.Table:
        import torch

        space = self._dialogue.space
        device = next(self._dialogue.parameters()).device
        with torch.inference_mode():
            batch = self._maker(samples).to(device)
            logits = self._dialogue.token_logits(batch)
            mass = item_mass(logits.softmax(-1), space)
            log_probs = (logits / self._settings.temperature).log_softmax(-1)
            log_probs, tokens = log_probs.topk(min(self._settings.top_tokens, space.size))
            own = [self._mentioned.get(sample.dialogue_id, ()) for sample in samples]
            of_items = torch.from_numpy(
                self._recommender.item_log_probs([s.context for s in samples], self._settings.temperature, own)
            )
            item_log_probs, items = of_items.topk(min(self._settings.top_items, space.n_items))
        counts = batch.target_mask.sum(1).cpu().numpy()
        ranked = np.full(len(samples), items.shape[1])
        columns = [
            pa.array([sample.id for sample in samples]),
            _lists(tokens, counts * tokens.shape[1], np.int32),
            _lists(log_probs, counts * tokens.shape[1], np.float16),
            _lists(mass, counts, np.float32),
            _lists(items + space.first_item, ranked, np.int32),
            _lists(item_log_probs, ranked, np.float16),
        ]
        return pa.Table.from_arrays(columns, schema=OUTPUTS)


def _lists(values: Tensor, counts: NDArray[np.int64], kind: type[np.generic]) -> pa.ListArray:
    """Return rows of ``counts`` numbers each of a tensor read row by row."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    flat = values.detach().cpu().numpy().astype(kind).ravel()
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def by_length(samples: Sequence[ResponseSample], maker: BatchMaker, batch: int) -> Iterator[list[ResponseSample]]:
    """Yield all samples in batches of like length; equal samples, equal batches."""
    for rows in batches_by([(maker.length(sample), sample.id) for sample in samples], batch):
        yield [samples[row] for row in rows]


@dataclass(frozen=True)
class TeacherOutputs:
    """The cache in memory; P positions in all, response after response.

    Attributes:
        index: sample id → row.
        starts: int64 (n + 1,), first position of each response.
        tokens: int32 (P, k).
        log_probs: float16 (P, k).
        masses: float32 (P,).
        items: int32 (n, j).
        item_log_probs: float16 (n, j).
    """

    index: dict[str, int]
    starts: NDArray[np.int64]
    tokens: NDArray[np.int32]
    log_probs: NDArray[np.float16]
    masses: NDArray[np.float32]
    items: NDArray[np.int32]
    item_log_probs: NDArray[np.float16]

    @classmethod
    def from_tables(cls, tables: Iterable[pa.Table]) -> TeacherOutputs:
        """Read rows of :data:`OUTPUTS`, in any order.

        Raises:
            ArtifactError: there is none.
        """
        rows = pa.concat_tables(tables).combine_chunks()
        if not rows.num_rows:
            raise ArtifactError("the teachers said nothing: there is no response to learn from.")
        flat = {name: rows[name].combine_chunks().flatten().to_numpy() for name in OUTPUTS.names[1:]}
        counts = rows["masses"].combine_chunks().value_lengths().to_numpy()
        positions = len(flat["masses"])
        return cls(
            index={id_: row for row, id_ in enumerate(rows["sample_id"].to_pylist())},
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            tokens=flat["tokens"].reshape(positions, -1),
            log_probs=flat["log_probs"].reshape(positions, -1),
            masses=flat["masses"],
            items=flat["items"].reshape(rows.num_rows, -1),
            item_log_probs=flat["item_log_probs"].reshape(rows.num_rows, -1),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self.tokens, self.log_probs, self.masses, self.items, self.item_log_probs)
        return sum(array.nbytes for array in arrays)

    @property
    def mean_tails(self) -> tuple[float, float]:
        """Mean mass that is not kept, of φ a position and of ψ a response."""
        tails = [1 - _probs(found).sum(1).mean() for found in (self.log_probs, self.item_log_probs)]
        return float(tails[0]), float(tails[1])

    def batch(self, samples: Sequence[ResponseSample], positions: Sequence[int]) -> TeacherBatch:
        """Return what the teachers say of some responses, position after position.

        Args:
            samples: of the student's batch.
            positions: how many each response has there.

        Raises:
            ArtifactError: a response is not in the cache, or has other positions.
        """
        import torch

        from mmd.recommend.losses import TeacherBatch

        rows = np.array([self._row(sample.id) for sample in samples])
        counts = self.starts[rows + 1] - self.starts[rows]
        if (odd := np.flatnonzero(counts != np.array(positions))).size:
            at = int(odd[0])
            raise ArtifactError(
                f"response {samples[at].id}: the teachers spoke of {counts[at]} tokens and the student reads "
                f"{positions[at]}; recommend.conversations has changed. Run `mmd train_teachers` and `mmd distill`."
            )
        own = np.concatenate([np.arange(self.starts[row], self.starts[row + 1]) for row in rows])
        return TeacherBatch(
            tokens=torch.from_numpy(self.tokens[own].astype(np.int64)),
            probs=torch.from_numpy(_probs(self.log_probs[own])),
            mass=torch.from_numpy(self.masses[own]),
            items=torch.from_numpy(self.items[rows].astype(np.int64)),
            item_probs=torch.from_numpy(_probs(self.item_log_probs[rows])),
            rows=torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
        )

    def _row(self, sample_id: str) -> int:
        try:
            return self.index[sample_id]
        except KeyError:
            raise ArtifactError(
                f"response {sample_id}: the teachers were not asked about it; they and the student work on different "
                "graph artefacts. Run `mmd train_teachers` and `mmd distill`."
            ) from None


def _probs(log_probs: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return probabilities whose rows sum to at most 1: rounding may have brought them above."""
    probs = np.exp(log_probs.astype(np.float32))
    out: NDArray[np.float32] = probs / np.maximum(1.0, probs.sum(1, keepdims=True))
    return out
