"""The pictures that responses show; an index brings them along, so that what answers needs no corpus."""

from __future__ import annotations

from collections.abc import Iterator

from mmd.artifacts import Artifact
from mmd.schema import IMAGES, Image

_COLUMNS = ["id", "format", "width", "height", "data"]


class ResponsePictures:
    """Encoded files by image id, in one Arrow table: their bytes and little more in memory.

    Args:
        artifact: an index; its ``images`` table has them.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._table = artifact.read_table("images", IMAGES, _COLUMNS)
        self._rows = {key: row for row, key in enumerate(self._table["id"].to_pylist())}

    def get(self, image_id: str) -> Image | None:
        """Return a picture, or None where there is no such one."""
        row = self._rows.get(image_id)
        if row is None:
            return None
        return Image(**{column: self._table[column][row].as_py() for column in _COLUMNS})

    def __contains__(self, image_id: object) -> bool:
        """Say whether a picture is there."""
        return image_id in self._rows

    def __iter__(self) -> Iterator[str]:
        """Yield the pictures' ids."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._rows)
