"""Extractors that several engines of a process use at once, as while one takes the place of another.

Loading the sentence encoder takes seconds of the interpreter's lock; an engine that comes with new rules or another
index reads texts and pictures as the old one does, and gets the extractor that is there.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

_there: weakref.WeakValueDictionary[Hashable, OneAtATime] = weakref.WeakValueDictionary()
_loading = threading.Lock()


class OneAtATime:
    """An extractor that is used by one thread at a time; its other attributes are its own.

    Args:
        extractor: of :mod:`mmd.features.base`.
    """

    def __init__(self, extractor: Any) -> None:  # noqa: ANN401 (an image or text encoder, or an OCR engine)
        self._extractor = extractor
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the extractor has)
        """Return what the extractor has under the name."""
        return getattr(self._extractor, name)

    def encode(self, inputs: Sequence[Any]) -> Any:  # noqa: ANN401 (the extractor's own type)
        """Encode as the extractor does."""
        with self._lock:
            return self._extractor.encode(inputs)

    def recognise(self, inputs: Sequence[bytes]) -> Any:  # noqa: ANN401 (the extractor's own type)
        """Read text as the extractor does."""
        with self._lock:
            return self._extractor.recognise(inputs)


def shared(key: Hashable, make: Callable[[], Any]) -> Any:  # noqa: ANN401 (None, or what is made)
    """Return what somebody holds under a key, or make it; nobody holds it here, so it goes with its last engine.

    Args:
        key: everything that ``make`` depends on.
        make: returns an extractor, or None where there is none, which is not kept.
    """
    with _loading:
        found = _there.get(key)
        if found is None and (made := make()) is not None:
            found = _there[key] = OneAtATime(made)
        return found
