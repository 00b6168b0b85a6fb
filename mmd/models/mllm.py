"""A multimodal (or text-only) large language model behind one door: prompts in, hidden states, logits and losses out.

Works for every architecture of transformers' ``AutoModelForImageTextToText`` and ``AutoModelForCausalLM`` whose
backbone is ``.model``: Qwen2-VL, Qwen2.5-VL, SmolVLM / Idefics3, LLaVA, Llama, Gemma…
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmd.errors import ModelError
from mmd.models.devices import choose_device, choose_dtype
from mmd.models.encoder import IGNORED, PromptEncoder
from mmd.models.language import pretrained_place
from mmd.models.memory import require_memory
from mmd.models.prompt import Prompt
from mmd.models.resolve import resolve
from mmd.models.settings import ModelSettings

if TYPE_CHECKING:
    import torch

    from mmd.models.likelihood import LabelScorer

    Batch = Mapping[str, torch.Tensor]


_SMALL_BYTES = 64 * 2**20


class Mllm:
    """A loaded model.

    Attributes:
        name: what it was loaded by.
        encoder: its tokenizer and processor (:class:`~mmd.models.encoder.PromptEncoder`).
        model: the transformers model, or the PEFT model around it.
        device: where it runs.
        dtype: its arithmetic.
        lock: held by whoever switches adapters or runs the model where several threads do.
    """

    def __init__(self, name: str, model: Any, encoder: PromptEncoder) -> None:  # noqa: ANN401 (duck-typed library object)
        self.name = name
        self.model = model
        self.encoder = encoder
        self.lock = threading.RLock()

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401 (duck-typed library object)
        """The transformers tokenizer."""
        return self.encoder.tokenizer

    @property
    def processor(self) -> Any | None:  # noqa: ANN401 (duck-typed library object)
        """The transformers processor; None for text-only models."""
        return self.encoder.processor

    @property
    def sees_pictures(self) -> bool:
        """Whether pictures of a prompt reach the model; else its prompt builder tells their printed text."""
        return self.encoder.sees_pictures

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic of the backbone."""
        found: torch.dtype = self.core.get_input_embeddings().weight.dtype
        return found

    @property
    def core(self) -> Any:  # noqa: ANN401 (duck-typed library object)
        """The transformers model, without PEFT's wrapper; adapters live inside its layers."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    def encode(self, prompts: Sequence[Prompt], answers: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Return the tensors of a batch on the model's device; see :meth:`PromptEncoder.encode`."""
        return self.to_device(self.encoder.encode(prompts, answers))

    def to_device(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Move an encoded batch to the model's device, pictures in its arithmetic."""
        return {
            key: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for key, value in batch.items()
        }

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Return the backbone's last hidden state, shape (rows, width, dim); no logits are computed."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        state: torch.Tensor = self.core.model(**inputs, use_cache=False).last_hidden_state
        return state

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 (n, vocabulary), of hidden states (n, dim).

        The states come as a 2-D tensor on purpose: a batched product with a large tied embedding is an order of
        magnitude slower in bfloat16 on CPUs.
        """
        logits: torch.Tensor = self.core.get_output_embeddings()(hidden).float()
        return scaled_logits(logits, self.core.config.get_text_config())

    def use(self, adapter: str) -> None:
        """Switch to one of the adapters on this base.

        Raises:
            ModelError: there is no such adapter.
        """
        known = sorted(getattr(self.model, "peft_config", {}))
        if adapter not in known:
            raise ModelError(f"model {self.name!r}: no adapter {adapter!r}; loaded: {', '.join(known) or 'none'}.")
        self.model.set_adapter(adapter)

    @contextmanager
    def turn(self, adapter: str | None) -> Iterator[None]:
        """Hold the model, with one of its adapters on: no other thread may switch before the forward pass is over."""
        with self.lock:
            if adapter is not None:
                self.use(adapter)
            yield

    def label_scorer(self, labels: Sequence[str]) -> LabelScorer:
        """Return what scores these labels by this model."""
        from mmd.models.likelihood import LabelScorer

        return LabelScorer(self, labels)


def answer_loss(mllm: Mllm, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of the answers' tokens (and end tokens), a scalar in natural-log units.

    The same number as transformers' own loss of these labels; logits are computed at answer positions only.
    """
    from torch.nn.functional import cross_entropy

    # Position t predicts token t + 1.
    labels = batch["labels"][:, 1:]
    asked = labels != IGNORED
    states = mllm.hidden(batch)[:, :-1][asked]  # (answer tokens, dim)
    return cross_entropy(mllm.head(states), labels[asked])


def load_mllm(name: str, settings: ModelSettings | None = None, *, trainable: bool = False) -> Mllm:
    """Load a model by name.

    Args:
        name: a name for :func:`mmd.models.resolve.resolve`.
        settings: device, arithmetic, cache, and whether a hub may be asked.
        trainable: gradients for all weights and training mode; else neither.

    Raises:
        ModelError: the name does not resolve; the folder is incomplete, asks for its own code, holds pickles instead
            of safetensors, or is of an architecture that transformers does not know; or there is too little memory.
    """
    settings = settings or ModelSettings()
    place, options = pretrained_place(resolve(name, settings), settings)
    config = _load_config(name, place, options)
    encoder = _load_encoder(name, place, config, options)
    device = choose_device(settings)
    dtype = choose_dtype(settings, device, small=_is_small(place))
    require_memory(name, Path(place), dtype, device)
    model = _load_model(name, place, config, dtype, options).to(device)
    model.train(trainable).requires_grad_(trainable)
    return Mllm(name, model, encoder)


def load_encoder(name: str, settings: ModelSettings | None = None) -> PromptEncoder:
    """Load a model's tokenizer and processor without its weights.

    Raises:
        ModelError: as :func:`load_mllm`.
    """
    settings = settings or ModelSettings()
    place, options = pretrained_place(resolve(name, settings), settings)
    return _load_encoder(name, place, _load_config(name, place, options), options)


def _is_small(place: str) -> bool:
    """Say whether a folder's weights are below ``_SMALL_BYTES``: the tiny models, and what was trained from them."""
    found = [path.stat().st_size for path in Path(place).glob("*.safetensors")]
    return bool(found) and sum(found) < _SMALL_BYTES


def _load_config(name: str, place: str, options: Mapping[str, Any]) -> Any:  # noqa: ANN401 (duck-typed library object)
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    path = Path(place) / "config.json"
    if path.is_file():
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("auto_map") and raw.get("model_type") not in CONFIG_MAPPING:
            raise ModelError(
                f"model {name!r}: its config.json asks to run code of its own (auto_map); mmd never runs code that "
                "comes with weights. Use a model of an architecture that transformers has built in."
            )
    try:
        return AutoConfig.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError) as err:
        raise ModelError(f"model {name!r}: its config cannot be read from {place} ({_short(err)}).") from err


def _sees_pictures(config: Any) -> bool:  # noqa: ANN401 (duck-typed library object)
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    known = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return known and getattr(config, "vision_config", None) is not None


def _load_encoder(name: str, place: str, config: Any, options: Mapping[str, Any]) -> PromptEncoder:  # noqa: ANN401 (duck-typed library object)
    from transformers import AutoTokenizer

    from mmd.models.processors import load_processor

    try:
        if _sees_pictures(config):
            processor = load_processor(place, config.model_type, options)
            return PromptEncoder(name, config.model_type, processor.tokenizer, processor)
        return PromptEncoder(name, config.model_type, AutoTokenizer.from_pretrained(place, **options), None)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as err:
        raise ModelError(f"model {name!r}: {place} has no usable tokenizer or processor ({_short(err)}).") from err


def _load_model(name: str, place: str, config: Any, dtype: torch.dtype, options: Mapping[str, Any]) -> Any:  # noqa: ANN401 (duck-typed library object)
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    door: Any = AutoModelForImageTextToText if _sees_pictures(config) else AutoModelForCausalLM
    try:
        model, info = door.from_pretrained(
            place, **options, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as err:
        raise ModelError(f"model {name!r}: cannot be loaded from {place} ({_short(err)}).") from err
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"model {name!r}: {place} lacks {len(info['missing_keys'])} weights ({missing}…).")
    if not hasattr(model, "model") or model.get_output_embeddings() is None:
        raise ModelError(f"model {name!r}: architecture {config.model_type} has no backbone `.model` with a head.")
    return model


def scaled_logits(logits: torch.Tensor, config: Any) -> torch.Tensor:  # noqa: ANN401 (duck-typed library object)
    """Apply what some architectures do to logits: Granite and Cohere scale them, Gemma 2 caps them softly."""
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = cap * (logits / cap).tanh()
    return logits


def _short(err: Exception) -> str:
    return " ".join(str(err).split())[:300]
