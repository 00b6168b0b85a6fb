"""A copy of a structure on GPUs, where FAISS has some and the structure can live there.

The structure in memory stays the one that is added to, saved and scored with; the copy only searches, and is made anew
after vectors were added. GPUs know no selectors: what was deleted is fetched too and passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mmd.retrieval.structures import Slots, StructureKind, Vectors

MAX_K = 2048
"""FAISS's limit for a search on GPUs."""
_ON_GPU = frozenset({"flat", "ivf_flat", "sq8", "ivf_pq"})


def gpus() -> int:
    """Return how many GPUs FAISS can search on: none with faiss-cpu."""
    import faiss

    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def copy_to_gpus(index: Any) -> Any:  # noqa: ANN401 (faiss is untyped)
    """Return the structure's copy, replicated on all GPUs; queries are shared out among them."""
    import faiss

    return faiss.index_cpu_to_all_gpus(index)


class GpuCopy:
    """Searches a copy of a structure.

    Args:
        kind: of the structure.
        make: structure → copy.
    """

    def __init__(self, kind: StructureKind, make: Callable[[Any], Any] = copy_to_gpus) -> None:
        self._kind = kind
        self._make = make
        self._copy: Any = None
        self._refused = kind not in _ON_GPU

    def search(
        self,
        index: Any,  # noqa: ANN401 (faiss is untyped)
        queries: Vectors,
        k: int,
        effort: int,
        living: npt.NDArray[np.bool_] | None,
    ) -> tuple[Vectors, Slots] | None:
        """Search; arguments and result as of :func:`mmd.retrieval.structures.search`.

        Returns:
            None where the copy cannot answer: more than it gives at once, or no room on the GPU. The structure can.
        """
        fetch = k if living is None else k + int(np.count_nonzero(~living))
        if self._refused or fetch > MAX_K:
            return None
        try:
            scores, slots = self._ask(index, queries, min(fetch, index.ntotal), effort)
        except RuntimeError:  # no memory there, or a size that GPUs do not take
            self._copy, self._refused = None, True
            return None
        return (scores, slots) if living is None else _without_dead(scores, slots, living, k)

    def _ask(
        self,
        index: Any,  # noqa: ANN401 (faiss is untyped)
        queries: Vectors,
        k: int,
        effort: int,
    ) -> tuple[Vectors, Slots]:
        import faiss

        if self._copy is None or self._copy.ntotal != index.ntotal:
            self._copy = self._make(index)
        if self._kind != "flat":
            space = faiss.GpuParameterSpace() if gpus() else faiss.ParameterSpace()
            space.set_index_parameter(self._copy, "nprobe", effort or index.nlist)
        return cast("tuple[Vectors, Slots]", self._copy.search(queries, k))


def _without_dead(scores: Vectors, slots: Slots, living: npt.NDArray[np.bool_], k: int) -> tuple[Vectors, Slots]:
    """Return the first ``k`` of each row that live, slot −1 where there are fewer."""
    dead = (slots < 0) | ~living[np.maximum(slots, 0)]
    order = np.argsort(dead, axis=1, kind="stable")[:, :k]
    kept = np.where(np.take_along_axis(dead, order, 1), -1, np.take_along_axis(slots, order, 1))
    return np.take_along_axis(scores, order, 1), kept
