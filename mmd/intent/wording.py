"""Predicates and rules in words, English and Chinese, for reports and the chat page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from mmd.intent.rules import UNMEASURED, Predicate, Prototypes, Rule

Lang = Literal["en", "zh"]
NO_PROTOTYPES: Prototypes = {}

# What mining writes as the words of a prototype that is no quotation; they are recognised and told in each language.
CENTRE, CONTRAST, PICTURE = "the examples of {}", "the examples of {} against the rest", "a picture of {}"

# (kind, scope) → the phrase when it holds, the phrase when it does not; {v} is the value.
_PHRASES: Mapping[str, Mapping[tuple[str, str], tuple[str, str]]] = {
    "en": {
        ("text", "last_user"): (
            "the customer's last message contains “{v}”",
            "the customer's last message does not contain “{v}”",
        ),
        ("text", "user"): ("a message of the customer contains “{v}”", "no message of the customer contains “{v}”"),
        ("text", "agent"): ("a message of the agent contains “{v}”", "no message of the agent contains “{v}”"),
        ("text", "any"): ("a message contains “{v}”", "no message contains “{v}”"),
        ("regex", "last_user"): (
            "the customer's last message matches /{v}/",
            "the customer's last message does not match /{v}/",
        ),
        ("regex", "user"): ("a message of the customer matches /{v}/", "no message of the customer matches /{v}/"),
        ("regex", "agent"): ("a message of the agent matches /{v}/", "no message of the agent matches /{v}/"),
        ("regex", "any"): ("a message matches /{v}/", "no message matches /{v}/"),
        ("regex", "ocr"): ("text in the picture matches /{v}/", "no text in the picture matches /{v}/"),
        ("ocr", "any"): ("the picture shows the text “{v}”", "the picture does not show the text “{v}”"),
        ("ocr", "top"): ("the top of the picture reads “{v}”", "the top of the picture does not read “{v}”"),
        ("ocr", "middle"): ("the middle of the picture reads “{v}”", "the middle of the picture does not read “{v}”"),
        ("ocr", "bottom"): ("the bottom of the picture reads “{v}”", "the bottom of the picture does not read “{v}”"),
        ("near", "last_user"): (
            "the customer's last message means something like “{v}”",
            "the customer's last message means nothing like “{v}”",
        ),
        ("near", "image"): ("the picture looks like {v}", "the picture does not look like {v}"),
        ("item", "title"): ("the product's title contains “{v}”", "the product's title does not contain “{v}”"),
        ("image", "cluster"): ("the picture is of the kind {v}", "the picture is not of the kind {v}"),
    },
    "zh": {
        ("text", "last_user"): ("顾客最后一句话里有“{v}”", "顾客最后一句话里没有“{v}”"),
        ("text", "user"): ("顾客的话里有“{v}”", "顾客的话里没有“{v}”"),
        ("text", "agent"): ("客服的话里有“{v}”", "客服的话里没有“{v}”"),
        ("text", "any"): ("对话里有“{v}”", "对话里没有“{v}”"),
        ("regex", "last_user"): ("顾客最后一句话符合 /{v}/", "顾客最后一句话不符合 /{v}/"),
        ("regex", "user"): ("顾客有一句话符合 /{v}/", "顾客没有一句话符合 /{v}/"),
        ("regex", "agent"): ("客服有一句话符合 /{v}/", "客服没有一句话符合 /{v}/"),
        ("regex", "any"): ("有一句话符合 /{v}/", "没有一句话符合 /{v}/"),
        ("regex", "ocr"): ("图中文字符合 /{v}/", "图中文字不符合 /{v}/"),
        ("ocr", "any"): ("图中文字有“{v}”", "图中文字没有“{v}”"),
        ("ocr", "top"): ("图片上部的文字有“{v}”", "图片上部的文字没有“{v}”"),
        ("ocr", "middle"): ("图片中部的文字有“{v}”", "图片中部的文字没有“{v}”"),
        ("ocr", "bottom"): ("图片下部的文字有“{v}”", "图片下部的文字没有“{v}”"),
        ("near", "last_user"): ("顾客最后一句话的意思接近“{v}”", "顾客最后一句话的意思不接近“{v}”"),
        ("near", "image"): ("图片与{v}相似", "图片与{v}不相似"),
        ("item", "title"): ("商品标题里有“{v}”", "商品标题里没有“{v}”"),
        ("image", "cluster"): ("图片属于{v}一类", "图片不属于{v}一类"),
    },
}
# (written words, scope) → the phrase when the example is near, the phrase when it is not; {v} fills the written words.
_MINED: Mapping[str, Mapping[tuple[str, str], tuple[str, str]]] = {
    "en": {
        (CENTRE, "last_user"): (
            "the customer's last message is like known ones labelled “{v}”",
            "the customer's last message is unlike known ones labelled “{v}”",
        ),
        (CONTRAST, "last_user"): (
            "the customer's last message has what sets “{v}” apart from the other labels",
            "the customer's last message lacks what sets “{v}” apart from the other labels",
        ),
        (CENTRE, "image"): (
            "the picture is like known ones labelled “{v}”",
            "the picture is unlike known ones labelled “{v}”",
        ),
        (CONTRAST, "image"): (
            "the picture has what sets “{v}” apart from the other labels",
            "the picture lacks what sets “{v}” apart from the other labels",
        ),
        (PICTURE, "image"): (
            "the picture looks like that of dialogue {v}",
            "the picture does not look like that of dialogue {v}",
        ),
    },
    "zh": {
        (CENTRE, "last_user"): ("顾客最后一句话与“{v}”类的已知例句相似", "顾客最后一句话与“{v}”类的已知例句不相似"),
        (CONTRAST, "last_user"): (
            "顾客最后一句话有“{v}”类区别于其他类的特征",
            "顾客最后一句话没有“{v}”类区别于其他类的特征",
        ),
        (CENTRE, "image"): ("图片与“{v}”类的已知图片相似", "图片与“{v}”类的已知图片不相似"),
        (CONTRAST, "image"): ("图片有“{v}”类区别于其他类的特征", "图片没有“{v}”类区别于其他类的特征"),
        (PICTURE, "image"): ("图片与对话 {v} 中的图片相似", "图片与对话 {v} 中的图片不相似"),
    },
}
# The longer form first: the shorter would take its end for a part of the label.
_WRITTEN = {form: re.compile(re.escape(form).replace(r"\{\}", "(.+)")) for form in (CONTRAST, CENTRE, PICTURE)}
# Image attribute → its name in words.
_ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "en": {"count": "number of pictures", "size": "picture's size", "text_amount": "amount of text in the picture"},
    "zh": {"count": "图片数量", "size": "图片大小", "text_amount": "图中文字量"},
}
_BUCKETS_ZH = {
    "none": "无",
    "one": "一张",
    "two": "两张",
    "many": "多张",
    "small": "小",
    "medium": "中",
    "large": "大",
    "little": "少",
    "some": "中等",
    "much": "多",
    "tall": "竖长",
    "square": "近方",
    "wide": "横宽",
}


def describe_predicate(predicate: Predicate, lang: str = "en", prototypes: Prototypes = NO_PROTOTYPES) -> str:
    """Return a predicate as a clause, e.g. ``the customer's last message contains “fade”``.

    Args:
        predicate: what to put in words.
        lang: ``en`` or ``zh``; anything else reads as ``en``.
        prototypes: where ``near`` and ``cluster`` find the words that stand at a prototype.
    """
    lang = "zh" if lang == "zh" else "en"
    phrases = _PHRASES[lang].get((predicate.kind, predicate.scope))
    if phrases is None:
        return _describe_attribute(predicate, lang)
    value = predicate.value
    if predicate.kind in ("near", "image") and value in prototypes:
        value = prototypes[value].words or value
        phrases, value = _mined(predicate.scope, value, lang) or (phrases, value)
    return phrases[predicate.negated].format(v=value)


def _mined(scope: str, words: str, lang: str) -> tuple[tuple[str, str], str] | None:
    """Return phrases and value for words that mining wrote; None for a quotation or somebody's own words."""
    for form, pattern in _WRITTEN.items():
        phrases, found = _MINED[lang].get((form, scope)), pattern.fullmatch(words)
        if phrases and found:
            return phrases, found[1]
    return None


def _describe_attribute(predicate: Predicate, lang: str) -> str:
    if predicate.kind == "image":
        return _describe_image(predicate, lang)
    if lang == "zh":
        verb = "不是" if predicate.negated else "是"
        name = f"商品的{predicate.scope}" if predicate.kind == "item" else f"对“{predicate.scope}”的回答"
        value = {"yes": "“是”", "no": "“否”"}.get(predicate.value, predicate.value)
        return f"{name}{verb}{value}"
    verb = "is not" if predicate.negated else "is"
    name = f"the product's {predicate.scope}" if predicate.kind == "item" else f"the answer to “{predicate.scope}”"
    return f"{name} {verb} {predicate.value}"


def _describe_image(predicate: Predicate, lang: str) -> str:
    attribute, value = predicate.scope, predicate.value
    if attribute == "has_text":
        shows = (value == "yes") != predicate.negated
        if lang == "zh":
            return "图中有文字" if shows else "图中没有文字"
        return "the picture has text" if shows else "the picture has no text"
    if lang == "zh":
        verb = "不是" if predicate.negated else "是"
        subject = "图片形状" if attribute == "aspect" else _ATTRIBUTES["zh"].get(attribute, attribute)
        return f"{subject}{verb}{_BUCKETS_ZH.get(value, value)}"
    verb = "is not" if predicate.negated else "is"
    if attribute == "aspect":
        return f"the picture {verb} {value}"
    return f"the {_ATTRIBUTES['en'].get(attribute, attribute)} {verb} {value}"


def describe_rule(rule: Rule, lang: str = "en", prototypes: Prototypes = NO_PROTOTYPES) -> str:
    """Return a rule as a sentence: its conditions, its label, and how often it was right, out of fold.

    For example: ``the customer's last message contains “fade” and the picture is tall → fading (right 11 of 12
    times)``.
    """
    clauses = [describe_predicate(p, lang, prototypes) for p in rule.predicates]
    if lang == "zh":
        return f"{'，且'.join(clauses)} → {rule.label}（{_record_zh(rule)}）"
    return f"{' and '.join(clauses)} → {rule.label} ({_record_en(rule)})"


def _record_en(rule: Rule) -> str:
    stats = rule.stats
    return "not measured yet" if stats == UNMEASURED else f"right {stats.hits} of {stats.support} times"


def _record_zh(rule: Rule) -> str:
    stats = rule.stats
    return "尚未验证" if stats == UNMEASURED else f"{stats.support} 次中 {stats.hits} 次正确"
