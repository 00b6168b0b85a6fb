"""Base weights loaded once a process, however many adapters and versions of adapters are put on them.

A user of a base gets modules of its own around the same weight tensors: what it adds (an adapter's layers) and switches
(which adapter is active) touches nobody else, and goes with it. The weights go with their last user.
"""

from __future__ import annotations

import copy
import threading
import weakref
from pathlib import Path
from typing import Any

from mmd.models.mllm import Mllm, load_mllm
from mmd.models.resolve import resolve
from mmd.models.settings import ModelSettings

_lock = threading.Lock()
_loaded: weakref.WeakValueDictionary[tuple[Any, ...], Mllm] = weakref.WeakValueDictionary()


def shared_mllm(name: str, settings: ModelSettings | None = None) -> Mllm:
    """Return a model for inference whose weights are shared with every other user of the same base in this process.

    The same base is the same files, device and arithmetic. Nobody may change the weights in place (train, merge).

    Raises:
        ModelError: as :func:`~mmd.models.mllm.load_mllm`.
    """
    settings = settings or ModelSettings()
    with _lock:
        key = _key(name, settings)
        base = _loaded.get(key)
        if base is None:
            base = _loaded[key] = load_mllm(name, settings)
    return _view(base)


def _key(name: str, settings: ModelSettings) -> tuple[Any, ...]:
    weights = resolve(name, settings)
    found: tuple[Any, ...] = ()
    if weights.path is not None:
        files = sorted(weights.path.glob("*.safetensors")) if weights.path.is_dir() else [weights.path]
        found = tuple((str(path), *_stamp(path)) for path in files)
    return (name if weights.path is None else str(weights.path), found, settings.device, settings.dtype)


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and time of a file: other weights under the same name are another base."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _view(base: Mllm) -> Mllm:
    """Return a model with modules of its own around the base's tensors."""
    # deepcopy takes what its memo knows as copied already: every tensor stands for itself.
    memo = {id(tensor): tensor for tensor in (*base.model.parameters(), *base.model.buffers())}
    model = copy.deepcopy(base.model, memo)
    # The base stays known, for others to share, as long as one of its views lives.
    weakref.finalize(model, _let_go, base).atexit = False
    return Mllm(base.name, model, base.encoder)


def _let_go(_base: Mllm) -> None:
    """Do nothing: being registered with it is what held the base."""
