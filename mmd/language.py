"""English or Chinese, told by the script: Chinese where there is a Chinese character."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["en", "zh"]
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Chinese characters, for a regular expression's brackets."""
_HAN = re.compile(f"[{HAN}]")


def written_in(text: str) -> Language:
    """Return the language of a text."""
    return "zh" if _HAN.search(text) else "en"
