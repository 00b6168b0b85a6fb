"""Turns phrase families into sentences: alternatives, slots, and the slips of people who type.

Every family keeps a sixth of its phrases for the test split, so that a model must generalise over wording.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from mmd.corpora.settings import Language
from mmd.schema import NO_STRINGS, Split

_HELD_OUT_EVERY = 6
_WEIGHTS = (100, 35, 19, 12, 9, 20, 7, 5, 4, 4, 3, 20)
"""How common the phrases of a family are, by place; about place ** -1.5, held-out ones (6th, 12th) commoner."""
_ALTERNATIVES = re.compile(r"\(([^()]*\|[^()]*)\)")
_SLOT = re.compile(r"\{(\w+)(?:\|(\w+))?\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")
_CASUAL_CHINESE = (("什么", "啥"), ("怎么", "咋"), ("吗", "嘛"), ("这个", "介个"), ("没有", "木有"))


@dataclass(frozen=True)
class Line:
    """A sentence; ``held_out`` says that its phrase never occurs in the training split."""

    text: str
    held_out: bool


@lru_cache(maxsize=2)
def phrases(language: Language) -> Mapping[str, Any]:
    """Read the phrase families of a language."""
    file = resources.files(__package__).joinpath("phrases", f"{language}.yaml")
    families: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return families


class Wording:
    """Chooses and fills phrases of one language for one split.

    Args:
        language: ``en`` or ``zh``.
        split: ``train`` leaves the held-out phrases alone.
        rng: source of every choice.
    """

    def __init__(self, language: Language, split: Split, rng: random.Random) -> None:
        self.language = language
        self._split = split
        self._rng = rng
        self._families = phrases(language)

    def ask(self, section: str, family: str, slots: Mapping[str, str]) -> Line:
        """Return a customer's sentence from a family of ``ask`` or ``point``; held-out phrases only in ``test``.

        Earlier phrases are commoner, as some ways to ask are.
        """
        lines: list[str] = self._families[section][family]
        numbers = [n for n in range(len(lines)) if self._split == "test" or not _held_out(n)]
        number = self._rng.choices(numbers, [_weight(n) for n in numbers])[0]
        return Line(self._fill(lines[number], slots), _held_out(number))

    def say(self, family: str, slots: Mapping[str, str] = NO_STRINGS, *, section: str = "") -> str:
        """Return a sentence of a family that both splits share: greetings, answers, names."""
        lines: list[str] = self._families[section][family] if section else self._families[family]
        return self._fill(self._rng.choice(lines), slots)

    def fact(self, section: str, name: str) -> str:
        """Return a sentence that is looked up, not chosen: how to use a category, how to care for a material."""
        sentence: str = self._families[section][name]
        return sentence

    def _fill(self, line: str, slots: Mapping[str, str]) -> str:
        chosen = _ALTERNATIVES.sub(lambda match: self._rng.choice(match[1].split("|")), line)
        text = _SLOT.sub(lambda match: _shaped(slots[match[1]], match[2]), chosen)
        if self.language == "en":
            text = re.sub(r"  +", " ", _ARTICLE.sub(r"\1n ", text)).replace(" ?", "?").replace(" .", ".")
        return text

    def typed(self, text: str) -> str:
        """Return the text as a hurried customer types it: now and then a slip, no capital, no full stop."""
        if self.language == "en":
            return self._typed_english(text)
        if self._rng.random() < 0.15:
            text = text.replace(*self._rng.choice(_CASUAL_CHINESE))
        if self._rng.random() < 0.25:
            text = text.rstrip("。？！")
        return text

    def _typed_english(self, text: str) -> str:
        if self._rng.random() < 0.06:
            text = self._slip(text)
        if self._rng.random() < 0.18:
            text = text.lower()
        if self._rng.random() < 0.15:
            text = text.rstrip(".?!")
        return text

    def _slip(self, text: str) -> str:
        """Swap two letters of a word, or lose one."""
        words = list(re.finditer(r"[a-z]{5,}", text))
        if not words:
            return text
        word = self._rng.choice(words)
        at = word.start() + self._rng.randrange(1, len(word[0]) - 2)
        if self._rng.random() < 0.5:
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        return text[:at] + text[at + 1 :]


def _weight(number: int) -> int:
    return _WEIGHTS[min(number, len(_WEIGHTS) - 1)]


def _held_out(number: int) -> bool:
    return number % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1


def _shaped(value: str, shape: str | None) -> str:
    if shape == "cap":
        return value[:1].upper() + value[1:]
    if shape == "low":
        return value[:1].lower() + value[1:]
    return value
