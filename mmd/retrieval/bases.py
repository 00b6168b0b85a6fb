"""Text and vision models that towers start from: loaded once, copied or shared by each encoder.

A fully trained encoder is a copy of its own. Under LoRA the encoders share the base's tensors, which nobody trains, and
each has an adapter of its own. A model that stays as it is (``frozen``) is no part of the retriever at all: the source
of inputs runs it, once a text or picture (:mod:`mmd.retrieval.sources`).
"""

from __future__ import annotations

import copy
import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from mmd.artifacts import fingerprint
from mmd.base import Settings
from mmd.errors import ConfigError, ModelError
from mmd.models.lora import quiet_peft
from mmd.models.resolve import LOCAL, resolve
from mmd.models.settings import ModelSettings
from mmd.retrieval.settings import TowerSettings

FEATURES = "features"
_WEIGHT_FILES = ("config.json", "tokenizer.json", "preprocessor_config.json", "*.safetensors", "pytorch_model*.bin")


class BaseRef(Settings):
    """A model by name, and the fingerprint of its files: weights of the same name may differ elsewhere."""

    name: str
    sha256: str


class BaseModels:
    """The models of a retriever's towers.

    Args:
        text: folder of the text model; None: texts are vectors.
        vision: folder of the vision model; None: pictures are vectors, or not looked at.
        text_ref: what the spec records of it.
        vision_ref: the same.
        weights: whether the folders hold weights; False: the shape alone, to be filled from an artefact.
    """

    def __init__(
        self,
        text: Path | None,
        vision: Path | None,
        text_ref: BaseRef | None,
        vision_ref: BaseRef | None,
        *,
        weights: bool = True,
    ) -> None:
        self.text_folder, self.vision_folder = text, vision
        self.text, self.vision = text_ref, vision_ref
        self._weights = weights

    def text_module(self, settings: TowerSettings) -> Any:  # noqa: ANN401 (a torch module)
        """Return a text model for one encoder: a copy, or LoRA on shared weights.

        Raises:
            ConfigError: texts may have more tokens than the model has positions for.
        """
        self._check_lengths(settings)
        if settings.train_text == "lora":
            return _with_lora(_view(self._text_model), settings.lora_rank)
        return copy.deepcopy(self._text_model)

    def _check_lengths(self, settings: TowerSettings) -> None:
        positions = getattr(self._text_model.config, "max_position_embeddings", None)
        wanted = max(settings.context_tokens, settings.response_tokens)
        if positions is not None and wanted > positions:
            raise ConfigError(
                f"retrieval.towers: context_tokens={settings.context_tokens}, response_tokens="
                f"{settings.response_tokens}, but {settings.text} reads {positions} tokens; set them to that at most."
            )

    def vision_module(self) -> Any:  # noqa: ANN401 (a torch module)
        """Return a vision model for one encoder."""
        return copy.deepcopy(self._vision_model)

    @cached_property
    def _text_model(self) -> Any:  # noqa: ANN401 (a torch module)
        return load_text(self.text_folder, weights=self._weights)

    @cached_property
    def _vision_model(self) -> Any:  # noqa: ANN401 (a torch module)
        return load_vision(self.vision_folder, weights=self._weights)


def load_bases(towers: TowerSettings, models: ModelSettings | None = None) -> BaseModels:
    """Find the models that towers train.

    Raises:
        ModelError: a name does not resolve to a folder.
    """
    text = towers.text if trains_text(towers) else None
    vision = towers.vision if trains_vision(towers) else None
    folders = [None if name is None else model_folder(name, models) for name in (text, vision)]
    refs = [
        None if name is None or folder is None else BaseRef(name=name, sha256=folder_hash(folder))
        for name, folder in zip((text, vision), folders, strict=True)
    ]
    return BaseModels(folders[0], folders[1], refs[0], refs[1])


def trains_text(towers: TowerSettings) -> bool:
    """Say whether the towers hold a text model of their own."""
    return towers.text != FEATURES and towers.train_text != "frozen"


def trains_vision(towers: TowerSettings) -> bool:
    """Say whether the towers hold a vision model of their own."""
    return towers.vision not in (FEATURES, "none") and towers.train_vision != "frozen"


def model_folder(name: str, models: ModelSettings | None = None) -> Path:
    """Return the folder of an encoder in Hugging Face's layout.

    Raises:
        ModelError: not installed, or of another format.
    """
    weights = resolve(name, models)
    if weights.format == "hub":
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(weights.repository or name, revision=weights.revision))
    if weights.format != "folder" or weights.path is None:
        raise ModelError(
            f"retrieval.towers: {name!r} is a {weights.format} file, not an encoder in Hugging Face's layout; take "
            "minilm-l6-v2, tiny-bert, tiny-vit, or the folder of a text or vision model."
        )
    return weights.path


def folder_hash(folder: Path) -> str:
    """Return the fingerprint of a model's shape, weights and tokenizer."""
    files = sorted({path for pattern in _WEIGHT_FILES for path in folder.glob(pattern)})
    digests = {}
    for path in files:
        with path.open("rb") as handle:
            digests[path.name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return fingerprint(digests)


def load_text(folder: Path | None, *, weights: bool = True) -> Any:  # noqa: ANN401 (a torch module)
    """Load a text model without its own pooling: towers pool states, and unused weights would be counted and decayed.

    Raises:
        ModelError: the folder holds no encoder that transformers loads.
    """
    model = _load(folder, weights)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def load_vision(folder: Path | None, *, weights: bool = True) -> Any:  # noqa: ANN401 (a torch module)
    """Load a vision model; of one that reads texts too (SigLIP, CLIP), its vision half.

    Raises:
        ModelError: the folder holds no encoder that transformers loads.
    """
    model = _load(folder, weights)
    return getattr(model, "vision_model", model)


def _load(folder: Path | None, weights: bool) -> Any:  # noqa: ANN401, FBT001 (a torch module; private)
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    if folder is None:
        raise ModelError("retrieval.towers: no base model was loaded; load them with mmd.retrieval.bases.load_bases.")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        if not weights:
            config = AutoConfig.from_pretrained(str(folder), **LOCAL)
            return AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        return AutoModel.from_pretrained(str(folder), **LOCAL, use_safetensors=True, dtype=torch.float32).train()
    except (OSError, ValueError, KeyError, TypeError, ImportError) as err:
        raise ModelError(f"{folder}: transformers cannot load it as an encoder ({err}).") from err


def _view(model: Any) -> Any:  # noqa: ANN401 (a torch module)
    """Return modules of their own around the same tensors."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def _with_lora(model: Any, rank: int) -> Any:  # noqa: ANN401 (a torch module)
    """Freeze a model and put low-rank updates beside the linear layers of its stack."""
    from peft import LoraConfig, get_peft_model

    targets = _stacked_linears(model)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets)
    with quiet_peft():
        return get_peft_model(model, config)


def _stacked_linears(model: Any) -> list[str]:  # noqa: ANN401 (a torch module)
    from torch import nn

    stacks = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(name.startswith(f"{stack}.") for stack in stacks)
    ]
    if not found:
        raise ModelError(
            f"architecture {model.config.model_type!r}: found no stacked layers to adapt; set "
            "retrieval.towers.train_text=full."
        )
    return found
