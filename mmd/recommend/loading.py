"""From artefacts to a student that answers online: its graph, its tokens, its network, and pictures of the items."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from mmd.artifacts import Artifact, ArtifactStore
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError
from mmd.models.settings import ModelSettings
from mmd.recommend.conversations import Conversations
from mmd.recommend.generate import Generator
from mmd.recommend.online import OnlineRecommender
from mmd.recommend.settings import GenerationSettings
from mmd.schema import Image


def load_online(
    store: ArtifactStore,
    name: str,
    refs: Mapping[str, str] | None = None,
    generation: GenerationSettings | None = None,
    models: ModelSettings | None = None,
) -> OnlineRecommender:
    """Load the student of a corpus with what it was trained on; no teacher is opened.

    Args:
        store: where the artefacts are.
        name: name of the corpus and of everything made from it.
        refs: ``student`` → ``kind/name@version`` where another version is wanted than the newest.
        generation: how replies are decoded.
        models: device and threads.

    Raises:
        ArtifactError: there is no student, or its graph is gone.
    """
    from mmd.recommend.saving import load_student  # networks, and with them torch

    models = models or ModelSettings()
    found = open_parts(store, name, refs or {})
    conversations = Conversations(found["graph"])
    student = load_student(found["student"], conversations.graph, models)
    images, pictures, degraded = load_pictures(found.get("corpus"))
    return OnlineRecommender(
        Generator(
            student.backbone,
            student.tokenizer,
            conversations.graph,
            generation or GenerationSettings(),
            student.conversations,
        ),
        conversations.linker,
        pictures=pictures,
        images=images,
        artifacts={role: artifact.ref for role, artifact in found.items()},
        threads=models.threads,
        degraded=degraded,
    )


def open_parts(store: ArtifactStore, name: str, refs: Mapping[str, str]) -> dict[str, Artifact]:
    """Open a student, the graph that it was trained on, and, where it is still there, the graph's corpus, by role.

    Raises:
        ArtifactError: student or graph is missing.
    """
    student = store.open(refs.get("student") or f"student/{name}").of_kind("student", "`mmd distill` writes one.")
    graph = store.open(student.input_ref("graph")).of_kind("graph", "`mmd build_graph` writes one.")
    found = {"student": student, "graph": graph}
    with suppress(ArtifactError):  # answers need no corpus
        found["corpus"] = store.open(graph.input_ref("corpus"))
    return found


def load_pictures(corpus: Artifact | None) -> tuple[dict[str, str], dict[str, Image], tuple[str, ...]]:
    """Return item id → id of its first picture, the pictures by id, and what is missing."""
    if corpus is None:
        return {}, {}, ("pictures: the corpus is not in the store any more, products come without",)
    opened = Corpus(corpus)
    images = {item.id: item.image_ids[0] for item in opened.items().values() if item.image_ids}
    return images, {image.id: image for image in opened.images(set(images.values()))}, ()
