"""English or Chinese: what the customer speaks is what the words of a reply should be in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from mmd.schema import Turn

Language = Literal["en", "zh"]
_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


def written_in(text: str) -> Language:
    """Return the language of a text: Chinese where it has a Chinese character, else what is written in letters."""
    return "zh" if _CHINESE.search(text) else "en"


def language_of(turns: Sequence[Turn]) -> Language | None:
    """Return the language of the customer's last words; None where there are none."""
    said = [turn.text for turn in turns if turn.speaker == "user" and turn.text.strip()]
    return written_in(said[-1]) if said else None
