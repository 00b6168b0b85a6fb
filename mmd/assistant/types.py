"""The nouns of a turn: what the parts found, what the policy decides of it, and the reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mmd.intent.types import IntentPrediction
from mmd.language import Language, written_in
from mmd.recommend.engine import RecommendAnswer
from mmd.recommend.types import Mode
from mmd.retrieval.types import Hit
from mmd.schema import Image, Turn

Part = Literal["intent", "retrieval", "recommendation"]
PARTS: tuple[Part, ...] = ("intent", "retrieval", "recommendation")
Step = Literal["intent", "modality", "speaker", "products"]
Speaker = Literal["student", "retrieval", "intent"]
"""Who says the words; ``intent``: neither of the others can, what is usual for the intent is said."""
ProductSource = Literal["student", "retrieval", "none"]
TEXT, PRODUCT = "text", "product"
"""Modalities of retrieval that the student can answer in, too; any other one retrieval alone can."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A step of the policy, and why it went that way.

    Attributes:
        step: which one.
        choice: an intent's label, a modality, a :data:`Speaker`, or a :data:`ProductSource`.
        reason: language (``en``, ``zh``) → sentence.
        confidence: in [0, 1]; None where the step has none.
    """

    step: Step
    choice: str
    reason: Mapping[str, str]
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class ReplyPart:
    """A piece of a reply.

    Attributes:
        kind: ``text``, ``image`` or ``item`` (a product).
        text: the words; of a picture its caption, of a product its title.
        response_id: of what retrieval found; None for the student's.
        item_id: of a product.
        image_id: of the picture that is shown, a product's included.
    """

    kind: Literal["text", "image", "item"]
    text: str
    response_id: str | None = None
    item_id: str | None = None
    image_id: str | None = None


@dataclass(frozen=True)
class Evidence:
    """What the parts found out about a turn. A part in ``absent`` failed or is not there, and has found nothing.

    Attributes:
        intents: one a task.
        hits: of all modalities, the best first.
        predicted_modality: modality → probability, of retrievers that predict it (dr, sdr); else None.
        mode: that the student would answer in; None where it has no mode tokens, or did not say yet.
        mode_probability: of that mode against the other one.
        absent: parts that have nothing to say.
        language: that words are wanted in; None: any.
    """

    intents: tuple[IntentPrediction, ...] = ()
    hits: tuple[Hit, ...] = ()
    predicted_modality: Mapping[str, float] | None = None
    mode: Mode | None = None
    mode_probability: float | None = None
    absent: frozenset[Part] = frozenset()
    language: Language | None = None

    def has(self, part: Part) -> bool:
        """Say whether a part is there."""
        return part not in self.absent


@dataclass(frozen=True)
class Choice:
    """What the policy decides.

    Attributes:
        modality: of the reply: ``text``, ``image``, ``product`` or what else the retriever knows.
        speaker: who says the words.
        decisions: one a step, in the order of :data:`Step`.
        hits: those of the chosen modality that fit the intent, the best first; where none fits, all of the modality.
        wants_items: whether the student's products are shown.
        mode: in which the student shall speak; None where it does not speak. Where it differs from the evidence's, the
            student is to be asked again with this mode given.
    """

    modality: str
    speaker: Speaker
    decisions: tuple[Decision, ...]
    hits: tuple[Hit, ...]
    wants_items: bool
    mode: Mode | None = None

    @property
    def wants_student(self) -> bool:
        """Whether anything of the student's answer becomes part of the reply."""
        return self.speaker == "student" or self.wants_items


@dataclass(frozen=True)
class AssistantQuery:
    """A turn to answer.

    Attributes:
        id: of the request; what the student draws by chance depends on it.
        turns: the dialogue, oldest first.
        images: id → picture, for those that the turns name.
        k: recommended items that are wanted.
        language: that words are wanted in; None: that of the customer's last ones.
    """

    id: str
    turns: tuple[Turn, ...]
    images: Mapping[str, Image] = field(default_factory=dict)
    k: int = 10
    language: Language | None = None

    @property
    def spoken(self) -> Language | None:
        """The language that words are wanted in; None where nobody said any."""
        said = [turn.text for turn in self.turns if turn.speaker == "user" and turn.text.strip()]
        return self.language or (written_in(said[-1]) if said else None)


@dataclass(frozen=True)
class AssistantReply:
    """A reply and how it came about.

    Attributes:
        parts: in the order in which they are shown; at least one.
        choice: what was decided, and why.
        intents: recognised, one a task.
        words: rule id → language → sentence, of every fired rule.
        hits: all that retrieval found, the best first.
        recommended: the student's answer, whether it is part of the reply or not; None where it gave none.
        timings_ms: stage → milliseconds; ``intent.…``, ``retrieval.…``, ``recommendation.…`` and ``policy``.
        degraded: parts that were missing or failed, and why.
        artifacts: role → reference of what answered.
    """

    parts: tuple[ReplyPart, ...]
    choice: Choice
    intents: tuple[IntentPrediction, ...] = ()
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hits: tuple[Hit, ...] = ()
    recommended: RecommendAnswer | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    artifacts: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What a reader of words alone reads: the text parts, or else the titles of what is shown."""
        said = [part.text for part in self.parts if part.kind == "text"]
        return "\n".join(said or [part.text for part in self.parts if part.text])

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What was decided, and why."""
        return self.choice.decisions
