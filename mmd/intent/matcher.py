"""Matching of many rules on many examples: one pass over the text whatever the number of rules.

Predicates of one kind and scope form a *channel*: all its keywords are one Aho-Corasick automaton, its patterns RE2
sets, its prototypes one matrix, its image buckets one table. Channels fill a truth table of examples × distinct
predicates. Each rule waits at one of its positive predicates, its *anchor*, and is looked at only where that holds;
the rest of its conditions are then read off the table, for all waiting rules of a batch at once. Channels that no
rule is anchored in are evaluated last, and only for the examples where a rule still depends on them.

Source of the automaton: Aho & Corasick 1975, "Efficient string matching: an aid to bibliographic search".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import ahocorasick_rs
import numpy as np
import re2
from numpy.typing import NDArray

from mmd.intent.patterns import compile_regex, set_options
from mmd.intent.predicates import cosine, image_buckets, is_near, ocr_segments, segments
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Predicate, Prototype, Prototypes, Rule, unit
from mmd.intent.textnorm import normalise
from mmd.intent.types import IntentExample, Vector

ChannelKey = tuple[str, str]  # kind and scope
Indices = NDArray[np.int64]
Table = NDArray[np.bool_]  # shape (n_examples of a batch, n_columns)

BATCH = 512  # examples a truth table covers: some MB at 10,000 rules
DFA_KEYWORDS = 20_000  # above, the automaton's table grows past some 50 MB; the slower one is then built
PATTERNS_PER_SET = 64  # keeps the joint automaton of a set small
# BLAS sums in another order for a matrix than for a vector; nearer to the threshold than this, both are asked.
COSINE_SLACK = 1e-4
ALWAYS = 0  # column that holds on every example: padding, and the anchor of rules with only negated conditions
# Normalised text holds no control characters that count as whitespace, so these two cannot be part of a keyword.
_SEGMENT_END = "\n"
_EXAMPLE_END = "\x1e"


class ExampleView:
    """An example with its normalised texts and its image buckets, each made once and only if asked for."""

    __slots__ = ("_buckets", "_joined", "_segments", "example")

    def __init__(self, example: IntentExample) -> None:
        self.example = example
        self._segments: dict[ChannelKey, list[str]] = {}
        self._joined: dict[ChannelKey, str] = {}
        self._buckets: dict[str, set[str]] = {}

    def segments(self, key: ChannelKey) -> list[str]:
        """Return the normalised turns of a text scope, OCR lines of a region, or item titles."""
        found = self._segments.get(key)
        if found is None:
            found = self._segments[key] = self._read(*key)
        return found

    def joined(self, key: ChannelKey) -> str:
        """Return the segments joined by newlines, which no normalised keyword contains."""
        found = self._joined.get(key)
        if found is None:
            found = self._joined[key] = _SEGMENT_END.join(self.segments(key))
        return found

    def buckets(self, attribute: str) -> set[str]:
        """Return the buckets of an image attribute other than ``cluster``."""
        found = self._buckets.get(attribute)
        if found is None:
            found = self._buckets[attribute] = image_buckets(attribute, self.example, {})
        return found

    def _read(self, kind: str, scope: str) -> list[str]:
        if kind == "item":
            return [normalise(item.title) for item in self.example.items]
        if kind == "ocr" or scope == "ocr":
            return ocr_segments(self.example, scope if kind == "ocr" else "any")
        return segments(self.example, scope)


# ---------------------------------------------------------------- channels


class Channel(Protocol):
    """All predicates of one kind and scope; ``columns`` maps their values to columns of the truth table."""

    def fill(self, table: Table, rows: Sequence[int], views: Sequence[ExampleView]) -> None:
        """Set the cells of the values that hold on ``views[row]`` for each of ``rows``; they are False before."""
        ...


class KeywordChannel:
    """Keywords of one scope, found together in the texts of a whole batch.

    The end of an example is itself a keyword: matches come in text order, so counting these ends tells which
    example a match belongs to without an object per position.
    """

    def __init__(self, key: ChannelKey, columns: Mapping[str, int]) -> None:
        self._key = key
        dense = len(columns) <= DFA_KEYWORDS
        implementations = ahocorasick_rs.Implementation
        automaton = ahocorasick_rs.AhoCorasick(
            [*columns, _EXAMPLE_END],
            store_patterns=True,  # matches are then the very strings given, no new objects
            implementation=implementations.DFA if dense else implementations.ContiguousNFA,
        )
        self._find = automaton.find_matches_as_strings
        self._column_of = {**columns, _EXAMPLE_END: -1}.__getitem__

    def fill(self, table: Table, rows: Sequence[int], views: Sequence[ExampleView]) -> None:
        """Set the cells of the keywords found."""
        key = self._key
        text = _EXAMPLE_END.join([views[row].joined(key) for row in rows])
        found = self._find(text, overlapping=True)
        columns = np.fromiter(map(self._column_of, found), np.int64, len(found))
        ends = columns < 0
        example = np.cumsum(ends)[~ends]
        table[np.asarray(rows)[example], columns[~ends]] = True


class RegexChannel:
    """Patterns of one scope, in sets that RE2 searches together."""

    def __init__(self, scope: str, columns: Mapping[str, int]) -> None:
        patterns = list(columns.items())
        self._sets = [PatternSet(patterns[n : n + PATTERNS_PER_SET]) for n in range(0, len(patterns), PATTERNS_PER_SET)]
        # Scopes of text share their segments with the keywords.
        self._key = ("ocr", "any") if scope == "ocr" else ("text", scope)

    def fill(self, table: Table, rows: Sequence[int], views: Sequence[ExampleView]) -> None:
        """Set the cells of the patterns that match some segment."""
        for row in rows:
            for text in views[row].segments(self._key):
                for patterns in self._sets:
                    if matched := patterns.matches(text):
                        table[row, matched] = True


class PatternSet:
    """Patterns, with the columns they stand for, searched together by one RE2 set."""

    def __init__(self, patterns: Sequence[tuple[str, int]]) -> None:
        self._patterns = tuple(patterns)
        self._columns = [column for _, column in patterns]
        self._set: Any = re2.Set.SearchSet(set_options())
        for pattern, _ in patterns:
            self._set.Add(pattern)
        self._set.Add("")
        self._set.Compile()

    def matches(self, text: str) -> list[int]:
        """Return the columns of the patterns that match.

        A set that runs out of memory answers "no match". The empty pattern, which always matches, tells that apart.
        """
        matched = self._set.Match(text.encode())
        if matched is None:
            return [column for pattern, column in self._patterns if compile_regex(pattern).search(text) is not None]
        if len(matched) == 1:
            return []
        return [self._columns[i] for i in matched if i < len(self._columns)]


class NearChannel:
    """Prototypes of one scope, compared by one matrix product an example."""

    def __init__(self, scope: str, columns: Mapping[str, int], prototypes: Prototypes) -> None:
        self._scope = scope
        self._prototypes: list[Prototype] = [prototypes[name] for name in columns]
        self._columns = np.array(list(columns.values()))
        self._thresholds = np.array([p.threshold for p in self._prototypes])
        # Prototypes of different dimensions cannot be stacked; is_near then names the odd one.
        one_shape = len({p.vector.shape for p in self._prototypes}) == 1
        self._matrix = np.stack([p.vector for p in self._prototypes]) if one_shape else None

    def fill(self, table: Table, rows: Sequence[int], views: Sequence[ExampleView]) -> None:
        """Set the cells of the prototypes that some vector is near to."""
        for row in rows:
            vectors = self._vectors(views[row].example)
            if vectors:
                table[row, self._columns[self._near(vectors, views[row].example)]] = True

    def _vectors(self, example: IntentExample) -> list[Vector]:
        one_each = [example.last_user_vector] if self._scope == "last_user" else [i.vector for i in example.images]
        return [vector for vector in one_each if vector is not None]

    def _near(self, vectors: Sequence[Vector], example: IntentExample) -> list[int]:
        if self._matrix is None or any(v.shape != self._matrix.shape[1:] for v in vectors):
            return [n for n, p in enumerate(self._prototypes) if is_near(p, example)]
        cosines = np.max(self._matrix @ np.stack([unit(v) for v in vectors]).T, axis=1)
        likely = np.flatnonzero(cosines >= self._thresholds - COSINE_SLACK).tolist()
        return [
            n
            for n in likely
            if cosines[n] >= self._thresholds[n] + COSINE_SLACK
            or any(cosine(self._prototypes[n].vector, v) >= self._prototypes[n].threshold for v in vectors)
        ]


class ValueChannel:
    """Attributes whose values are looked up: image buckets and clusters, item attributes, answers."""

    def __init__(self, key: ChannelKey, columns: Mapping[str, int], prototypes: Prototypes) -> None:
        self._kind, self._scope = key
        self._columns = columns
        self._prototypes = prototypes

    def fill(self, table: Table, rows: Sequence[int], views: Sequence[ExampleView]) -> None:
        """Set the cells of the values that the examples have."""
        columns = self._columns
        for row in rows:
            for value in self._values(views[row]):
                if (column := columns.get(value)) is not None:
                    table[row, column] = True

    def _values(self, view: ExampleView) -> Iterable[str]:
        scope, example = self._scope, view.example
        if self._kind == "image":
            return image_buckets(scope, example, self._prototypes) if scope == "cluster" else view.buckets(scope)
        if self._kind == "item":
            return [normalise(item.attributes[scope]) for item in example.items if scope in item.attributes]
        return [normalise(example.meta.get(f"ask:{scope}", ""))]


def value_key(predicate: Predicate) -> str:
    """Return the value by which a predicate's channel knows it: normalised where matching is."""
    return normalise(predicate.value) if predicate.kind in ("text", "ocr", "item") else predicate.value


def _build_channel(key: ChannelKey, columns: Mapping[str, int], prototypes: Prototypes) -> Channel:
    kind, scope = key
    if _is_keyword(key):
        return KeywordChannel(key, columns)
    if kind == "regex":
        return RegexChannel(scope, columns)
    if kind == "near":
        return NearChannel(scope, columns, prototypes)
    return ValueChannel(key, columns, prototypes)


def _is_keyword(key: ChannelKey) -> bool:
    return key[0] in ("text", "ocr") or key == ("item", "title")


class Columns:
    """Numbers distinct predicates, negation aside, and the channels that evaluate them.

    Attributes:
        count: columns of a truth table, a multiple of eight.
        channels: one per kind and scope.
        channel_of: column → index into ``channels``; -1 for :data:`ALWAYS` and padding. Shape (count,).
    """

    def __init__(self, predicates: Iterable[Predicate], prototypes: Prototypes) -> None:
        columns: dict[ChannelKey, dict[str, int]] = defaultdict(dict)
        self._known: dict[Predicate, int] = {}
        free = ALWAYS + 1
        for predicate in predicates:
            if predicate not in self._known:
                column = columns[predicate.kind, predicate.scope].setdefault(value_key(predicate), free)
                free = max(free, column + 1)
                self._known[predicate] = column
        self.count = -(-free // 8) * 8
        self.keys = tuple(columns)
        self.channels = [_build_channel(key, columns[key], prototypes) for key in self.keys]
        self.channel_of: Indices = np.full(self.count, -1, dtype=np.int64)
        for number, key in enumerate(self.keys):
            self.channel_of[list(columns[key].values())] = number

    def of(self, predicate: Predicate) -> int:
        """Return the column of a predicate that the constructor was given."""
        return self._known[predicate]

    def empty_table(self, n_examples: int) -> Table:
        """Return a table in which only :data:`ALWAYS` holds."""
        table = np.zeros((n_examples, self.count), dtype=np.bool_)
        table[:, ALWAYS] = True
        return table


# ---------------------------------------------------------------- rules


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
        self._columns = columns = Columns((p for r in self.rules for p in r.predicates), rulebase.prototypes)
        anchors = _anchors(self.rules, columns)
        self._is_eager = np.array([_is_keyword(key) for key in columns.keys], dtype=np.bool_)
        self._is_eager[columns.channel_of[anchors[anchors != ALWAYS]]] = True
        self._waiting = _Lists.group(anchors, columns.count)
        self._conditions = _Conditions(self.rules, anchors, columns, self._is_eager)

    def __reduce__(self) -> tuple[type[CompiledRules], tuple[RuleBase, str]]:
        """Travel between processes as the rule base; automata are built again."""
        return (type(self), (self._rulebase, self.task))

    def fired(self, example: IntentExample) -> tuple[Rule, ...]:
        """Return the rules that fire on an example, best first (Wilson lower bound, then support, then id)."""
        return self.fired_views([ExampleView(example)])[0]

    def fired_batch(self, examples: Iterable[IntentExample]) -> list[tuple[Rule, ...]]:
        """Return the rules that fire on each example, in order; much faster than one by one."""
        return self.fired_views([ExampleView(example) for example in examples])

    def fired_views(self, views: Sequence[ExampleView]) -> list[tuple[Rule, ...]]:
        """Return the rules that fire on each prepared example, in order."""
        fired: list[tuple[Rule, ...]] = []
        for start in range(0, len(views), BATCH):
            fired += self._fired_together(views[start : start + BATCH])
        return fired

    def _fired_together(self, views: Sequence[ExampleView]) -> list[tuple[Rule, ...]]:
        if not self.rules:
            return [()] * len(views)
        batch = _Batch(views, self._columns, self._is_eager)
        held_example, held_column = _true_cells(batch.table)
        example, rule = self._waiting.expand(held_example, held_column)
        passed = self._conditions.hold(batch, example, rule)
        # One sort orders by example, then by rank, which is the rule's number.
        ordered = np.sort(example[passed] * len(self.rules) + rule[passed])
        chosen = [self.rules[rank] for rank in (ordered % len(self.rules)).tolist()]
        ends = np.searchsorted(ordered, (np.arange(len(views)) + 1) * len(self.rules)).tolist()
        return [tuple(chosen[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


class _Batch:
    """The truth table of a batch: eager channels filled at once, the others where they are asked for."""

    def __init__(self, views: Sequence[ExampleView], columns: Columns, is_eager: NDArray[np.bool_]) -> None:
        self.table = columns.empty_table(len(views))
        self._views = views
        self._columns = columns
        self._is_late = np.append(~is_eager, np.False_)  # the last entry serves channel -1
        self._filled = np.zeros((len(columns.channels), len(views)), dtype=np.bool_)
        for number in np.flatnonzero(is_eager).tolist():
            columns.channels[number].fill(self.table, range(len(views)), views)

    def require(self, example: Indices, column: Indices) -> None:
        """Evaluate the channels of these cells on their examples, unless that was done before."""
        channel = self._columns.channel_of[column]
        late = self._is_late[channel]
        if not late.any():
            return
        example, channel = example[late], channel[late]
        for number in np.unique(channel).tolist():
            rows = np.unique(example[channel == number])
            rows = rows[~self._filled[number, rows]]
            if rows.size:
                self._filled[number, rows] = True
                self._columns.channels[number].fill(self.table, rows.tolist(), self._views)


class _Lists:
    """Lists of numbers in two flat arrays: list ``i`` is ``items[first[i]:first[i + 1]]``."""

    def __init__(self, first: Indices, items: Indices) -> None:
        self.first = first
        self.items = items

    @classmethod
    def group(cls, keys: Indices, n_keys: int) -> _Lists:
        """Return, for each key, the positions at which it stands in ``keys``."""
        first = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=n_keys))]).astype(np.int64)
        return cls(first, np.argsort(keys, kind="stable"))

    def expand(self, owner: Indices, which: Indices) -> tuple[Indices, Indices]:
        """Pair each owner with every item of the list it names; return both sides of the pairs."""
        start = self.first[which]
        lengths = self.first[which + 1] - start
        offset = np.repeat(start - (np.cumsum(lengths) - lengths), lengths)
        return np.repeat(owner, lengths), self.items[offset + np.arange(offset.size)]


class _Conditions:
    """What is left to ask of each rule whose anchor holds, eager channels first."""

    def __init__(self, rules: Sequence[Rule], anchors: Indices, columns: Columns, is_eager: NDArray[np.bool_]) -> None:
        first, column, wanted = [0], [], []
        for rule, anchor in zip(rules, anchors.tolist(), strict=True):
            rest = {(columns.of(p), not p.negated) for p in rule.predicates} - {(anchor, True)}
            for number, outcome in sorted(rest, key=lambda c: (not is_eager[columns.channel_of[c[0]]], not c[1], c[0])):
                column.append(number)
                wanted.append(outcome)
            first.append(len(column))
        self._first = np.array(first)
        self._length = np.diff(self._first)
        self._column = np.array(column, dtype=np.int64)
        self._wanted = np.array(wanted, dtype=np.bool_)

    def hold(self, batch: _Batch, example: Indices, rule: Indices) -> NDArray[np.bool_]:
        """Say for each pair of example and rule whether all conditions hold; a pair drops out at its first miss."""
        passed = np.ones(rule.size, dtype=np.bool_)
        length = self._length[rule]
        pending, step = np.flatnonzero(length), 0
        while pending.size:
            condition = self._first[rule[pending]] + step
            where, column = example[pending], self._column[condition]
            batch.require(where, column)
            held = batch.table[where, column] == self._wanted[condition]
            passed[pending[~held]] = False
            step += 1
            pending = pending[held & (length[pending] > step)]
        return passed


def _true_cells(table: Table) -> tuple[Indices, Indices]:
    """Return rows and columns of the true cells; few are, so eight at a time are looked at."""
    words = np.flatnonzero(table.view(np.uint64))
    word, bit = np.nonzero(table.reshape(-1, 8)[words])
    row, column = np.divmod(words[word] * 8 + bit, table.shape[1])
    return row, column


def _anchors(rules: Sequence[Rule], columns: Columns) -> Indices:
    """Return for every rule the column of its likely rarest positive predicate, :data:`ALWAYS` without one."""
    popularity = Counter(columns.of(p) for rule in rules for p in set(rule.predicates))
    anchors = np.full(len(rules), ALWAYS, dtype=np.int64)
    for number, rule in enumerate(rules):
        positive = [p for p in rule.predicates if not p.negated]
        if positive:
            best = min(positive, key=lambda p: (*_anchor_cost(p), popularity[columns.of(p)], -len(p.value), p))
            anchors[number] = columns.of(best)
    return anchors


def _anchor_cost(predicate: Predicate) -> tuple[int]:
    """Prefer channels that are cheap and selective; among these, values few rules share, then long (so rare) ones."""
    return ({"text": 0, "ocr": 0, "item": 1, "ask": 1, "near": 2, "regex": 3}.get(predicate.kind, 4),)


# ---------------------------------------------------------------- tables


def truth_table(predicates: Sequence[Predicate], examples: Sequence[IntentExample], prototypes: Prototypes) -> Table:
    """Return which predicates hold on which examples, shape (n_predicates, n_examples): :func:`holds`, but fast."""
    columns = Columns(predicates, prototypes)
    numbers = np.array([columns.of(p) for p in predicates], dtype=np.int64)
    negated = np.array([p.negated for p in predicates], dtype=np.bool_)
    parts = [np.zeros((len(predicates), 0), dtype=np.bool_)]
    for start in range(0, len(examples), BATCH):
        views = [ExampleView(example) for example in examples[start : start + BATCH]]
        table = columns.empty_table(len(views))
        for channel in columns.channels:
            channel.fill(table, range(len(views)), views)
        parts.append(table[:, numbers].T ^ negated[:, None])
    return np.concatenate(parts, axis=1)
