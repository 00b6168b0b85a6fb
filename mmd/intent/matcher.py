"""Matching of many rules on many examples: one pass over the text whatever the number of rules.

All keywords that can occur in one *field* of an example (the last user turn, the earlier user turns, the agent's
turns, a third of the pictures' text, …) are one Aho-Corasick automaton, run once over the texts of a whole batch.
Other predicates form *channels* by kind and scope: patterns are RE2 sets, prototypes a matrix, image buckets and
attributes a table. All of them fill a truth table of examples × distinct predicates.

Each rule waits at one of its positive predicates, its *anchor*, and is looked at only where that holds; the rest of
its conditions are then read off the table, for all waiting rules of a batch at once. A pattern's anchor is a literal
that it cannot match without. Channels without an anchor in them are evaluated only for examples that still need them.

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

from mmd.intent.patterns import compile_regex, required_literal, set_options
from mmd.intent.predicates import (
    IMAGE_BUCKETS,
    OCR_REGIONS,
    cosine,
    image_bucket,
    image_buckets,
    is_near,
    region_of,
    text_bucket,
)
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Predicate, Prototype, Prototypes, Rule, unit
from mmd.intent.textnorm import normalise
from mmd.intent.types import IntentExample, Vector, has_words

ChannelKey = tuple[str, str]  # kind and scope
Indices = NDArray[np.int64]
Table = NDArray[np.bool_]  # shape (n_examples of a batch, n_columns)

BATCH = 2048  # examples a truth table covers at most …
TABLE_CELLS = 1 << 23  # … and its bytes
DFA_KEYWORDS = 20_000  # above, the automaton's table grows past some 50 MB; the slower one is then built
PATTERNS_PER_SET = 64  # keeps the joint automaton of a set small
# BLAS sums in another order for a matrix than for a vector; nearer to the threshold than this, both are asked.
COSINE_SLACK = 1e-4
ALWAYS = 0  # column that holds on every example: the anchor of rules with only negated conditions
# Normalised text holds no control characters that count as whitespace, so these two cannot be part of a keyword.
_SEGMENT_END = "\n"
_EXAMPLE_END = "\x1e"
_IMAGE: ChannelKey = ("image", "")
IMAGE_BITS: Mapping[tuple[str, str], int] = {
    (attribute, bucket): bit
    for bit, (attribute, bucket) in enumerate((a, b) for a, buckets in IMAGE_BUCKETS.items() for b in buckets)
}
# Scopes are read off disjoint fields, so that no text is searched twice.
_FIELDS: Mapping[ChannelKey, tuple[str, ...]] = {
    ("text", "last_user"): ("last_user",),
    ("text", "user"): ("earlier_user", "last_user"),
    ("text", "agent"): ("agent",),
    ("text", "any"): ("earlier_user", "last_user", "agent"),
    ("ocr", "top"): ("top",),
    ("ocr", "middle"): ("middle",),
    ("ocr", "bottom"): ("bottom",),
    ("ocr", "any"): ("top", "middle", "bottom"),
    ("item", "title"): ("title",),
}


class ExampleView:
    """An example with its normalised texts and its image buckets, each made once and only if asked for."""

    __slots__ = ("_image_bits", "_joined", "_ocr_chars", "_segments", "example")

    def __init__(self, example: IntentExample) -> None:
        self.example = example
        self._segments: dict[str, list[str]] = {}
        self._joined: dict[str, str] = {}
        self._ocr_chars: list[int] = []  # a picture, once its text was read
        self._image_bits: int | None = None

    def segments(self, key: ChannelKey) -> list[str]:
        """Return the normalised turns of a text scope, OCR lines of a region, or item titles."""
        return [text for field in _FIELDS[key] for text in self._field(field)]

    def joined(self, field: str) -> str:
        """Return a field's segments joined by newlines, which no normalised keyword contains."""
        found = self._joined.get(field)
        if found is None:
            found = self._joined[field] = _SEGMENT_END.join(self._field(field))
        return found

    @property
    def image_bits(self) -> int:
        """The image buckets that hold, but ``cluster``: bit ``IMAGE_BITS[attribute, bucket]`` of each."""
        if self._image_bits is None:
            self._image_bits = self._read_image_bits()
        return self._image_bits

    def _read_image_bits(self) -> int:
        images = self.example.images
        self._field("top")  # counts characters
        found = {("count", bucket) for bucket in image_buckets("count", self.example, {})}
        found |= {(attribute, image_bucket(attribute, image)) for attribute in ("aspect", "size") for image in images}
        found |= {(a, text_bucket(a, chars)) for a in ("has_text", "text_amount") for chars in self._ocr_chars}
        return sum(1 << IMAGE_BITS[bucket] for bucket in found)

    def _field(self, field: str) -> list[str]:
        if field not in self._segments:
            if field == "title":
                self._segments[field] = [normalise(item.title) for item in self.example.items]
            elif field in OCR_REGIONS:
                self._segments.update(self._ocr_fields())
            else:
                self._segments.update(_turn_fields(self.example))
        return self._segments[field]

    def _ocr_fields(self) -> dict[str, list[str]]:
        fields: dict[str, list[str]] = {"top": [], "middle": [], "bottom": []}
        self._ocr_chars = []
        for image in self.example.images:
            chars = 0
            for line in image.ocr:
                text = normalise(line.text)
                chars += len(text)
                fields[region_of(line, image.height)].append(text)
            self._ocr_chars.append(chars)
        return fields


def _turn_fields(example: IntentExample) -> dict[str, list[str]]:
    """Split the normalised turns into the last user turn that has text, earlier user turns, and the agent's."""
    fields: dict[str, list[str]] = {"last_user": [], "earlier_user": [], "agent": []}
    for turn in reversed(example.turns):
        is_last = turn.speaker == "user" and not fields["last_user"] and has_words(turn.text)
        field = "last_user" if is_last else "agent" if turn.speaker == "agent" else "earlier_user"
        fields[field].append(normalise(turn.text))
    return fields


# ---------------------------------------------------------------- fields and channels


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


class FieldKeywords:
    """The keywords of one field, found together in the texts of a whole batch.

    The end of an example is itself a keyword: matches come in text order, so counting these ends tells which
    example a match belongs to without an object per position.
    """

    def __init__(self, field: str, columns: Mapping[str, Sequence[int]]) -> None:
        self._field = field
        dense = len(columns) <= DFA_KEYWORDS
        implementations = ahocorasick_rs.Implementation
        automaton = ahocorasick_rs.AhoCorasick(
            [*columns, _EXAMPLE_END],
            store_patterns=True,  # matches are then the very strings given, no new objects
            implementation=implementations.DFA if dense else implementations.ContiguousNFA,
        )
        self._find = automaton.find_matches_as_strings
        self._number_of = {word: number for number, word in enumerate([*columns, _EXAMPLE_END])}.__getitem__
        self._end = len(columns)
        # A word of several scopes has a column in each.
        sizes = [len(of_word) for of_word in columns.values()]
        first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._columns = _Lists(first, np.array([c for of_word in columns.values() for c in of_word], dtype=np.int64))

    def hits(self, views: Sequence[ExampleView]) -> tuple[Indices, Indices]:
        """Return example and column of every occurrence of a keyword."""
        field = self._field
        text = _EXAMPLE_END.join([view.joined(field) for view in views])
        found = self._find(text, overlapping=True)
        words = np.fromiter(map(self._number_of, found), np.int64, len(found))
        is_end = words == self._end
        return self._columns.expand(np.cumsum(is_end)[~is_end], words[~is_end])


class Channel(Protocol):
    """All predicates of one kind and scope that are not keywords."""

    def fill(self, table: Table, rows: Sequence[int], views: Sequence[ExampleView]) -> None:
        """Set the cells of the values that hold on ``views[row]`` for each of ``rows``; they are False before."""
        ...


class RegexChannel:
    """Patterns of one scope, in sets that RE2 searches together."""

    def __init__(self, scope: str, columns: Mapping[str, int]) -> None:
        patterns = list(columns.items())
        self._sets = [PatternSet(patterns[n : n + PATTERNS_PER_SET]) for n in range(0, len(patterns), PATTERNS_PER_SET)]
        # Scopes of text share their segments with the keywords.
        self._key = ("ocr", "any") if scope == "ocr" else ("text", scope)

    def fill(self, table: Table, rows: Sequence[int], views: Sequence[ExampleView]) -> None:
        """Set the cells of the patterns that match some segment."""
        found = [
            (row, column)
            for row in rows
            for text in views[row].segments(self._key)
            for patterns in self._sets
            for column in patterns.matches(text)
        ]
        _set_cells(table, found)


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


class ImageChannel:
    """Image buckets other than clusters, taken from the examples' bits."""

    def __init__(self, columns: Mapping[str, int]) -> None:
        named = {f"{attribute} {bucket}": bit for (attribute, bucket), bit in IMAGE_BITS.items()}
        self._bits = np.array([1 << named[value] for value in columns])
        self._columns = np.array(list(columns.values()))

    def fill(self, table: Table, rows: Sequence[int], views: Sequence[ExampleView]) -> None:
        """Set the cells of the buckets that the examples' pictures fall into."""
        bits = np.fromiter([views[row].image_bits for row in rows], np.int64, len(rows))
        table[np.ix_(np.asarray(rows), self._columns)] = (bits[:, None] & self._bits) != 0


class ValueChannel:
    """Attributes whose values are looked up: image clusters, item attributes, answers."""

    def __init__(self, key: ChannelKey, columns: Mapping[str, int], prototypes: Prototypes) -> None:
        self._kind, self._scope = key
        self._columns = columns
        self._prototypes = prototypes

    def fill(self, table: Table, rows: Sequence[int], views: Sequence[ExampleView]) -> None:
        """Set the cells of the values that the examples have."""
        columns = self._columns
        for row in rows:
            for value in self._values(views[row].example):
                if value in columns:
                    table[row, columns[value]] = True

    def _values(self, example: IntentExample) -> Iterable[str]:
        if self._kind == "image":
            return image_buckets(self._scope, example, self._prototypes)
        if self._kind == "item":
            return [normalise(item.attributes[self._scope]) for item in example.items if self._scope in item.attributes]
        return [normalise(example.meta.get(f"ask:{self._scope}", ""))]


def _set_cells(table: Table, cells: Sequence[tuple[int, int]]) -> None:
    if cells:
        rows, columns = zip(*cells, strict=True)
        table[rows, columns] = True


def channel_key(predicate: Predicate) -> ChannelKey:
    """Return the channel of a predicate: kind and scope, but one for all image buckets that bits stand for."""
    kind, scope = predicate.kind, predicate.scope
    return _IMAGE if kind == "image" and scope in IMAGE_BUCKETS else (kind, scope)


def value_key(predicate: Predicate) -> str:
    """Return the value by which a predicate's channel knows it: normalised where matching is."""
    if channel_key(predicate) == _IMAGE:
        return f"{predicate.scope} {predicate.value}"
    return normalise(predicate.value) if predicate.kind in ("text", "ocr", "item") else predicate.value


def _build_channel(key: ChannelKey, columns: Mapping[str, int], prototypes: Prototypes) -> Channel:
    kind, scope = key
    if key == _IMAGE:
        return ImageChannel(columns)
    if kind == "regex":
        return RegexChannel(scope, columns)
    if kind == "near":
        return NearChannel(scope, columns, prototypes)
    return ValueChannel(key, columns, prototypes)


def _build_fields(columns: Mapping[ChannelKey, Mapping[str, int]]) -> list[FieldKeywords]:
    by_field: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, of_scope in columns.items():
        for field in _FIELDS[key]:
            for word, column in of_scope.items():
                by_field[field][word].append(column)
    return [FieldKeywords(field, words) for field, words in by_field.items()]


class Columns:
    """Numbers distinct predicates, negation aside, and what evaluates them.

    Attributes:
        count: columns of a truth table.
        fields: the keywords of each field.
        channels: one per kind and scope of the other predicates.
        channel_of: column → index into ``channels``; -1 for keywords and :data:`ALWAYS`. Shape (count,).
    """

    def __init__(self, predicates: Iterable[Predicate], prototypes: Prototypes) -> None:
        columns: dict[ChannelKey, dict[str, int]] = defaultdict(dict)
        self._known: dict[Predicate, int] = {}
        self.count = ALWAYS + 1
        for predicate in predicates:
            if predicate not in self._known:
                column = columns[channel_key(predicate)].setdefault(value_key(predicate), self.count)
                self.count = max(self.count, column + 1)
                self._known[predicate] = column
        self.fields = _build_fields({key: columns[key] for key in columns if key in _FIELDS})
        others = [key for key in columns if key not in _FIELDS]
        self.channels = [_build_channel(key, columns[key], prototypes) for key in others]
        self.channel_of: Indices = np.full(self.count, -1, dtype=np.int64)
        for number, key in enumerate(others):
            self.channel_of[list(columns[key].values())] = number

    @property
    def batch(self) -> int:
        """Examples worth evaluating together."""
        return max(1, min(BATCH, TABLE_CELLS // self.count))

    def of(self, predicate: Predicate) -> int:
        """Return the column of a predicate that the constructor was given."""
        return self._known[predicate]

    def start(self, views: Sequence[ExampleView]) -> tuple[Table, Indices, Indices]:
        """Return a table with its keywords filled in, and row and column of its true cells, some more than once."""
        table = np.zeros((len(views), self.count), dtype=np.bool_)
        found = [field.hits(views) for field in self.fields]
        rows = np.concatenate([np.arange(len(views)), *(row for row, _ in found)])
        columns = np.concatenate([np.full(len(views), ALWAYS), *(column for _, column in found)])
        table[rows, columns] = True
        return table, rows, columns


def implied(predicate: Predicate) -> Predicate | None:
    """Return the keyword predicate that holds wherever this pattern does, if there is one."""
    if predicate.kind != "regex" or predicate.negated:
        return None
    literal = required_literal(predicate.value)
    if literal is None:
        return None
    return Predicate("ocr", "any", literal) if predicate.scope == "ocr" else Predicate("text", predicate.scope, literal)


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
        conditions = [_with_implied(rule) for rule in self.rules]
        columns = Columns((p for predicates in conditions for p in predicates), rulebase.prototypes)
        anchors = _anchors(conditions, columns)
        used = columns.channel_of[anchors]
        self._columns = columns
        self._eager: list[int] = np.unique(used[used >= 0]).tolist()
        self._waiting = _Lists.group(anchors, columns.count)
        self._conditions = _Conditions(conditions, anchors, columns)
        self._by_rank = np.empty(len(self.rules), dtype=np.object_)
        self._by_rank[:] = self.rules

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
        size = self._columns.batch
        for start in range(0, len(views), size):
            fired += self._fired_together(views[start : start + size])
        return fired

    def _fired_together(self, views: Sequence[ExampleView]) -> list[tuple[Rule, ...]]:
        if not self.rules:
            return [()] * len(views)
        batch = _Batch(views, self._columns)
        example, rule = self._waiting.expand(*batch.held(self._eager))
        passed = self._conditions.hold(batch, example, rule)
        # One sort orders by example, then by rank, which is the rule's number.
        ordered = np.sort(example[passed] * len(self.rules) + rule[passed])
        ordered = ordered[np.diff(ordered, prepend=-1) > 0]  # a keyword may occur more than once
        chosen = self._by_rank[ordered % len(self.rules)].tolist()
        ends = np.searchsorted(ordered, (np.arange(len(views)) + 1) * len(self.rules)).tolist()
        return [tuple(chosen[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


class _Batch:
    """The truth table of a batch: keywords filled in at once, channels where they are asked for."""

    def __init__(self, views: Sequence[ExampleView], columns: Columns) -> None:
        self._views = views
        self._columns = columns
        self.table, self._row, self._column = columns.start(views)
        self._filled = np.zeros((len(columns.channels), len(views)), dtype=np.bool_)

    def held(self, channels: Iterable[int]) -> tuple[Indices, Indices]:
        """Return rows and columns of the cells that hold, of keywords and of the given channels."""
        rows, columns = [self._row], [self._column]
        for number in channels:
            self._fill(number, np.arange(len(self._views)))
            own = np.flatnonzero(self._columns.channel_of == number)
            row, place = np.nonzero(self.table[:, own])
            rows.append(row)
            columns.append(own[place])
        return np.concatenate(rows), np.concatenate(columns)

    def require(self, example: Indices, column: Indices) -> None:
        """Evaluate the channels of these cells on their examples, unless that was done before."""
        channel = self._columns.channel_of[column]
        for number in np.unique(channel).tolist():
            if number >= 0:
                self._fill(number, np.unique(example[channel == number]))

    def _fill(self, number: int, rows: Indices) -> None:
        rows = rows[~self._filled[number, rows]]
        if rows.size:
            self._filled[number, rows] = True
            self._columns.channels[number].fill(self.table, rows.tolist(), self._views)


class _Conditions:
    """What is left to ask of each rule whose anchor holds, keywords first."""

    def __init__(self, rules: Sequence[Sequence[Predicate]], anchors: Indices, columns: Columns) -> None:
        first, column, wanted = [0], [], []
        for predicates, anchor in zip(rules, anchors.tolist(), strict=True):
            rest = {(columns.of(p), not p.negated) for p in predicates} - {(anchor, True)}
            for number, outcome in sorted(rest, key=lambda c: (columns.channel_of[c[0]], not c[1], c[0])):
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


def _with_implied(rule: Rule) -> list[Predicate]:
    return [*rule.predicates, *(keyword for p in rule.predicates if (keyword := implied(p)) is not None)]


def _anchors(rules: Sequence[Sequence[Predicate]], columns: Columns) -> Indices:
    """Return for every rule the column of its likely rarest positive predicate, :data:`ALWAYS` without one."""
    popularity = Counter(columns.of(p) for predicates in rules for p in set(predicates))
    anchors = np.full(len(rules), ALWAYS, dtype=np.int64)
    for number, predicates in enumerate(rules):
        positive = [p for p in predicates if not p.negated]
        if positive:
            best = min(positive, key=lambda p: (_expense(p), popularity[columns.of(p)], -len(p.value), p))
            anchors[number] = columns.of(best)
    return anchors


def _expense(predicate: Predicate) -> int:
    """Order kinds by what a wait there costs; within a kind, values few rules share, then long ones, are rare."""
    if (predicate.kind, predicate.scope) in _FIELDS:
        return 0
    return {"item": 1, "ask": 1, "near": 2, "regex": 3}.get(predicate.kind, 4)


# ---------------------------------------------------------------- tables


def truth_table(predicates: Sequence[Predicate], examples: Sequence[IntentExample], prototypes: Prototypes) -> Table:
    """Return which predicates hold on which examples, shape (n_predicates, n_examples): :func:`holds`, but fast."""
    columns = Columns(predicates, prototypes)
    numbers = np.array([columns.of(p) for p in predicates], dtype=np.int64)
    negated = np.array([p.negated for p in predicates], dtype=np.bool_)
    parts = [np.zeros((len(predicates), 0), dtype=np.bool_)]
    for start in range(0, len(examples), columns.batch):
        views = [ExampleView(example) for example in examples[start : start + columns.batch]]
        table, *_ = columns.start(views)
        for channel in columns.channels:
            channel.fill(table, range(len(views)), views)
        parts.append(table[:, numbers].T ^ negated[:, None])
    return np.concatenate(parts, axis=1)
