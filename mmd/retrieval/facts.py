"""Lookups that responses and contexts are put into words with: titles, attributes, pictures' descriptions and OCR."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import pyarrow.compute as pc

from mmd.corpora.store import Corpus
from mmd.features.store import Features
from mmd.retrieval.settings import SampleSettings
from mmd.retrieval.types import Query
from mmd.schema import DIALOGUES, Item, Turn

MENTION = re.compile(r"@(\d+)")
"""ReDial's way of naming an item within a text."""
UNTITLED = "a movie"
"""Stands for a mention whose item has no title (only ReDial mentions items this way)."""
NO_WORDS: Mapping[str, str] = MappingProxyType({})
STATED = "response_modality."
"""Meta key by which a corpus says that a turn is an answer and of which modality; the turn's 0-based index follows."""
_OCR_CHARS = 256  # a screenshot holds far more; its beginning tells what it is


@dataclass(frozen=True)
class Facts:
    """What is known of items and pictures.

    Attributes:
        settings: which turns are responses, and which words stand for a picture.
        items: id → item, in catalogue order.
        descriptions: image id → description, of pictures that have one.
        ocr: image id → recognised text, one line, its first 256 characters; of pictures that show some.
        answers_stated: whether the corpus says which turns are answers (meta ``response_modality.<turn>``).
    """

    settings: SampleSettings
    items: Mapping[str, Item]
    descriptions: Mapping[str, str]
    ocr: Mapping[str, str]
    answers_stated: bool = False

    @classmethod
    def load(cls, corpus: Corpus, features: Features | None, settings: SampleSettings) -> Facts:
        """Read the lookups of a corpus; OCR of the features goes before what came with the corpus."""
        rows = corpus.image_table(["id", "description", "ocr"]).to_pylist()
        recognised = features.ocr if features else {}
        ocr = {}
        for row in rows:
            lines = recognised.get(row["id"])
            texts = [line.text for line in lines] if lines is not None else _texts(row["ocr"])
            if words := ocr_words(texts):
                ocr[row["id"]] = words
        descriptions = {row["id"]: row["description"].strip() for row in rows if (row["description"] or "").strip()}
        return cls(settings, corpus.items(), descriptions, ocr, _states_answers(corpus))

    @cached_property
    def titles(self) -> Mapping[str, str]:
        """Item id → title, empty titles included."""
        return {item.id: item.title.strip() for item in self.items.values()}

    @cached_property
    def pictures(self) -> Mapping[str, str]:
        """Image id → the words that stand for it by ``picture_text``; pictures without any are left out."""
        ids = dict.fromkeys([*self.descriptions, *self.ocr])
        words = {image_id: self.picture_words(image_id) for image_id in ids}
        return {image_id: text for image_id, text in words.items() if text}

    def picture_words(self, image_id: str) -> str:
        """Return what encoders read of a picture: description, then OCR, as ``picture_text`` says; "" for nothing."""
        wanted = self.settings.picture_text
        parts = (
            self.descriptions.get(image_id, "") if wanted in ("description", "both") else "",
            self.ocr.get(image_id, "") if wanted in ("ocr", "both") else "",
        )
        return " ".join(part for part in parts if part)

    def caption(self, image_id: str) -> str:
        """Return what people read of a picture, whatever ``picture_text`` lets encoders see; "" for nothing."""
        return self.descriptions.get(image_id) or self.ocr.get(image_id, "")


def _states_answers(corpus: Corpus) -> bool:
    meta = corpus.artifact.read_table("dialogues", DIALOGUES, ["meta"])["meta"]
    return any(pc.any(pc.starts_with(chunk.keys, STATED)).as_py() for chunk in meta.chunks)


def ocr_words(lines: Iterable[str]) -> str:
    """Return recognised lines as one, its first 256 characters; "" for none."""
    return " ".join(" ".join(lines).split())[:_OCR_CHARS]


def _texts(lines: list[dict[str, Any]] | None) -> list[str]:
    return [line["text"] for line in lines or ()]


def with_titles(text: str, titles: Mapping[str, str]) -> str:
    """Replace mentions (``@123``) of known items by their titles; what is not in ``titles`` stays."""
    return MENTION.sub(lambda match: _title(match, titles), text)


def _title(match: re.Match[str], titles: Mapping[str, str]) -> str:
    title = titles.get(match.group(1))
    return match.group(0) if title is None else title or UNTITLED


def turn_words(turn: Turn, titles: Mapping[str, str] = NO_WORDS, pictures: Mapping[str, str] = NO_WORDS) -> str:
    """Return a turn in words: its text with titles for mentions, the items it shows without naming them, its pictures.

    Args:
        turn: the turn.
        titles: item id → title; other items are left out.
        pictures: image id → words; other pictures are ``[picture]``.
    """
    text = with_titles(turn.text, titles)
    said = text.casefold()
    shown = [title for i in dict.fromkeys(turn.item_ids) if (title := titles.get(i, "")).casefold() not in said]
    images = [f"[picture: {pictures[i]}]" if i in pictures else "[picture]" for i in turn.image_ids]
    parts = [text, "; ".join(shown), *images]
    return " ".join(part.strip() for part in parts if part.strip())


def context_text(
    query: Query, titles: Mapping[str, str] = NO_WORDS, pictures: Mapping[str, str] = NO_WORDS
) -> list[str]:
    """Return a query's turns in words, oldest first, each as ``user: …`` or ``agent: …``; silent turns are left out.

    Args:
        query: what is known.
        titles: item id → title (:attr:`Facts.titles`).
        pictures: image id → words (:attr:`Facts.pictures`).
    """
    words = [(turn.speaker, turn_words(turn, titles, pictures)) for turn in query.turns]
    return [f"{speaker}: {text}" for speaker, text in words if text]
