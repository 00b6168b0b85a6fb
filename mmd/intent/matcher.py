"""Matching of many rules at once: one pass over the text whatever the number of rules.

Predicates of one kind and scope form a *channel*: all its keywords are one Aho-Corasick automaton, all its
patterns one RE2 set, its prototypes one matrix, its image buckets one set. A channel answers with the values that
hold on an example. Each rule waits at one of its positive predicates, its *anchor*; a rule is looked at only when
its anchor holds, and channels that no rule is anchored in are evaluated only when such a rule asks for them.

Source of the automaton: Aho & Corasick 1975, "Efficient string matching: an aid to bibliographic search".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import ahocorasick_rs
import numpy as np
import re2
from numpy.typing import NDArray

from mmd.intent.patterns import compile_regex, set_options
from mmd.intent.predicates import cosine, image_buckets, is_near, ocr_segments, segments
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Predicate, Prototypes, Rule, unit
from mmd.intent.textnorm import normalise
from mmd.intent.types import IntentExample, Vector

ChannelKey = tuple[str, str]  # kind and scope
Hits = Callable[["ExampleView"], set[str]]

DFA_KEYWORDS = 20_000  # above, the automaton's table grows past some 50 MB; the slower one is then built
PATTERNS_PER_SET = 64  # keeps the joint automaton of a set small
# BLAS sums in another order for a matrix than for a vector; nearer to the threshold than this, both are asked.
COSINE_SLACK = 1e-4
_KEYWORD_KINDS = ("text", "ocr")
_ALWAYS: ChannelKey = ("", "always")


class ExampleView:
    """An example with its normalised texts, each made once and only if asked for."""

    __slots__ = ("_joined", "_segments", "example")

    def __init__(self, example: IntentExample) -> None:
        self.example = example
        self._segments: dict[ChannelKey, list[str]] = {}
        self._joined: dict[ChannelKey, str] = {}

    def segments(self, kind: str, scope: str) -> list[str]:
        """Return the normalised turns of a text scope, OCR lines of a region, or item titles."""
        key = (kind, scope)
        found = self._segments.get(key)
        if found is None:
            found = self._segments[key] = self._read(kind, scope)
        return found

    def joined(self, kind: str, scope: str) -> str:
        """Return the segments joined by newlines, which no normalised keyword contains."""
        key = (kind, scope)
        found = self._joined.get(key)
        if found is None:
            found = self._joined[key] = "\n".join(self.segments(kind, scope))
        return found

    def _read(self, kind: str, scope: str) -> list[str]:
        if kind == "item":
            return [normalise(item.title) for item in self.example.items]
        if kind == "ocr" or scope == "ocr":
            return ocr_segments(self.example, scope if kind == "ocr" else "any")
        return segments(self.example, scope)


# ---------------------------------------------------------------- channels


def value_key(predicate: Predicate) -> str:
    """Return the value by which a predicate's channel knows it: normalised where matching is."""
    return normalise(predicate.value) if predicate.kind in ("text", "ocr", "item") else predicate.value


def build_channel(key: ChannelKey, values: Sequence[str], prototypes: Prototypes) -> Hits:
    """Return the function from an example to those of ``values`` that hold on it.

    Args:
        key: kind and scope of the predicates.
        values: their distinct keys (see :func:`value_key`).
        prototypes: for ``near`` and ``cluster``.
    """
    kind, scope = key
    if kind in _KEYWORD_KINDS or key == ("item", "title"):
        return _keyword_channel(key, values)
    if kind == "regex":
        return _regex_channel(scope, values)
    if kind == "near":
        return _near_channel(scope, values, prototypes)
    if kind == "image":
        return lambda view: image_buckets(scope, view.example, prototypes)
    if kind == "item":
        return lambda view: {
            normalise(item.attributes[scope]) for item in view.example.items if scope in item.attributes
        }
    meta_key = f"ask:{scope}"
    return lambda view: {normalise(view.example.meta.get(meta_key, ""))}


def _keyword_channel(key: ChannelKey, values: Sequence[str]) -> Hits:
    kind, scope = key
    dense = len(values) <= DFA_KEYWORDS
    implementations = ahocorasick_rs.Implementation
    automaton = ahocorasick_rs.AhoCorasick(
        list(values),
        store_patterns=True,  # matches are then the very strings given, no new objects
        implementation=implementations.DFA if dense else implementations.ContiguousNFA,
    )
    find = automaton.find_matches_as_strings
    return lambda view: set(find(view.joined(kind, scope), overlapping=True))


def _regex_channel(scope: str, values: Sequence[str]) -> Hits:
    sets = [_PatternSet(values[start : start + PATTERNS_PER_SET]) for start in range(0, len(values), PATTERNS_PER_SET)]

    def hits(view: ExampleView) -> set[str]:
        found: set[str] = set()
        for text in view.segments("regex", scope):
            encoded = text.encode()
            for patterns in sets:
                patterns.add_matches(text, encoded, found)
        return found

    return hits


class _PatternSet:
    """Patterns searched together by one RE2 set."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = tuple(patterns)
        self._set: Any = re2.Set.SearchSet(set_options())
        for pattern in self._patterns:
            self._set.Add(pattern)
        self._sentinel = self._set.Add("")
        self._set.Compile()

    def add_matches(self, text: str, encoded: bytes, found: set[str]) -> None:
        """Add the patterns that match; ``encoded`` is ``text`` in UTF-8.

        A set that runs out of memory answers "no match". The empty pattern, which always matches, tells that apart.
        """
        matched = self._set.Match(encoded)
        if matched is None:
            found.update(p for p in self._patterns if compile_regex(p).search(text) is not None)
        elif len(matched) > 1:
            found.update(self._patterns[i] for i in matched if i != self._sentinel)


def _near_channel(scope: str, values: Sequence[str], prototypes: Prototypes) -> Hits:
    chosen = [prototypes[name] for name in values]
    thresholds = np.array([p.threshold for p in chosen])
    # Prototypes of different dimensions cannot be stacked; is_near then names the odd one.
    stackable = len({p.vector.shape for p in chosen}) == 1
    matrix = np.stack([p.vector for p in chosen]) if stackable else None

    def vectors(example: IntentExample) -> list[Vector]:
        all_vectors = [example.last_user_vector] if scope == "last_user" else [i.vector for i in example.images]
        return [v for v in all_vectors if v is not None]

    def hits(view: ExampleView) -> set[str]:
        found = vectors(view.example)
        if not found:
            return set()
        if matrix is None or any(v.shape != matrix.shape[1:] for v in found):
            return {p.name for p in chosen if is_near(p, view.example)}
        cosines = np.max(matrix @ np.stack([unit(v) for v in found]).T, axis=1)
        likely = np.flatnonzero(cosines >= thresholds - COSINE_SLACK)
        return {
            chosen[i].name
            for i in likely.tolist()
            if cosines[i] >= thresholds[i] + COSINE_SLACK
            or any(cosine(chosen[i].vector, v) >= chosen[i].threshold for v in found)
        }

    return hits


# ---------------------------------------------------------------- rules


class _Check(NamedTuple):
    """What is left to ask of a rule whose anchor holds."""

    rank: int  # position among the task's rules, best first
    beside: frozenset[str]  # other values needed in the anchor's own channel
    needed: tuple[tuple[ChannelKey, frozenset[str]], ...]  # values that must hold in other channels
    banned: tuple[tuple[ChannelKey, frozenset[str]], ...]  # values that must not hold, any channel


class _State:
    """Lazily evaluated channels of one example."""

    __slots__ = ("_channels", "_hits", "view")

    def __init__(self, view: ExampleView, channels: dict[ChannelKey, Hits]) -> None:
        self.view = view
        self._channels = channels
        self._hits: dict[ChannelKey, set[str]] = {}

    def hits(self, key: ChannelKey) -> set[str]:
        found = self._hits.get(key)
        if found is None:
            found = self._hits[key] = self._channels[key](self.view)
        return found

    def passes(self, check: _Check) -> bool:
        """Say whether the conditions outside the anchor's channel hold too."""
        for key, values in check.needed:
            if not values <= self.hits(key):
                return False
        return all(values.isdisjoint(self.hits(key)) for key, values in check.banned)


class CompiledRules:
    """The enabled rules of one task, ready to match; equal to asking :func:`holds` of every predicate.

    Args:
        rulebase: checked rules and prototypes.
        task: whose rules to take.
    """

    def __init__(self, rulebase: RuleBase, task: str) -> None:
        self.task = task
        self.rules = rulebase.of_task(task)
        self._rulebase = rulebase
        self._channels: dict[ChannelKey, Hits] = {_ALWAYS: lambda _: {""}}
        self._channels.update(_build_channels((p for r in self.rules for p in r.predicates), rulebase.prototypes))
        self._anchored = _anchor(self.rules)

    def __reduce__(self) -> tuple[type[CompiledRules], tuple[RuleBase, str]]:
        """Travel between processes as the rule base; automata are built again."""
        return (type(self), (self._rulebase, self.task))

    def fired(self, example: IntentExample) -> tuple[Rule, ...]:
        """Return the rules that fire on an example, best first (Wilson lower bound, then support, then id)."""
        return self.fired_view(ExampleView(example))

    def fired_view(self, view: ExampleView) -> tuple[Rule, ...]:
        """Return the rules that fire on a prepared example, best first."""
        state = _State(view, self._channels)
        ranks: list[int] = []
        for key, waiting in self._anchored.items():
            hits = state.hits(key)
            for value in hits & waiting.keys():
                ranks += [check.rank for check in waiting[value] if check.beside <= hits and state.passes(check)]
        ranks.sort()
        rules = self.rules
        return tuple(rules[rank] for rank in ranks)

    def fired_batch(self, examples: Iterable[IntentExample]) -> list[tuple[Rule, ...]]:
        """Return the rules that fire on each example, in order."""
        return [self.fired(example) for example in examples]


def _build_channels(predicates: Iterable[Predicate], prototypes: Prototypes) -> dict[ChannelKey, Hits]:
    values: dict[ChannelKey, dict[str, None]] = defaultdict(dict)
    for predicate in predicates:
        values[predicate.kind, predicate.scope][value_key(predicate)] = None
    return {key: build_channel(key, tuple(found), prototypes) for key, found in values.items()}


def _anchor(rules: Sequence[Rule]) -> dict[ChannelKey, dict[str, list[_Check]]]:
    """Let every rule wait at its likely rarest positive predicate."""
    popularity = Counter(
        (p.kind, p.scope, key) for rule in rules for p, key in {(p, value_key(p)): None for p in rule.predicates}
    )
    anchored: dict[ChannelKey, dict[str, list[_Check]]] = defaultdict(dict)
    for rank, rule in enumerate(rules):
        positive = [(p.kind, p.scope, value_key(p)) for p in rule.predicates if not p.negated]
        best = min(positive, key=lambda p: _anchor_cost(p, popularity[p]), default=(*_ALWAYS, ""))
        channel, value = best[:2], best[2]
        anchored[channel].setdefault(value, []).append(_check_of(rule, rank, channel, value))
    return dict(anchored)


def _anchor_cost(predicate: tuple[str, str, str], popularity: int) -> tuple[int, int, int, str, str]:
    """Prefer channels that are cheap and selective, then values few rules share, then long (so rare) ones."""
    kind, scope, value = predicate
    expense = {"text": 0, "ocr": 0, "item": 1, "ask": 1, "near": 2, "regex": 3}.get(kind, 4)
    return expense, popularity, -len(value), scope, value


def _check_of(rule: Rule, rank: int, anchor: ChannelKey, value: str) -> _Check:
    needed: dict[ChannelKey, set[str]] = defaultdict(set)
    banned: dict[ChannelKey, set[str]] = defaultdict(set)
    for predicate in rule.predicates:
        group = banned if predicate.negated else needed
        group[predicate.kind, predicate.scope].add(value_key(predicate))
    beside = frozenset(needed.pop(anchor, set())) - {value}
    return _Check(
        rank=rank,
        beside=beside,
        needed=tuple((key, frozenset(values)) for key, values in needed.items()),
        banned=tuple((key, frozenset(values)) for key, values in banned.items()),
    )


# ---------------------------------------------------------------- tables


def truth_table(
    predicates: Sequence[Predicate], examples: Sequence[IntentExample], prototypes: Prototypes
) -> NDArray[np.bool_]:
    """Return which predicates hold on which examples, shape (n_predicates, n_examples): :func:`holds`, but fast."""
    channels = _build_channels(predicates, prototypes)
    rows: dict[ChannelKey, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, predicate in enumerate(predicates):
        rows[predicate.kind, predicate.scope][value_key(predicate)].append(row)
    table = np.zeros((len(predicates), len(examples)), dtype=np.bool_)
    for column, example in enumerate(examples):
        view = ExampleView(example)
        for key, hits in channels.items():
            for value in hits(view) & rows[key].keys():
                table[rows[key][value], column] = True
    negated = np.array([p.negated for p in predicates], dtype=np.bool_)
    return table ^ negated[:, None]
