"""Which responses fit an intent, and how intents are answered: counted on training dialogues.

For each answered turn: the intent that was recognised before it, and the response that the agent then gave. From this
follow the share of each modality among the answers to an intent, the responses that an intent was never answered with
although they were given often enough for others, and the usual answer to an intent.
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
    """A response that the agent gave to an intent.

    Attributes:
        intent: recognised before it; None where none was.
        modality: of the response.
        response_id: of it.
        text: in words, where it is a text; else "".
    """

    intent: Intent | None
    modality: str
    response_id: str
    text: str = ""


@dataclass(frozen=True)
class Fits:
    """Counts of answers.

    Attributes:
        modalities: modality → answers of it, over all intents and turns without one.
        by_intent: intent → modality → answers.
        responses: response id → intent → how often it was given to it.
        usual: intent → the text that answered it most often (ties: the first in the alphabet).
    """

    modalities: Mapping[str, int] = field(default_factory=dict)
    by_intent: Mapping[Intent, Mapping[str, int]] = field(default_factory=dict)
    responses: Mapping[str, Mapping[Intent, int]] = field(default_factory=dict)
    usual: Mapping[Intent, str] = field(default_factory=dict)

    @classmethod
    def of(cls, counts: Mapping[Answered, int]) -> Fits:
        """Sort counted answers of training dialogues."""
        modalities: Counter[str] = Counter()
        by_intent: defaultdict[Intent, Counter[str]] = defaultdict(Counter)
        responses: defaultdict[str, Counter[Intent]] = defaultdict(Counter)
        texts: defaultdict[Intent, Counter[str]] = defaultdict(Counter)
        for answer, count in counts.items():
            modalities[answer.modality] += count
            if answer.intent is None:
                continue
            by_intent[answer.intent][answer.modality] += count
            responses[answer.response_id][answer.intent] += count
            if answer.text:
                texts[answer.intent][answer.text] += count
        usual = {intent: min(said, key=lambda text: (-said[text], text)) for intent, said in texts.items()}
        return cls(dict(modalities), dict(by_intent), dict(responses), usual)

    @cached_property
    def answers(self) -> int:
        """How many answers were counted."""
        return sum(self.modalities.values())

    def asked(self, intent: Intent) -> int:
        """How many answers an intent got."""
        return sum(self.by_intent.get(intent, {}).values())

    def base(self, modality: str) -> float:
        """Return the share of a modality among all answers, in [0, 1]; 0 without answers."""
        return self.modalities.get(modality, 0) / self.answers if self.answers else 0.0

    def share(self, intent: Intent, modality: str) -> float:
        """Return the share of a modality among the answers to an intent.

        One answer of average modality is added, so that an intent that is hardly known says little, and one that is
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
