"""A causal language model on the CPU, behind two calls: continue a prompt, and score continuations.

Reading a GGUF file takes transformers tens of seconds (most of it goes into the vocabulary), so the first load
writes the dequantised weights as safetensors into the cache folder, and later loads read those within seconds.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmd.errors import ModelError
from mmd.models.resolve import LOCAL, Weights, publish_folder, resolve
from mmd.models.settings import ModelSettings
from mmd.models.threads import torch_threads


class LanguageModel:
    """A small language model; greedy and deterministic.

    Args:
        name: a name for :func:`mmd.models.resolve.resolve`.
        settings: cache folder, threads, and whether a hub may be asked.

    Raises:
        ModelError: the name does not resolve, or its weights are no causal language model.
    """

    def __init__(self, name: str, settings: ModelSettings | None = None) -> None:
        self.name = name
        self._settings = settings or ModelSettings()
        self._tokenizer, self._model = load_causal(name, self._settings)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 48, *, batch: int = 8) -> list[str]:
        """Return the greedy continuation of each prompt, without the prompt, cut at the end-of-text token."""
        import torch

        out: list[str] = []
        for start in range(0, len(prompts), batch):
            # Left padding: the new tokens then begin at the same column in every row.
            encoded = self._tokenizer(
                list(prompts[start : start + batch]), return_tensors="pt", padding=True, padding_side="left"
            )
            with torch.inference_mode(), torch_threads(self._settings.threads):
                tokens = self._model.generate(
                    input_ids=encoded["input_ids"],
                    attention_mask=encoded["attention_mask"],
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=self._tokenizer.pad_token_id,
                )
            new = tokens[:, encoded["input_ids"].shape[1] :]
            out.extend(self._tokenizer.batch_decode(new, skip_special_tokens=True))
        return out

    def chat(self, messages: Sequence[str], max_new_tokens: int = 48) -> list[str]:
        """Answer each message on its own, by the model's chat template; a base model gets the bare message."""
        if not self._tokenizer.chat_template:
            return self.generate(messages, max_new_tokens)
        prompts = [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
            )
            for message in messages
        ]
        return self.generate(prompts, max_new_tokens)

    def score(self, prompt: str, continuations: Sequence[str], *, batch: int = 16) -> list[float]:
        """Return log P(continuation | prompt), natural logarithm, summed over the continuation's tokens.

        The prompt and each continuation are tokenised apart, so equal prompts give equal contexts.

        Raises:
            ValueError: a continuation is empty.
        """
        if not all(continuations):
            raise ValueError("score: a continuation is empty; every continuation needs at least one character")
        context = list(self._tokenizer(prompt)["input_ids"]) or [self._tokenizer.pad_token_id]
        endings = [list(self._tokenizer(c, add_special_tokens=False)["input_ids"]) for c in continuations]
        scores: list[float] = []
        for start in range(0, len(endings), batch):
            scores.extend(self._score_batch(context, endings[start : start + batch]))
        return scores

    def _score_batch(self, context: list[int], endings: list[list[int]]) -> list[float]:
        """Score token lists; rows are right-padded, which a causal model never looks at."""
        import torch

        width = len(context) + max(len(e) for e in endings)
        rows = torch.full((len(endings), width), self._tokenizer.pad_token_id)
        mask = torch.zeros((len(endings), width), dtype=torch.long)
        for index, ending in enumerate(endings):
            tokens = context + ending
            rows[index, : len(tokens)] = torch.tensor(tokens)
            mask[index, : len(tokens)] = 1
        # Logits for the last context token onwards are all that is needed: (rows, 1 + longest ending, vocabulary).
        keep = width - len(context) + 1
        with torch.inference_mode(), torch_threads(self._settings.threads):
            logits = self._model(input_ids=rows, attention_mask=mask, logits_to_keep=keep).logits
            log_probs = logits[:, :-1].float().log_softmax(dim=-1)
        return [
            float(log_probs[index, torch.arange(len(ending)), torch.tensor(ending)].sum())
            for index, ending in enumerate(endings)
        ]


def load_causal(name: str, settings: ModelSettings) -> tuple[Any, Any]:
    """Return tokenizer and causal language model, float32, in evaluation mode.

    Raises:
        ModelError: the name does not resolve, or its weights are no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    weights = resolve(name, settings)
    place, options = pretrained_place(weights, settings)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(place, **options, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as err:
        raise ModelError(
            f"model {weights.name!r}: cannot be loaded as a causal language model from {place} ({err})."
        ) from err
    model.eval()  # type: ignore[no-untyped-call]
    return tokenizer, model


def pretrained_place(weights: Weights, settings: ModelSettings) -> tuple[str, dict[str, Any]]:
    """Return the folder or repository that transformers' ``from_pretrained`` is given, and its options.

    Raises:
        ModelError: a state-dict file, which is no language model.
    """
    if weights.format == "torch":
        raise ModelError(f"model {weights.name!r}: no language model; see `mmd models` for those.")
    local: dict[str, Any] = dict(LOCAL)
    if weights.format == "gguf":
        return str(converted_folder(weights, settings)), local
    if weights.path is not None:
        return str(weights.path), local
    chosen = {} if weights.revision is None else {"revision": weights.revision}
    return weights.repository or weights.name, {**local, "local_files_only": not settings.allow_hub, **chosen}


def converted_folder(weights: Weights, settings: ModelSettings) -> Path:
    """Return a Hugging Face folder with a GGUF file's weights, converting them the first time.

    The folder's name carries the file's size and time, so a replaced file is converted anew.
    """
    path = weights.path
    if path is None:
        raise ModelError(f"model {weights.name!r}: no GGUF file.")
    stat = path.stat()
    cache = Path(settings.cache_dir).expanduser() / "converted"
    target = cache / f"{path.stem}-{stat.st_size}-{int(stat.st_mtime)}"
    if (target / "config.json").is_file():
        return target
    aside = cache / f"{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        aside.mkdir(parents=True)
        _convert(path, aside)
        publish_folder(aside, target)
    except OSError as err:
        raise ModelError(
            f"model {weights.name!r}: cannot convert into {cache} ({err}); set models.cache_dir to a folder with "
            f"about {stat.st_size * 8 / 2**20:.0f} MiB free."
        ) from err
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if find_spec("gguf") is None:
        raise ModelError(f"{gguf}: reading GGUF needs the gguf package; `pip install 'mmd[models]'`.")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    except (ValueError, KeyError, NotImplementedError) as err:
        raise ModelError(f"{gguf}: not a language model that transformers can read ({err}).") from err
    # Its tensors are plain float32 by now; without the marks of quantisation transformers agrees to save them.
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    model.save_pretrained(folder)
