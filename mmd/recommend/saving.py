"""Teachers and students on disk.

An artefact of kind ``teacher`` holds φ under ``dialogue/`` and ψ under ``recommender/``; one of kind ``student`` holds
θ under ``student/``, with its tokenizer and how much of a dialogue it reads, and nothing of the teachers. The item
graph is not copied: it is the artefact that both name as their input ``graph``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mmd.artifacts import Artifact, ArtifactWriter
from mmd.errors import ArtifactError
from mmd.models.settings import ModelSettings
from mmd.recommend.backbones import load_backbone, save_backbone
from mmd.recommend.batches import BatchMaker
from mmd.recommend.settings import ConversationSettings
from mmd.recommend.vocabulary import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from mmd.recommend.backbone import Backbone
    from mmd.recommend.graph import ItemGraph

DIALOGUE, STUDENT = "dialogue", "student"
CONVERSATIONS_FILE = "conversations.json"
TEACHER_WAY_OUT = "open teacher/NAME, made by `mmd train_teachers`."
STUDENT_WAY_OUT = "open student/NAME, made by `mmd distill`."


@dataclass(frozen=True)
class Talker:
    """A network that talks, with what its words are and what it sees of a dialogue.

    Attributes:
        backbone: the network.
        tokenizer: its words and items.
        conversations: how contexts and responses are cut.
    """

    backbone: Backbone[Any]
    tokenizer: Tokenizer
    conversations: ConversationSettings

    @property
    def maker(self) -> BatchMaker:
        """Makes the network's batches."""
        return BatchMaker(self.tokenizer, self.conversations)


def save_talker(
    writer: ArtifactWriter, folder: str, talker: Talker, graph: ItemGraph, models: ModelSettings | None = None
) -> None:
    """Write a network that talks into a folder of an artefact.

    Args:
        writer: of the artefact.
        folder: :data:`DIALOGUE` or :data:`STUDENT`.
        talker: what was trained.
        graph: that it was trained over.
        models: where a base under low-rank updates came from.
    """
    talker.tokenizer.save(writer, folder)
    save_backbone(writer, folder, talker.backbone, graph, models)
    writer.write_json(f"{folder}/{CONVERSATIONS_FILE}", talker.conversations.model_dump(mode="json"))


def load_student(artifact: Artifact, graph: ItemGraph, models: ModelSettings | None = None) -> Talker:
    """Load a student for use: on the CPU, float32, dropout off. No teacher is opened.

    Args:
        artifact: of kind ``student``.
        graph: of the graph artefact that it names.
        models: where a base under low-rank updates comes from.

    Raises:
        ArtifactError: of another kind, malformed, or made over another graph.
    """
    return _load(artifact.of_kind("student", STUDENT_WAY_OUT), STUDENT, graph, models)


def load_dialogue_teacher(artifact: Artifact, graph: ItemGraph, models: ModelSettings | None = None) -> Talker:
    """Load φ for use; see :func:`load_student`."""
    return _load(artifact.of_kind("teacher", TEACHER_WAY_OUT), DIALOGUE, graph, models)


def _load(artifact: Artifact, folder: str, graph: ItemGraph, models: ModelSettings | None) -> Talker:
    try:
        conversations = ConversationSettings.model_validate(artifact.read_json(f"{folder}/{CONVERSATIONS_FILE}"))
    except ValidationError as err:
        raise ArtifactError(
            f"{artifact.ref}: {folder}/{CONVERSATIONS_FILE} is malformed: {err.errors()[0]['msg']}; run the job again."
        ) from err
    tokenizer = load_tokenizer(artifact, folder)
    return Talker(load_backbone(artifact, folder, tokenizer, graph, models), tokenizer, conversations)
