"""From one sample to its family: the original, its copies, and what was dropped and why.

A family depends on its original, the rules, the settings and the seed alone, so that any number of processes in any
order makes the same ones.

Which rules may speak: those of the final base, by their out-of-fold statistics. Some of them were found with the help
of the very example that is augmented. That hardly flatters a validation: a copy lies in its parent's fold and is
never validated on; the rules merely choose among training samples (they dropped 5 of 1,500 copies of taobao's).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmd.intent.augment.edits import slip
from mmd.intent.augment.frames import reframe
from mmd.intent.augment.guard import Guard
from mmd.intent.augment.paraphrase import ChatModel, reword
from mmd.intent.augment.pictures import transform_picture
from mmd.intent.matcher import CompiledRules
from mmd.intent.miner import derive_seed
from mmd.intent.rulebase import RuleBase
from mmd.intent.samples import Sample
from mmd.intent.settings import AugmentSettings
from mmd.intent.types import ImageFacts, IntentExample, has_words
from mmd.schema import Turn

Reason = Literal["contradicts a rule", "duplicate", "loses a rule's words", "nothing to change"]
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Dropped:
    """A copy that was not kept; ``rule`` is the id of the rule that it contradicts."""

    reason: Reason
    rule: str = ""


@dataclass(frozen=True)
class Family:
    """One original, its copies in order, and the copies that were dropped."""

    original: Sample
    copies: tuple[Sample, ...]
    dropped: tuple[Dropped, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The original, then its copies."""
        return (self.original, *self.copies)


@dataclass
class Counts:
    """What came of an augmentation; counts of families can be added in any order.

    Attributes:
        originals: by task.
        copies: by (task, what made them, as in ``Sample.made_by``).
        dropped: by (task, reason).
        contradicted: by (task, id of the rule that dropped them).
    """

    originals: Counter[str] = field(default_factory=Counter)
    copies: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    contradicted: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, task: str, made_by: Iterable[str], dropped: Sequence[Dropped]) -> None:
        """Count one original with its copies and what was dropped."""
        self.originals[task] += 1
        self.copies.update((task, method) for method in made_by)
        self.dropped.update((task, drop.reason) for drop in dropped)
        self.contradicted.update((task, drop.rule) for drop in dropped if drop.rule)

    def to_json(self) -> dict[str, Any]:
        """Return task → originals, copies by method, dropped by reason and by rule."""
        return {
            task: {
                "originals": originals,
                "copies": _of_task(self.copies, task),
                "dropped": _of_task(self.dropped, task),
                "dropped by rule": _of_task(self.contradicted, task),
            }
            for task, originals in sorted(self.originals.items())
        }


def _of_task(counts: Counter[tuple[str, str]], task: str) -> dict[str, int]:
    return {name: n for (owner, name), n in sorted(counts.items()) if owner == task}


@dataclass(frozen=True)
class Augmented:
    """Samples, each original followed by its copies, and their counts."""

    samples: tuple[Sample, ...]
    counts: Counts


def augment(
    samples: Sequence[Sample],
    rulebase: RuleBase,
    settings: AugmentSettings,
    seed: int,
    *,
    paraphraser: ChatModel | None = None,
) -> Augmented:
    """Return the samples, each followed by its augmented copies.

    Args:
        samples: originals of any tasks, with their pictures' bytes, and vectors where ``near`` rules are to speak.
        rulebase: what guides: rules that spare words, and rules that filter; an empty base does neither.
        settings: how many copies, and by which methods.
        seed: every choice derives from it, the sample's id and the number of the copy.
        paraphraser: language model of the method ``paraphrase``; without one that method is left out.
    """
    keys = frozenset(content_key(sample.example) for sample in samples)
    augmenter = Augmenter(rulebase, settings, seed, known=keys, paraphraser=paraphraser)
    counts = Counts()
    out: list[Sample] = []
    for sample in samples:
        family = augmenter.family(sample)
        counts.add(sample.example.task, [copy.made_by for copy in family.copies], family.dropped)
        out += family.samples
    return Augmented(tuple(out), counts)


def content_key(example: IntentExample) -> str:
    """Return what tells samples of a task apart: a hash of who says what, and of the pictures."""
    said = [[turn.speaker, turn.text, list(turn.image_ids)] for turn in example.turns]
    text = json.dumps([example.task, said, [image.image_id for image in example.images]], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Augmenter:
    """Makes families; one a process.

    Args:
        rulebase: rules of any tasks.
        settings: of augmentation.
        seed: of every choice.
        known: content keys of all originals; no copy repeats one.
        paraphraser: see :func:`augment`.
    """

    def __init__(
        self,
        rulebase: RuleBase,
        settings: AugmentSettings,
        seed: int,
        *,
        known: frozenset[str] = frozenset(),
        paraphraser: ChatModel | None = None,
    ) -> None:
        self._rulebase, self._settings, self._seed = rulebase, settings, seed
        self._known = known
        self._paraphraser = paraphraser
        self._rules: dict[str, CompiledRules] = {}

    def family(self, sample: Sample) -> Family:
        """Return a sample with its copies; the same whatever was asked before."""
        methods = self._methods(sample.example)
        if not methods and self._settings.copies:
            return Family(sample, (), (Dropped("nothing to change"),) * self._settings.copies)
        parent = self._matched(sample.example)
        seen = {content_key(sample.example)}
        copies: list[Sample] = []
        dropped: list[Dropped] = []
        for number in range(self._settings.copies):
            made = self._copy(sample, parent, methods[number % len(methods)], number, seen)
            if isinstance(made, Dropped):
                dropped.append(made)
            else:
                seen.add(content_key(made.example))
                copies.append(made)
        return Family(sample, tuple(copies), tuple(dropped))

    def _methods(self, example: IntentExample) -> list[tuple[str, ...]]:
        """Return the methods of one copy after the other: text methods by turns, pictures changed with each."""
        wanted = self._settings.methods
        speaks = any(turn.speaker == "user" and has_words(turn.text) for turn in example.turns)
        texts = [m for m in TEXT_METHODS if m in wanted and speaks]
        if self._paraphraser is None:
            texts = [m for m in texts if m != "paraphrase"]
        shows = ("picture",) if "picture" in wanted and example.images else ()
        return [(method, *shows) for method in texts] or ([shows] if shows else [])

    def _matched(self, example: IntentExample) -> _Parent:
        fired = self._compiled(example.task).fired(example)
        return _Parent(Guard.of(fired, example.label), frozenset(rule.id for rule in fired))

    def _compiled(self, task: str) -> CompiledRules:
        if task not in self._rules:
            self._rules[task] = CompiledRules(self._rulebase, task)
        return self._rules[task]

    def _copy(
        self, sample: Sample, parent: _Parent, methods: Sequence[str], number: int, seen: set[str]
    ) -> Sample | Dropped:
        """Make one copy, by another choice when one comes to nothing."""
        example = sample.example
        failed: Reason = "nothing to change"
        for attempt in range(_ATTEMPTS):
            rng = random.Random(derive_seed(self._seed, example.task, sample.id, number, attempt))  # noqa: S311 (no secret)
            changed, made_by = self._change(example, parent.guard, methods, number + attempt, rng)
            if not made_by:
                continue
            key = content_key(changed)
            if not parent.guard.keeps(changed):
                failed = "loses a rule's words"
            elif key in seen or key in self._known:
                failed = "duplicate"
            elif rule := self._contradiction(changed, parent):
                return Dropped("contradicts a rule", rule)
            else:
                return replace(
                    sample, id=f"{sample.id}#{number + 1}", made_by=made_by, example=without_vectors(changed)
                )
        return Dropped(failed)

    def _change(
        self, example: IntentExample, guard: Guard, methods: Sequence[str], number: int, rng: random.Random
    ) -> tuple[IntentExample, str]:
        """Return the example changed by the methods that could, and their names joined by ``+``."""
        done = []
        for method in methods:
            changed = self._apply(method, example, guard, number, rng)
            if changed is not None:
                example = changed
                done.append(method)
        return example, "+".join(done)

    def _apply(
        self, method: str, example: IntentExample, guard: Guard, number: int, rng: random.Random
    ) -> IntentExample | None:
        if method == "picture":
            return self._picture(example, guard, rng)
        turns: tuple[Turn, ...] | None = None
        if method == "frame":
            turns = reframe(example.turns, guard, rng)
        elif method == "edit":
            turns = slip(example.turns, guard, rng)
        elif self._paraphraser is not None:
            turns = reword(example.turns, self._paraphraser, number)
        return None if turns is None else replace(example, turns=turns)

    def _picture(self, example: IntentExample, guard: Guard, rng: random.Random) -> IntentExample:
        """Transform every picture; one that was sent twice stays the same picture."""
        made: dict[str, ImageFacts] = {}
        for image in example.images:
            if image.image_id not in made:
                made[image.image_id] = transform_picture(image, self._settings.picture, guard.keeps_print, rng)
        turns = tuple(
            replace(turn, image_ids=tuple(made[i].image_id if i in made else i for i in turn.image_ids))
            for turn in example.turns
        )
        return replace(example, turns=turns, images=tuple(made[image.image_id] for image in example.images))

    def _contradiction(self, changed: IntentExample, parent: _Parent) -> str:
        """Return the id of the strongest rule that newly speaks for another label; empty where the label is safe.

        Only rules of high out-of-fold precision are heard. Vectors are the parent's, so that ``near`` conditions stay
        as they were.
        """
        settings = self._settings
        trusted = [
            rule
            for rule in self._compiled(changed.task).fired(changed)
            if rule.stats.precision >= settings.filter_precision and rule.stats.support >= settings.filter_support
        ]
        if any(rule.label == changed.label for rule in trusted):
            return ""
        return next((rule.id for rule in trusted if rule.id not in parent.fired), "")


TEXT_METHODS = ("frame", "edit", "paraphrase")


@dataclass(frozen=True)
class _Parent:
    """What rules say of an original."""

    guard: Guard
    fired: frozenset[str]


def without_vectors(example: IntentExample) -> IntentExample:
    """Return the example without vectors, which are of other words and other pixels."""
    images = tuple(replace(image, vector=None) for image in example.images)
    return replace(example, images=images, last_user_vector=None, reply_vector=None, shown_vector=None)
