"""Phrases that frame a message, by language, and which language a dialogue is in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from mmd.language import Language, written_in
from mmd.schema import Turn


@lru_cache(maxsize=2)
def phrases(language: Language) -> Mapping[str, Any]:
    """Read the phrases of a language: name → list of phrases (pairs for ``variants``)."""
    file = resources.files(__package__).joinpath("phrases", f"{language}.yaml")
    loaded: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded


def language_of(turns: Iterable[Turn]) -> Language:
    """Return the language of a dialogue by its script: ``zh`` where anybody writes Chinese characters."""
    return written_in(" ".join(turn.text for turn in turns))
