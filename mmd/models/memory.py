"""Whether a model fits, asked before it is loaded: a process that grows beyond its memory is killed without a word."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from mmd.errors import ModelError

if TYPE_CHECKING:
    import torch

_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")


def require_memory(name: str, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Raise unless a folder's weights fit into what is free on a device; a folder without safetensors passes.

    Args:
        name: the model's name, for the message.
        folder: in Hugging Face's layout.
        dtype: the arithmetic that weights are converted to.
        device: where they go.

    Raises:
        ModelError: they do not fit; the message has both sizes and what to change.
    """
    needed, free = count_weights(folder) * dtype.itemsize, free_bytes(device)
    if needed > free:
        smaller = "" if dtype.itemsize <= 2 else " models.dtype=bfloat16 halves it."
        raise ModelError(
            f"model {name!r}: its weights need {needed / _GIB:.1f} GiB on {device.type} and {free / _GIB:.1f} GiB are "
            f"free; choose a smaller model (models.mllm), free memory, or use a larger machine.{smaller}"
        )


def count_weights(folder: Path) -> int:
    """Return how many numbers the safetensors files of a folder hold, by their headers."""
    return sum(_count(path) for path in folder.glob("*.safetensors"))


def _count(path: Path) -> int:
    """Read a safetensors header: its length as 8 bytes, then JSON of name → {dtype, shape, data_offsets}."""
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        try:
            header = json.loads(handle.read(length))
        except (ValueError, OverflowError, MemoryError) as err:
            raise ModelError(f"{path}: not a safetensors file ({type(err).__name__}); fetch the model again.") from err
    return sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process may still take on a device."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    import psutil

    return min((int(psutil.virtual_memory().available), *_container_free(_CGROUP)))


def _container_free(cgroup: Path) -> tuple[int, ...]:
    """Return what a container's limit (cgroup v2) leaves, file cache that can be dropped counted as free."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        stat = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return ()
    cache = next((int(line.split()[1]) for line in stat if line.startswith("inactive_file ")), 0)
    return () if limit == "max" else (int(limit) - used + cache,)
