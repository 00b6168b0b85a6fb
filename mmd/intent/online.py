"""Features computed on the spot: extractors that remember recent content and may be missing or fail."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mmd.errors import MmdError
from mmd.features.base import ImageEncoder, OcrEngine, TextEncoder
from mmd.features.extract import attempt
from mmd.features.settings import FeatureSettings
from mmd.intent.types import ImageFacts, Vector
from mmd.models.settings import ModelSettings
from mmd.schema import Image, OcrLine, text_id

T = TypeVar("T")


class LruCache(Generic[T]):
    """Keeps the most recently used values, at most ``size``; safe to share between threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> T | None:
        """Return a value, which thereby becomes the most recent, or None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: T) -> None:
        """Keep a value, dropping the least recently used one beyond the size."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)

    def __len__(self) -> int:
        """Return how many values are kept."""
        return len(self._values)


class CachedExtractor(Generic[T]):
    """An extractor that remembers what it did and reports a failure instead of raising it.

    Args:
        role: ``ocr``, ``vision`` or ``text``; the failure's name in answers.
        extract: inputs → one value each; called by one thread at a time, since extractors are not made for more.
        cache: values by content hash.
    """

    def __init__(self, role: str, extract: Callable[[Sequence[Any]], Sequence[T]], cache: LruCache[T]) -> None:
        self.role = role
        self._extract = extract
        self._cache = cache
        self._lock = threading.Lock()

    def __call__(self, inputs: Mapping[str, Any]) -> tuple[dict[str, T], str | None]:
        """Return content hash → value, and, if the extractor failed, why; what it failed on is then absent."""
        known = {key: value for key in inputs if (value := self._cache.get(key)) is not None}
        missing = [key for key in inputs if key not in known]
        if not missing:
            return known, None
        try:
            with self._lock:
                values, errors = attempt(self._extract, [inputs[key] for key in missing])
        except MmdError as err:  # the extractor itself cannot work
            return known, f"{self.role}: failed ({err})"
        for key, value in zip(missing, values, strict=True):
            if value is not None:
                known[key] = value
                self._cache.put(key, value)
        problem = next((error for error in errors if error), None)
        return known, problem and f"{self.role}: failed ({problem[:200]})"


@dataclass(frozen=True)
class OnlineExtractors:
    """The extractors that the features artefact names; a missing one has its reason in ``absent`` (role → why)."""

    ocr: OcrEngine | None = None
    vision: ImageEncoder | None = None
    text: TextEncoder | None = None
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OnlineSettings:
    """How pictures and texts are read online.

    Args:
        features: sizes and threads of the extractors; which ones run follows from what the model was trained with.
        models: where base weights come from, and the device, arithmetic and threads of the large model.
        mllm_timeout_s: longest wait for the large model, from when a query comes; rules and probe answer then.
        run_ocr: recognise text in pictures that come without OCR.
        cached_images: recent pictures whose features are kept.
        cached_texts: recent texts whose vectors are kept.
    """

    features: FeatureSettings = field(default_factory=FeatureSettings)
    models: ModelSettings = field(default_factory=ModelSettings)
    mllm_timeout_s: float = 10.0
    run_ocr: bool = True
    cached_images: int = 512
    cached_texts: int = 4096


class OnlineFeatures:
    """Reads pictures and texts as ``featurize`` does, with a cache of recent ones; safe to share between threads.

    Args:
        extractors: what reads them.
        settings: sizes of the caches.
    """

    def __init__(self, extractors: OnlineExtractors, settings: OnlineSettings | None = None) -> None:
        settings = settings or OnlineSettings()
        cached_images, cached_texts = settings.cached_images, settings.cached_texts
        ocr, vision, text = extractors.ocr, extractors.vision, extractors.text
        self._absent = dict(extractors.absent)
        self._ocr: CachedExtractor[tuple[OcrLine, ...]] | None = None
        self._vision: CachedExtractor[Vector] | None = None
        self._text: CachedExtractor[Vector] | None = None
        if ocr:
            self._ocr = CachedExtractor("ocr", ocr.recognise, LruCache(cached_images))
        if vision:
            self._vision = CachedExtractor("vision", lambda some: list(vision.encode(some)), LruCache(cached_images))
        if text:
            self._text = CachedExtractor("text", lambda some: list(text.encode(some)), LruCache(cached_texts))

    def look(
        self, images: Mapping[str, Image], *, pixels: bool = False
    ) -> tuple[dict[str, ImageFacts], tuple[str, ...]]:
        """Return the facts of each picture by id, and what could not be read and why; given OCR is kept.

        ``pixels`` keeps the encoded bytes in the facts, for a model that looks at them.
        """
        unread = {key: image.data for key, image in images.items() if image.ocr is None}
        lines, no_lines = self._extract("ocr", self._ocr, unread)
        vectors, no_vectors = self._extract("vision", self._vision, {key: image.data for key, image in images.items()})
        facts = {
            key: ImageFacts(
                image_id=key,
                width=image.width,
                height=image.height,
                ocr=image.ocr if image.ocr is not None else lines.get(key, ()),
                vector=vectors.get(key),
                data=image.data if pixels else None,
            )
            for key, image in images.items()
        }
        return facts, tuple(problem for problem in (no_lines, no_vectors) if problem)

    def read(self, texts: Iterable[str]) -> tuple[dict[str, Vector], str | None]:
        """Return text id → vector of the distinct texts that have any, and why there are none, if so."""
        return self._extract("text", self._text, {text_id(text): text for text in sorted(set(texts)) if text.strip()})

    def _extract(
        self, role: str, extractor: CachedExtractor[T] | None, inputs: Mapping[str, Any]
    ) -> tuple[dict[str, T], str | None]:
        if not inputs:
            return {}, None
        if extractor is None:
            return {}, f"{role}: {self._absent[role]}" if role in self._absent else None
        return extractor(inputs)
