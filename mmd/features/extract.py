"""Which extractors the settings lead to, and the batch callables that apply them to Arrow tables.

Plain code: ``jobs.featurize`` maps these over Ray actors, the online service holds one :class:`Extractors` warm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, cast, get_args

import pyarrow as pa

from mmd.errors import MmdError, ModelError
from mmd.features.base import OCR_TABLE, VECTOR_TABLE, ImageEncoder, OcrEngine, TextEncoder
from mmd.features.ocr import RapidOcr, rapidocr_installed
from mmd.features.settings import FeatureSettings
from mmd.features.text import UseMultilingual, use_installed
from mmd.features.vision import Descriptor, EfficientNetLite0, efficientnet_installed
from mmd.schema import ocr_to_row

Role = Literal["ocr", "vision", "text"]
ROLES: tuple[Role, ...] = get_args(Role)
VECTOR_ROLES: tuple[Role, ...] = ("vision", "text")
TABLES: Mapping[Role, str] = {"ocr": "ocr", "vision": "image_vectors", "text": "text_vectors"}
SCHEMAS: Mapping[Role, pa.Schema] = {"ocr": OCR_TABLE, "vision": VECTOR_TABLE, "text": VECTOR_TABLE}

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class ExtractorInfo:
    """What a features artefact records of an extractor; ``dim`` is 0 for OCR."""

    name: str
    dim: int


@dataclass(frozen=True)
class Extractors:
    """The extractors in force; a role without one is None."""

    ocr: OcrEngine | None
    vision: ImageEncoder | None
    text: TextEncoder | None

    def describe(self) -> dict[str, ExtractorInfo | None]:
        """Return role → name and dimension, None where a role has no extractor."""
        found: dict[str, ExtractorInfo | None] = {}
        for role in ROLES:
            extractor = getattr(self, role)
            found[role] = ExtractorInfo(extractor.name, getattr(extractor, "dim", 0)) if extractor else None
        return found

    def check(self, expected: Mapping[str, ExtractorInfo | None], roles: Sequence[Role] = VECTOR_ROLES) -> None:
        """Refuse to go with what was trained on other features.

        OCR is left out unless asked for: lines of another engine are still text.

        Args:
            expected: what the training run's :meth:`describe` said.
            roles: roles that must agree.

        Raises:
            ModelError: naming each role that differs and the way out.
        """
        have = self.describe()
        wrong = [r for r in roles if have[r] != expected.get(r)]
        if wrong:
            told = "; ".join(f"{r}: trained with {_told(expected.get(r))}, here {_told(have[r])}" for r in wrong)
            raise ModelError(
                f"features differ from those the model was trained with ({told}). Install what it was trained with "
                "(`pip install 'mmd[models]'`) and set features.vision and features.text to it, or run the pipeline "
                "again here."
            )

    def warm(self) -> None:
        """Load all weights now, so that the first request does not wait for them."""
        for role in ROLES:
            warm = getattr(getattr(self, role), "warm", None)
            if warm:
                warm()


def _told(info: ExtractorInfo | None) -> str:
    return f"{info.name} (dim {info.dim})" if info else "none"


def build_extractors(settings: FeatureSettings) -> Extractors:
    """Return the extractors that the settings name; weights are loaded when first used, or by ``warm``.

    Raises:
        ModelError: one that is named outright is not installed.
    """
    ocr = settings.ocr if settings.ocr != "auto" else ("rapidocr" if rapidocr_installed() else "none")
    vision = settings.vision
    if vision == "auto":
        vision = "efficientnet_lite0" if efficientnet_installed() else "descriptor"
    text = settings.text if settings.text != "auto" else ("use_multilingual" if use_installed() else "none")
    return Extractors(
        ocr=RapidOcr(settings.ocr_side_px, settings.threads) if ocr == "rapidocr" else None,
        vision=EfficientNetLite0(settings.threads) if vision == "efficientnet_lite0" else Descriptor(),
        text=UseMultilingual(settings.threads) if text == "use_multilingual" else None,
    )


class Stage(Protocol):
    """A batch callable: takes a table with the columns of ``requires``, returns a table of ``schema``."""

    requires: frozenset[str]
    schema: pa.Schema

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return one row an input row, in order; a row that failed has its reason in ``error``."""
        ...


class OcrStage:
    """Pictures (``id``, ``data``) → their lines (:data:`~mmd.features.base.OCR_TABLE`)."""

    requires = frozenset({"id", "data"})
    schema = OCR_TABLE

    def __init__(self, engine: OcrEngine) -> None:
        self._engine = engine

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Recognise a batch."""
        _require(self, batch)
        found, errors = attempt(self._engine.recognise, batch["data"].to_pylist())
        lines = [None if one is None else ocr_to_row(one) for one in found]
        columns = [batch["id"].combine_chunks(), pa.array(lines, OCR_TABLE.field("lines").type), pa.array(errors)]
        return pa.table(columns, names=OCR_TABLE.names).cast(OCR_TABLE)


class VectorStage:
    """Pictures (``data``) or texts (``text``) by ``id`` → vectors (:data:`~mmd.features.base.VECTOR_TABLE`)."""

    schema = VECTOR_TABLE

    def __init__(self, encoder: ImageEncoder | TextEncoder, column: Literal["data", "text"]) -> None:
        self._encode = cast("Callable[[Sequence[Any]], Any]", encoder.encode)
        self._column = column
        self.requires = frozenset({"id", column})

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode a batch."""
        _require(self, batch)
        vectors, errors = attempt(lambda some: list(self._encode(some)), batch[self._column].to_pylist())
        columns = [batch["id"].combine_chunks(), pa.array(vectors, pa.list_(pa.float32())), pa.array(errors)]
        return pa.table(columns, names=VECTOR_TABLE.names).cast(VECTOR_TABLE)


def build_stage(role: Role, extractors: Extractors) -> Stage:
    """Return the batch callable of a role.

    Raises:
        ModelError: the role has no extractor.
    """
    if role == "ocr" and extractors.ocr:
        return OcrStage(extractors.ocr)
    if role == "vision" and extractors.vision:
        return VectorStage(extractors.vision, "data")
    if role == "text" and extractors.text:
        return VectorStage(extractors.text, "text")
    raise ModelError(f"features: there is no {role} extractor; set features.{role} to one.")


def attempt(run: Callable[[Sequence[In]], Sequence[Out]], values: Sequence[In]) -> tuple[list[Out | None], list[str]]:
    """Run a batch; when it fails, run its rows one by one, so that a bad row spoils no other.

    Returns:
        Results (None where failed) and errors (empty where not), both of the values' length.

    Raises:
        MmdError: the extractor itself cannot work; that is no row's fault.
    """
    try:
        return list(run(values)), [""] * len(values)
    except MmdError:
        raise
    except Exception as err:  # noqa: BLE001 (engines raise what they like; the row keeps the reason)
        if len(values) == 1:
            return [None], [f"{type(err).__name__}: {err}"]
    results: list[Out | None] = []
    errors: list[str] = []
    for value in values:
        result, error = attempt(run, [value])
        results += result
        errors += error
    return results, errors


def _require(stage: Stage, batch: pa.Table) -> None:
    if missing := stage.requires - set(batch.column_names):
        raise KeyError(f"{type(stage).__name__} needs columns {sorted(missing)}; the batch has {batch.column_names}")
