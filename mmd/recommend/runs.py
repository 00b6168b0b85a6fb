"""What each training of ConKD starts from: samples, networks and their loops, the same in a job and in a plain call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mmd.errors import ConfigError
from mmd.models.devices import choose_dtype
from mmd.models.settings import ModelSettings
from mmd.models.weights import put_trained, trained_copies
from mmd.recommend.backbones import build_backbone, build_tokenizer
from mmd.recommend.conversations import Conversations
from mmd.recommend.distill import StudentTask
from mmd.recommend.popularity import items_by_dialogue
from mmd.recommend.samples import Divided, divide_samples, mention_samples, response_samples
from mmd.recommend.saving import Talker, load_dialogue_teacher
from mmd.recommend.settings import RecommendSettings
from mmd.recommend.teachers import DialogueTask
from mmd.recommend.types import LinkedDialogue, MentionSample, ResponseSample
from mmd.recommend.vocabulary import require_same_space

if TYPE_CHECKING:
    import torch

    from mmd.artifacts import Artifact
    from mmd.recommend.batches import BatchMaker
    from mmd.recommend.cache import TeacherOutputs, TeacherSpeaker
    from mmd.recommend.graph import ItemGraph
    from mmd.recommend.recommender_task import RecommenderTask


@dataclass(frozen=True)
class Ground:
    """What every training of a corpus stands on; the test split's dialogues are not opened.

    Args:
        conversations: the graph artefact.
        settings: of samples and networks.
        seed: of weights, order and dropout.
        models: where language models come from.
        part_seed: of the validation part; a student's is its teachers', who must not have learnt what it is judged on.
    """

    conversations: Conversations
    settings: RecommendSettings
    seed: int
    models: ModelSettings
    part_seed: int

    @property
    def graph(self) -> ItemGraph:
        """The item graph."""
        return self.conversations.graph

    @cached_property
    def responses(self) -> Divided[ResponseSample]:
        """What the agent says: φ and θ learn it."""
        conversations = self.settings.conversations
        found = [sample for one in self._dialogues for sample in response_samples(one, conversations)]
        return divide_samples(found, conversations.validation_fraction, self.part_seed)

    @cached_property
    def mentions(self) -> Divided[MentionSample]:
        """Which items are mentioned, by whomever: ψ learns to rank them."""
        conversations = self.settings.conversations
        found = [sample for one in self._dialogues for sample in mention_samples(one, conversations)]
        return divide_samples(found, conversations.validation_fraction, self.part_seed)

    @cached_property
    def _dialogues(self) -> list[LinkedDialogue]:
        return self.conversations.dialogues("train")


def new_talker(ground: Ground, device: torch.device | str = "cpu") -> Talker:
    """Return an untrained network of the settings, its words counted on the training part.

    Raises:
        ModelError: a language model cannot be loaded.
    """
    import torch

    settings, graph = ground.settings, ground.graph
    tokenizer = build_tokenizer(settings.backbone, settings.conversations, ground.responses.train, graph, ground.models)
    backbone = build_backbone(settings.backbone, tokenizer, graph, ground.models, ground.seed).to(device)
    backbone.dtype = choose_dtype(ModelSettings(dtype=settings.train.dtype), torch.device(device))
    return Talker(backbone, tokenizer, settings.conversations)


def dialogue_teacher(ground: Ground, teacher: Artifact) -> Talker:
    """Load φ, which was trained on the training part of this ground and reads contexts cut as here; so was ψ, with it.

    Raises:
        ArtifactError: malformed, or made over another graph.
        ConfigError: its ``recommend.conversations`` were others: it may have learnt what a student is judged on.
    """
    phi = load_dialogue_teacher(teacher, ground.graph, ground.models)
    here, there = (settings.model_dump() for settings in (ground.settings.conversations, phi.conversations))
    differing = [key for key in here if here[key] != there[key]]
    if differing:
        theirs, own = (", ".join(f"{key}={each[key]}" for key in differing) for each in (there, here))
        raise ConfigError(
            f"recommend.conversations: {teacher.ref} was trained with {theirs}, and the student would be with {own}; "
            "teachers and student read the same of the same dialogues and hold out the same. Take the teachers' "
            "values, or run `mmd train_teachers` with these."
        )
    return phi


def student_talker(ground: Ground, teacher: Artifact, device: torch.device | str = "cpu") -> Talker:
    """Return the student before its training: random, or the dialogue teacher's twin (``recommend.distill.start``).

    Args:
        ground: samples, graph and settings.
        teacher: that it will learn from.
        device: of the network.

    Raises:
        ArtifactError: teacher and student have different vocabularies.
        ConfigError: they read dialogues differently, or it shall start as the teacher and has another shape.
    """
    phi = dialogue_teacher(ground, teacher)
    student = new_talker(ground, device)
    kind = ground.settings.backbone.kind
    require_same_space(phi.tokenizer.space, student.tokenizer.space, teacher.ref, f"the student (backbone.kind={kind})")
    if ground.settings.distill.start == "teacher":
        own, theirs = ground.settings.backbone, phi.backbone.settings
        if own != theirs:
            raise ConfigError(
                f"recommend.distill.start=teacher: the student's recommend.backbone ({own}) is not that of "
                f"{teacher.ref} ({theirs}); set start to scratch, or the backbone to the teacher's."
            )
        put_trained(student.backbone, trained_copies(phi.backbone), "student")
    return student


def dialogue_task(ground: Ground, talker: Talker) -> DialogueTask:
    """Return what trains φ."""
    return DialogueTask(talker.backbone, talker.maker, ground.responses.validation, ground.settings.dialogue.batch)


def student_task(ground: Ground, talker: Talker, outputs: TeacherOutputs | None) -> StudentTask:
    """Return what trains θ.

    Args:
        ground: samples and settings.
        talker: the student.
        outputs: what the teachers say of the training responses; None without distillation.
    """
    settings = ground.settings
    held_out = ground.responses.validation
    return StudentTask(talker.backbone, talker.maker, held_out, settings.distill, outputs, settings.student.batch)


def speaker_of(
    ground: Ground, teacher: Artifact, device: torch.device | str = "cpu"
) -> tuple[TeacherSpeaker, BatchMaker]:
    """Return what asks the teachers about responses, and what makes φ's batches.

    Raises:
        ArtifactError: malformed, or made over another graph.
        ConfigError: see :func:`dialogue_teacher`.
    """
    from mmd.recommend.cache import TeacherSpeaker
    from mmd.recommend.recommender import load_recommender

    phi = dialogue_teacher(ground, teacher)
    psi = load_recommender(teacher, ground.graph)
    maker = phi.maker
    mentioned = items_by_dialogue(ground.mentions.train)
    return TeacherSpeaker(phi.backbone.to(device), psi, maker, ground.settings.distill, mentioned=mentioned), maker


def ranked_mentions(ground: Ground) -> list[MentionSample]:
    """Return the mentions that ψ learns from (``recommend.recommender.targets``)."""
    from mmd.recommend.recommender import mentions_to_learn

    return mentions_to_learn(ground.mentions.train, ground.settings.recommender)


def recommender_task(ground: Ground, device: torch.device | str = "cpu") -> RecommenderTask:
    """Return what trains ψ.

    Raises:
        ConfigError: no item is mentioned in a training dialogue.
    """
    from mmd.recommend.recommender import build_recommender
    from mmd.recommend.recommender_task import RecommenderTask

    settings, seed = ground.settings, ground.seed
    model = build_recommender(
        ground.graph, ground.mentions.train, settings.recommender, settings.conversations, seed
    ).to(device)
    return RecommenderTask(model, ranked_mentions(ground), ground.mentions.validation, settings.recommender, seed)
