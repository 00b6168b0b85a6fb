"""Training samples on disk: self-contained, in order, pictures' bytes untouched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from mmd.artifacts import ArtifactStore
from mmd.errors import ArtifactError
from mmd.intent.samples import FOLDER, SAMPLES, Sample, Samples, sample_from_row, sample_to_row
from mmd.intent.types import ImageFacts, IntentExample
from mmd.schema import OcrLine, Turn

# Bytes that end in NUL: arrays of fixed width would strip it.
PICTURE = ImageFacts("p", 4, 6, (OcrLine("42", 0.5, (0.0, 1.0, 2.0, 3.0)),), data=b"\x89PNG\x00\x00")


def make_sample(name: str = "d1#1") -> Sample:
    turns = (Turn("user", "多少钱", ("p",), ("i",)), Turn("agent", "42"))
    return Sample(name, "d1", "frame+picture", 3, "a (1 of 2): b", IntentExample("d1", "t", "price", turns, (PICTURE,)))


def same(a: Sample, b: Sample) -> bool:
    return sample_to_row(a) == sample_to_row(b)


def test_a_sample_survives_the_disk(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    samples = [make_sample(f"d1#{i}") for i in range(5)]
    table = pa.Table.from_pylist([sample_to_row(s) for s in samples], SAMPLES)
    with store.write("samples", "tiny", settings={}) as writer:
        writer.write_table(FOLDER, table, rows_per_shard=2)
    read = Samples(store.open("samples/tiny"))
    assert len(read.shards()) == 3
    assert all(same(a, b) for a, b in zip(read.read(), samples, strict=True))
    (first, *_) = read.read()
    assert first.example.images[0].data == PICTURE.data
    assert first.example.images[0].ocr == PICTURE.ocr
    assert first.example.turns == samples[0].example.turns
    assert read.index().column("id").to_pylist() == [s.id for s in samples]


def test_a_copys_example_bears_its_parents_id():
    assert sample_from_row(sample_to_row(make_sample())).example.dialogue_id == "d1"


def test_a_sample_needs_label_and_bytes():
    sample = make_sample()
    unlabelled = replace(sample, example=replace(sample.example, label=None))
    unseen = replace(sample, example=replace(sample.example, images=(replace(PICTURE, data=None),)))
    for bad in (unlabelled, unseen):
        with pytest.raises(ValueError, match="needs a label and its pictures' bytes"):
            sample_to_row(bad)


def test_another_kind_of_artefact_is_refused(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    with store.write("corpus", "tiny", settings={}):
        pass
    with pytest.raises(ArtifactError, match="mmd augment"):
        Samples(store.open("corpus/tiny"))
