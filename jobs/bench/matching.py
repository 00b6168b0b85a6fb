"""Rule matching against a loop of ``in`` and regex searches over the rules, and its growth with their number.

The dialogues and rules are made up: words of made-up syllables (English-like) or characters (Chinese), frequencies by
Zipf's law, turns, OCR lines and pictures of varied length and size. Keywords are drawn by frequency too, function
words aside, since mined keywords are words that occur. Both sides get texts that are already normalised, and must
fire the same rules; a second figure includes normalisation on both sides. Two loops are measured: the one that one
writes first, and the fastest that we could write. Times are processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.glue.records import spread
from mmd.errors import MmdError
from mmd.intent.matcher import CompiledRules, ExampleView, value_key
from mmd.intent.predicates import IMAGE_BUCKETS, image_buckets
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Predicate, Rule, measure
from mmd.intent.textnorm import normalise
from mmd.intent.types import ImageFacts, IntentExample
from mmd.schema import Item, OcrLine, Speaker, Turn

SIZES = (100, 300, 1000, 3000, 10_000)
HEADLINE_RULES = 1000
VOCABULARY = 20_000
FUNCTION_WORDS = 30  # the most frequent words, which no mined rule is about
COLOURS = ("red", "blue", "green", "black", "white", "grey")
_SYLLABLES = (
    *("ba", "ke", "ro", "sha", "lin", "to", "mer", "ing", "st", "ver", "co", "du", "fi", "gan", "ho", "ju", "la"),
    *("ne", "po", "qui", "re", "su", "ti", "wo", "xe", "yo", "zu", "th", "er", "an"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--dialogues", type=int, default=10_000, help="dialogues to match (default: %(default)s)")
    parser.add_argument("--baseline-dialogues", type=int, default=1000, help="of these, for the loop at other sizes")
    parser.add_argument("--repeats", type=int, default=3, help="measurements, of which the median (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of dialogues and rules (default: 0)")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Measure both languages and return the figures; see the module's docstring for the conditions."""
    dialogues = int(options.get("dialogues", 10_000))
    small = min(dialogues, int(options.get("baseline_dialogues", 1000)))
    repeats, seed = int(options.get("repeats", 3)), int(options.get("seed", 0))
    results = {language: _measure(language, dialogues, small, repeats, seed) for language in ("en", "zh")}
    return {
        "config": {"dialogues": dialogues, "baseline_dialogues": small, "seed": seed, "sizes": list(SIZES)},
        "warmup": "one pass over 200 dialogues a side",
        "repeats": repeats,
        "results": results,
    }


def _measure(language: str, dialogues: int, small: int, repeats: int, seed: int) -> dict[str, Any]:
    world = World(language, seed)
    examples = [world.example(index) for index in range(dialogues)]
    rules = world.rules(max(SIZES))
    views = [ExampleView(example) for example in examples]
    growth = [_size(rules[:size], views, small, repeats) for size in SIZES]
    chars = [len("".join(view.segments(("text", "any")))) for view in views]
    return {
        "mean_chars": round(float(np.mean(chars)), 1),
        "headline": _headline(rules[:HEADLINE_RULES], examples, views, repeats),
        "growth": growth,
        "time_exponent_100_to_10000": _exponent(growth),
    }


def _headline(
    rules: Sequence[Rule], examples: Sequence[IntentExample], views: Sequence[ExampleView], repeats: int
) -> dict[str, Any]:
    """1,000 rules on every dialogue, both sides, repetitions interleaved."""
    compiled, loop = _both(rules, views)
    fired = [[rule.id for rule in found] for found in compiled.fired_views(views)]
    plain = PlainLoop(rules)
    prepared = [loop.prepare(view) for view in views]
    _require_equal(fired, [loop.fired(texts) for texts in prepared])
    _require_equal(fired[:200], [plain.fired(texts) for texts in prepared[:200]])
    ours, theirs, plainly, ours_raw, theirs_raw = [], [], [], [], []
    for _ in range(repeats):
        ours.append(timed(lambda: compiled.fired_views(views)))
        theirs.append(timed(lambda: [loop.fired(texts) for texts in prepared]))
        plainly.append(timed(lambda: [plain.fired(texts) for texts in prepared]))
        ours_raw.append(timed(lambda: compiled.fired_batch(examples)))
        theirs_raw.append(timed(lambda: [loop.fired(loop.prepare(ExampleView(e))) for e in examples]))
    return {
        "rules": len(rules),
        "dialogues": len(views),
        "fired_per_dialogue": round(float(np.mean([len(ids) for ids in fired])), 3),
        "matcher_s": spread(ours),
        "unrolled_loop_s": spread(theirs),
        "plain_loop_s": spread(plainly),
        "speedup_over_unrolled_loop": _ratio(theirs, ours),
        "speedup_over_plain_loop": _ratio(plainly, ours),
        "with_normalisation": {
            "matcher_s": spread(ours_raw),
            "unrolled_loop_s": spread(theirs_raw),
            "speedup_over_unrolled_loop": _ratio(theirs_raw, ours_raw),
        },
    }


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return round(spread(slow)["median"] / spread(fast)["median"], 1)


def _size(rules: Sequence[Rule], views: Sequence[ExampleView], small: int, repeats: int) -> dict[str, Any]:
    """One number of rules: the matcher on every dialogue, the loop on the first ``small``."""
    base = RuleBase(tuple(rules))
    build = timed(lambda: CompiledRules(base, "t"))
    compiled, loop = _both(rules, views)
    prepared = [loop.prepare(view) for view in views[:small]]
    fired = [[rule.id for rule in found] for found in compiled.fired_views(views[:small])]
    _require_equal(fired, [loop.fired(texts) for texts in prepared])
    ours = [timed(lambda: compiled.fired_views(views)) for _ in range(repeats)]
    theirs = [timed(lambda: [loop.fired(texts) for texts in prepared]) for _ in range(min(repeats, 3))]
    micros = 1e6 * spread(ours)["median"] / len(views), 1e6 * spread(theirs)["median"] / max(1, small)
    return {
        "rules": len(rules),
        "build_s": round(build, 4),
        "matcher_us_per_dialogue": round(micros[0], 2),
        "unrolled_loop_us_per_dialogue": round(micros[1], 1),
        "speedup_over_unrolled_loop": round(micros[1] / micros[0], 1),
    }


def _both(rules: Sequence[Rule], views: Sequence[ExampleView]) -> tuple[CompiledRules, RuleLoop]:
    compiled, loop = CompiledRules(RuleBase(tuple(rules)), "t"), RuleLoop(rules)
    for view in views:
        loop.prepare(view)  # views keep what they normalised
        _ = view.image_bits
    compiled.fired_views(views[:200])
    for view in views[:200]:
        loop.fired(loop.prepare(view))
    return compiled, loop


def _require_equal(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> None:
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if sorted(a) != sorted(b):
            raise MmdError(f"dialogue {index}: matcher and loop fire different rules: {set(a) ^ set(b)}; a bug.")


def timed(work: Callable[[], object]) -> float:
    """Return the processor seconds of one call: both sides are one thread of pure computation."""
    started = time.process_time()
    work()
    return time.process_time() - started


def _exponent(growth: Sequence[Mapping[str, Any]]) -> float:
    """Return the slope of log time on log rules: 1 is linear growth."""
    sizes = np.log([g["rules"] for g in growth])
    times = np.log([g["matcher_us_per_dialogue"] for g in growth])
    return round(float(np.polyfit(sizes, times, 1)[0]), 3)


# ---------------------------------------------------------------- the other side

Slot = tuple[str, str]
Check = tuple[int, bool, Any]  # slot, outcome wanted, value to look for or search function


class RuleLoop:
    """The fastest loop we could write: unrolled conditions, keywords before patterns, stop at the first miss."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        slots: dict[Slot, int] = {}
        self._rules: list[tuple[str, list[Check], list[Check]]] = []
        for rule in rules:
            contains: list[Check] = []
            searches: list[Check] = []
            for p in rule.predicates:
                kind = "text" if p.kind == "regex" else p.kind
                slot = slots.setdefault((kind, p.scope), len(slots))
                if p.kind == "regex":
                    searches.append((slot, not p.negated, re.compile(p.value).search))
                else:
                    contains.append((slot, not p.negated, p.value if kind == "image" else value_key(p)))
            self._rules.append((rule.id, contains, searches))
        self._slots = list(slots)

    def prepare(self, view: ExampleView) -> list[Any]:
        """Return one text (or set of values) a slot."""
        return [self._content(view, *slot) for slot in self._slots]

    def _content(self, view: ExampleView, kind: str, scope: str) -> str | set[str]:
        if kind == "image":
            return image_buckets(scope, view.example, {})
        if kind == "item":
            return {normalise(item.attributes[scope]) for item in view.example.items}
        return "\n".join(view.segments((kind, scope)))

    def fired(self, contents: Sequence[Any]) -> list[str]:
        """Return the ids of the rules that fire."""
        out = []
        for rule_id, contains, searches in self._rules:
            for slot, wanted, value in contains:
                if (value in contents[slot]) is not wanted:
                    break
            else:
                for slot, wanted, search in searches:
                    if (search(contents[slot]) is not None) is not wanted:
                        break
                else:
                    out.append(rule_id)
        return out


class PlainLoop(RuleLoop):
    """The loop one writes first: ``all`` over a rule's conditions, on the same prepared texts and compiled patterns."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        super().__init__(rules)
        self._checks = [(rule_id, [*contains, *searches]) for rule_id, contains, searches in self._rules]

    def fired(self, contents: Sequence[Any]) -> list[str]:
        """Return the ids of the rules that fire."""
        return [rule_id for rule_id, checks in self._checks if all(_holds(check, contents) for check in checks)]


def _holds(check: Check, contents: Sequence[Any]) -> bool:
    slot, wanted, what = check
    found = what(contents[slot]) is not None if callable(what) else what in contents[slot]
    return found is wanted


# ---------------------------------------------------------------- made-up dialogues and rules


@dataclass(frozen=True)
class _Language:
    words: list[str]
    separator: str


def _english(rng: random.Random) -> _Language:
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        words["".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 2, 3, 3, 4))))] = None
    return _Language(list(words), " ")


def _chinese(rng: random.Random) -> _Language:
    characters = [chr(0x4E00 + offset) for offset in rng.sample(range(6000), 2500)]
    weights = [1 / (rank + 1) ** 0.8 for rank in range(len(characters))]
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        words["".join(rng.choices(characters, weights, k=rng.choice((1, 2, 2, 2, 3))))] = None
    return _Language(list(words), "")


class World:
    """Seeded source of examples and rules in one language."""

    def __init__(self, language: str, seed: int) -> None:
        self._rng = random.Random(f"{language}-{seed}")  # noqa: S311 (made-up data)
        self._numpy = np.random.default_rng(seed)
        makers: Mapping[str, Callable[[random.Random], _Language]] = {"en": _english, "zh": _chinese}
        made = makers[language](self._rng)
        self._words, self._separator = np.array(made.words), made.separator
        weights = 1 / (np.arange(VOCABULARY) + 5.0)
        self._spoken = weights / weights.sum()
        weights[:FUNCTION_WORDS] = 0
        self._telling = weights / weights.sum()

    def _phrase(self, least: int, most: int) -> str:
        count = self._rng.randint(least, most)
        return self._separator.join(self._numpy.choice(self._words, count, p=self._spoken))

    def example(self, index: int) -> IntentExample:
        """Return one dialogue: 4 to 9 turns, mostly a picture with some two dozen lines of text, perhaps a product."""
        rng = self._rng
        speakers: tuple[Speaker, Speaker] = ("user", "agent")
        lengths = ((1, 12), (4, 30))
        turns = tuple(Turn(speakers[n % 2], self._phrase(*lengths[n % 2])) for n in range(rng.randint(4, 9)))
        items = (Item("i", self._phrase(2, 6), {"colour": rng.choice(COLOURS)}),) if rng.random() < 0.5 else ()
        pictures = tuple(self._picture() for _ in range(rng.choice((0, 1, 1, 1, 2))))
        return IntentExample(str(index), "t", None, turns, pictures, items)

    def _picture(self) -> ImageFacts:
        rng = self._rng
        width, height = rng.randint(100, 1200), rng.randint(100, 1200)
        lines = []
        for _ in range(rng.randint(2, 45)):
            top = rng.uniform(0, height)
            lines.append(OcrLine(self._phrase(1, 5), 0.9, (0.0, top, 50.0, top)))
        return ImageFacts("p", width, height, tuple(lines))

    def rules(self, count: int) -> list[Rule]:
        """Return rules of one to three conditions, each with a keyword or pattern that must hold."""
        return [self._rule(index) for index in range(count)]

    def _rule(self, index: int) -> Rule:
        rng = self._rng
        predicates = [self._telling_predicate()]
        predicates += [self._any_predicate() for _ in range(rng.choice((0, 1, 1, 2)))]
        support = rng.randint(2, 60)
        stats = measure(support, rng.randint(1, support), 1000)
        return Rule(f"r{index:05}", "t", f"label {index % 20}", tuple(predicates), stats)

    def _telling_predicate(self) -> Predicate:
        rng = self._rng
        if rng.random() < 0.06:
            a, b, c = (self._word() for _ in range(3))  # letters and spaces only
            return Predicate("regex", "last_user", f"({a}|{b}).{{0,6}}{c}")
        if rng.random() < 0.2:
            return Predicate("ocr", rng.choice(("any", "any", "top", "bottom")), self._word())
        return Predicate("text", rng.choice(("last_user", "last_user", "user", "agent", "any")), self._word())

    def _any_predicate(self) -> Predicate:
        rng = self._rng
        negated = rng.random() < 0.25
        chance = rng.random()
        if chance < 0.2:
            attribute = rng.choice(("aspect", "size", "has_text", "text_amount"))
            return Predicate("image", attribute, rng.choice(IMAGE_BUCKETS[attribute]), negated)
        if chance < 0.25:
            return Predicate("item", "colour", rng.choice(COLOURS), negated)
        plain = self._telling_predicate()
        return Predicate(plain.kind, plain.scope, plain.value, negated)

    def _word(self) -> str:
        word = str(self._numpy.choice(self._words, p=self._telling))
        if self._rng.random() < 0.1:
            word += self._separator + str(self._numpy.choice(self._words, p=self._telling))
        return word
