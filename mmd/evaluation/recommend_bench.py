"""What a student's report is made of: the student, its teachers and baselines on one split of its dialogues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mmd.artifacts import Artifact
from mmd.config import AppConfig
from mmd.evaluation.recommend_systems import (
    Judged,
    Questions,
    Ranked,
    Speaker,
    after_mode,
    by_item_head,
    listen,
    rank_mentions,
)
from mmd.models.devices import choose_device
from mmd.recommend.conversations import Conversations
from mmd.recommend.generate import Generator
from mmd.recommend.popularity import baselines
from mmd.recommend.runs import Ground
from mmd.recommend.saving import Talker, load_dialogue_teacher, load_student
from mmd.recommend.settings import DistillSettings
from mmd.recommend.types import MentionSample

if TYPE_CHECKING:
    from mmd.recommend.graph import ItemGraph
    from mmd.recommend.recommender import LoadedRecommender

STUDENT, GIVEN, TEACHER = "student", "student, right mode given", "dialogue teacher"
RECOMMENDER = "recommendation teacher"
AT_ONCE, HEAD, IN_PLACE = ", at once", ", by its item head", ", in place"
"""How a speaker ranks: right after the token of recommendation; by the context alone; where the right response names
the item, what it says before being given."""


@dataclass(frozen=True)
class Bench:
    """What is evaluated, and on what.

    Args:
        inputs: the student and what it was made from, by role: ``student``, ``teacher``, ``graph``.
        config: of decoding, devices, intervals and seeds.
        split: ``test`` or ``validation``.
    """

    inputs: Mapping[str, Artifact]
    config: AppConfig
    split: Judged

    @cached_property
    def conversations(self) -> Conversations:
        """The linked dialogues."""
        return Conversations(self.inputs["graph"])

    @property
    def graph(self) -> ItemGraph:
        """The item graph."""
        return self.conversations.graph

    @cached_property
    def distill(self) -> DistillSettings:
        """How the student learnt."""
        return DistillSettings.model_validate(self.inputs["student"].manifest.settings["distill"])

    @cached_property
    def student(self) -> Talker:
        """θ, on its device."""
        return self._placed(load_student(self.inputs["student"], self.graph, self.config.models))

    @cached_property
    def teacher(self) -> Talker:
        """φ, on its device."""
        return self._placed(load_dialogue_teacher(self.inputs["teacher"], self.graph, self.config.models))

    @cached_property
    def recommender(self) -> LoadedRecommender:
        """ψ."""
        from mmd.recommend.recommender import load_recommender  # noqa: PLC0415 (with torch)

        return load_recommender(self.inputs["teacher"], self.graph)

    def _placed(self, talker: Talker) -> Talker:
        talker.backbone.to(choose_device(self.config.models))
        return talker

    def generator(self, talker: Talker) -> Generator:
        """Return what lets a network speak."""
        settings, seed = self.config.recommend.generation, self.config.seed
        return Generator(talker.backbone, talker.tokenizer, self.graph, settings, talker.conversations, seed=seed)

    @cached_property
    def ground(self) -> Ground:
        """What the student learnt from, divided as it was then; the test split is not opened."""
        settings = self.config.recommend.model_copy(update={"conversations": self.student.conversations})
        seeds = {role: self.inputs[role].manifest.seeds[role] for role in ("student", "teacher")}
        return Ground(self.conversations, settings, seeds["student"], self.config.models, seeds["teacher"])

    @cached_property
    def questions(self) -> Questions:
        """Responses and mentions of the split.

        Raises:
            CorpusError: there is no response.
        """
        return Questions.of(self.ground, self.split)


def listen_to_all(bench: Bench) -> Iterator[Speaker]:
    """Yield what the student says, the same with the right modes given, and what its dialogue teacher says."""
    timed, responses = bench.config.evaluation.latency_samples, bench.questions.responses
    generator = bench.generator(bench.student)
    yield listen(STUDENT, generator, responses, timed=timed)
    if generator.rules.mode_tokens:
        yield listen(GIVEN, generator, responses, gold_modes=True)
    yield listen(TEACHER, bench.generator(bench.teacher), responses, timed=timed)


def rank_by_all(bench: Bench) -> Iterator[Ranked]:
    """Yield what ranks items by the context alone: the recommendation teacher, the student, baselines."""
    mentions = bench.questions.mentions
    yield rank_mentions(RECOMMENDER, bench.recommender.item_log_probs, mentions)
    generator = bench.generator(bench.student)
    yield rank_mentions(STUDENT + AT_ONCE, after_mode(generator), mentions)
    if bench.distill.gate == "none":
        yield rank_mentions(STUDENT + HEAD, by_item_head(generator), mentions)
    for name, scorer in baselines(bench.graph, bench.ground.mentions.train).items():
        yield rank_mentions(name, scorer, mentions)


def in_places(speakers: Sequence[Speaker], mentions: Sequence[MentionSample]) -> list[Ranked]:
    """Return what speakers rank at the items' places, the words before them given."""
    return [speaker.reading.ranked(speaker.name + IN_PLACE, mentions) for speaker in speakers if speaker.reading]


def parameters(bench: Bench) -> dict[str, int]:
    """Return model → its weights."""
    models = {
        STUDENT: bench.student.backbone,
        TEACHER: bench.teacher.backbone,
        RECOMMENDER: bench.recommender.model,
    }
    return {name: sum(weight.numel() for weight in model.parameters()) for name, model in models.items()}


def student_words(bench: Bench) -> str:
    """Say in words what the student is."""
    backbone, distill = bench.student.backbone.settings, bench.distill
    kind = backbone.kind if backbone.kind == "kgsf" else f"{backbone.kind} ({backbone.model})"
    if distill.gate == "none":
        return f"Student: {kind}, multi-task without distillation"
    taught = f"{distill.gate} gate" if distill.teachers == "both" else f"{distill.teachers} teacher alone"
    return f"Student: {kind}, {taught}, γ {distill.gamma:g}, temperature {distill.temperature:g}"
