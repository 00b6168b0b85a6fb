"""Backbones by their settings: built, written into artefacts, read back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from mmd.artifacts import Artifact, ArtifactWriter
from mmd.base import Settings
from mmd.errors import ArtifactError, ConfigError, ModelError
from mmd.models.resolve import LOCAL
from mmd.models.settings import ModelSettings
from mmd.models.weights import put_trained, trained
from mmd.recommend.settings import BackboneSettings, ConversationSettings
from mmd.retrieval.bases import BaseRef, folder_hash

if TYPE_CHECKING:
    from mmd.recommend.backbone import Backbone
    from mmd.recommend.graph import ItemGraph
    from mmd.recommend.lm import LmBackbone
    from mmd.recommend.types import ResponseSample
    from mmd.recommend.vocabulary import Tokenizer

FORMAT_VERSION = 1
SPEC_FILE = "backbone.json"
WEIGHTS_FILE = "weights.safetensors"
_SHAPE_FOLDER = "shape"


class BackboneSpec(Settings):
    """What a saved backbone is, without its weights."""

    format_version: int = Field(default=FORMAT_VERSION, description="Of the files.")
    settings: BackboneSettings = Field(description="Its shape.")
    vocabulary: str = Field(description="Fingerprint of the token space.")
    graph: str = Field(description="Fingerprint of the item graph that it was built over.")
    base: BaseRef | None = Field(default=None, description="The frozen language model under low-rank updates.")


def build_tokenizer(
    settings: BackboneSettings,
    conversations: ConversationSettings,
    samples: Iterable[ResponseSample],
    graph: ItemGraph,
    models: ModelSettings | None = None,
) -> Tokenizer:
    """Return the tokenizer of a backbone: words counted on the training samples, or a language model's own.

    Raises:
        ModelError: the language model's tokenizer cannot be loaded.
    """
    if settings.kind == "lm":
        from mmd.recommend.lm_tokens import LmTokenizer

        return LmTokenizer.of_model(settings.model, graph.item_ids, models)
    from mmd.recommend.words import WordTokenizer

    return WordTokenizer.build(samples, graph.item_ids, conversations)


def build_backbone(
    settings: BackboneSettings,
    tokenizer: Tokenizer,
    graph: ItemGraph,
    models: ModelSettings | None = None,
    seed: int = 0,
) -> Backbone[Any]:
    """Return an untrained backbone on the CPU, in training mode; a language model comes with its own weights.

    Raises:
        ConfigError: the tokenizer is of the other kind.
        ModelError: the language model cannot be loaded.
    """
    if settings.kind == "lm":
        from mmd.models.language import load_causal

        model = load_causal(settings.model, models or ModelSettings())[1]
        backbone = _lm(settings, tokenizer, model, seed)
        backbone.start_rows(_lm_tokenizer(tokenizer), graph, seed)
        return backbone.train()
    from mmd.recommend.kgsf import KgsfBackbone

    return KgsfBackbone(tokenizer.space, graph, settings, seed).train()


def save_backbone(
    writer: ArtifactWriter, folder: str, backbone: Backbone[Any], graph: ItemGraph, models: ModelSettings | None = None
) -> None:
    """Write a backbone into a folder of an artefact; of a frozen language model under updates, only its name.

    Args:
        writer: of the artefact.
        folder: inside it.
        backbone: what was trained.
        graph: that it was built over.
        models: where the base under updates came from.
    """
    from safetensors.torch import save

    settings = backbone.settings
    frozen = settings.kind == "lm" and settings.lora_rank > 0
    spec = BackboneSpec(
        settings=settings,
        vocabulary=backbone.space.fingerprint(),
        graph=graph.fingerprint(),
        base=_base_ref(settings.model, models) if frozen else None,
    )
    if settings.kind == "lm" and not frozen:
        with tempfile.TemporaryDirectory() as scratch:
            _core(backbone).config.save_pretrained(scratch)
            for path in sorted(Path(scratch).iterdir()):
                writer.write_bytes(f"{folder}/{_SHAPE_FOLDER}/{path.name}", path.read_bytes())
    weights = {name: p.detach().cpu().contiguous() for name, p in trained(backbone).items()}
    writer.write_bytes(f"{folder}/{WEIGHTS_FILE}", save(weights))
    writer.write_json(f"{folder}/{SPEC_FILE}", spec.model_dump(mode="json"))


def load_backbone(
    artifact: Artifact, folder: str, tokenizer: Tokenizer, graph: ItemGraph, models: ModelSettings | None = None
) -> Backbone[Any]:
    """Load a backbone for use: on the CPU, float32, dropout off.

    Args:
        artifact: that :func:`save_backbone` wrote into.
        folder: inside it.
        tokenizer: that was saved beside it.
        graph: that it was built over.
        models: where a base under low-rank updates comes from.

    Raises:
        ArtifactError: malformed, or of another vocabulary or graph.
        ModelError: the base under updates is not here, or is another one.
    """
    from safetensors.torch import load

    spec = load_spec(artifact, folder)
    if spec.vocabulary != tokenizer.space.fingerprint():
        raise ArtifactError(
            f"{artifact.ref}: vocabulary mismatch: {folder} was made over other words or items than the tokenizer "
            f"({tokenizer.space.size} tokens) given with it; run the job again."
        )
    if spec.graph != graph.fingerprint():
        raise ArtifactError(
            f"{artifact.ref}: {folder} was made over another item graph; open the graph artefact that it names as its "
            "input."
        )
    backbone = _rebuilt(artifact, folder, spec, tokenizer, graph, models)
    put_trained(backbone, load(artifact.read_bytes(f"{folder}/{WEIGHTS_FILE}")), f"{artifact.ref}: {folder}")
    return backbone.eval()


def load_spec(artifact: Artifact, folder: str) -> BackboneSpec:
    """Read a backbone's spec.

    Raises:
        ArtifactError: missing, malformed or of another format.
    """
    content = artifact.read_json(f"{folder}/{SPEC_FILE}")
    try:
        spec = BackboneSpec.model_validate(content)
    except ValidationError as err:
        raise ArtifactError(
            f"{artifact.ref}: {folder}/{SPEC_FILE} is malformed: {err.errors()[0]['msg']}; run the job again."
        ) from err
    if spec.format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{artifact.ref}: {folder} is of format {spec.format_version} and this mmd reads {FORMAT_VERSION}; run the "
            "job again."
        )
    return spec


def _rebuilt(
    artifact: Artifact,
    folder: str,
    spec: BackboneSpec,
    tokenizer: Tokenizer,
    graph: ItemGraph,
    models: ModelSettings | None,
) -> Backbone[Any]:
    """Return a backbone of the saved shape, its trained weights still to come."""
    if spec.base is not None:
        if _base_ref(spec.base.name, models) != spec.base:
            raise ModelError(
                f"model {spec.base.name!r}: its files differ from those that {artifact.ref} was trained on; install "
                "the same version, or run the job again."
            )
        return build_backbone(spec.settings, tokenizer, graph, models)
    if spec.settings.kind == "kgsf":
        return build_backbone(spec.settings, tokenizer, graph)
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        place = artifact.copy_folder(f"{folder}/{_SHAPE_FOLDER}", Path(scratch))
        config = AutoConfig.from_pretrained(str(place), **LOCAL)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return _lm(spec.settings, tokenizer, model, seed=0)


def _lm(settings: BackboneSettings, tokenizer: Tokenizer, model: Any, seed: int) -> LmBackbone:  # noqa: ANN401 (a torch module)
    from mmd.recommend.lm import LmBackbone

    return LmBackbone(model, _lm_tokenizer(tokenizer), settings, seed)


def _lm_tokenizer(tokenizer: Tokenizer) -> Any:  # noqa: ANN401 (imported where it is used)
    from mmd.recommend.lm_tokens import LmTokenizer

    if not isinstance(tokenizer, LmTokenizer):
        raise ConfigError(
            "recommend.backbone.kind=lm: the tokenizer is one of words; vocabularies of kgsf and lm are not exchanged, "
            "train teacher and student of one kind."
        )
    return tokenizer


def _core(backbone: Any) -> Any:  # noqa: ANN401 (transformers')
    return backbone.core


def _base_ref(name: str, models: ModelSettings | None) -> BaseRef:
    """Return a model's name and the fingerprint of its files; of a hub id, its name alone."""
    from mmd.models.language import pretrained_place
    from mmd.models.resolve import resolve

    settings = models or ModelSettings()
    weights = resolve(name, settings)
    if weights.format == "hub":
        return BaseRef(name=name, sha256="")
    return BaseRef(name=name, sha256=folder_hash(Path(pretrained_place(weights, settings)[0])))
