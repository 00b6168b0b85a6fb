"""The nouns of KDSL: examples, predictions, and what a classifier is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmd.schema import Item, OcrLine, Turn

Vector = NDArray[np.float32]
_SHOWN_CHARS = 256
TAG = re.compile(r"<[^<>\n]{1,40}>")
"""A token such as ``<http>``, which stands for something that was taken out of the text."""


def has_words(text: str) -> bool:
    """Say whether a turn says anything besides tokens such as ``<http>``, a link that was taken out."""
    return any(c.isalnum() for c in TAG.sub("", text))


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """What is known of one picture; ``vector`` is the image feature, shape (dim,).

    ``data`` are the encoded bytes, there only where a model that looks at pixels will be asked.
    """

    image_id: str
    width: int
    height: int
    ocr: tuple[OcrLine, ...] = ()
    vector: Vector | None = None
    data: bytes | None = None


@dataclass(frozen=True, eq=False)
class IntentExample:
    """One labelled (or to be labelled) situation: a dialogue up to the turn whose intent is asked.

    ``images`` are in order of appearance; ``items`` are the products that the turns name.
    ``last_user_vector``, ``reply_vector`` and ``shown_vector`` are the sentence vectors of ``text("last_user")``,
    ``text("reply")`` and ``shown_text()``, shape (dim,), when extracted.
    """

    dialogue_id: str
    task: str
    label: str | None
    turns: tuple[Turn, ...]
    images: tuple[ImageFacts, ...] = ()
    items: tuple[Item, ...] = ()
    last_user_vector: Vector | None = None
    reply_vector: Vector | None = None
    shown_vector: Vector | None = None
    meta: Mapping[str, str] = field(default_factory=dict)

    def text(self, scope: str) -> str:
        """Return the text of a scope, turns joined by newlines.

        Args:
            scope: ``user``, ``agent``, ``any``, ``last_user`` (the last user turn that has text) or ``reply`` (what
                the agent said after it: known in logs, not yet when the intent is asked for online).
        """
        if scope in ("last_user", "reply"):
            asked = [i for i, t in enumerate(self.turns) if t.speaker == "user" and has_words(t.text)]
            if not asked:
                return ""
            if scope == "last_user":
                return self.turns[asked[-1]].text
            after = self.turns[asked[-1] + 1 :]
            return "\n".join(t.text for t in after if t.speaker == "agent")
        return "\n".join(t.text for t in self.turns if scope in ("any", t.speaker))

    def shown_text(self) -> str:
        """Return the pictures' printed text, its first 256 characters, where the user says nothing in words; else "".

        A picture sent without a word is what its sender says: its text is then read as a message.
        """
        if any(turn.speaker == "user" and has_words(turn.text) for turn in self.turns):
            return ""
        return " ".join(line.text for image in self.images for line in image.ocr)[:_SHOWN_CHARS]

    def ocr_text(self) -> str:
        """Return all recognised lines of all pictures, joined by newlines."""
        return "\n".join(line.text for image in self.images for line in image.ocr)


@dataclass(frozen=True, slots=True)
class Probabilities:
    """A distribution over a task's labels; ``values`` is aligned with ``labels`` and sums to 1."""

    labels: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def best(self) -> tuple[str, float]:
        """The likeliest label and its probability; ties go to the first label."""
        index = int(np.argmax(self.values))
        return self.labels[index], self.values[index]


@dataclass(frozen=True, slots=True)
class FiredRule:
    """A rule that fired, in words, with its out-of-fold statistics."""

    rule_id: str
    label: str
    words: str
    precision: float
    wilson_lower: float
    support: int


@dataclass(frozen=True, slots=True)
class IntentPrediction:
    """The gate's answer. ``arm`` says who decided, as in :class:`mmd.intent.gate.Decision`."""

    dialogue_id: str
    task: str
    label: str
    confidence: float
    arm: str
    fired: tuple[FiredRule, ...] = ()
    alternatives: tuple[tuple[str, float], ...] = ()


class IntentClassifier(Protocol):
    """A model that gives a distribution over one task's labels: ``probe``, or a fine-tuned ``mllm``."""

    task: str
    labels: tuple[str, ...]

    def predict(self, examples: Sequence[IntentExample]) -> list[Probabilities]:
        """Return one distribution an example, in order."""
        ...


class PromptedClassifier(IntentClassifier, Protocol):
    """A classifier that reads a prompt, so that rules can be told to it in words (KDSL: knowledge beside weights).

    ``needs_pictures`` says whether it looks at pixels: examples then need ``ImageFacts.data``.
    """

    needs_pictures: bool

    def predict_hinted(self, examples: Sequence[IntentExample], hints: Sequence[str]) -> list[Probabilities]:
        """Return one distribution an example, in order, its hint (:mod:`mmd.intent.hints`) being in the prompt.

        An empty hint gives what ``predict`` gives.
        """
        ...
