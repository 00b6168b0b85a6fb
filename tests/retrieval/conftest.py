"""Small retrievers over vectors that are drawn from texts, and over tiny models; pictures of one colour."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmd.features.extract import ExtractorInfo
from mmd.features.settings import FeatureSettings
from mmd.models.settings import ModelSettings
from mmd.retrieval.bases import BaseModels, load_bases
from mmd.retrieval.inputs import InputMaker
from mmd.retrieval.methods import Retriever, spec_of
from mmd.retrieval.settings import Method, RetrievalSettings, TowerSettings
from mmd.retrieval.sources import Encoders, StoredSources, build_maker
from mmd.retrieval.types import Query, Response
from mmd.schema import Turn

DIM = 16


def picture_bytes(colour: str, size: tuple[int, int] = (60, 80)) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


class HashSources:
    """Vectors of unit length, drawn from a seed that is the content's hash: equal content, equal vector."""

    text_dim = picture_dim = DIM

    def __init__(self, known_pictures: Sequence[str] = ("red", "blue")) -> None:
        self.extractors: dict[str, ExtractorInfo | None] = {
            "text": ExtractorInfo("hash", DIM),
            "vision": ExtractorInfo("hash", DIM),
        }
        self._known = known_pictures

    def text_vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        out = np.zeros((len(texts), DIM), np.float32)
        for row, text in enumerate(texts):
            if text.strip():
                out[row] = _drawn(text)
        return out

    def picture_vectors(self, image_ids: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        known = np.array([image_id in self._known for image_id in image_ids], np.bool_)
        vectors = np.zeros((len(image_ids), DIM), np.float32)
        for row, image_id in enumerate(image_ids):
            if known[row]:
                vectors[row] = _drawn(f"picture {image_id}")
        return vectors, known

    def picture_bytes(self, image_ids: Sequence[str]) -> list[bytes | None]:
        return [picture_bytes(i) if i in self._known else None for i in image_ids]


class ShownPictures(StoredSources):
    """Sources whose pictures are two of one colour and a torn one."""

    def picture_bytes(self, image_ids: Sequence[str]) -> list[bytes | None]:
        shown = {"red": picture_bytes("red"), "blue": picture_bytes("blue"), "torn": b"\x89PNG half a picture"}
        return [shown.get(image_id) for image_id in image_ids]


def _drawn(content: str) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


@dataclass(frozen=True)
class Words:
    titles: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Made:
    """A retriever, what makes its inputs, and the models it started from."""

    retriever: Retriever
    maker: InputMaker
    bases: BaseModels


MODALITIES = ("text", "image")
QUERIES = (
    Query((Turn("user", "I want a jacket", ("red",)), Turn("agent", "for summer?"), Turn("user", "yes, light"))),
    Query((Turn("user", "hi"),)),
    Query((Turn("user", "有没有更薄的？"), Turn("agent", "有的"))),
)
RESPONSES = (
    Response("text:a", "text", "a", "a light jacket"),
    Response("image:b", "image", "b", "blue jacket on a hanger", "blue"),
    Response("image:c", "image", "c", "", "red"),
)


def make(method: Method = "mdr", seed: int = 0, modalities: Sequence[str] = MODALITIES, **towers: Any) -> Made:
    """Build a retriever: over hashed vectors, unless a text or vision model is named."""
    settings = RetrievalSettings(method=method, towers=TowerSettings(**({"dim": 16, "hidden": 24} | towers)))
    bases = load_bases(settings.towers)
    maker = build_maker(settings.towers, modalities, Words(), sources_of(settings.towers), bases)
    return Made(Retriever(spec_of(settings, maker, bases), bases, seed).eval(), maker, bases)


def sources_of(towers: TowerSettings) -> Any:
    """Return hashed vectors for features, and what the models compute for the others."""
    if towers.text == "features":
        return HashSources()
    return ShownPictures(None, None, Encoders(towers, FeatureSettings(vision="descriptor"), ModelSettings()))


@pytest.fixture(scope="session")
def make_retriever() -> Callable[..., Made]:
    """Builds a small retriever: ``method``, ``seed``, ``modalities``, and settings of its towers."""
    return make


@pytest.fixture(scope="session")
def queries() -> tuple[Query, ...]:
    return QUERIES


@pytest.fixture(scope="session")
def responses() -> tuple[Response, ...]:
    return RESPONSES
