"""OCR of three real pictures against the lines that came with them. Nothing of the data is kept here."""

from __future__ import annotations

import difflib
import json
from itertools import islice
from pathlib import Path

import pytest

from mmd.features.ocr import RapidOcr, rapidocr_installed

_READABLE_CHARACTERS = 60


@pytest.mark.real_data
@pytest.mark.skipif(not rapidocr_installed(), reason="rapidocr is not installed")
def test_own_lines_are_comparable_with_the_given_ones(real_data: Path):
    """At least 0.9 of the text agrees on training pictures that have some text."""
    folder = real_data / "taobao"
    named = {file for record in json.loads((folder / "train.json").read_text()) for file in record["image"]}
    given = (json.loads(line) for line in (folder / "ocr.jsonl").read_text().splitlines())
    texts = {g["image"]: "".join(line["text"] for line in g["lines"]) for g in given if g["image"] in named}
    chosen = dict(islice(((i, t) for i, t in sorted(texts.items()) if len(t) >= _READABLE_CHARACTERS), 3))
    own = RapidOcr().recognise([(folder / "images" / file).read_bytes() for file in chosen])
    for lines, expected in zip(own, chosen.values(), strict=True):
        text = "".join(line.text for line in lines)
        assert difflib.SequenceMatcher(None, text, expected, autojunk=False).ratio() > 0.9
