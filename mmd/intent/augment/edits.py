"""Method `edit`: the slips of people who type, on tokens that carry neither a rule's words nor a number.

Letters and characters are dropped, doubled, swapped or mistyped, and little words left out; no word is replaced by
another, since a synonym of a request may be another request (in the manner of EDA, Wei & Zou 2019, without synonyms).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mmd.intent.augment.guard import Guard, Span
from mmd.intent.types import has_words
from mmd.language import HAN
from mmd.schema import Turn

_CHARS_AN_EDIT = 18
_MOST_EDITS = 3
_MIN_HAN_TO_SWAP = 6
_WORD = re.compile(r"[A-Za-z][A-Za-z'’]*")
_HAN_RUN = re.compile(f"[{HAN}]+")
_LITTLE_EN = frozenset(
    ("a", "an", "the", "please", "just", "really", "very", "so", "well", "oh", "also", "still", "actually", "only")
)
_LITTLE_ZH = "的了呢啊吧呀嘛哦呗哈请"
_MISTYPED_ZH = {
    "的": "得地", "得": "的", "地": "的", "在": "再", "再": "在", "吗": "嘛么", "嘛": "吗", "做": "作", "作": "做",
    "他": "它她", "它": "他", "帐": "账", "账": "帐", "象": "像", "像": "象", "已": "以", "以": "已",
    "坐": "座", "带": "戴", "戴": "带", "订": "定", "定": "订", "呢": "呐", "吧": "巴", "到": "道", "道": "到",
}  # fmt: skip
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def slip(turns: Sequence[Turn], guard: Guard, rng: random.Random) -> tuple[Turn, ...] | None:
    """Return the turns with one to three slips in a customer's turn; None where nothing may be touched.

    Args:
        turns: of the dialogue.
        guard: words that are left alone.
        rng: source of every choice.
    """
    users = [i for i, turn in enumerate(turns) if turn.speaker == "user" and has_words(turn.text)]
    if not users:
        return None
    # Mostly the last message, which is the one that is asked about.
    index = users[-1] if rng.random() < 0.8 else rng.choice(users)
    text = turns[index].text
    for _ in range(rng.randint(1, max(1, min(_MOST_EDITS, len(text) // _CHARS_AN_EDIT)))):
        text = edit_text(text, guard, rng) or text
    if text == turns[index].text or not has_words(text):
        return None
    return (*turns[:index], replace(turns[index], text=text), *turns[index + 1 :])


def edit_text(text: str, guard: Guard, rng: random.Random) -> str | None:
    """Return the text with one slip outside the guarded spans; None where none is possible."""
    spans = guard.spans(text)
    slips = [found for find in _SLIPS for found in find(text, rng)]
    allowed = [(start, end, new) for start, end, new in slips if not _overlaps((start, end), spans)]
    if not allowed:
        return None
    start, end, new = rng.choice(allowed)
    edited = text[:start] + new + text[end:]
    return edited if new else _tidy(edited)


Slip = tuple[int, int, str]


def _overlaps(part: Span, spans: Iterable[Span]) -> bool:
    return any(part[0] < end and start < part[1] for start, end in spans)


def _tidy(text: str) -> str:
    """Return the text without the double space that a dropped word leaves."""
    return re.sub(r"(?<=\S) {2,}", " ", text).lstrip(" ")


def _drop_little_words(text: str, rng: random.Random) -> list[Slip]:  # noqa: ARG001 (one signature)
    found = [(m.start(), m.end(), "") for m in _WORD.finditer(text) if m.group().lower() in _LITTLE_EN]
    return found + [(i, i + 1, "") for i, char in enumerate(text) if char in _LITTLE_ZH]


def _slips_in_words(text: str, rng: random.Random) -> list[Slip]:
    """Return one slip for each longer English word: a letter dropped, doubled, swapped, or the key beside it."""
    found = []
    for match in _WORD.finditer(text):
        word = match.group()
        if len(word) < 4 or not word.isalpha():  # short words become other words
            continue
        at = rng.randrange(1, len(word) - 1)
        new = rng.choice(
            (
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + _key_beside(word[at], rng) + word[at + 1 :],
            )
        )
        if new != word:
            found.append((match.start(), match.end(), new))
    return found


def _key_beside(letter: str, rng: random.Random) -> str:
    for row in _KEYS:
        at = row.find(letter)
        if at >= 0:
            return rng.choice(row[max(0, at - 1) : at] + row[at + 1 : at + 2])
    return letter


def _mistyped_characters(text: str, rng: random.Random) -> list[Slip]:
    return [(i, i + 1, rng.choice(_MISTYPED_ZH[char])) for i, char in enumerate(text) if char in _MISTYPED_ZH]


def _swapped_characters(text: str, rng: random.Random) -> list[Slip]:
    """Return up to one swap of neighbours for each longer run of Chinese characters."""
    found = []
    for match in _HAN_RUN.finditer(text):
        if match.end() - match.start() >= _MIN_HAN_TO_SWAP:
            at = rng.randrange(match.start(), match.end() - 1)
            if text[at] != text[at + 1]:
                found.append((at, at + 2, text[at + 1] + text[at]))
    return found


_SLIPS: tuple[Callable[[str, random.Random], list[Slip]], ...] = (
    _drop_little_words,
    _slips_in_words,
    _mistyped_characters,
    _swapped_characters,
)
