"""From artefacts to an engine that answers online.

The newest index leads: it names the retriever whose vectors it holds, and that one the corpus and features it was
trained on, so that what answers belongs together even while newer parts are being made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmd.artifacts import Artifact, ArtifactStore
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError, ModelError
from mmd.features.extract import VECTOR_ROLES, ExtractorInfo, Role
from mmd.features.store import Features
from mmd.intent.loading import load_extractors
from mmd.intent.online import OnlineExtractors, OnlineFeatures, OnlineSettings
from mmd.retrieval.bases import FEATURES
from mmd.retrieval.engine import RetrievalEngine
from mmd.retrieval.facts import Facts
from mmd.retrieval.methods import RetrieverSpec
from mmd.retrieval.online import OnlineRetrieval, OnlineSources
from mmd.retrieval.pictures import ResponsePictures
from mmd.retrieval.rerank import load_reranker
from mmd.retrieval.saving import encoder_hash, load_maker, load_retriever
from mmd.retrieval.sharded import load_index
from mmd.retrieval.sources import Encoders
from mmd.retrieval.types import RESPONSES, Response


def load_online(
    store: ArtifactStore, name: str, refs: Mapping[str, str] | None = None, settings: OnlineSettings | None = None
) -> OnlineRetrieval:
    """Load what was trained on a corpus.

    Args:
        store: where the artefacts are.
        name: name of the corpus and of everything made from it.
        refs: role (``retriever``, ``index``) → ``kind/name@version`` where another version is wanted than the newest
            index and the retriever that it was made with.
        settings: of the extractors and models.

    Raises:
        ArtifactError: there is no index or retriever, or they do not belong together.
        ModelError: an extractor or model here differs from the one that the retriever was trained with.
    """
    import torch

    from mmd.models.devices import choose_dtype

    settings = settings or OnlineSettings()
    found = open_parts(store, name, refs or {})
    corpus, features = Corpus(found["corpus"]), Features(found["features"]) if "features" in found else None
    retriever = load_retriever(found["retriever"], settings.models)
    retriever.use_dtype(choose_dtype(settings.models, torch.device("cpu")))  # as its index was made
    facts = Facts.load(corpus, features, retriever.spec.samples)
    read = load_reader(retriever.spec, corpus, features, settings)
    pictures = ResponsePictures(found["index"])
    sources = OnlineSources(OnlineFeatures(read, settings), facts, describe(read, retriever.spec), pictures)
    maker = load_maker(found["retriever"], sources, sources, settings.models)
    encoder, threads = encoder_hash(found["retriever"]), settings.models.threads
    indices = {
        modality: load_index(found["index"], modality, encoder=encoder, threads=threads)
        for modality in retriever.spec.modalities
    }
    responses = [Response(**row) for row in found["index"].read_table("responses", RESPONSES).to_pylist()]
    engine = RetrievalEngine(
        retriever,
        indices,
        {response.id: response for response in responses},
        maker,
        load_reranker(found["retriever"], retriever, maker),
        artifacts={role: artifact.ref for role, artifact in found.items()},
    )
    return OnlineRetrieval(
        engine,
        sources,
        pictures,
        context_turns=retriever.spec.samples.context_turns,
        threads=settings.models.threads,
    )


def open_parts(store: ArtifactStore, name: str, refs: Mapping[str, str]) -> dict[str, Artifact]:
    """Open an index and what it was made from: role → artefact; ``features`` only where the retriever read some.

    Raises:
        ArtifactError: one is missing, or the index is of another retriever than the wanted one.
    """
    index = store.open(refs.get("index") or f"index/{name}").of_kind("index", "`mmd build_index` writes one.")
    made_with = index.input_ref("retriever")
    retriever = store.open(refs.get("retriever") or made_with)
    retriever = retriever.of_kind("retriever", "`mmd train_retriever` writes one.")
    if retriever.ref != made_with:
        raise ArtifactError(
            f"{index.ref}: its vectors are {made_with}'s, not {retriever.ref}'s; run `mmd build_index` for that one."
        )
    found = {"retriever": retriever, "index": index}
    roles = [role for role in ("corpus", "features") if role == "corpus" or role in retriever.manifest.inputs]
    return found | {role: store.open(retriever.input_ref(role)) for role in roles}


def load_reader(
    spec: RetrieverSpec, corpus: Corpus, features: Features | None, settings: OnlineSettings
) -> OnlineExtractors:
    """Return what reads texts and pictures as they were read in training; what can be missing has its reason there.

    Raises:
        ModelError: texts cannot be read here, or by another extractor than in training.
    """
    roles: list[Role] = [role for role in VECTOR_ROLES if getattr(spec.towers, role) == FEATURES]
    if spec.samples.picture_text in ("ocr", "both"):
        roles.append("ocr")
    trained = {**spec.extractors, "ocr": features.extractors["ocr"] if features else None}
    read = load_extractors(trained, corpus, settings, roles)
    if "text" in roles and read.text is None:
        raise ModelError(f"text: {read.absent.get('text', 'the retriever was trained without')}; nothing is read.")
    return replace(read, **load_frozen(spec, settings))


def load_frozen(spec: RetrieverSpec, settings: OnlineSettings) -> dict[str, Any]:
    """Return role → model of the towers that read a model as it is, its weights loaded.

    Raises:
        ModelError: it is not here.
    """
    encoders = Encoders(spec.towers, settings.features, settings.models)
    reads = {"text": spec.text_dim > 0, "vision": spec.picture_dim > 0}
    frozen = [role for role in VECTOR_ROLES if reads[role] and getattr(spec.towers, role) != FEATURES]
    found: dict[str, Any] = {role: getattr(encoders, role) for role in frozen}
    for model in found.values():
        model.warm()
    return found


def describe(read: OnlineExtractors, spec: RetrieverSpec) -> dict[str, ExtractorInfo | None]:
    """Return role → extractor; an absent one counts as the trained one, its pictures being unread."""
    found: dict[str, ExtractorInfo | None] = {}
    for role in VECTOR_ROLES:
        extractor = getattr(read, role)
        info = ExtractorInfo(extractor.name, extractor.dim) if extractor else None
        found[role] = spec.extractors.get(role) if role in read.absent else info
    return found
