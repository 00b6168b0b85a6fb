"""Method `paraphrase`: the last message in a language model's words, taken only where it plainly says the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from mmd.intent.augment.phrasebook import language_of
from mmd.intent.types import TAG, has_words
from mmd.language import Language, written_in
from mmd.schema import Turn

_NEW_TOKENS = 64
_SHORTEST, _LONGEST = 0.4, 2.5  # length of a paraphrase, as a share of the original's
_NUMBER = re.compile(rf"\d+|{TAG.pattern}")
_REQUESTS: dict[Language, tuple[str, ...]] = {
    "en": (
        "Rewrite this customer's message in other words. Answer with it only.\nMessage: {text}\nRewritten:",
        "Say the same as this customer, more casually. Answer with the message only.\nMessage: {text}\nCasual:",
        "Say the same as this customer, more politely. Answer with the message only.\nMessage: {text}\nPolite:",
    ),
    "zh": (
        "用别的话改写这句顾客的话，意思和数字不变，只回答改写后的句子。\n原句：{text}\n改写：",
        "把这句顾客的话说得更口语、更短，意思不变，只回答改写后的句子。\n原句：{text}\n口语：",
        "把这句顾客的话说得更礼貌，意思不变，只回答改写后的句子。\n原句：{text}\n礼貌：",
    ),
}


class ChatModel(Protocol):
    """A language model that answers messages; :class:`mmd.models.language.LanguageModel` is one."""

    def chat(self, messages: Sequence[str], max_new_tokens: int = 48) -> list[str]:
        """Answer each message on its own."""
        ...


def reword(turns: Sequence[Turn], model: ChatModel, number: int) -> tuple[Turn, ...] | None:
    """Return the turns with the last user message in the model's words; None where its answer is no paraphrase.

    Messages are asked one at a time: padding them together changes a greedy answer now and then, and equal samples are
    to give equal paraphrases whatever they are batched with.

    Args:
        turns: of the dialogue.
        model: greedy, so that only ``number`` varies the answer.
        number: which of the requests is made, taken modulo their count.
    """
    asked = max((i for i, t in enumerate(turns) if t.speaker == "user" and has_words(t.text)), default=-1)
    if asked < 0:
        return None
    text, requests = turns[asked].text, _REQUESTS[language_of(turns)]
    answer = clean(model.chat([requests[number % len(requests)].format(text=text)], _NEW_TOKENS)[0])
    if not is_paraphrase(text, answer):
        return None
    return (*turns[:asked], replace(turns[asked], text=answer), *turns[asked + 1 :])


def clean(answer: str) -> str:
    """Return the first line of an answer, without quotation marks around it."""
    lines = [line.strip() for line in answer.strip().splitlines() if line.strip()]
    return lines[0].strip("\"'“”「」 ") if lines else ""


def is_paraphrase(text: str, answer: str) -> bool:
    """Say whether an answer may stand for a text: other words, the same script and numbers, about the same length."""
    return (
        has_words(answer)
        and answer != text
        and _SHORTEST * len(text) <= len(answer) <= _LONGEST * len(text)
        and written_in(answer) == written_in(text)
        and sorted(_NUMBER.findall(answer)) == sorted(_NUMBER.findall(text))
    )
