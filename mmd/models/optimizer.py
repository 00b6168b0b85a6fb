"""AdamW, and its state as plain tensors that safetensors can keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

_MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(
    parameters: Iterable[torch.nn.Parameter], rate: float, weight_decay: float, *, fused: bool = False
) -> torch.optim.AdamW:
    """Return AdamW over these weights; only matrices decay. Source: Loshchilov & Hutter 2019.

    Args:
        parameters: what is trained.
        rate: learning rate until :func:`set_rate` says otherwise.
        weight_decay: decoupled.
        fused: one kernel a weight instead of a dozen; the same up to rounding.
    """
    import torch

    own = list(parameters)
    groups = [
        {"params": [p for p in own if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in own if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, fused=fused)


def set_rate(optimizer: Any, rate: float) -> None:  # noqa: ANN401 (torch's, or DeepSpeed's wrapper)
    """Set the learning rate of all weights."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimized(optimizer: Any) -> list[Any]:  # noqa: ANN401 (as above)
    """Return the weights that an optimizer updates, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def state_tensors(optimizer: Any, of: Sequence[Any], *, masters: bool = False) -> Tensors:  # noqa: ANN401 (as above)
    """Return moments, step counts and, on demand, the updated tensors themselves, by their place in the optimizer."""
    import torch

    out: Tensors = {}
    for index, parameter in enumerate(of):
        state = optimizer.state.get(parameter, {})
        for name in (*_MOMENTS, "step"):
            if name in state:
                out[f"{index}.{name}"] = torch.as_tensor(state[name], dtype=torch.float32).detach().cpu().clone()
        if masters:
            out[f"{index}.master"] = parameter.detach().cpu().clone()
    return out


def restore_state(
    optimizer: Any,  # noqa: ANN401 (as above)
    of: Sequence[Any],
    tensors: Tensors,
    *,
    masters: bool = False,
) -> None:
    """Invert :func:`state_tensors`."""
    import torch

    fused = bool(optimizer.defaults.get("fused"))
    for index, parameter in enumerate(of):
        if masters:
            with torch.no_grad():
                parameter.copy_(tensors[f"{index}.master"])
        if f"{index}.step" in tensors:
            step = tensors[f"{index}.step"].clone()  # AdamW counts on the CPU, unless its kernels do
            optimizer.state[parameter] = {
                "step": step.to(parameter.device) if fused else step,
                **{name: tensors[f"{index}.{name}"].to(parameter.device) for name in _MOMENTS},
            }
