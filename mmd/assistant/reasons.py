"""The reasons of the policy's decisions, as sentences in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping

from mmd.assistant.plan import Plan
from mmd.assistant.types import PRODUCT, TEXT, Evidence, Part, ProductSource, Speaker
from mmd.assistant.wording import Sentence, arm_words, both, modality_words, part_words, percent
from mmd.intent.types import IntentPrediction


def intent_reason(found: IntentPrediction) -> Sentence:
    """Say who recognised an intent."""
    fired = len(found.fired)
    rules = "" if not fired else f" ({fired} rule{'s' if fired > 1 else ''} fired)"
    return both(
        f"The user's intent is {found.label}: {arm_words(found.arm, 'en')}{rules}.",
        f"用户意图为 {found.label}：{arm_words(found.arm, 'zh')}" + (f"（触发 {fired} 条规则）。" if fired else "。"),
    )


def no_intent_reason(*, there: bool) -> Sentence:
    """Say why there is no intent."""
    if there:
        return both("No intent is known for a dialogue of this kind.", "此类对话没有可识别的意图。")
    return both("Intent recognition did not answer.", "意图识别未作答。")


def modality_reason(
    modality: str, votes: Mapping[Part, float], counts: tuple[int, int] | None, possible: int
) -> Sentence:
    """Say how the parts voted for the modality that won.

    Args:
        modality: the winner.
        votes: part → its share for the winner.
        counts: how many of how many answers to the intent were of this modality in training.
        possible: modalities that could have been chosen.
    """
    if possible == 1:
        return both(
            f"The reply is {modality_words(modality, 'en')}: what is there can answer in nothing else.",
            f"以{modality_words(modality, 'zh')}回复：现有部分只能以此作答。",
        )
    if not votes:
        return both(
            f"The reply is {modality_words(modality, 'en')}: no part has a say, and training answers so most often.",
            f"以{modality_words(modality, 'zh')}回复：各部分均无意见，训练对话最常如此回答。",
        )
    known = {"en": "", "zh": ""}
    if counts is not None:
        known = {
            "en": f", which training answered so {counts[0]} of {counts[1]} times",
            "zh": f"（训练中 {counts[1]} 次有 {counts[0]} 次如此回答）",
        }
    said = {
        "en": [f"{part_words(p, 'en')} {percent(s)}{known['en'] if p == 'intent' else ''}" for p, s in votes.items()],
        "zh": [f"{part_words(p, 'zh')} {percent(s)}{known['zh'] if p == 'intent' else ''}" for p, s in votes.items()],
    }
    return both(
        f"The reply is {modality_words(modality, 'en')}; for it speak {'; '.join(said['en'])}.",
        f"以{modality_words(modality, 'zh')}回复；支持度：{'，'.join(said['zh'])}。",
    )


def speaker_reason(speaker: Speaker, modality: str, evidence: Evidence, plan: Plan, *, usual: bool) -> Sentence:
    """Say why somebody says the words; ``usual``: whether training has a usual answer to the intent."""
    if speaker == "student":
        return _student_reason(modality, by_choice=plan.words == "student", found=evidence.has("retrieval"))
    if speaker == "retrieval":
        return _retrieval_reason(modality, alone=not evidence.has("recommendation"))
    if not usual:
        return both(
            "Neither retrieval nor the student has anything to say, and no usual answer to the intent is known.",
            "检索与学生模型均未给出内容，也没有该意图的常用回答。",
        )
    return both(
        "Neither retrieval nor the student has anything to say, so the usual answer to the intent is given.",
        "检索与学生模型均未给出内容，因此给出该意图的常用回答。",
    )


def _student_reason(modality: str, *, by_choice: bool, found: bool) -> Sentence:
    if modality == PRODUCT:
        return both("The student says the words that name its products.", "由学生模型说出推荐商品的话。")
    if modality != TEXT:
        return both(
            f"The student says what goes with {modality_words(modality, 'en')}.",
            f"由学生模型说出{modality_words(modality, 'zh')}的配文。",
        )
    if by_choice:
        return both(
            "The student answers in its own words, which came closer to the right ones on held-out dialogues.",
            "由学生模型作答：在留出的对话中它更接近正确回答。",
        )
    if not found:
        return both("The student answers: retrieval is not there.", "由学生模型作答：检索未作答。")
    return both("The student answers: retrieval found no sentence.", "由学生模型作答：检索没有找到合适的句子。")


def _retrieval_reason(modality: str, *, alone: bool) -> Sentence:
    if modality == PRODUCT:
        return both("The products stand for themselves.", "直接展示商品。")
    if modality != TEXT:
        return both("The picture stands alone: the student is not there.", "只发图片：学生模型未作答。")
    if alone:
        return both(
            "A sentence that was said before in such a place answers: the student is not there.",
            "用检索到的句子作答：学生模型未作答。",
        )
    return both(
        "A sentence that was said before in such a place answers, which keeps to what the shop says.",
        "用检索到的、曾在类似场合说过的句子作答，不偏离既有说法。",
    )


def products_reason(source: ProductSource, modality: str, evidence: Evidence, fitting: int) -> Sentence:
    """Say where the products come from; ``fitting`` of retrieval's fit the intent."""
    if source == "none":
        return both(
            f"The reply is {modality_words(modality, 'en')}, so no product is shown.",
            f"以{modality_words(modality, 'zh')}回复，因此不展示商品。",
        )
    if source == "student":
        if not evidence.has("retrieval"):
            return both("The student recommends: retrieval is not there.", "由学生模型推荐：检索未作答。")
        return both(
            "The student recommends: it has read which products were named and liked.",
            "由学生模型推荐：它读取了对话中提到和喜欢的商品。",
        )
    if not fitting:
        return both(
            "Retrieval's products are shown, though training never gave any of them for the intent.",
            "展示检索到的商品，但训练中从未用它们回答该意图。",
        )
    return both("Retrieval's products that fit the intent are shown.", "展示检索到的、符合该意图的商品。")


_SORRY = {
    "en": "I cannot answer that right now. Please try again in a moment.",
    "zh": "抱歉，暂时无法回答，请稍后再试。",
}


def sorry(language: str) -> str:
    """Return what is said where nothing else can be."""
    return _SORRY.get(language, _SORRY["en"])


def is_sorry(text: str) -> bool:
    """Say whether a text is what is said where nothing else can be."""
    return text in _SORRY.values()
