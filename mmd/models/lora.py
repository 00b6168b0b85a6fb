"""Low-rank adaptation (Hu et al. 2021) by PEFT: where it goes, how it is saved, how it is loaded again.

An adapter folder is PEFT's own, so that ``PeftModel.from_pretrained(base, folder)`` reads it without mmd.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mmd.errors import ModelError
from mmd.models.mllm import Mllm, load_mllm
from mmd.models.settings import ModelSettings

if TYPE_CHECKING:
    import torch

Method = Literal["lora", "full"]
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


class LoraOptions(Protocol):
    """Rank, scale, dropout and, if not found, target layers: ``mmd.intent.settings.LoraSettings``."""

    @property
    def rank(self) -> int:
        """Rank of the update."""
        ...

    @property
    def alpha(self) -> float:
        """Scale of the update: alpha / rank."""
        ...

    @property
    def dropout(self) -> float:
        """Dropout before the update."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the adapted layers; empty: found in the architecture."""
        ...


def lora_targets(model: Any) -> tuple[str, ...]:  # noqa: ANN401 (duck-typed library object)
    """Return the full names of the layers that LoRA adapts by default.

    These are the linear projections (attention and MLP) of every layer of the language model; not the vision tower,
    nor the projector between them, nor the head.

    Args:
        model: a transformers model.

    Raises:
        ModelError: the model has no language model of stacked layers.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    decoder = model.get_decoder()
    names = {id(module): name for name, module in model.named_modules()}
    layers = getattr(decoder, "layers", None)
    layers = getattr(decoder, "h", None) if layers is None else layers  # GPT-2's name for them
    if layers is None or id(layers) not in names:
        raise ModelError(
            f"architecture {model.config.model_type!r}: found no stacked layers to adapt; name them in "
            "intent.finetune.lora.targets."
        )
    prefix = names[id(layers)]
    return tuple(
        f"{prefix}.{name}" for name, module in layers.named_modules() if isinstance(module, nn.Linear | Conv1D)
    )


def add_lora(mllm: Mllm, settings: LoraOptions, seed: int) -> None:
    """Freeze the model and put trainable low-rank updates beside its target layers; ``mllm.model`` becomes PEFT's.

    The updates start at zero effect; their random half is drawn from ``seed``, leaving torch's own generator as it was.

    Raises:
        ModelError: no layer has a name that ``settings.targets`` gives.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    targets = list(settings.targets) or list(lora_targets(mllm.model))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            with quiet_peft():
                mllm.model = get_peft_model(mllm.model, config)
        except ValueError as err:
            raise ModelError(
                f"model {mllm.name!r}: intent.finetune.lora.targets {targets}: {err}; leave it empty to adapt "
                "attention and MLP projections."
            ) from err
    # A machine's path of the base would tell another machine nothing; the name can be resolved there.
    mllm.model.peft_config["default"].base_model_name_or_path = mllm.name


def save_trained(
    mllm: Mllm, folder: Path, method: Method, state_dict: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write what was trained.

    Args:
        mllm: the trained model.
        folder: made if missing: PEFT's adapter folder for ``lora``, a Hugging Face folder with tokenizer and processor
            for ``full``.
        method: what was trained.
        state_dict: weights to write instead of the model's own, under the names of ``mllm.model.state_dict()`` (as
            gathered from sharded workers).
    """
    from transformers.utils import logging

    folder.mkdir(parents=True, exist_ok=True)
    state = None if state_dict is None else dict(state_dict)
    if method == "full":
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        mllm.model.save_pretrained(folder, state_dict=state)
        (mllm.processor or mllm.tokenizer).save_pretrained(folder)
        return
    # PEFT would otherwise look the base up on a hub, to see whether its vocabulary has grown.
    mllm.model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    _sort_targets(folder / _ADAPTER_CONFIG)


def _sort_targets(path: Path) -> None:
    """Give the target layers an order: PEFT writes a set, and equal adapters shall be equal files."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_trained(
    base: str | Mllm, folders: Mapping[str, Path], settings: ModelSettings | None = None
) -> dict[str, Mllm]:
    """Load what :func:`save_trained` wrote.

    Args:
        base: the base model or its name; it is loaded only if one of the folders is an adapter.
        folders: by adapter name (one a task, say).
        settings: as for :func:`~mmd.models.mllm.load_mllm`.

    Returns:
        A model by adapter name. Adapters share one model: call ``mllm.use(name)`` before each use. A full model is
        one of its own.

    Raises:
        ModelError: the base is missing, or a folder is neither an adapter nor a model.
    """
    adapters = {name: folder for name, folder in folders.items() if (folder / _ADAPTER_CONFIG).is_file()}
    loaded = {name: load_mllm(str(folder), settings) for name, folder in folders.items() if name not in adapters}
    if adapters:
        mllm = load_mllm(base, settings) if isinstance(base, str) else base
        for name, folder in adapters.items():
            _attach(mllm, name, folder)
            loaded[name] = mllm
    return loaded


def _attach(mllm: Mllm, name: str, folder: Path) -> None:
    from peft import PeftModel

    config = json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA" or not (folder / _ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder}: no LoRA adapter with {_ADAPTER_WEIGHTS}; make it with `mmd finetune_mllm`.")
    try:
        with quiet_peft():
            if hasattr(mllm.model, "peft_config"):
                mllm.model.load_adapter(str(folder), adapter_name=name)
            else:
                mllm.model = PeftModel.from_pretrained(mllm.model, str(folder), adapter_name=name)
    except (ValueError, RuntimeError, KeyError) as err:
        raise ModelError(f"{folder}: the adapter does not fit {mllm.name!r} ({err}); load the base it names.") from err
    mllm.model.eval()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hush PEFT 0.21 calling a property that transformers 5.23 has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
