"""The reasons of decisions in words, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping

from mmd.assistant.types import Part

LANGUAGES = ("en", "zh")
_MODALITIES = {
    "en": {"text": "words", "image": "a picture", "product": "a product"},
    "zh": {"text": "文字", "image": "图片", "product": "商品"},
}
_PARTS = {
    "en": {"intent": "the intent", "retrieval": "retrieval", "recommendation": "the student"},
    "zh": {"intent": "意图", "retrieval": "检索", "recommendation": "学生模型"},
}
_ARMS = {
    "en": {
        "rules": "fired rules decided",
        "vote": "rules and classifier voted",
        "prompt": "the large model decided, fired rules being told to it",
        "mllm": "the large model decided",
        "classifier": "the classifier decided",
        "default": "nothing spoke for another one, so it is the usual one",
    },
    "zh": {
        "rules": "由触发的规则决定",
        "vote": "由规则和分类器投票决定",
        "prompt": "由大模型在得知触发的规则后决定",
        "mllm": "由大模型决定",
        "classifier": "由分类器决定",
        "default": "没有其他依据，取最常见的意图",
    },
}

Sentence = Mapping[str, str]


def both(en: str, zh: str) -> Sentence:
    """Return a sentence in each language."""
    return {"en": en, "zh": zh}


def modality_words(modality: str, language: str) -> str:
    """Return a modality's name; that of one that the project does not bring along is its own."""
    return _MODALITIES[language].get(modality, modality)


def part_words(part: Part, language: str) -> str:
    """Return what a part is called."""
    return _PARTS[language][part]


def arm_words(arm: str, language: str) -> str:
    """Return who decided on an intent."""
    return _ARMS[language].get(arm, arm)


def percent(share: float) -> str:
    """Return a share as people read it."""
    return f"{share:.0%}"
