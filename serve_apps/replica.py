"""What every model's replica does alike: load artefacts, swap them without a restart, refuse what cannot be loaded.

A part whose artefacts were never made is absent, and says so; the other parts of the service answer without it. It
comes in by the same swap once its artefacts are there.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from mmd.errors import MmdError
from mmd.features.settings import FeatureSettings
from mmd.intent.online import OnlineSettings
from mmd.log import configure_logging, place_of
from mmd.models.settings import ModelSettings
from serve_apps.api import ApiError, Part
from serve_apps.failures import note_failure

E = TypeVar("E")
Q = TypeVar("Q")
A = TypeVar("A")
Seat = Part | Literal["policy"]
"""What holds artefacts: a part of the service, or the policy that joins them."""


class Refs(BaseModel):
    """Which artefacts answer, as ``kind/name@version``; absent: the newest of the corpus. This is ``user_config``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def given(self) -> dict[str, str]:
        """Return role → reference of those that are set."""
        return {role: ref for role, ref in self.model_dump().items() if ref}


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a replica does not answer a request; an exception would come out of Ray in its own wrapping.

    Attributes:
        status: of HTTP.
        code: of the API's error.
        message: for who asked.
        param: field of the request that it is about.
        absent: whether the part has nothing to answer with, so that it would say the same to every request.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    absent: bool = False

    def error(self) -> ApiError:
        """Return the API's error."""
        return ApiError(self.status, self.code, self.message, self.param)


@dataclass(frozen=True)
class PartStatus:
    """What a part of the service answers with; ``absent`` is the reason why it does not answer at all."""

    part: Seat
    absent: str | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    rejected_update: str | None = None
    modalities: tuple[str, ...] = ()


class Replica(ABC, Generic[E]):
    """Holds one engine a replica. A part says how its engine is loaded and described, and answers with it.

    Args:
        part: of the service.
        refs: model of its ``user_config``.
        store: URI of the artefact store.
        corpus: name of the corpus.
        settings: batching, caches, OCR, limits.
        features: sizes and threads of the extractors.
        models: where base weights come from, device and arithmetic.
    """

    def __init__(
        self,
        part: Seat,
        refs: type[Refs],
        store: str,
        corpus: str,
        settings: ServeSettings,
        features: FeatureSettings | None = None,
        models: ModelSettings | None = None,
    ) -> None:
        configure_logging(json_lines=True)
        self._part = part
        self._refs = refs
        self._log = structlog.get_logger(f"mmd.{part}").bind(corpus=corpus)
        self._store = ArtifactStore(store)
        self._corpus = corpus
        self._settings = settings
        self._features = features or FeatureSettings()
        self._models = models or ModelSettings()
        self._engine: E | None = None
        self._absent: str | None = None
        self._rejected: str | None = None

    @abstractmethod
    def _load(self, refs: dict[str, str]) -> E:
        """Return an engine over these artefacts, and the newest where none is named; called in a thread."""

    @abstractmethod
    def _describe(self, engine: E) -> PartStatus:
        """Return what an engine answers with; :meth:`status` adds the refused update."""

    def _online_settings(self) -> OnlineSettings:
        """Return how pictures and texts that come with requests are read."""
        return OnlineSettings(
            features=self._features,
            models=self._models,
            run_ocr=self._settings.run_ocr,
            cached_images=self._settings.cached_images,
            cached_texts=self._settings.cached_texts,
        )

    def _limit_batches(self, method: Callable[..., Awaitable[object]]) -> None:
        """Give a method of this replica that ``serve.batch`` wraps the settings' limits."""
        batching: Any = method  # its setters are added by the wrapper; the type does not tell them
        batching.set_max_batch_size(self._settings.batch_max_size)
        batching.set_batch_wait_timeout_s(self._settings.batch_wait_ms / 1000)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the artefacts that ``user_config`` names; what cannot be loaded leaves the old ones in place.

        Without old ones, and with none asked for by name, the part is absent until the next swap.

        Raises:
            Exception: named artefacts cannot be loaded and there are no old ones.
        """
        started = time.perf_counter()
        refs: dict[str, str] | None = None
        try:
            refs = self._refs.model_validate(user_config).given()
            engine = await asyncio.to_thread(self._load, refs)
        except Exception as err:  # whatever is wrong with the new artefacts is no reason to lose the old ones
            if self._engine is not None:
                self._reject(err, self._engine)
            elif refs or not isinstance(err, MmdError):
                raise
            else:
                self._absent = str(err)
                self._log.warning("part_absent", part=self._part, reason=self._absent)
            return
        self._engine, self._absent, self._rejected = engine, None, None
        await asyncio.to_thread(gc.collect)  # the old model, once nothing that it answers is under way
        seconds = round(time.perf_counter() - started, 2)
        told = self._describe(engine)
        self._log.info("artifacts_loaded", artifacts=told.artifacts, degraded=told.degraded, seconds=seconds)

    def _reject(self, err: Exception, engine: E) -> None:
        understood = isinstance(err, MmdError | ValueError)
        self._rejected = str(err) if understood else f"the artefacts cannot be loaded ({type(err).__name__}: {err})"
        where = None if understood else place_of(err)
        self._log.error(
            "artifacts_rejected", reason=self._rejected, still=self._describe(engine).artifacts, where=where
        )

    @property
    def engine(self) -> E:
        """The engine that answers now.

        Raises:
            RuntimeError: there is none.
        """
        if self._engine is None:
            raise RuntimeError(f"the {self._part} engine is used before its artefacts are loaded")
        return self._engine

    @property
    def refusal(self) -> Refused | None:
        """Why nothing can be asked here, if so."""
        return absent_part(self._part, self._absent) if self._engine is None and self._absent else None

    async def status(self) -> PartStatus:
        """Return what answers."""
        if self._engine is None and self._absent:
            return PartStatus(self._part, absent=self._absent)
        return replace(self._describe(self.engine), rejected_update=self._rejected)

    def failed(self, err: Exception, request_id: str) -> Refused:
        """Log what an answer failed of, without its words; say that it failed."""
        return Refused(500, "part_failed", note_failure(self._log, self._part, err, request_id))

    def check_health(self) -> None:
        """Tell Serve that this replica can answer, or knows why it cannot.

        Raises:
            RuntimeError: it has not been configured; Serve then replaces the replica.
        """
        if self._absent is None:
            _ = self.engine


R = TypeVar("R", bound=Replica[Any])


def sheltered(method: Callable[[R, Q], Awaitable[A]]) -> Callable[[R, Q], Awaitable[A | Refused]]:
    """Return a method of a replica that refuses where it fails: Serve would log the error with all of its words."""

    @functools.wraps(method)
    async def answer(self: R, query: Q) -> A | Refused:
        try:
            return await method(self, query)
        except Exception as err:  # noqa: BLE001 (whatever it is, it is told and logged without its words)
            return self.failed(err, request_of(query))

    return answer


def request_of(query: object) -> str:
    """Return the request's id that a query carries; a picture's own id for one that is asked for by it."""
    asked = getattr(query, "dialogue", query)
    return str(getattr(asked, "id", asked))[:80]


def each(work: Callable[[Sequence[Q]], Sequence[A]], asked: Sequence[Q]) -> list[A | Exception]:
    """Answer several together; one that cannot be answered spoils no other, its error comes in its place."""
    try:
        return list(work(asked))
    except Exception as err:  # noqa: BLE001 (whose fault it is shows when each is asked alone)
        if len(asked) == 1:
            return [err]
        return [found for one in asked for found in each(work, [one])]


def absent_part(part: Seat, reason: str) -> Refused:
    """Return the answer of a part whose artefacts were never made; ``reason`` names the way out."""
    codes = {"intent": "no_intent", "retrieval": "no_retriever", "recommendation": "no_student"}
    return Refused(503, codes.get(part, f"no_{part}"), f"{part} is not served: {reason}", absent=True)


def unknown_picture(image_id: str) -> Refused:
    """Return the answer to a picture that is not there."""
    message = f"{image_id[:80]}: nothing here has this picture; the artefacts may have been swapped since. Ask again."
    return Refused(404, "unknown_image", message)
