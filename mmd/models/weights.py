"""The weights of a module that training changes, as plain tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmd.errors import ModelError

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]


def trained(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return name → parameter of everything that is trained, in the module's order; tied weights come once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def trained_copies(module: torch.nn.Module) -> Tensors:
    """Return copies of the trained weights on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in trained(module).items()}


def put_trained(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Put trained weights back.

    Args:
        module: of the shape that the weights were copied from.
        tensors: name → weights.
        what: is trained, for the message.

    Raises:
        ModelError: they are another module's.
    """
    import torch

    own = trained(module)
    odd = own.keys() ^ tensors.keys() or {name for name, p in own.items() if p.shape != tensors[name].shape}
    if odd:
        raise ModelError(f"{what}: a checkpoint with other weights ({min(odd)}); remove the run's folder.")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
