"""A retriever on disk: ``retriever.json``, ``weights.safetensors``, and the shape and tokenizer of trained models.

A fully trained model loads without the base it came from. An adapter's base is found by name, and refused when its
files are not those that it was trained on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mmd.artifacts import Artifact, ArtifactWriter, fingerprint
from mmd.errors import ArtifactError, ModelError
from mmd.features.extract import ExtractorInfo
from mmd.models.settings import ModelSettings
from mmd.retrieval.bases import BaseModels, BaseRef, folder_hash, model_folder, trains_text, trains_vision
from mmd.retrieval.methods import FORMAT_VERSION, Retriever, RetrieverSpec

if TYPE_CHECKING:
    import torch

    from mmd.retrieval.inputs import InputMaker, InputSources
    from mmd.retrieval.sources import Words

SPEC_FILE = "retriever.json"
WEIGHTS_FILE = "weights.safetensors"
TEXT_FOLDER = "text"
VISION_FOLDER = "vision"
_LOOKS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_PROCESSOR = ("config.json", "preprocessor_config.json")
_WAY_OUT = "open retriever/NAME, made by `mmd train_retriever`."


def save_retriever(writer: ArtifactWriter, retriever: Retriever, bases: BaseModels) -> None:
    """Write a retriever into an artefact of kind ``retriever``.

    Args:
        writer: of the artefact.
        retriever: what was trained.
        bases: models that it started from; their shape and tokenizer are copied.
    """
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained_state(retriever).items()}
    writer.write_bytes(WEIGHTS_FILE, save(state))
    for folder, source, names in (
        (TEXT_FOLDER, bases.text_folder, _LOOKS),
        (VISION_FOLDER, bases.vision_folder, _PROCESSOR),
    ):
        for name in names if source else ():
            if source and (source / name).is_file():
                writer.write_bytes(f"{folder}/{name}", (source / name).read_bytes())
    writer.write_json(SPEC_FILE, retriever.spec.model_dump(mode="json"))


def trained_state(retriever: Retriever) -> dict[str, torch.Tensor]:
    """Return the tensors that training may change, by name: all but a frozen base under adapters."""
    named = retriever.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in named if not parameter.requires_grad}
    frozen.discard("log_temperature")
    return {name: tensor for name, tensor in retriever.state_dict().items() if name not in frozen}


def load_spec(artifact: Artifact) -> RetrieverSpec:
    """Read ``retriever.json``.

    Raises:
        ArtifactError: not a retriever, or one of another format.
    """
    content = artifact.of_kind("retriever", _WAY_OUT).read_json(SPEC_FILE)
    try:
        return RetrieverSpec.model_validate(content)
    except ValidationError as err:
        version = content.get("format_version")
        raise ArtifactError(
            f"{artifact.ref}: {SPEC_FILE} is malformed or of another format ({version}; this mmd reads "
            f"{FORMAT_VERSION}): {err.errors()[0]['msg']}. Run `mmd train_retriever` again."
        ) from err


def load_retriever(artifact: Artifact, models: ModelSettings | None = None) -> Retriever:
    """Load a retriever for use: on the CPU, dropout off.

    Raises:
        ArtifactError: not a retriever, or its weights do not fit its spec.
        ModelError: the base under an adapter is not here, or is another one.
    """
    from safetensors.torch import load

    spec = load_spec(artifact)
    with tempfile.TemporaryDirectory() as scratch:
        retriever = Retriever(spec, saved_bases(artifact, spec, Path(scratch), models, weights=True))
    state = load(artifact.read_bytes(WEIGHTS_FILE))
    wanted = trained_state(retriever).keys()
    if odd := sorted(wanted ^ state.keys()):
        raise ArtifactError(f"{artifact.ref}: weights and {SPEC_FILE} disagree on {odd[0]}; run the job again.")
    try:
        retriever.load_state_dict(state, strict=False)
    except RuntimeError as err:
        raise ArtifactError(f"{artifact.ref}: weights do not fit {SPEC_FILE} ({err}); run the job again.") from err
    return retriever.eval()


def saved_bases(
    artifact: Artifact, spec: RetrieverSpec, scratch: Path, models: ModelSettings | None = None, *, weights: bool
) -> BaseModels:
    """Return the base models of a saved retriever: their saved shape, or, under adapters, the base itself.

    Args:
        artifact: of the retriever.
        spec: of the retriever.
        scratch: folder that the shape and tokenizer are copied to.
        models: where a base under adapters comes from.
        weights: whether modules will be asked for; False: tokenizer and processor alone.

    Raises:
        ModelError: the base under an adapter is not here, or is another one.
    """
    text = artifact.copy_folder(TEXT_FOLDER, scratch / TEXT_FOLDER) if trains_text(spec.towers) else None
    vision = artifact.copy_folder(VISION_FOLDER, scratch / VISION_FOLDER) if trains_vision(spec.towers) else None
    if weights and text is not None and spec.towers.train_text == "lora":
        text = _same_base(spec.text_model, models)
        return BaseModels(text, vision, spec.text_model, spec.vision_model)
    return BaseModels(text, vision, spec.text_model, spec.vision_model, weights=False)


def _same_base(ref: BaseRef | None, models: ModelSettings | None) -> Path:
    if ref is None:
        raise ModelError("retriever.json names no text model under its adapters; run `mmd train_retriever` again.")
    folder = model_folder(ref.name, models)
    if folder_hash(folder) != ref.sha256:
        raise ModelError(
            f"model {ref.name!r}: its files differ from those that the retriever's adapters were trained on; install "
            "the same version, or run `mmd train_retriever` again."
        )
    return folder


def load_maker(
    artifact: Artifact, facts: Words, sources: InputSources, models: ModelSettings | None = None
) -> InputMaker:
    """Return the maker of a saved retriever's inputs.

    Args:
        artifact: of the retriever.
        facts: titles of items and words of pictures, as for :func:`~mmd.retrieval.sources.build_maker`.
        sources: of vectors and pictures.
        models: as for :func:`load_retriever`.

    Raises:
        ModelError: the sources' vectors are not those that the towers were trained on.
    """
    from mmd.retrieval.sources import build_maker

    spec = load_spec(artifact)
    _check_extractors(spec, sources.extractors)
    with tempfile.TemporaryDirectory() as scratch:
        bases = saved_bases(artifact, spec, Path(scratch), models, weights=False)
        return build_maker(spec.towers, spec.modalities, facts, sources, bases)


def _check_extractors(spec: RetrieverSpec, have: Mapping[str, ExtractorInfo | None]) -> None:
    wrong = [role for role, wanted in spec.extractors.items() if wanted is not None and have.get(role) != wanted]
    if wrong:
        told = "; ".join(f"{r}: trained with {_told(spec.extractors[r])}, here {_told(have.get(r))}" for r in wrong)
        raise ModelError(
            f"features differ from those the retriever was trained with ({told}). Install what it was trained with and "
            "set features.vision and features.text to it, or run `mmd train_retriever` again here."
        )


def _told(info: ExtractorInfo | None) -> str:
    return f"{info.name} (dim {info.dim})" if info else "none"


def encoder_hash(artifact: Artifact) -> str:
    """Return what an index must name: the fingerprint of the retriever's spec and weights."""
    files = artifact.of_kind("retriever", _WAY_OUT).manifest.files
    return fingerprint({name: files[name].sha256 for name in (SPEC_FILE, WEIGHTS_FILE) if name in files})
