"""What training asks of the processes that share a step: gathered rows, summed gradients.

Rows and gradients travel in float32, in flat tensors: one call a matrix and one for all gradients together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


Floats = NDArray[np.float64]


class Workers(Protocol):
    """All processes of a training; every method is called by all of them together."""

    rank: int
    world: int

    def gather(self, own: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Return all workers' rows, in the order of ranks, without gradients.

        Args:
            own: this worker's, shape (rows[rank], …).
            rows: how many each worker has.

        Returns:
            Shape (sum of rows, …).
        """
        ...

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the workers; one that a worker lacks counts as 0."""
        ...

    def add_up(self, values: Floats) -> Floats:
        """Return the sum of all workers' arrays, all of one shape."""
        ...


class Alone:
    """One process."""

    rank, world = 0, 1

    def gather(self, own: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:  # noqa: ARG002 (the protocol's)
        """Return the rows themselves."""
        return own.detach()

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Leave the gradients as they are."""

    def add_up(self, values: Floats) -> Floats:
        """Return the values themselves."""
        return values


class ProcessGroup:
    """The processes of torch's default group, which is set up already (gloo on CPUs, NCCL on GPUs)."""

    def __init__(self) -> None:
        from torch import distributed

        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def gather(self, own: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Return all workers' rows; see :class:`Workers`.

        Each adds its rows to a matrix of zeros: unequal shares need no padding then, and 0 + x is exactly x.
        """
        import torch
        from torch import distributed

        start = sum(rows[: self.rank])
        joined = torch.zeros((sum(rows), *own.shape[1:]), dtype=own.dtype, device=own.device)
        joined[start : start + rows[self.rank]] = own.detach()
        distributed.all_reduce(joined)
        return joined

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum gradients over the workers; see :class:`Workers`.

        A weight that no worker has a gradient for stays without one, as in a single process: AdamW would otherwise
        decay it.
        """
        import torch
        from torch import distributed

        own = [p for p in parameters if p.requires_grad]
        if not own:
            return
        has = torch.tensor([float(p.grad is not None) for p in own], device=own[0].device)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in own] + [has])
        distributed.all_reduce(flat)
        held = flat[-len(own) :].tolist()
        start = 0
        for parameter, holders in zip(own, held, strict=True):
            part = flat[start : start + parameter.numel()]
            start += parameter.numel()
            if holders:
                parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def add_up(self, values: Floats) -> Floats:
        """Return the sum of all workers' arrays; see :class:`Workers`."""
        import torch
        from torch import distributed

        # NCCL adds up on GPUs alone.
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        tensor = torch.from_numpy(values).to(device, copy=True)
        distributed.all_reduce(tensor)
        out: Floats = tensor.cpu().numpy()
        return out
