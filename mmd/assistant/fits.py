"""Which responses fit an intent, and how intents are answered: counted on training dialogues.

For each answered turn: the intents that were recognised before it, and the responses that the agent then gave. From
this follow the share of each modality among the answered turns of an intent, the responses that an intent was never
answered with although they were given often enough for others, and the usual answer to an intent.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

Intent = tuple[str, str]
"""Task and label."""


@dataclass(frozen=True, slots=True)
class Answered:
    """How the agent answered a turn.

    Attributes:
        intents: recognised before it, one a task; none where none was.
        modality: of the responses.
        response_ids: of them, without repeats.
        text: in words, where they are a text; else "".
    """

    intents: tuple[Intent, ...]
    modality: str
    response_ids: tuple[str, ...]
    text: str = ""


@dataclass(frozen=True)
class Fits:
    """Counts of answers.

    Attributes:
        modalities: modality → turns answered in it, those without an intent included.
        by_intent: intent → modality → turns answered in it.
        responses: response id → intent → how often it was given to it.
        usual: intent → the text that answered it most often (ties: the first in the alphabet).
    """

    modalities: Mapping[str, int] = field(default_factory=dict)
    by_intent: Mapping[Intent, Mapping[str, int]] = field(default_factory=dict)
    responses: Mapping[str, Mapping[Intent, int]] = field(default_factory=dict)
    usual: Mapping[Intent, str] = field(default_factory=dict)

    @classmethod
    def of(cls, counts: Mapping[Answered, int]) -> Fits:
        """Sort counted turns of training dialogues."""
        modalities: Counter[str] = Counter()
        by_intent: defaultdict[Intent, Counter[str]] = defaultdict(Counter)
        responses: defaultdict[str, Counter[Intent]] = defaultdict(Counter)
        texts: defaultdict[Intent, Counter[str]] = defaultdict(Counter)
        for answer, count in counts.items():
            modalities[answer.modality] += count
            for intent in answer.intents:
                by_intent[intent][answer.modality] += count
                if answer.text:
                    texts[intent][answer.text] += count
                for response_id in answer.response_ids:
                    responses[response_id][intent] += count
        usual = {intent: min(said, key=lambda text: (-said[text], text)) for intent, said in texts.items()}
        return cls(dict(modalities), dict(by_intent), dict(responses), usual)

    @cached_property
    def answers(self) -> int:
        """How many turns were counted."""
        return sum(self.modalities.values())

    def asked(self, intent: Intent) -> int:
        """How many turns with an intent were answered."""
        return sum(self.by_intent.get(intent, {}).values())

    def base(self, modality: str) -> float:
        """Return the share of a modality among all answered turns, in [0, 1]; 0 without any."""
        return self.modalities.get(modality, 0) / self.answers if self.answers else 0.0

    def share(self, intent: Intent, modality: str) -> float:
        """Return the share of a modality among the answered turns of an intent.

        One turn of average modality is added, so that an intent that is hardly known says little, and one that is
        not known nothing.
        """
        given = self.by_intent.get(intent, {}).get(modality, 0)
        return (given + self.base(modality)) / (self.asked(intent) + 1)

    def fits(self, intent: Intent, response_id: str, min_seen: int) -> bool:
        """Say whether a response may answer an intent.

        It may unless it was given at least ``min_seen`` times, and never to this intent, which training knows. What is
        not known fits; with ``min_seen`` 0 everything does.
        """
        given = self.responses.get(response_id, {})
        if min_seen == 0 or intent not in self.by_intent or intent in given:
            return True
        return sum(count for (task, _), count in given.items() if task == intent[0]) < min_seen  # once a turn and task
