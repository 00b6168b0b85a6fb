"""The featurize job on a small corpus of drawn pictures: equal to the plain call, cached, resumable."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from jobs import featurize
from jobs.glue.entry import JobContext
from mmd import schema
from mmd.artifacts import Artifact
from mmd.config import build_config
from mmd.errors import ArtifactError
from mmd.features.extract import build_extractors
from mmd.features.store import Features
from mmd.schema import Dialogue, OcrLine, Turn, dialogue_to_row, image_id, image_to_row, text_id

CHOSEN = {"ocr": "none", "vision": "descriptor", "text": "none", "batch_images": 3}
COLOURS = ("red", "orange", "gold", "green", "teal", "blue", "purple", "black")


def draw(colour: str) -> bytes:
    image = Image.new("RGB", (48, 48), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=colour)
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def context(store: Path, *, force: bool = False, **features: object) -> JobContext:
    values = {"store": str(store), "data": {"corpus": {"name": "tiny"}}, "features": CHOSEN | features}
    return JobContext(build_config(values), force=force)


def write_corpus(job: JobContext, pictures: list[bytes], *, version: str = "v1") -> None:
    """Write a corpus artefact of one dialogue; every second picture has OCR given."""
    images = [
        schema.Image(image_id(data), "PNG", 48, 48, data, (OcrLine("GIVEN", 1.0, (0, 0, 9, 9)),) if n % 2 else None)
        for n, data in enumerate(pictures)
    ]
    turns = (Turn("user", "is this in stock?", tuple(i.id for i in images)), Turn("agent", "yes, it is"))
    dialogue = Dialogue("d1", "drawn", "train", turns)
    with job.store.write("corpus", "tiny", settings={}, version=version) as writer:
        writer.write_table("images", pa.Table.from_pylist([image_to_row(i) for i in images], schema.IMAGES), 5)
        writer.write_table("dialogues", pa.Table.from_pylist([dialogue_to_row(dialogue)], schema.DIALOGUES))
        writer.write_json("tasks.json", {})


def digest(artifact: Artifact) -> str:
    return artifact.manifest.digest


def test_without_a_corpus_it_says_what_to_run(tmp_path: Path):
    with pytest.raises(ArtifactError, match="mmd pipeline"):
        featurize.run(context(tmp_path))


@pytest.mark.ray
def test_the_job_equals_the_plain_call_and_computes_nothing_twice(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = context(tmp_path)
    pictures = [draw(c) for c in COLOURS]
    write_corpus(job, [*pictures[:5], b"no picture at all", *pictures[5:]])
    artifact = featurize.run(job)
    got = Features(artifact).image_vectors
    expected = build_extractors(job.config.features).vision
    assert expected is not None
    assert set(got) == {image_id(p) for p in pictures}
    for data in pictures:
        np.testing.assert_array_equal(got[image_id(data)], expected.encode([data])[0])
    metrics = artifact.manifest.metrics
    assert metrics["ocr_given"] == 4
    assert (metrics["vision_wanted"], metrics["vision_computed"], metrics["vision_errors"]) == (9, 9, 1)

    # A grown corpus: the new picture and the one that failed are computed, the rest comes from the cache.
    write_corpus(job, [*pictures[:5], b"no picture at all", *pictures[5:], draw("pink")], version="v2")
    grown = featurize.run(job)
    assert (grown.manifest.metrics["vision_cached"], grown.manifest.metrics["vision_computed"]) == (8, 2)

    # Without the bad picture nothing is left to compute: no batch reaches an actor.
    write_corpus(job, pictures, version="v3")
    monkeypatch.setattr(featurize.Featurize, "_compute", lambda *_: pytest.fail("computed again"))
    again = featurize.run(job)
    assert again.manifest.metrics["vision_computed"] == 0
    assert featurize.run(job).manifest.created_unix_s == again.manifest.created_unix_s  # skipped outright


@pytest.mark.ray
def test_the_artefact_is_the_same_bytes_whatever_the_batches(ray_local: None, tmp_path: Path):
    """Two stores, other batch sizes and pools: equal digests."""
    digests = set()
    for name, batch, actors in (("one", 1, 1), ("many", 64, 2)):
        job = context(tmp_path / name, batch_images=batch, actors_max=actors, text="auto", batch_texts=1)
        write_corpus(job, [draw(c) for c in COLOURS])
        artifact = featurize.run(job)
        digests.add(digest(artifact))
        if artifact.has("text_vectors"):
            assert set(Features(artifact).text_vectors) == {text_id("is this in stock?"), text_id("yes, it is")}
    assert len(digests) == 1
