"""Settings: one ``ray_config.yaml``, a profile and ``--set`` overrides, read once into frozen, strict models.

Every package owns the settings of its part (``mmd/<package>/settings.py``); this module joins them,
merges file ← profile ← overrides, and turns every mistake into a :class:`~mmd.errors.ConfigError` that
names the key's full path, what is allowed, and the nearest known key.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError

from mmd.assistant.settings import AssistantSettings
from mmd.base import Settings
from mmd.corpora.settings import DataSettings
from mmd.errors import ConfigError
from mmd.evaluation.settings import EvaluationSettings
from mmd.features.settings import FeatureSettings
from mmd.intent.settings import IntentSettings
from mmd.models.settings import ModelSettings
from mmd.recommend.settings import RecommendSettings
from mmd.retrieval.settings import RetrievalSettings

DEFAULT_PATH = Path("ray_config.yaml")


class _Yaml(yaml.SafeLoader):
    """Safe YAML that reads 2e-4 as the number it is; YAML 1.1, which PyYAML follows, wants 2.0e-4."""


_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))
ProfileName = Literal["laptop", "mllm", "gpu"]
Placement = Literal["PACK", "SPREAD", "STRICT_SPREAD"]


class ClusterSettings(Settings):
    """How jobs reach Ray."""

    address: str | None = Field(
        default=None,
        description="Ray address ('auto', 'ray://…'); null starts a local cluster or joins the job's own.",
    )
    logical_cpus: int = Field(
        default=8,
        ge=2,
        description="Logical CPUs of a local cluster; above the real cores on purpose, so that pools never starve. The "
        "service takes more where its replicas need them.",
    )
    object_store_mb: int = Field(default=1024, ge=80, description="Object store of a local cluster, MiB.")
    dashboard: bool = Field(default=False, description="Start the Ray dashboard with a local cluster.")
    autoscaler_cpus: int | None = Field(
        default=None,
        ge=1,
        description="CPUs that the cluster's autoscaler may grow to, which Ray's own does not tell jobs: pools of "
        "workers grow so far. null: what is there when a job starts.",
    )
    placement: Placement = Field(
        default="PACK",
        description="Where a training's workers run: PACK: on as few nodes as hold them; SPREAD: on as many as there "
        "are; STRICT_SPREAD: each on a node of its own, waiting for nodes where there are too few.",
    )


class TuneSettings(Settings):
    """How Ray Tune spreads searches."""

    max_concurrent: int = Field(default=2, ge=1, description="Trials at a time.")
    searches_per_trial: int = Field(
        default=32, ge=1, description="Rule searches batched into one trial, to amortise its start-up."
    )


class ServeSettings(Settings):
    """The online service and its limits; limits are checked before anything is decoded."""

    host: str = Field(default="127.0.0.1", description="Interface to listen on.")
    port: int = Field(default=8000, ge=1, le=65535, description="HTTP port.")
    min_replicas: int = Field(default=1, ge=1, description="Lower bound of autoscaling.")
    max_replicas: int = Field(default=2, ge=1, description="Upper bound of autoscaling.")
    max_replicas_per_node: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Replicas of a part, and of the ingress, that one node holds at most; with 1 and min_replicas=2 "
        "the loss of a node takes no part away. null: no bound.",
    )
    gpus_per_replica: float = Field(
        default=0.0,
        ge=0,
        description="GPUs that Ray reserves for a replica of the intent engine; fractions share one, 0 stays on CPUs.",
    )
    target_ongoing_requests: int = Field(default=2, ge=1, description="Requests a replica, for autoscaling.")
    slowdown: float = Field(
        default=2.0,
        ge=0,
        description="Times what it takes alone that a request may take on average before others wait or get 429; "
        "target_ongoing_requests times min_replicas are always let in, and where there may be more replicas, a little "
        "more than autoscaling reacts to. 0: full queues alone refuse.",
    )
    max_ongoing_requests: int = Field(default=16, ge=1, description="Requests a replica works on at a time.")
    max_queued_requests: int = Field(default=64, ge=1, description="Waiting requests above which 429 is sent.")
    batch_max_size: int = Field(default=8, ge=1, description="Dialogues predicted together at most.")
    batch_wait_ms: float = Field(
        default=0.0,
        ge=0,
        description="Longest wait for a batch to fill, ms; what arrives while one is computed makes the next anyway.",
    )
    one_loop: bool = Field(
        default=True,
        description="Whether a process of the service receives, routes and answers in one event loop, which is "
        "faster, or each in a thread of its own. Of clusters that were started before, the variables of their nodes "
        "decide (see cluster/README.md).",
    )
    max_body_mb: float = Field(default=16.0, gt=0, description="Largest request body, MiB.")
    max_turns: int = Field(default=500, ge=1, description="Turns of one dialogue.")
    max_text_chars: int = Field(default=50_000, ge=1, description="Characters of one dialogue, product ids included.")
    max_item_ids: int = Field(default=1_000, ge=0, description="Product ids that one dialogue names.")
    max_images: int = Field(default=8, ge=0, description="Pictures of one dialogue.")
    max_image_mb: float = Field(default=10.0, gt=0, description="Bytes of one picture, MiB.")
    max_image_megapixels: float = Field(default=40.0, gt=0, description="Width x height of one picture, 10^6 px.")
    max_request_megapixels: float = Field(
        default=80.0, gt=0, description="Pixels of a request's distinct pictures together, 10^6 px."
    )
    image_hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts from which pictures are fetched by https, as images.shop.example; none by default: pictures "
        "come as data URLs. Private addresses and redirects are refused whatever is listed.",
    )
    image_fetch_s: float = Field(default=3.0, gt=0, description="Longest time to fetch a picture, s.")
    api_keys_file: str | None = Field(
        default=None,
        description="File with the hash of an API key a line, see `mmd keys new`; null: everybody may ask.",
    )
    rate_limit_per_minute: float = Field(
        default=600.0, gt=0, description="Requests a minute that a key may send to one ingress replica."
    )
    rate_limit_burst: int = Field(default=60, ge=1, description="Requests that a key may send at once.")
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="Origins of other sites whose pages may ask, as https://shop.example; none by default.",
    )
    jobs_address: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#@\s]+/?$",
        description="Dashboard of the Ray cluster on which the page of sweeps launches and stops jobs, as "
        "http://HEAD:8265; null: it only shows them. Needs api_keys_file.",
    )
    jobs_working_dir: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9+]+://\S+$",
        description="URI of a package with the code and ray_config.yaml, where launched jobs run, as "
        "s3://bucket/mmd.zip; null: mmd is installed in the cluster's image.",
    )
    jobs_config: str | None = Field(
        default=None,
        description="Settings file of launched jobs, as the cluster's machines have it; null: ray_config.yaml where "
        "they run.",
    )
    jobs_profile: str | None = Field(
        default=None,
        description="Profile of that file that launched jobs take, as gpu; null: the one that the file names.",
    )
    jobs_keys: tuple[str, ...] = Field(
        default=(),
        description="Names of the API keys that may launch and stop jobs; none named: every key in api_keys_file.",
    )
    request_timeout_s: float = Field(default=30.0, gt=0, description="Longest time to an answer, s; then 504.")
    part_timeout_s: float = Field(
        default=4.0,
        gt=0,
        description="Longest wait of a conversation's turn for intent, retrieval or the student, s; it then goes on "
        "without. At most 0.4 of request_timeout_s; with a large model, longer than mllm_timeout_s.",
    )
    mllm_timeout_s: float = Field(
        default=10.0, gt=0, description="Longest wait for the large model, s; rules and probe then answer without it."
    )
    run_ocr: bool = Field(default=True, description="Recognise text in pictures that come without OCR.")
    cached_images: int = Field(default=512, ge=0, description="Recent pictures whose features a replica keeps.")
    cached_texts: int = Field(default=4096, ge=0, description="Recent texts whose vectors a replica keeps.")
    examples: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Show training dialogues of the corpus on the page; auto: only of the simulated shop.",
    )


class AppConfig(Settings):
    """Everything a job or the service can be told; see ``ray_config.yaml`` for the annotated file."""

    store: str = Field(default="artifacts", description="Artefact store: local path or fsspec URI (s3://…).")
    seed: int = Field(default=0, ge=0, description="Seed from which every random choice derives.")
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    features: FeatureSettings = Field(default_factory=FeatureSettings)
    models: ModelSettings = Field(default_factory=ModelSettings)
    intent: IntentSettings = Field(default_factory=IntentSettings)
    retrieval: RetrievalSettings = Field(default_factory=RetrievalSettings)
    recommend: RecommendSettings = Field(default_factory=RecommendSettings)
    assistant: AssistantSettings = Field(default_factory=AssistantSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    tune: TuneSettings = Field(default_factory=TuneSettings)
    serve: ServeSettings = Field(default_factory=ServeSettings)


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``, ``--profile`` and ``--set``, the arguments of :func:`load_config`, to a command's options."""
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, help="settings file (default: %(default)s)")
    parser.add_argument("--profile", help="profile of the settings file: laptop, mllm or gpu")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override one setting"
    )


def load_config(
    path: Path = DEFAULT_PATH,
    *,
    profile: str | None = None,
    overrides: Iterable[str] = (),
) -> AppConfig:
    """Read the settings file, lay the profile and the ``a.b=c`` overrides over it, and validate the result.

    Args:
        path: YAML file with the settings and, under ``profiles``, partial settings by profile name.
        profile: profile to lay over; None takes the file's ``profile`` key, which defaults to ``laptop``.
        overrides: assignments ``section.key=value``; the value is parsed as YAML.

    Raises:
        ConfigError: the file is missing or not YAML, the profile is unknown, or a key is unknown or ill-typed.
    """
    raw = read_yaml(path)
    profiles = raw.pop("profiles", None) or {}
    if not isinstance(profiles, dict) or not all(isinstance(p, dict | None) for p in profiles.values()):
        raise ConfigError(f"{path}: profiles: needs a mapping of profile name to partial settings.")
    chosen = profile or raw.pop("profile", None) or "laptop"
    raw.pop("profile", None)
    known = sorted(set(get_args(ProfileName)) | set(profiles))
    if chosen not in known:
        msg = f"profile {chosen!r}: unknown; {path} knows {', '.join(known)}.{nearest(str(chosen), known)}"
        raise ConfigError(msg)
    for name, partial in profiles.items():
        for key in _unknown_keys(AppConfig, partial or {}, f"profiles.{name}"):
            raise ConfigError(f"{path}: {key}")
    merged = _merge(raw, profiles.get(chosen) or {})
    for assignment in overrides:
        override = _parse_override(assignment)
        build_config(override, where=f"--set {assignment}")  # alone, so that its mistakes are not told as the file's
        merged = _merge(merged, override)
    return build_config(merged, where=str(path))


def build_config(values: Mapping[str, Any], *, where: str = "settings") -> AppConfig:
    """Validate a plain nested mapping into :class:`AppConfig`.

    Raises:
        ConfigError: with one line a mistake, each naming the key's full path and what is allowed there.
    """
    unknown = list(_unknown_keys(AppConfig, values))
    if unknown:
        raise ConfigError(f"{where}: " + "\n".join(unknown))
    try:
        # By way of JSON: strict mode then refuses "3" for an int but takes a YAML list for a tuple.
        return AppConfig.model_validate_json(json.dumps(values), strict=True)
    except (TypeError, ValueError) as err:
        if not isinstance(err, ValidationError):
            raise ConfigError(f"{where}: {err}; settings are numbers, strings, booleans, lists, mappings.") from err
        lines = [_explain(dict(detail)) for detail in err.errors(include_url=False)]
        raise ConfigError(f"{where}: " + "\n".join(lines)) from err


def change_settings(config: AppConfig, changes: Mapping[str, Any]) -> AppConfig:
    """Return settings with some keys changed (``recommend.distill.gate`` → ``hard``), checked as a file's are.

    Raises:
        ConfigError: a key is unknown or a value ill-typed.
    """
    values: dict[str, Any] = config.model_dump(mode="json")
    for key, value in changes.items():
        values = _merge(values, _nested(key, value))
    return build_config(values)


def _nested(key: str, value: Any) -> dict[str, Any]:  # noqa: ANN401 (any setting)
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return dict(value)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; empty for an empty file.

    Raises:
        ConfigError: the file is missing, not YAML, or holds something else.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml)  # noqa: S506 (a safe loader)
    except FileNotFoundError:
        msg = f"{path}: no such settings file; run from the project's root or pass --config PATH."
        raise ConfigError(msg) from None
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: cannot be read ({err}); settings are a UTF-8 YAML file.") from err
    except yaml.YAMLError as err:
        raise ConfigError(f"{path}: not valid YAML ({err}); compare it with the shipped ray_config.yaml.") from err
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}, needs a mapping of sections.")
    return loaded


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        current = out.get(key)
        both = isinstance(current, Mapping) and isinstance(value, Mapping)
        out[key] = _merge(current, value) if both else value  # type: ignore[arg-type]
    return out


def _parse_override(assignment: str) -> dict[str, Any]:
    key, sep, text = assignment.partition("=")
    if not sep or not key.strip() or not all(part for part in key.strip().split(".")):
        raise ConfigError(f"--set {assignment!r}: not of the form section.key=value, e.g. intent.folds=5.")
    try:
        value: Any = yaml.load(text, Loader=_Yaml)  # noqa: S506 (a safe loader)
    except (yaml.YAMLError, RecursionError) as err:
        raise ConfigError(f"--set {key}: the value {text[:80]!r} is not valid YAML ({err}); quote it.") from err
    return _nested(key, value)


def _unknown_keys(model: type[BaseModel], values: Any, prefix: str = "") -> Iterator[str]:  # noqa: ANN401 (raw YAML)
    if not isinstance(values, Mapping):
        return
    fields = model.model_fields
    for key, value in values.items():
        where = f"{prefix}.{key}" if prefix else str(key)
        if key not in fields:
            yield f"{where}: unknown setting; known here: {', '.join(fields)}.{nearest(str(key), fields)}"
            continue
        nested = _settings_type(fields[key].annotation)
        if nested is not None:
            yield from _unknown_keys(nested, value, where)


def _settings_type(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 (a type expression)
    candidates = get_args(annotation) if get_origin(annotation) is not None else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def nearest(key: str, known: Iterable[str]) -> str:
    """Return the question whether the most similar known name was meant, after a blank; nothing if none is similar."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _explain(detail: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    given = json.dumps(detail.get("input"), ensure_ascii=False, default=str)
    return f"{where}: {detail['msg']} (given: {given[:80]})."


def describe_settings(model: type[BaseModel] = AppConfig, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (key path, type, description) for every leaf setting, in file order."""
    for name, info in model.model_fields.items():
        where = f"{prefix}.{name}" if prefix else name
        nested = _settings_type(info.annotation)
        if nested is not None:
            yield from describe_settings(nested, where)
        else:
            kind = getattr(info.annotation, "__name__", None) or str(info.annotation)
            yield where, str(info.annotation) if get_args(info.annotation) else kind, info.description or ""
