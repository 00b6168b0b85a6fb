"""The one normalisation of text that keywords, patterns and OCR lines are compared in."""

from __future__ import annotations

import re
import unicodedata

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a pair cannot be encoded, so no engine could search it


def normalise(text: str) -> str:
    """Return ``text`` in NFKC, case-folded, every run of whitespace as one space, without space at the ends.

    Full-width letters, ligatures and capitals thus compare equal to their plain small forms; a normalised
    text is one line. Normalising twice changes nothing.
    """
    if not text.isascii():
        folded = unicodedata.normalize("NFKC", text).casefold()
        text = unicodedata.normalize("NFKC", _SURROGATE.sub("\ufffd", folded))
    return " ".join(text.casefold().split())
