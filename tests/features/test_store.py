"""A features artefact read back: what went in comes out, failed rows stay out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmd.artifacts import ArtifactStore
from mmd.errors import ArtifactError
from mmd.features.base import OCR_TABLE, VECTOR_TABLE
from mmd.features.extract import ExtractorInfo
from mmd.features.store import INFO_FILE, Features, Vectors
from mmd.schema import OcrLine, ocr_to_row


def test_lines_vectors_and_names_come_back(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    line = OcrLine("SALE", 0.5, (1.0, 2.0, 3.0, 4.0))
    lines = [
        {"image_id": "a", "lines": ocr_to_row((line,)), "error": ""},
        {"image_id": "b", "lines": [], "error": ""},
        {"image_id": "c", "lines": None, "error": "ValueError: broken"},
    ]
    vectors = [{"id": "a", "vector": [0.6, 0.8], "error": ""}, {"id": "c", "vector": None, "error": "broken"}]
    extractors = {"ocr": {"name": "o", "dim": 0}, "vision": {"name": "v", "dim": 2}, "text": None}
    with store.write("features", "tiny", settings={}) as writer:
        writer.write_json(INFO_FILE, {"extractors": extractors})
        writer.write_table("ocr", pa.Table.from_pylist(lines, OCR_TABLE))
        writer.write_table("image_vectors", pa.Table.from_pylist(vectors, VECTOR_TABLE))
    features = Features(store.open("features/tiny"))
    assert features.ocr == {"a": (line,), "b": ()}
    assert list(features.image_vectors) == ["a"]
    np.testing.assert_array_equal(features.image_vectors["a"], np.array([0.6, 0.8], dtype=np.float32))
    assert features.image_vectors.get("c") is None
    assert dict(features.text_vectors) == {}
    assert features.extractors == {"ocr": ExtractorInfo("o", 0), "vision": ExtractorInfo("v", 2), "text": None}


def test_vectors_keep_their_rows_when_one_in_the_middle_failed():
    rows = [("a", [1.0, 2.0]), ("b", None), ("c", [3.0, 4.0])]
    table = pa.Table.from_pylist([{"id": i, "vector": v, "error": ""} for i, v in rows], VECTOR_TABLE)
    vectors = Vectors(pa.concat_tables([table.slice(0, 1), table.slice(1)]))
    assert vectors.matrix.tolist() == [[1, 2], [3, 4]]
    assert vectors["c"].tolist() == [3, 4]
    with pytest.raises(KeyError):
        vectors["b"]


def test_another_kind_of_artefact_is_refused(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    with store.write("report", "tiny", settings={}) as writer:
        writer.write_json("a.json", {})
    with pytest.raises(ArtifactError, match="mmd featurize"):
        Features(store.open("report/tiny"))
