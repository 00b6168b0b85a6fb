"""The sweeps that there are, and what may be searched by each: a closed list, checked by the settings' own models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from mmd.artifacts import Kind
from mmd.config import AppConfig, change_settings, nearest, read_yaml
from mmd.errors import ConfigError
from mmd.sweeps.types import Mode, SweepName

MAX_VALUES = 64
"""Values of one setting that a sweep tries at most."""
MAX_POINTS = 2_000
"""Most points of a space: the numbers of values, multiplied."""
MAX_TEXT = 100
_REPEATS = (".seeds", ".folds")  # settings whose value is a number of repeats: it counts as so many values


@dataclass(frozen=True)
class SweepKind:
    """A sweep: the job that makes it, and its search space.

    Attributes:
        name: which one.
        module: of the job, as ``python -m`` takes it.
        arguments: of the job, before any other.
        needs: kinds of artefacts that must be there.
        keys: settings that may be searched, as paths; a section stands for all in it.
        metric: what trials are compared by.
        mode: whether more or less of it is better.
        axis: what a trial's curve runs over; None: trials have no curves.
        reports: whether the job writes a report into a folder that ``--out`` names.
    """

    name: SweepName
    module: str
    arguments: tuple[str, ...]
    needs: tuple[Kind, ...]
    keys: tuple[str, ...]
    metric: str
    mode: Mode = "max"
    axis: str | None = None
    reports: bool = False


KINDS: Mapping[SweepName, SweepKind] = {
    kind.name: kind
    for kind in (
        SweepKind(
            name="rules",
            module="jobs.mine_rules",
            arguments=(),
            needs=("corpus", "features"),
            keys=("intent.search", "intent.predicates", "intent.folds", "seed"),
            metric="reward",
        ),
        SweepKind(
            name="gates",
            module="jobs.sweep_gates",
            arguments=("--method", "kdsl"),
            needs=("corpus", "features", "rulebase", "classifier", "adapter"),
            keys=("intent.gate", "seed"),
            metric="weighted_f1",
            axis="tau",
        ),
        SweepKind(
            name="conkd",
            module="jobs.sweep_gates",
            arguments=("--method", "conkd"),
            needs=("graph", "teacher"),
            keys=("recommend.sweep", "recommend.student.epochs", "recommend.student.min_steps", "seed"),
            metric="score",
            axis="validation",
        ),
        SweepKind(
            name="text_fraction",
            module="jobs.experiments",
            arguments=("text_fraction",),
            needs=("corpus",),
            keys=("retrieval.sweep", "retrieval.method", "retrieval.training.epochs", "retrieval.training.batch"),
            metric="R@1",
            axis="epoch",
            reports=True,
        ),
    )
}


@dataclass(frozen=True)
class SpaceField:
    """A setting of a search space.

    Attributes:
        key: its path, as ``recommend.sweep.gammas``.
        default: its value where nothing else is set.
        schema: its JSON schema, without references.
        description: what it is.
    """

    key: str
    default: Any
    schema: Mapping[str, Any]
    description: str


@cache
def _document() -> Mapping[str, Any]:
    """Return the JSON schema of all settings."""
    return AppConfig.model_json_schema()


def fields_of(kind: SweepKind) -> list[SpaceField]:
    """Return the settings that a sweep's space may have, in the order of its keys."""
    document = _document()
    defaults = AppConfig().model_dump(mode="json")
    return [field for key in kind.keys for field in _fields(document, key, *_lookup(document, defaults, key))]


def _lookup(document: Mapping[str, Any], values: Any, key: str) -> tuple[Mapping[str, Any], Any]:  # noqa: ANN401 (JSON)
    schema = document
    for part in key.split("."):
        schema, values = _resolved(document, schema)["properties"][part], values[part]
    return schema, values


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    found: Mapping[str, Any] = document["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    return found


def _fields(document: Mapping[str, Any], key: str, schema: Mapping[str, Any], value: Any) -> Iterator[SpaceField]:  # noqa: ANN401 (JSON)
    inner = _resolved(document, schema)
    if "properties" in inner:
        for name, part in inner["properties"].items():
            yield from _fields(document, f"{key}.{name}", part, value[name])
        return
    plain = {name: told for name, told in inner.items() if name not in ("title", "description", "default")}
    yield SpaceField(key, value, plain, str(schema.get("description", "")))


# ---------------------------------------------------------------- a space


def check_space(kind: SweepKind, values: Mapping[str, Any], config: AppConfig | None = None) -> AppConfig:
    """Return settings with a search space laid over them.

    Args:
        kind: of the sweep.
        values: setting → value, by its path.
        config: the settings below; None: the defaults.

    Raises:
        ConfigError: a setting is not one of this sweep's, a value is ill-typed, or there is too much to search.
    """
    known = [field.key for field in fields_of(kind)]
    for key in values:
        if key not in known:
            close = nearest(key[:MAX_TEXT], known)
            raise ConfigError(
                f"{key[:MAX_TEXT]}: no setting that sweep {kind.name} searches; it knows {', '.join(known)}.{close}"
            )
    _check_size(values)
    return change_settings(config or AppConfig(), values)


def _check_size(values: Mapping[str, Any]) -> None:
    sizes = []
    for key, value in values.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if len(parts) > MAX_VALUES:
            raise ConfigError(f"{key}: {len(parts)} values; a sweep tries at most {MAX_VALUES} of one setting.")
        for part in parts:
            if isinstance(part, float) and not math.isfinite(part):
                raise ConfigError(f"{key}: {part} is not a number that can be searched.")
            if isinstance(part, list | tuple | Mapping):
                raise ConfigError(f"{key}: a list in a list, or a mapping; give plain values.")
            if len(str(part)) > MAX_TEXT:
                raise ConfigError(f"{key}: a value of more than {MAX_TEXT} characters.")
        repeats = isinstance(value, int) and key.endswith(_REPEATS)
        sizes.append(max(1, value if repeats else len(parts)))
    if math.prod(sizes) > MAX_POINTS:
        raise ConfigError(
            f"{math.prod(sizes):,} points; a space has at most {MAX_POINTS:,}. Give fewer values, seeds or folds."
        )


def read_space(path: Path, kind: SweepKind) -> dict[str, Any]:
    """Return setting → value of a YAML file, which is written as the settings file is.

    Raises:
        ConfigError: it cannot be read, or is no space of this sweep.
    """
    sections = {part for key in kind.keys for part in _prefixes(key)}
    values = dict(_leaves(read_yaml(path), "", sections | {*kind.keys}))
    try:
        check_space(kind, values)
    except ConfigError as err:
        raise ConfigError(f"{path}: {err}") from None
    return values


def _prefixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _leaves(values: Mapping[str, Any], prefix: str, sections: set[str]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping) and key in sections:
            yield from _leaves(value, key, sections)
        else:
            yield key, value


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Return a space as assignments that ``--set`` takes."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def space_of(kind: SweepKind, config: AppConfig) -> dict[str, Any]:
    """Return what a sweep searches under these settings: setting → value."""
    document, values = _document(), config.model_dump(mode="json")
    return {field.key: _lookup(document, values, field.key)[1] for field in fields_of(kind)}


def kind_named(name: str) -> SweepKind:
    """Return a sweep by its name.

    Raises:
        ConfigError: there is no such sweep.
    """
    names: Sequence[SweepName] = get_args(SweepName)
    for known in names:
        if name == known:
            return KINDS[known]
    raise ConfigError(f"{name[:MAX_TEXT]!r}: no sweep; there are {', '.join(names)}.")
