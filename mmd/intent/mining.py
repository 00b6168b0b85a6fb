"""Mining atomic predicates from training examples (METHODS section 1: the building blocks of states).

Only the examples that are passed are looked at, so a fold's predicates never see its held-out part. Mined are

* keywords: substrings of each scope's text (runs of characters for Chinese, of words otherwise), of which one
  short and one long form are kept when several nested ones occur in the same examples;
* recognised text, anywhere or in a third of the picture; image attributes; item metadata;
* ``near`` prototypes from vectors: quoted training phrases (or pictures), the centre of a label's examples, and the
  direction that tells a label from the rest (linear discriminant, Ledoit–Wolf shrinkage), each at several levels.

A prototype that was made from an example says nothing new about it, so on the training examples themselves the
similarities are cross-fitted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmd.intent.folds import assign_folds
from mmd.intent.predicates import IMAGE_BUCKETS, OCR_REGIONS, Prototype, holds, image_buckets, ocr_segments, segments
from mmd.intent.rules import Predicate
from mmd.intent.settings import PredicateSettings
from mmd.intent.textnorm import normalise
from mmd.intent.types import IntentExample
from mmd.intent.wording import CENTRE, CONTRAST, PICTURE

Truth = NDArray[np.bool_]
Floats = NDArray[np.float32]
NameVectors = Mapping[str, Floats]
"""Label → the sentence vector of its name, shape (dim,)."""
NO_NAMES: NameVectors = {}

TEXT_PRIORITY = ("last_user", "user", "agent", "any")
_TOKEN = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]|[a-z0-9]+(?:['’-][a-z0-9]+)*")
LEVEL_MARK = " +"
"""Between the name of a point and the threshold, in standard deviations, in the name of a prototype."""
_CROSS_FIT_FOLDS = 5
_NAME_CHARS = 40
_FITTED = (" centre)", " contrast)")  # points made from many examples


# ---------------------------------------------------------------- points that `near` measures to


@dataclass(frozen=True, eq=False)
class Point:
    """A named vector; its similarities to examples are cosines with ``vector``.

    ``label`` is whose examples made it; ``words`` is what people read.
    """

    name: str
    scope: str
    label: str
    vector: Floats
    words: str
    mean: float = 0.0  # of the cosines of the examples
    spread: float = 1.0  # their standard deviation

    def prototype(self, level: float) -> Prototype:
        """Return the prototype that examples pass ``level`` standard deviations above the average cosine."""
        threshold = min(1.0, max(-1.0, self.mean + level * self.spread))
        return Prototype(f"{self.name}{LEVEL_MARK}{level:.1f}σ", self.scope, self.vector, threshold, self.words)


def standardised(points: Iterable[Point], vectors: Floats) -> list[Point]:
    """Return the points with the mean and spread of their cosines to ``vectors``, shape (n, dim).

    In standard deviations, points of different kinds and labels are comparable: 2σ is rare for each.
    """
    result = []
    for point in points:
        cosines = vectors @ point.vector
        result.append(replace(point, mean=float(cosines.mean()), spread=float(cosines.std()) or 1.0))
    return result


def example_vector(example: IntentExample, scope: str) -> Floats | None:
    """Return the vector that a prototype of this scope is made from: the last user turn's or the first picture's."""
    if scope == "last_user":
        return example.last_user_vector
    return next((image.vector for image in example.images if image.vector is not None), None)


def label_points(vectors: Floats, labels: NDArray[np.str_], scope: str, kinds: Iterable[str]) -> list[Point]:
    """Return the centre and the discriminant direction of each label's vectors (rows of ``vectors``)."""
    mean = vectors.mean(axis=0)
    noun = "text" if scope == "last_user" else "picture"
    names = sorted(set(labels.tolist()))
    centres = {name: vectors[labels == name].mean(axis=0) for name in names}
    points = []
    if "centre" in kinds:
        points += [Point(f"{n} ({noun} centre)", scope, n, _unit(c), CENTRE.format(n)) for n, c in centres.items()]
    if "contrast" in kinds and len(names) > 1:
        residuals = vectors - np.stack([centres[label] for label in labels.tolist()])
        directions = whiten(residuals, np.stack([centres[n] - mean for n in names]))
        points += [
            Point(f"{n} ({noun} contrast)", scope, n, _unit(d), CONTRAST.format(n))
            for n, d in zip(names, directions, strict=True)
        ]
    return points


def whiten(residuals: Floats, directions: Floats) -> Floats:
    """Multiply ``directions``, shape (n, dim), by the inverse of the residuals' covariance, Ledoit–Wolf shrunk.

    With R = U·S·Vᵀ the inverse acts on the row space of R through S and elsewhere as a scalar, so no
    (dim, dim) matrix is inverted. Source: Ledoit & Wolf 2004.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # noqa: PLC0415 (heavy, and only mining needs it)

    n, dim = residuals.shape
    scale = float(np.square(residuals).sum()) / (n * dim)
    if scale <= 0.0:
        return directions
    shrinkage = float(np.clip(ledoit_wolf_shrinkage(residuals, assume_centered=True), 1e-3, 1.0))
    _, singular, rows = np.linalg.svd(residuals, full_matrices=False)
    floor = shrinkage * scale
    inside = directions @ rows.T
    gain = 1.0 / ((1.0 - shrinkage) * np.square(singular) / n + floor)
    whitened: Floats = ((inside * (gain - 1.0 / floor)) @ rows + directions / floor).astype(np.float32)
    return whitened


def _unit(vector: Floats) -> Floats:
    length = float(np.linalg.norm(vector))
    return vector.astype(np.float32) if length == 0.0 else (vector / length).astype(np.float32)


# ---------------------------------------------------------------- keywords


def token_runs(text: str) -> Iterator[list[tuple[int, int]]]:
    """Yield runs of adjacent tokens as (start, end): Chinese characters touch, words are one space apart."""
    run: list[tuple[int, int]] = []
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if run and text[run[-1][1] : start] not in ("", " "):
            yield run
            run = []
        run.append((start, end))
    if run:
        yield run


def keywords(text: str, max_tokens: int) -> set[str]:
    """Return every run of up to ``max_tokens`` tokens of a normalised text, as it stands there."""
    return {
        text[run[i][0] : run[j][1]]
        for run in token_runs(text)
        for i in range(len(run))
        for j in range(i, min(i + max_tokens, len(run)))
    }


def frequent_keywords(texts: Sequence[Sequence[str]], max_tokens: int, min_support: int) -> dict[str, tuple[int, ...]]:
    """Return keyword → the examples whose texts contain it, for keywords of enough but not all examples.

    Args:
        texts: normalised texts of each example.
        max_tokens: longest keyword, in characters (Chinese) or words.
        min_support: examples that a keyword must occur in.
    """
    where: defaultdict[str, list[int]] = defaultdict(list)
    for index, parts in enumerate(texts):
        for word in {word for part in parts for word in keywords(part, max_tokens)}:
            where[word].append(index)
    return {w: tuple(docs) for w, docs in where.items() if min_support <= len(docs) < len(texts)}


def representative_keywords(where: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Keep, of nested keywords that occur in the same examples, the shortest (of two characters up) and the longest.

    The longest is a closed substring; the shortest generalises furthest. Unnested ones are all kept.
    """
    groups: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for word, docs in where.items():
        groups[docs].append(word)
    kept: list[str] = []
    for words in groups.values():
        longest: list[str] = []
        for word in sorted(words, key=lambda w: (-len(w), w)):
            if not any(word in other for other in longest):
                longest.append(word)
        for closed in longest:
            inner = [w for w in words if w in closed]
            short = min(inner, key=lambda w: (len(w) < 2, len(w), w))
            kept += [closed] if short == closed else [closed, short]
    return sorted(set(kept))


# ---------------------------------------------------------------- candidates


@dataclass(frozen=True, eq=False)
class Candidates:
    """Predicates mined from training examples, with their truth on those examples (cross-fitted for prototypes).

    ``members`` has shape (n_predicates, n_examples). ``prototypes`` are made from all of the training examples;
    ``owners`` maps a prototype's name to the label whose examples made it.
    """

    predicates: tuple[Predicate, ...]
    prototypes: Mapping[str, Prototype]
    owners: Mapping[str, str]
    members: Truth


def mine_candidates(
    examples: Sequence[IntentExample], settings: PredicateSettings, *, seed: int = 0, names: NameVectors = NO_NAMES
) -> Candidates:
    """Mine every predicate that holds on enough, but not all, of ``examples``.

    Args:
        examples: labelled training examples of one task; nothing else is looked at.
        settings: sizes and supports.
        seed: of the cross-fitting folds.
        names: sentence vectors of the labels' names; with them the names become prototypes too.
    """
    predicates: list[Predicate] = []
    for kind, scope, texts in _text_scopes(examples):
        where = frequent_keywords(texts, settings.max_word_chars, settings.min_support)
        predicates += [Predicate(kind, scope, word) for word in representative_keywords(where)]  # type: ignore[arg-type]
    predicates += _attribute_predicates(examples)
    members = truth_matrix(predicates, {}, examples)
    near, prototypes, owners, near_members = _near_candidates(examples, settings, seed, names)
    everything = [*predicates, *near]
    truth = np.concatenate([members, near_members]) if near else members
    wanted = [i for i, p in enumerate(everything) if p.kind in settings.kinds]
    everything, truth = [everything[i] for i in wanted], truth[wanted]
    keep = _distinct(everything, truth, settings.min_support)
    kept = tuple(everything[i] for i in keep)
    used = {p.value for p in kept if p.kind == "near"}
    return Candidates(kept, {name: p for name, p in prototypes.items() if name in used}, owners, truth[keep])


def make_prototypes(
    wanted: Iterable[str],
    examples: Sequence[IntentExample],
    settings: PredicateSettings,
    *,
    names: NameVectors = NO_NAMES,
) -> dict[str, Prototype]:
    """Make the prototypes of these names from ``examples``; names whose point they do not give are left out.

    A fold and the whole training part give a point the same name, so a rule found in folds can be stored
    with prototypes that all training examples made.
    """
    points = {
        (p.scope, p.name): p for scope in ("last_user", "image") for p in _points(examples, scope, settings, names)
    }
    made = {}
    for name in sorted(set(wanted)):
        stem, _, level = name.rpartition(LEVEL_MARK)
        for scope in ("last_user", "image"):
            if point := points.get((scope, stem)):
                made[name] = point.prototype(float(level.removesuffix("σ")))
    return made


def _text_scopes(examples: Sequence[IntentExample]) -> Iterator[tuple[str, str, list[list[str]]]]:
    for scope in TEXT_PRIORITY:
        yield "text", scope, [segments(e, scope) for e in examples]
    for region in OCR_REGIONS:
        yield "ocr", region, [ocr_segments(e, region) for e in examples]


def _attribute_predicates(examples: Sequence[IntentExample]) -> list[Predicate]:
    found = {
        Predicate("image", a, bucket) for a in IMAGE_BUCKETS for e in examples for bucket in image_buckets(a, e, {})
    }
    for example in examples:
        for item in example.items:
            found |= {
                Predicate("item", key, normalise(value)) for key, value in item.attributes.items() if value.strip()
            }
            found |= {Predicate("item", "title", word) for word in keywords(normalise(item.title), 2)}
    return sorted(found)


def _distinct(predicates: Sequence[Predicate], truth: Truth, min_support: int) -> list[int]:
    """Return indices of predicates with enough support; one text scope stands for wider ones of equal extent."""
    support = truth.sum(axis=1)
    seen: set[tuple[str, str, bytes]] = set()
    keep = []
    for index, predicate in enumerate(predicates):
        if not min_support <= support[index] < truth.shape[1]:
            continue
        if predicate.kind in ("text", "ocr"):
            key = (predicate.kind, predicate.value, truth[index].tobytes())
            if key in seen:
                continue
            seen.add(key)
        keep.append(index)
    return keep


def _near_candidates(
    examples: Sequence[IntentExample], settings: PredicateSettings, seed: int, names: NameVectors
) -> tuple[list[Predicate], dict[str, Prototype], dict[str, str], Truth]:
    predicates: list[Predicate] = []
    prototypes: dict[str, Prototype] = {}
    owners: dict[str, str] = {}
    rows: list[Truth] = []
    for scope in ("last_user", "image"):
        points = _points(examples, scope, settings, names)
        similarity = _similarities(points, examples, scope, settings, seed)
        for point, scores in zip(points, similarity, strict=True):
            for level in levels(scores, settings.level_step):
                prototype = point.prototype(level)
                if prototype.name in prototypes:
                    continue
                prototypes[prototype.name] = prototype
                owners[prototype.name] = point.label
                predicates.append(Predicate("near", scope, prototype.name))
                rows.append(scores >= level)
    members = np.stack(rows) if rows else np.zeros((0, len(examples)), np.bool_)
    return predicates, prototypes, owners, members


def levels(scores: Floats, step: float) -> list[float]:
    """Return the positive multiples of ``step`` that some, but not all, finite scores reach."""
    finite = scores[np.isfinite(scores)]
    if finite.size == 0:
        return []
    low, high = max(1, int(np.floor(finite.min() / step)) + 1), int(np.floor(finite.max() / step))
    return [round(i * step, 4) for i in range(low, high + 1)]


def _points(
    examples: Sequence[IntentExample], scope: str, settings: PredicateSettings, names: NameVectors
) -> list[Point]:
    """Return every point that the examples' vectors give, in a fixed order; none without enough vectors."""
    vectors, having = _vectors(examples, scope)
    if len(having) < 2 * _CROSS_FIT_FOLDS or scope not in settings.near_scopes:
        return []
    kinds = settings.near_points
    labels = np.array([str(examples[i].label) for i in having])
    points = label_points(vectors, labels, scope, kinds)
    if "exemplar" in kinds:
        points += [_exemplar(examples[i], v, scope) for i, v in zip(having, vectors, strict=True)]
    if scope == "last_user" and "name" in kinds:
        known = [name for name in sorted(set(labels.tolist())) if name in names]
        points += [Point(f"{name} (name)", scope, name, _unit(names[name]), name) for name in known]
    return standardised({point.name: point for point in points}.values(), vectors)


def _vectors(examples: Sequence[IntentExample], scope: str) -> tuple[Floats, list[int]]:
    """Return unit vectors of shape (n_having, dim), and which examples have one."""
    found = [(i, v) for i, e in enumerate(examples) if (v := example_vector(e, scope)) is not None]
    if not found:
        return np.zeros((0, 0), np.float32), []
    return np.stack([_unit(v) for _, v in found]), [i for i, _ in found]


def _similarities(
    points: Sequence[Point], examples: Sequence[IntentExample], scope: str, settings: PredicateSettings, seed: int
) -> Floats:
    """Return standardised cosines, shape (n_points, n_examples), none of an example with a point it helped to make.

    Label points are cross-fitted; an exemplar has no similarity to itself. -inf stands for none.
    """
    full = np.full((len(points), len(examples)), -np.inf, np.float32)
    if not points:
        return full
    vectors, having = _vectors(examples, scope)
    scores = np.stack([(vectors @ p.vector - p.mean) / p.spread for p in points])
    rows = {point.name: row for row, point in enumerate(points)}
    labels = np.array([str(examples[i].label) for i in having])
    folds = assign_folds([examples[i].dialogue_id for i in having], labels.tolist(), _CROSS_FIT_FOLDS, seed)
    label_rows = [row for row, point in enumerate(points) if point.name.endswith(_FITTED)]
    scores[label_rows] = -np.inf
    for fold in range(_CROSS_FIT_FOLDS):
        inside, held = folds != fold, folds == fold
        fitted = label_points(vectors[inside], labels[inside], scope, settings.near_points)
        for point in standardised(fitted, vectors[inside]):
            scores[rows[point.name], held] = (vectors[held] @ point.vector - point.mean) / point.spread
    for column, index in enumerate(having):
        if (row := rows.get(_exemplar(examples[index], vectors[column], scope).name)) is not None:
            scores[row, column] = -np.inf
    full[:, having] = scores
    return full


def _exemplar(example: IntentExample, vector: Floats, scope: str) -> Point:
    """Return the point of one example, named by what it says (by its dialogue when that is long or a picture)."""
    text = " ".join(example.text("last_user").split()) if scope == "last_user" else PICTURE.format(example.dialogue_id)
    name = text if len(text) <= _NAME_CHARS or scope == "image" else f"{text[:_NAME_CHARS]}… {example.dialogue_id}"
    return Point(name, scope, str(example.label), vector, text)


# ---------------------------------------------------------------- truth and worth


def truth_matrix(
    predicates: Sequence[Predicate], prototypes: Mapping[str, Prototype], examples: Sequence[IntentExample]
) -> Truth:
    """Return which predicates hold on which examples, shape (n_predicates, n_examples).

    Equal to :func:`mmd.intent.predicates.holds` on each pair, computed scope by scope.
    """
    truth = np.zeros((len(predicates), len(examples)), np.bool_)
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index, predicate in enumerate(predicates):
        groups[predicate.kind, predicate.scope].append(index)
    for (kind, scope), rows in groups.items():
        truth[rows] = _group_truth(kind, scope, [predicates[r] for r in rows], prototypes, examples)
    negated = np.array([p.negated for p in predicates], dtype=np.bool_)
    return truth ^ negated[:, None]


def _group_truth(
    kind: str,
    scope: str,
    predicates: Sequence[Predicate],
    prototypes: Mapping[str, Prototype],
    examples: Sequence[IntentExample],
) -> Truth:
    if kind in ("text", "ocr"):
        read = segments if kind == "text" else ocr_segments
        texts = ["\n".join(read(e, scope)) for e in examples]
        words = [normalise(p.value) for p in predicates]
        return np.array([[word in text for text in texts] for word in words], np.bool_).reshape(len(words), len(texts))
    if kind == "near":
        return _near_truth(scope, [prototypes[p.value] for p in predicates], examples)
    plain = [Predicate(p.kind, p.scope, p.value) for p in predicates]
    return np.array([[holds(p, e, prototypes) for e in examples] for p in plain], np.bool_)


def _near_truth(scope: str, prototypes: Sequence[Prototype], examples: Sequence[IntentExample]) -> Truth:
    points = np.stack([p.vector for p in prototypes])
    limits = np.array([p.threshold for p in prototypes], np.float32)[:, None]
    truth = np.zeros((len(prototypes), len(examples)), np.bool_)
    for index, example in enumerate(examples):
        found = [example.last_user_vector] if scope == "last_user" else [image.vector for image in example.images]
        vectors = [_unit(v) for v in found if v is not None]
        if vectors:
            truth[:, index] = (points @ np.stack(vectors).T >= limits).any(axis=1)
    return truth


def information_gain(members: Truth, positive: NDArray[np.bool_], smoothing: float = 0.5) -> NDArray[np.float64]:
    """Return the signed information gain of each predicate about the label, in bits; negative: speaks against it.

    Every cell of the 2 × 2 table gets ``smoothing`` more, so that one lucky example does not look certain.
    """
    n_positive, n = int(positive.sum()), positive.size
    hits = members[:, positive].sum(axis=1) + smoothing
    misses = members[:, ~positive].sum(axis=1) + smoothing
    total = n + 4 * smoothing
    absent_hits, absent_misses = n_positive + 2 * smoothing - hits, (n - n_positive) + 2 * smoothing - misses
    before = _entropy(np.array((n_positive + 2 * smoothing) / total))
    present = (hits + misses) / total
    after = present * _entropy(hits / (hits + misses))
    after += (1 - present) * _entropy(absent_hits / (absent_hits + absent_misses))
    sign = np.where(hits / (hits + misses) >= absent_hits / (absent_hits + absent_misses), 1.0, -1.0)
    gain: NDArray[np.float64] = sign * (before - after)
    return gain


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    safe = np.clip(p, 1e-12, 1 - 1e-12)
    bits: NDArray[np.float64] = -(safe * np.log2(safe) + (1 - safe) * np.log2(1 - safe))
    return bits
