"""Precomputed OCR that comes with a corpus: ``ocr.jsonl``, one line an image.

A line is ``{"image": name, "lines": [{"text", "score", "box": [x0, y0, x1, y1]}]}``; other keys are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import structlog

from mmd.corpora.json_records import JsonNode, RecordFile, decode_record
from mmd.errors import BadRecordError
from mmd.schema import OcrLine

OCR_FILE = "ocr.jsonl"
log = structlog.get_logger()


def read_ocr(path: Path) -> Mapping[str, tuple[OcrLine, ...]]:
    """Return image name → recognised lines; empty when there is no such file.

    A line that cannot be used is logged and left out: its picture then gets OCR from ``featurize``.
    """
    if not path.is_file():
        return {}
    by_image: dict[str, tuple[OcrLine, ...]] = {}
    for cut in RecordFile(path, ("image",)).cuts():
        try:
            node = decode_record(cut.raw)
            by_image[node.field("image").text()] = tuple(_line(line) for line in node.field("lines").elements())
        except BadRecordError as err:
            log.warning("ocr_line_unusable", file=str(path), line=cut.position, why=str(err))
    return by_image


def _line(node: JsonNode) -> OcrLine:
    box = [_number(side) for side in node.field("box").elements()]
    if len(box) != 4:
        raise node.field("box").wrong_type("four numbers x0, y0, x1, y1")
    return OcrLine(node.field("text").text(), _number(node.field("score")), (box[0], box[1], box[2], box[3]))


def _number(node: JsonNode) -> float:
    if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
        raise node.wrong_type("a number")
    try:
        return float(node.value)
    except OverflowError as err:
        raise node.wrong_type("a number of ordinary size") from err
