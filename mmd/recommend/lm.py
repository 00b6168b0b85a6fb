"""The backbone over a causal language model: DialoGPT, SmolLM2, Llama, Gemma and their like.

The model's own table of words stays as it is. Control tokens and items have rows of their own, which stand behind it
both where tokens are read and where they are predicted: input and output of an added token are one tied row. So a
frozen model under LoRA gains a vocabulary, and no row of it is copied at every step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mmd.errors import ConfigError
from mmd.models.mllm import scaled_logits
from mmd.recommend.backbone import Backbone, DecoderState
from mmd.recommend.batches import DialogueBatch
from mmd.recommend.lm_tokens import ADDED, LmTokenizer

if TYPE_CHECKING:
    from mmd.recommend.graph import ItemGraph
    from mmd.recommend.settings import BackboneSettings

_NOISE = 0.02
"""Spread of new rows around their start, so that items without titles differ."""


@dataclass(frozen=True)
class LmState(DecoderState):
    """The model's cache of keys and values, and where it holds no padding: bool (B, tokens so far)."""

    cache: Any
    mask: Tensor

    def select(self, rows: Tensor) -> LmState:
        """Return the state of some rows; this one stays as it is."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(rows)
        return LmState(cache, self.mask[rows])


class LmBackbone(Backbone[Tensor]):
    """The network; what it makes of a context is the state at the response's start, (B, dim).

    Args:
        model: a causal language model of transformers. All of it is trained; with ``lora_rank``, low-rank updates and
            the added rows alone.
        tokenizer: over the model's own.
        settings: rank of the updates.
        seed: of the updates' random half.
    """

    def __init__(self, model: Any, tokenizer: LmTokenizer, settings: BackboneSettings, seed: int) -> None:  # noqa: ANN401 (duck-typed library object)
        super().__init__(tokenizer.space)
        self.settings = settings
        self.model = model.requires_grad_(settings.lora_rank == 0)
        if settings.lora_rank:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.model = _with_lora(model, settings.lora_rank)
        self.n_own = tokenizer.n_own
        dim = int(self.core.get_input_embeddings().weight.shape[1])
        self.added = nn.Parameter(torch.zeros(len(ADDED) + self.space.n_items, dim))
        self.recommend = nn.Linear(dim, dim)
        with torch.no_grad():  # the context's own item logits start as those of the response's first token
            self.recommend.weight.copy_(torch.eye(dim))
            self.recommend.bias.zero_()

    @property
    def core(self) -> Any:  # noqa: ANN401 (duck-typed library object)
        """The transformers model, without PEFT's wrapper; adapters live inside its layers."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @torch.no_grad()
    def start_rows(self, tokenizer: LmTokenizer, graph: ItemGraph, seed: int) -> None:
        """Let an item start as the mean of its title's words, and control tokens as the mean of all words."""
        words = self.core.get_input_embeddings().weight[: self.n_own].float()
        mean = words.mean(dim=0)
        titles = [tokenizer.encode_text(f" {graph.title(item)}") for item in range(graph.n_items)]
        starts = [mean] * len(ADDED) + [words[ids].mean(dim=0) if ids else mean for ids in titles]
        rows = torch.stack(starts)
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
        self.added.copy_(rows + _NOISE * words.std() * noise.to(rows.device))

    def memory(self, batch: DialogueBatch) -> Tensor:
        """Return the state at the response's start."""
        context, mask = self._left(batch)
        start = context.new_full((len(batch), 1), self.space.bos)
        here = torch.ones_like(start, dtype=torch.bool)
        states, _ = self._run(torch.cat([context, start], dim=1), torch.cat([mask, here], dim=1))
        return states[:, -1]

    def states(self, batch: DialogueBatch) -> tuple[Tensor, Tensor]:
        """Return the states that predict the targets; see :meth:`Backbone.states`."""
        context, mask = self._left(batch)
        said = self.with_start(batch.target)
        # The state that predicts the last target has seen all others: padding of targets is masked, never in between.
        seen = torch.cat([torch.ones_like(batch.target_mask[:, :1]), batch.target_mask[:, :-1]], dim=1)
        states, _ = self._run(torch.cat([context, said], dim=1), torch.cat([mask, seen], dim=1))
        states = states[:, context.shape[1] :]
        return states, states[:, 0]

    def head(self, states: Tensor, rows: Tensor, memory: Tensor) -> Tensor:
        """Return the model's own logits, then those of the added rows."""
        del rows, memory  # a language model has the context in its states
        own = self.core.get_output_embeddings()(states)[:, : self.n_own]
        logits = torch.cat([own, nn.functional.linear(states, self.added)], dim=-1)
        return scaled_logits(logits.float(), self.core.config.get_text_config())

    def item_head(self, memory: Tensor) -> Tensor:
        """Return logits of the items where the response starts."""
        return nn.functional.linear(self.recommend(memory), self.added[len(ADDED) :])

    def start(self, batch: DialogueBatch) -> LmState:
        """Read the contexts."""
        from transformers import DynamicCache

        tokens, mask = self._left(batch)
        with self.arithmetic():
            _, cache = self._run(tokens, mask, DynamicCache(config=self.core.config.get_text_config()))
        return LmState(cache, mask)

    def step(self, state: LmState, tokens: Tensor) -> tuple[Tensor, LmState]:
        """Go on by one token a row."""
        mask = torch.cat([state.mask, torch.ones_like(tokens[:, None], dtype=torch.bool)], dim=1)
        with self.arithmetic():
            states, cache = self._run(tokens[:, None], mask, state.cache)
            logits = self.head(states[:, 0], tokens, states[:, 0])
        return logits.float(), LmState(cache, mask)

    def _run(self, tokens: Tensor, mask: Tensor, cache: Any = None) -> tuple[Tensor, Any]:  # noqa: ANN401 (transformers')
        """Return states (B, n, dim) of tokens (B, n), and the cache; the mask covers the cache, too."""
        limit = getattr(self.core.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and mask.shape[1] > limit:
            raise ConfigError(
                f"context and response are {mask.shape[1]} tokens and recommend.backbone.model reads {limit} at most; "
                "lower recommend.conversations.context_tokens or response_tokens."
            )
        places = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        found = self.core.base_model(
            inputs_embeds=self._embed(tokens),
            attention_mask=mask.long(),
            position_ids=places,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return cast("Tensor", found.last_hidden_state), found.past_key_values

    def _embed(self, tokens: Tensor) -> Tensor:
        table = self.core.get_input_embeddings()
        is_added = tokens >= self.n_own
        found = table(tokens.masked_fill(is_added, self.space.eos))
        rows = self.added[tokens[is_added] - self.n_own] * float(getattr(table, "embed_scale", 1.0))  # Gemma's
        return cast("Tensor", found.masked_scatter(is_added[..., None], rows.to(found.dtype)))

    def _left(self, batch: DialogueBatch) -> tuple[Tensor, Tensor]:
        """Return contexts and their mask with the padding moved to the left, so that responses follow at once."""
        width = batch.context.shape[1]
        padding = width - batch.context_mask.sum(dim=1, keepdim=True)
        places = torch.arange(width, device=batch.context.device) - padding
        tokens = batch.context.gather(1, places.clamp(min=0))
        return tokens.masked_fill(places < 0, self.space.pad), places >= 0


def _with_lora(model: Any, rank: int) -> Any:  # noqa: ANN401 (duck-typed library object)
    """Put low-rank updates beside the linear layers of the stack."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    from mmd.models.lora import lora_targets, quiet_peft

    targets = lora_targets(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=list(targets),
        fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),  # how GPT-2 lays its weights out
        task_type="CAUSAL_LM",
    )
    with quiet_peft():
        return get_peft_model(model, config)
