"""Parts of an assistant that answer what a test says, and evidence made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from mmd.intent.types import IntentPrediction
from mmd.recommend.engine import Piece, RecommendAnswer, RecommendedItem
from mmd.recommend.types import Mode
from mmd.retrieval.types import Hit, Response

TASK = "dialogue_intent"


def prediction(label: str = "ask_size", confidence: float = 0.8) -> IntentPrediction:
    return IntentPrediction("d", TASK, label, confidence, "rules")


def hit(key: str, score: float) -> Hit:
    """A hit by its id: ``text:hello``, ``image:i``, ``product:p``; its title is the key behind the colon."""
    modality, _, name = key.partition(":")
    return Hit(Response(key, modality, name, name, None if modality == "text" else f"picture-{name}"), score)


def student(
    text: str = "what about mug", mode: Mode = "rec", probability: float | None = 0.9, items: Sequence[str] = ("mug",)
) -> RecommendAnswer:
    """The student's answer, naming the first of ``items`` at its end in mode ``rec``."""
    pieces: tuple[Piece, ...] = (Piece(text, 0, len(text)),)
    if mode == "rec" and items:
        start = len(text) - len(items[0])
        pieces = (Piece(text[:start], 0, start), Piece(items[0], start, len(text), items[0]))
    known = tuple(RecommendedItem(i, i, 0.5, named=False, image_id=f"picture-{i}") for i in items)
    return RecommendAnswer(text, pieces, mode, probability, known, "reply" if mode == "rec" else "context", (), {})


FULL_HITS: tuple[Hit, ...] = (
    hit("image:chart", 0.9),
    hit("text:hello", 0.7),
    hit("text:bye", 0.6),
    hit("product:mug", 0.5),
)
