"""Where a model runs, and in which arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmd.errors import ModelError

if TYPE_CHECKING:
    import torch

    from mmd.models.settings import ModelSettings


def choose_device(settings: ModelSettings) -> torch.device:
    """Return the device of ``models.device``; ``auto`` takes a GPU where there is one.

    Raises:
        ModelError: ``cuda`` is asked for, and torch sees none.
    """
    import torch

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("models.device=cuda: torch sees no CUDA device here; set models.device=auto or cpu.")
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def choose_dtype(settings: ModelSettings, device: torch.device, *, small: bool = False) -> torch.dtype:
    """Return the arithmetic of ``models.dtype``; ``auto`` takes bfloat16 where the device computes in it natively.

    On CPUs that means AMX tiles: without them bfloat16 products are slower than float32 ones. Small models stay in
    float32: the cost of a call bounds them, and results are compared on them digit by digit.
    """
    import torch

    if settings.dtype != "auto":
        return torch.float32 if settings.dtype == "float32" else torch.bfloat16
    if small:
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_amx()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_amx() -> bool:
    import torch

    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private in torch 2.13, and the only way to ask
    return bool(ask and ask())
