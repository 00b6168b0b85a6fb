"""Reading a features artefact: lines and vectors by content hash, and which extractors made them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmd.artifacts import Artifact
from mmd.features.base import OCR_TABLE, VECTOR_TABLE
from mmd.features.extract import ROLES, TABLES, ExtractorInfo, Role
from mmd.schema import OcrLine, ocr_from_row

INFO_FILE = "features.json"


class Vectors(Mapping[str, NDArray[np.float32]]):
    """Vectors by id, all in one matrix.

    Args:
        table: of :data:`~mmd.features.base.VECTOR_TABLE`; rows with an error are left out.
    """

    def __init__(self, table: pa.Table) -> None:
        good = table.filter(pc.is_valid(table["vector"])).combine_chunks()
        self._rows = {key: row for row, key in enumerate(good["id"].to_pylist())}
        flat = pc.list_flatten(good["vector"]).to_numpy() if good.num_rows else np.empty(0)
        self.matrix: NDArray[np.float32] = np.asarray(flat, dtype=np.float32).reshape(
            len(self._rows), -1 if self._rows else 0
        )
        """Shape (n_ids, dim), rows in the order of iteration."""

    def __getitem__(self, key: str) -> NDArray[np.float32]:
        """Return the vector of an id, shape (dim,)."""
        vector: NDArray[np.float32] = self.matrix[self._rows[key]]
        return vector

    def __iter__(self) -> Iterator[str]:
        """Iterate over ids in stored order."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Return how many ids there are."""
        return len(self._rows)


def ocr_lines(table: pa.Table) -> dict[str, tuple[OcrLine, ...]]:
    """Return image id → lines of an OCR table, rows with an error left out."""
    return {row["image_id"]: ocr_from_row(row["lines"]) for row in table.to_pylist() if row["lines"] is not None}


class Features:
    """Features that ``featurize`` wrote.

    Args:
        artifact: of kind ``features``.

    Raises:
        ArtifactError: the artefact is of another kind.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact.of_kind("features", "open features/NAME, which `mmd featurize` writes.")

    @cached_property
    def extractors(self) -> dict[str, ExtractorInfo | None]:
        """Role → name and dimension, as :meth:`~mmd.features.extract.Extractors.describe` gave them."""
        stored = self.artifact.read_json(INFO_FILE)["extractors"]
        return {role: ExtractorInfo(**stored[role]) if stored[role] else None for role in ROLES}

    @cached_property
    def ocr(self) -> Mapping[str, tuple[OcrLine, ...]]:
        """Image id → lines, for pictures that came without OCR."""
        return ocr_lines(self.artifact.read_table(TABLES["ocr"], OCR_TABLE))

    @cached_property
    def image_vectors(self) -> Vectors:
        """Image id → vector."""
        return self._vectors("vision")

    @cached_property
    def text_vectors(self) -> Vectors:
        """Text id (:func:`mmd.schema.text_id`) → vector."""
        return self._vectors("text")

    def _vectors(self, role: Role) -> Vectors:
        return Vectors(self.artifact.read_table(TABLES[role], VECTOR_TABLE))
