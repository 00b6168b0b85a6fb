"""Training samples of an intent model: self-contained rows, original and augmented, stored as Parquet shards.

A row holds its pictures' bytes beside the words, as training shards usually do: a loader streams rows in a stable
order and joins nothing. Folds come from :func:`mmd.intent.folds.assign_folds` of the originals, so that what is held
out here is held out for rules and probe, too; an augmented sample is in its parent's fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmd import schema
from mmd.artifacts import Artifact
from mmd.intent.types import ImageFacts, IntentExample

FOLDER = "samples"
ORIGINAL = "original"
_PICTURE = pa.struct(
    [
        ("id", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("data", pa.binary()),
        ("ocr", pa.list_(schema.OCR_LINE)),
    ]
)
SAMPLES = pa.schema(
    [
        ("id", pa.string()),
        ("parent_id", pa.string()),
        ("made_by", pa.string()),
        ("task", pa.string()),
        ("label", pa.string()),
        ("fold", pa.int32()),
        ("hint", pa.string()),
        ("turns", schema.DIALOGUES.field("turns").type),
        ("pictures", pa.list_(_PICTURE)),
    ],
    metadata={"mmd.schema_version": str(schema.SCHEMA_VERSION)},
)


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes:
        id: unique in its artefact; an original's is its dialogue's id (a task's samples are told apart by ``task``).
        parent_id: id of the original that it was made from; its own for an original.
        made_by: ``original``, or the augmentation method.
        fold: the original's fold.
        hint: held-out fired rules in words (:mod:`mmd.intent.hints`), found and judged without its parent.
        example: words, pictures with their bytes, task and label.
    """

    id: str
    parent_id: str
    made_by: str
    fold: int
    hint: str
    example: IntentExample


def sample_to_row(sample: Sample) -> dict[str, Any]:
    """Return the row that :func:`sample_from_row` reads back; vectors and items are not kept.

    Raises:
        ValueError: the example has no label, or a picture no bytes.
    """
    example = sample.example
    if example.label is None or any(image.data is None for image in example.images):
        raise ValueError(f"sample {sample.id}: needs a label and its pictures' bytes")
    dialogue = schema.Dialogue(example.dialogue_id, "", "train", example.turns, {}, {})
    return {
        "id": sample.id,
        "parent_id": sample.parent_id,
        "made_by": sample.made_by,
        "task": example.task,
        "label": example.label,
        "fold": sample.fold,
        "hint": sample.hint,
        "turns": schema.dialogue_to_row(dialogue)["turns"],
        "pictures": [
            {
                "id": image.image_id,
                "width": image.width,
                "height": image.height,
                "data": image.data,
                "ocr": schema.ocr_to_row(image.ocr),
            }
            for image in example.images
        ],
    }


def sample_from_row(row: Mapping[str, Any]) -> Sample:
    """Invert :func:`sample_to_row`."""
    dialogue = schema.dialogue_from_row(
        {"id": row["parent_id"], "source": "", "split": "train", "turns": row["turns"], "labels": [], "meta": []}
    )
    images = tuple(
        ImageFacts(
            image_id=picture["id"],
            width=picture["width"],
            height=picture["height"],
            ocr=schema.ocr_from_row(picture["ocr"]),
            data=picture["data"],
        )
        for picture in row["pictures"]
    )
    example = IntentExample(row["parent_id"], row["task"], row["label"], dialogue.turns, images)
    return Sample(row["id"], row["parent_id"], row["made_by"], row["fold"], row["hint"], example)


class Samples:
    """The samples that ``augment`` wrote.

    Args:
        artifact: of kind ``samples``.

    Raises:
        ArtifactError: the artefact is of another kind.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact.of_kind("samples", "open samples/NAME, made by `mmd augment`.")

    def shards(self) -> list[str]:
        """Return the URIs of the Parquet shards, in order."""
        return [self.artifact.path(shard) for shard in self.artifact.shards(FOLDER)]

    @property
    def row_bytes(self) -> float:
        """Mean stored size of a sample, bytes; 0 for none. Pictures are most of it, and compressed already."""
        files = self.artifact.manifest.files
        rows = self.index().num_rows
        return sum(files[shard].bytes for shard in self.artifact.shards(FOLDER)) / rows if rows else 0.0

    def index(self) -> pa.Table:
        """Return id, parent_id, made_by, task, label and fold of every sample, in stored order."""
        columns = ["id", "parent_id", "made_by", "task", "label", "fold"]
        return self.artifact.read_table(FOLDER, SAMPLES, columns)

    def read(self) -> Iterator[Sample]:
        """Yield every sample in stored order, a few rows in memory."""
        for shard in self.artifact.shards(FOLDER):
            with self.artifact.fs.open(f"{self.artifact.root}/{shard}", "rb") as handle:
                for batch in pq.ParquetFile(handle).iter_batches(batch_size=64):
                    yield from map(sample_from_row, batch.to_pylist())
