"""From an example to the prompt that a multimodal model is asked: dialogue, pictures, rules that fired, question.

English and Chinese, by the dialogue's own script. What people wrote is data: each turn is one line behind its
speaker's name, and brackets that a chat template could take for control tokens are replaced, so that no message can
end its turn, speak for somebody else, or smuggle in a picture or a rule.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mmd.intent.settings import PromptSettings
from mmd.intent.types import TAG, ImageFacts, IntentExample, has_words
from mmd.language import HAN
from mmd.models.prompt import Prompt
from mmd.schema import Turn

Lang = Literal["en", "zh"]
_HAN = re.compile(f"[{HAN}]")
_LETTER = re.compile(r"[^\W\d_]")
# Control tokens of chat templates are written in these (<|im_end|>, <image>, [INST]); full-width forms are the
# same to tokenizers that normalise.
_DEFUSED = str.maketrans(
    dict.fromkeys("<＜﹤", "‹")
    | dict.fromkeys(">＞﹥", "›")
    | dict.fromkeys("[［﹇", "(")
    | dict.fromkeys("]］﹈", ")")
)
_CUT = "…"


@dataclass(frozen=True, slots=True)
class Wording:
    """The prompt's own words in one language; ``tasks`` names the tasks whose labels are in that language."""

    system: str
    task: str
    labels: str
    separator: str
    hint: str
    ask: str
    picture: str
    picture_text: str
    speakers: Mapping[str, str]
    tasks: Mapping[str, str]


WORDING: Mapping[Lang, Wording] = {
    "en": Wording(
        system="Label the conversation.",
        task="Task: {task}",
        labels="Labels: {labels}",
        separator="; ",
        hint="Rules that fired:",
        ask="Label:",
        picture="[picture]",
        picture_text="[picture: {text}]",
        speakers={"user": "User: ", "agent": "Agent: "},
        tasks={},
    ),
    "zh": Wording(
        system="给对话分类。",
        task="任务：{task}",
        labels="类别：{labels}",
        separator="；",
        hint="命中的规则：",
        ask="类别：",
        picture="[图片]",
        picture_text="[图片：{text}]",
        speakers={"user": "用户：", "agent": "客服："},
        tasks={"dialogue_intent": "对话意图", "image_scene": "图片场景"},
    ),
}


def prompt_language(example: IntentExample, labels: Sequence[str] = ()) -> Lang:
    """Return ``zh`` where a fifth of the letters are Chinese characters, else ``en``.

    Looked at are the turns; where these have no letters the labels, then the pictures' text.
    """
    for text in (example.text("any"), " ".join(labels), example.ocr_text()):
        letters = len(_LETTER.findall(TAG.sub("", text)))
        if letters:
            return "zh" if len(_HAN.findall(text)) >= 0.2 * letters else "en"
    return "en"


def build_prompt(
    example: IntentExample,
    settings: PromptSettings,
    *,
    labels: Sequence[str],
    hint: str = "",
    sees_pictures: bool,
) -> Prompt:
    """Return the prompt of one example.

    The order is: task, labels (where ``list_labels``), turns with pictures where they were sent, hint, question.
    A picture is given as pixels to a model that sees them, as long as its bytes are known and it is among the last
    ``max_images``; else a mark takes its place, with the printed text as ``ocr`` says.

    Args:
        example: what is asked about.
        settings: how much is shown.
        labels: the task's labels.
        hint: rules that fired (:mod:`mmd.intent.hints`); nothing is said of rules where it is empty.
        sees_pictures: whether the model does.

    Raises:
        ValueError: a picture that must be made smaller cannot be decoded.
    """
    words = WORDING[prompt_language(example, labels)]
    lines: list[str | bytes] = [words.task.format(task=_task_name(example.task, words))]
    if settings.list_labels:
        lines += ["\n", words.labels.format(labels=words.separator.join(map(plain_line, labels)))]
    view = _PictureView(example, settings, words, sees_pictures)
    for turn in shown_turns(example.turns, settings):
        lines += ["\n", words.speakers[turn.speaker], *view.of(turn), turn.text]
    if hint:
        lines += ["\n", words.hint, *(f"\n{plain_line(line)}" for line in hint.splitlines())]
    lines += ["\n", words.ask]
    return Prompt(words.system, _join_words(lines))


def plain_line(text: str) -> str:
    """Return foreign text as one line without anything that a chat template could take for its own tokens."""
    return " ".join(text.split()).translate(_DEFUSED)


def shown_turns(turns: Sequence[Turn], settings: PromptSettings) -> list[Turn]:
    """Return the last turns as plain lines, cut to the settings' limits, in order.

    The last user turn with words is always among them and is given its characters first, then what came after it, then
    the turns before it from the newest on. A text that is too long loses its beginning.
    """
    if not turns:
        return []
    asked = _last_asked(turns)
    first = max(0, len(turns) - settings.max_turns)
    chosen = list(range(first, len(turns)))
    if asked < first:
        chosen = [asked, *chosen[1:]]
    left = settings.max_dialogue_chars
    texts: dict[int, str] = {}
    for index in sorted(chosen, key=lambda i: (i != asked, i < asked, i if i > asked else -i)):
        texts[index] = _tail(plain_line(turns[index].text), left)
        left -= len(texts[index])
    return [
        Turn(turns[i].speaker, texts[i], turns[i].image_ids, turns[i].item_ids)
        for i in chosen
        if texts[i] or turns[i].image_ids
    ]


def _last_asked(turns: Sequence[Turn]) -> int:
    """Return the index of the last user turn that has words, else of the last user turn, else of the last turn."""
    ranks = [(turn.speaker == "user", turn.speaker == "user" and has_words(turn.text)) for turn in turns]
    return max(range(len(turns)), key=lambda i: (*ranks[i], i))


def _tail(text: str, chars: int) -> str:
    """Return at most ``chars`` characters, the last ones; a mark tells that there were more."""
    if len(text) <= chars:
        return text
    return _CUT + text[len(text) - chars + 1 :] if chars > 1 else ""


def _task_name(task: str, words: Wording) -> str:
    return words.tasks.get(task) or plain_line(task.replace("_", " "))


class _PictureView:
    """Says what stands in the place of each picture: its pixels, or a mark."""

    def __init__(self, example: IntentExample, settings: PromptSettings, words: Wording, sees_pictures: bool) -> None:  # noqa: FBT001 (a private constructor)
        self._facts = {image.image_id: image for image in example.images}
        self._settings = settings
        self._words = words
        self._sees = sees_pictures
        sent = [image_id for turn in example.turns for image_id in turn.image_ids]
        self._shown = set(list(dict.fromkeys(reversed(sent)))[: settings.max_images])
        self._given: set[str] = set()

    def of(self, turn: Turn) -> Iterator[str | bytes]:
        """Yield what is shown of a turn's pictures; those beyond the limit share one mark."""
        ids = list(dict.fromkeys(turn.image_ids))
        if any(image_id not in self._shown for image_id in ids):
            yield self._words.picture
        for image_id in ids:
            if image_id in self._shown:
                yield from self._picture(image_id)

    def _picture(self, image_id: str) -> Iterator[str | bytes]:
        facts = self._facts.get(image_id)
        ocr = self._settings.ocr
        if facts is None:
            yield self._words.picture
        elif self._sees and facts.data is not None:
            if image_id not in self._given:  # a picture that was sent twice is looked at once
                self._given.add(image_id)
                yield small_picture(facts, self._settings.image_side_px)
            if ocr == "always":
                yield self._mark(facts)
        else:
            yield self._words.picture if ocr == "never" else self._mark(facts)

    def _mark(self, facts: ImageFacts) -> str:
        text = plain_line(" ".join(line.text for line in facts.ocr))[: self._settings.max_ocr_chars]
        return self._words.picture_text.format(text=text) if text else self._words.picture


def small_picture(facts: ImageFacts, side_px: int) -> bytes:
    """Return a picture's bytes, made smaller (as PNG) where its longest side is above ``side_px``.

    Raises:
        ValueError: the example carries no bytes, or they cannot be decoded.
    """
    if facts.data is None:
        raise ValueError(f"picture {facts.image_id}: the example does not carry its bytes")
    if max(facts.width, facts.height) <= side_px:
        return facts.data
    from mmd.features.pictures import decode_rgb  # noqa: PLC0415 (text-only models need no picture library)

    picture = decode_rgb(facts.data)
    picture.thumbnail((side_px, side_px))
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _join_words(parts: Sequence[str | bytes]) -> tuple[str | bytes, ...]:
    """Join neighbouring words, so that pictures alone divide the message."""
    joined: list[str | bytes] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part:
            joined.append(part)
    return tuple(joined)
