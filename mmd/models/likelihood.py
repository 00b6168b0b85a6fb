"""Exact log-likelihoods of a closed set of labels under a multimodal model: the prompt is read once.

A prompt with its pictures is hundreds of tokens, a label a handful. The prompt's keys and values are therefore
computed once, and all labels follow in *one* further pass: their tokens are packed into a trie, the trie's nodes into
one row, and an attention mask lets every node see the prompt and its own ancestors only (the "tree attention" of
speculative decoding, Miao et al. 2023, SpecInfer, section 4). A node's position is its depth, so that each label is
scored exactly as if it stood alone; nothing is sampled, so nothing but a label can come out.

Architectures for which this does not hold (state-space layers, position schemes of their own, attention kernels
that take no mask) are found by trying: a scorer compares both routes once on a short prompt, and where they
disagree, or the first one fails, every label is from then on scored by a forward pass of its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from mmd.models.encoder import IGNORED, PromptEncoder
from mmd.models.prompt import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from mmd.models.mllm import Mllm

log = structlog.get_logger(__name__)

LogLikelihoods = NDArray[np.float64]
_LOGITS_AT_ONCE = 1 << 25  # floats; a vocabulary of 262k makes 128 rows of them
# Nats a token by which the two routes may differ: rounding, at the precision that the model computes in.
_TOLERANCE = {"float32": 2e-4, "float64": 2e-4}
_TOLERANCE_HALF = 0.25


@dataclass(frozen=True, eq=False)
class TokenTrie:
    """Token sequences that share their beginnings.

    A node is a proper beginning of some sequence; the root, the empty beginning, is no node. Nodes are in the order of
    their tokens, so that equal sets of sequences give equal tries.

    Attributes:
        tokens: last token of each node, int64 of shape (n_nodes,).
        depth: tokens before it, int64 of shape (n_nodes,).
        sees: whether the second node is the first one or an ancestor of it, bool of shape (n_nodes, n_nodes).
        branches: for the root and then each node, the tokens that may follow, int64 of shape (1 + n_nodes, n_most),
            filled up with 0.
        steps: for each sequence its (row, column)s of ``branches``.
    """

    tokens: NDArray[np.int64]
    depth: NDArray[np.int64]
    sees: NDArray[np.bool_]
    branches: NDArray[np.int64]
    steps: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]

    @classmethod
    def of(cls, sequences: Sequence[tuple[int, ...]]) -> TokenTrie:
        """Build the trie of distinct, non-empty token sequences."""
        nodes = sorted({sequence[:end] for sequence in sequences for end in range(1, len(sequence))})
        place = {(): 0} | {node: 1 + i for i, node in enumerate(nodes)}
        follow: dict[tuple[int, ...], dict[int, int]] = {prefix: {} for prefix in place}
        for sequence in sorted(sequences):
            for end, token in enumerate(sequence):
                known = follow[sequence[:end]]
                known.setdefault(token, len(known))
        branches = np.zeros((len(place), max(map(len, follow.values()), default=0)), dtype=np.int64)
        for prefix, tokens in follow.items():
            branches[place[prefix], list(tokens.values())] = list(tokens)
        sees = np.zeros((len(nodes), len(nodes)), dtype=np.bool_)
        for i, node in enumerate(nodes):
            sees[i, [place[node[:end]] - 1 for end in range(1, len(node) + 1)]] = True
        steps = tuple(
            (
                np.array([place[sequence[:end]] for end in range(len(sequence))], dtype=np.int64),
                np.array([follow[sequence[:end]][token] for end, token in enumerate(sequence)], dtype=np.int64),
            )
            for sequence in sequences
        )
        return cls(
            tokens=np.array([node[-1] for node in nodes], dtype=np.int64),
            depth=np.array([len(node) - 1 for node in nodes], dtype=np.int64),
            sees=sees,
            branches=branches,
            steps=steps,
        )

    def sequence_sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum the values of each sequence's branches.

        Args:
            values: shape (n_rows, 1 + n_nodes, n_most), aligned with ``branches``.

        Returns:
            Shape (n_rows, n_sequences).
        """
        return np.stack([values[:, rows, columns].sum(axis=1) for rows, columns in self.steps], axis=1)


class ScoresLabels(Protocol):
    """Scores every label of a set after a prompt, wherever the model runs."""

    def prepare(self) -> None:
        """Do what the first call would else take time for."""
        ...

    def log_likelihoods(self, prompts: Sequence[Prompt]) -> LogLikelihoods:
        """Return log P(label | prompt), float64 of shape (n_prompts, n_labels)."""
        ...


class LabelModel(Protocol):
    """A model that labels are scored by: :class:`~mmd.models.mllm.Mllm` in this process, or one of a server."""

    @property
    def sees_pictures(self) -> bool:
        """Whether pictures of a prompt reach the model."""
        ...

    def label_scorer(self, labels: Sequence[str]) -> ScoresLabels:
        """Return what scores these labels."""
        ...

    def turn(self, adapter: str | None) -> AbstractContextManager[None]:
        """Hold the model with an adapter on."""
        ...


class LabelScorer:
    """Scores every label of a set after a prompt: log P(label and end of turn | prompt), natural logarithm.

    Args:
        mllm: the model; its weights may change between calls (training, adapters).
        labels: distinct, non-empty labels.
        batch: prompts read at once.

    Raises:
        ValueError: no labels, an empty one, or two that are the same tokens to the model.
    """

    def __init__(self, mllm: Mllm, labels: Sequence[str], *, batch: int = 8) -> None:
        self.mllm = mllm
        self.labels = tuple(labels)
        self.batch = batch
        self._sequences = label_tokens(mllm.encoder, self.labels)
        self._trie = TokenTrie.of(self._sequences)

    @cached_property
    def shares_prefix(self) -> bool:
        """Whether the prompt is read once for all labels; found out at the first call, see the module's text."""
        try:
            difference = self._difference_of_routes()
        except MemoryError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as err:
            if type(err).__name__ == "OutOfMemoryError":
                raise
            log.warning("prefix_cache_off", model=self.mllm.name, reason=f"{type(err).__name__}: {err}")
            return False
        limit = _TOLERANCE.get(str(self.mllm.dtype).removeprefix("torch."), _TOLERANCE_HALF)
        if difference > limit:
            log.warning("prefix_cache_off", model=self.mllm.name, nats_a_token=round(difference, 4), limit=limit)
        return difference <= limit

    def prepare(self) -> None:
        """Find out how labels can be scored; seconds for a large model on a CPU."""
        _ = self.shares_prefix

    def log_likelihoods(self, prompts: Sequence[Prompt]) -> LogLikelihoods:
        """Return log P(label | prompt), float64 of shape (n_prompts, n_labels)."""
        if not self.shares_prefix:
            return self.log_likelihoods_plain(prompts)
        out = np.zeros((len(prompts), len(self.labels)))
        # Prompts of like length are read together: less padding, and what shares a batch changes no score.
        order = sorted(range(len(prompts)), key=lambda i: _extent(prompts[i]))
        with _inference(self.mllm):
            for start in range(0, len(order), self.batch):
                rows = order[start : start + self.batch]
                out[rows] = self._score_shared([prompts[i] for i in rows])
        return out

    def log_likelihoods_plain(self, prompts: Sequence[Prompt]) -> LogLikelihoods:
        """Return the same by one forward pass a label, as training reads it: the reference, and the fallback."""
        return self._plain(prompts, range(len(self.labels)))

    def _plain(self, prompts: Sequence[Prompt], chosen: Sequence[int]) -> LogLikelihoods:
        out = np.zeros((len(prompts), len(chosen)))
        with _inference(self.mllm):
            for row, prompt in enumerate(prompts):
                for start in range(0, len(chosen), self.batch):
                    labels = [self.labels[i] for i in chosen[start : start + self.batch]]
                    encoded = self.mllm.encode([prompt] * len(labels), labels)
                    out[row, start : start + len(labels)] = _answer_log_likelihoods(self.mllm, encoded)
        return out

    def _difference_of_routes(self) -> float:
        """Return by how many nats a token the two routes differ at most, over the first and the last label."""
        parts: tuple[str | bytes, ...] = (_grey_picture(), "ok?") if self.mllm.sees_pictures else ("ok?",)
        # Two prompts of different length, so that padding is tried, too.
        prompts = [Prompt("", parts), Prompt("", ("a longer question, ok?",))]
        chosen = sorted({0, len(self.labels) - 1})
        plain = self._plain(prompts, chosen)
        with _inference(self.mllm):
            shared = self._score_shared(prompts)[:, chosen]
        lengths = np.array([len(self._sequences[i]) for i in chosen])
        return float(np.max(np.abs(plain - shared) / lengths))

    def _score_shared(self, prompts: Sequence[Prompt]) -> LogLikelihoods:
        """Read the prompts, then all labels in one pass; float64 of shape (n_prompts, n_labels)."""
        import torch

        prefix = _read_prefix(self.mllm, self.mllm.encode(prompts))
        after = self._read_trie(prefix)
        states = torch.cat([prefix.last_hidden[:, None], after], dim=1)  # (rows, 1 + n_nodes, dim)
        rows, width, dim = states.shape
        branches = torch.from_numpy(self._trie.branches).to(states.device).repeat(rows, 1)
        values = _branch_log_probs(self.mllm, states.reshape(rows * width, dim), branches)
        return self._trie.sequence_sums(values.reshape(rows, width, -1))

    def _read_trie(self, prefix: _Prefix) -> Tensor:
        """Return the hidden state at every node of the trie after every prompt, shape (rows, n_nodes, dim)."""
        import torch

        trie, rows = self._trie, prefix.mask.shape[0]
        device = prefix.mask.device
        tokens = torch.from_numpy(trie.tokens).to(device).expand(rows, -1)
        depth = torch.from_numpy(trie.depth).to(device)
        sees = torch.from_numpy(trie.sees).to(device)
        decoder = self.mllm.core.get_decoder()
        out = decoder(
            input_ids=tokens,
            attention_mask=_tree_masks(decoder.config, prefix, depth, sees),
            position_ids=prefix.next_position[:, None] + depth[None],
            past_key_values=prefix.cache,
            use_cache=True,
        )
        return out.last_hidden_state  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class _Prefix:
    """Prompts that were read, padded on the right.

    Attributes:
        cache: keys and values of every layer.
        mask: 1 at the prompts' tokens, shape (rows, width).
        last_hidden: the backbone's state at each prompt's last token, shape (rows, dim).
        next_position: rotary position of the token after it, shape (rows,); a picture may take fewer positions than
            tokens.
    """

    cache: Any
    mask: Tensor
    last_hidden: Tensor
    next_position: Tensor


def _read_prefix(mllm: Mllm, batch: dict[str, Tensor]) -> _Prefix:
    import torch
    from transformers import DynamicCache

    backbone = mllm.core.model
    # Qwen's models keep here how far positions lag behind tokens after pictures, for prompts read before, too.
    has_deltas = hasattr(backbone, "rope_deltas")
    if has_deltas:
        backbone.rope_deltas = None
    # Without a configuration the cache keeps all positions of sliding-window layers; the masks do the windowing.
    cache = DynamicCache()
    hidden = backbone(**batch, past_key_values=cache, use_cache=True).last_hidden_state
    mask = batch["attention_mask"]
    lengths = mask.sum(dim=1)
    next_position = lengths
    if has_deltas and backbone.rope_deltas is not None:
        next_position = lengths + backbone.rope_deltas.to(lengths.device).reshape(-1)
    rows = torch.arange(mask.shape[0], device=mask.device)
    return _Prefix(cache, mask, hidden[rows, lengths - 1], next_position)


def _tree_masks(config: Any, prefix: _Prefix, depth: Tensor, sees: Tensor) -> Tensor | dict[str, Tensor]:  # noqa: ANN401 (a configuration of any architecture)
    """Return the additive attention mask of a trie's nodes, shape (rows, 1, n_nodes, width + n_nodes).

    Where some layers see a window only, and it is shorter than prompt and labels, one mask a kind of layer.
    """
    import torch

    rows, width = prefix.mask.shape
    reads = prefix.mask[:, None, :].bool().expand(rows, len(depth), width)
    full = torch.cat([reads, sees.expand(rows, -1, -1)], dim=2)
    dtype = prefix.last_hidden.dtype
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not window or width + len(depth) <= window or (kinds and "sliding_attention" not in kinds):
        return _additive(full, dtype)
    # A token sees itself and the window - 1 tokens before it, counted in tokens, not rotary positions.
    at = prefix.mask.sum(dim=1)[:, None] + depth[None]  # (rows, n_nodes)
    columns = torch.arange(width, device=at.device)
    near = reads & (at[:, :, None] - columns < window)
    close = sees & (depth[:, None] - depth[None, :] < window)
    sliding = _additive(torch.cat([near, close.expand(rows, -1, -1)], dim=2), dtype)
    if "full_attention" not in kinds:
        return sliding
    return {"full_attention": _additive(full, dtype), "sliding_attention": sliding}


def _additive(allowed: Tensor, dtype: Any) -> Tensor:  # noqa: ANN401 (torch.dtype, torch being imported late)
    """Return 0 where allowed and the lowest number elsewhere, with an axis for the heads."""
    import torch

    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def _branch_log_probs(mllm: Mllm, states: Tensor, branches: Tensor) -> NDArray[np.float64]:
    """Return the log-probability of each branch's token after each state, float64 of ``branches``' shape.

    Args:
        mllm: whose head is used.
        states: hidden states, shape (n, dim).
        branches: tokens, shape (n, n_most).
    """
    vocabulary = mllm.core.config.get_text_config().vocab_size
    chunk = max(1, _LOGITS_AT_ONCE // vocabulary)
    out = []
    for start in range(0, len(states), chunk):
        logits = mllm.head(states[start : start + chunk]).float()
        chosen = logits.gather(1, branches[start : start + chunk])
        out.append((chosen - _log_normaliser(logits)[:, None]).double().cpu().numpy())
    return np.concatenate(out)


def _log_normaliser(logits: Tensor) -> Tensor:
    """Return logsumexp of each row, shape (n,); on CPUs row by row, which stays in the cache: 3x quicker for 262k."""
    import torch

    if logits.device.type != "cpu":
        return logits.logsumexp(dim=1)
    return torch.stack([row.logsumexp(dim=0) for row in logits])


def _answer_log_likelihoods(mllm: Mllm, encoded: dict[str, Tensor]) -> NDArray[np.float64]:
    """Return the summed log-probability of each row's answer tokens, shape (rows,)."""
    batch = dict(encoded)
    answers = batch.pop("labels")[:, 1:]
    hidden = mllm.hidden(batch)[:, :-1]
    rows, columns = (answers != IGNORED).nonzero(as_tuple=True)
    values = _branch_log_probs(mllm, hidden[rows, columns], answers[rows, columns][:, None])[:, 0]
    out = np.zeros(len(answers))
    np.add.at(out, rows.cpu().numpy(), values)
    return out


def label_tokens(encoder: PromptEncoder, labels: Sequence[str]) -> list[tuple[int, ...]]:
    """Return each label's answer tokens, the end of turn included, as training has them.

    Raises:
        ValueError: no labels, an empty one, or two that are the same tokens.
    """
    if not labels or not all(label.strip() for label in labels):
        raise ValueError("label scorer: needs labels, each with at least one character")
    sequences = [tuple(encoder.answer_ids(label)) for label in labels]
    seen: dict[tuple[int, ...], str] = {}
    for label, sequence in zip(labels, sequences, strict=True):
        if sequence in seen:
            raise ValueError(
                f"label scorer: labels {seen[sequence]!r} and {label!r} are the same tokens to model {encoder.name!r}; "
                "labels of a task must differ"
            )
        seen[sequence] = label
    return sequences


def _extent(prompt: Prompt) -> tuple[int, int]:
    """Return the number of pictures and of characters."""
    return len(prompt.pictures), sum(len(part) for part in prompt.parts if isinstance(part, str))


@contextmanager
def _inference(mllm: Mllm) -> Iterator[None]:
    """Run without gradients and dropout; the model is afterwards in the mode it was in."""
    import torch

    training = mllm.model.training
    mllm.model.eval()
    try:
        with torch.no_grad():  # inference_mode would leave tensors that training cannot use, rotary tables say
            yield
    finally:
        mllm.model.train(training)


def _grey_picture() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (56, 56), "grey").save(out, "PNG")
    return out.getvalue()
