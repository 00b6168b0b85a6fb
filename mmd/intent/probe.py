"""The ``probe`` classifier: frozen features and one regularised linear head, calibrated on held-out folds.

Each example becomes one sparse row: blocks of character n-gram TF-IDF (last user turn, all user turns, the reply,
the pictures' text) beside blocks of dense vectors (sentence, reply, pictures), every block of unit length times its
weight. A multinomial logistic regression with balanced classes reads the row. Two few-shot remedies are built in:
each label's *name* is one more training example of that label, and the logits are divided by a temperature that
makes held-out probabilities honest (Guo et al. 2017).

Nothing is pickled: vocabulary and idf go to JSON, coefficients to safetensors, and a loaded probe predicts the same.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from mmd.artifacts import Artifact, ArtifactWriter
from mmd.errors import ArtifactError
from mmd.intent.settings import ProbeSettings
from mmd.intent.textnorm import normalise
from mmd.intent.types import TAG, IntentExample, Probabilities, Vector

Matrix = sp.csr_matrix
Logits = NDArray[np.float64]
TextSource = Literal["last_user", "user", "agent", "reply", "ocr"]
DenseSource = Literal["sentence", "reply_sentence", "shown_sentence", "image"]
TEXT_SOURCES: tuple[TextSource, ...] = ("last_user", "user", "agent", "reply", "ocr")
DENSE_SOURCES: tuple[DenseSource, ...] = ("sentence", "reply_sentence", "shown_sentence", "image")
_NAMED: frozenset[str] = frozenset({"last_user", "user", "ocr", "sentence"})  # blocks that a label's name fills, too
_DIGIT = re.compile(r"\d")
_ABSENT_LOGIT = -30.0  # of labels that training never saw
_DUAL_MAX_ROWS = 4_000  # beyond, an n x n Gram matrix costs more than it saves
FORMAT_VERSION = 1
NO_VECTORS: Mapping[str, Vector] = {}


def block_text(example: IntentExample, source: TextSource) -> str:
    """Return the text of a block: normalised, tokens such as ``<http>`` out, every digit as 0."""
    return _plain(example.ocr_text() if source == "ocr" else example.text(source))


def _plain(text: str) -> str:
    return _DIGIT.sub("0", normalise(TAG.sub(" ", text)))


def block_vector(example: IntentExample, source: DenseSource) -> Vector | None:
    """Return the dense vector of a block, of unit length; None where it was not extracted.

    The vectors of several pictures are pooled by their mean.
    """
    if source == "image":
        found = [image.vector for image in example.images if image.vector is not None]
        return _unit(np.mean(found, axis=0)) if found else None
    said = {
        "sentence": example.last_user_vector,
        "reply_sentence": example.reply_vector,
        "shown_sentence": example.shown_vector,
    }
    vector = said[source]
    return None if vector is None else _unit(vector)


def _unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector if length == 0.0 else np.asarray(vector / length, dtype=np.float32)


@dataclass(frozen=True)
class Rows:
    """Examples as the blocks see them: one text (or vector) an example and block. Made once, sliced by fold."""

    texts: Mapping[TextSource, Sequence[str]]
    vectors: Mapping[DenseSource, Sequence[Vector | None]]
    size: int

    @classmethod
    def of_examples(cls, examples: Sequence[IntentExample]) -> Rows:
        """Look at examples."""
        return cls(
            {s: [block_text(e, s) for e in examples] for s in TEXT_SOURCES},
            {s: [block_vector(e, s) for e in examples] for s in DENSE_SOURCES},
            len(examples),
        )

    @classmethod
    def of_names(cls, labels: Sequence[str], vectors: Mapping[str, Vector]) -> Rows:
        """Look at labels' names as if a user had said them, or a picture shown them."""
        names = [_plain(label) for label in labels]
        sentences = [_unit(vectors[label]) if label in vectors else None for label in labels]
        return cls(
            {s: names if s in _NAMED else [""] * len(labels) for s in TEXT_SOURCES},
            {s: sentences if s in _NAMED else [None] * len(labels) for s in DENSE_SOURCES},
            len(labels),
        )

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """Return some of the rows."""
        return Rows(
            {s: [texts[i] for i in rows] for s, texts in self.texts.items()},
            {s: [vectors[i] for i in rows] for s, vectors in self.vectors.items()},
            len(rows),
        )

    def plus(self, other: Rows) -> Rows:
        """Return these rows and then the other's."""
        return Rows(
            {s: [*texts, *other.texts[s]] for s, texts in self.texts.items()},
            {s: [*vectors, *other.vectors[s]] for s, vectors in self.vectors.items()},
            self.size + other.size,
        )


class TextBlock:
    """Character n-gram TF-IDF of one text source, rows of length ``weight`` (0 where there is no text)."""

    def __init__(self, source: TextSource, weight: float, vectoriser: TfidfVectorizer) -> None:
        self.source = source
        self.weight = weight
        self._vectoriser = vectoriser

    @classmethod
    def fit(cls, source: TextSource, weight: float, rows: Rows, settings: ProbeSettings) -> TextBlock | None:
        """Learn the vocabulary; None if no n-gram is frequent enough."""
        vectoriser = _vectoriser(settings.ngram_min, settings.ngram_max)
        vectoriser.set_params(min_df=min(settings.min_df, rows.size), max_features=settings.max_terms)
        try:
            vectoriser.fit(rows.texts[source])
        except ValueError:  # scikit-learn's way to say that the vocabulary is empty
            return None
        return cls(source, weight, vectoriser)

    def transform(self, rows: Rows) -> Matrix:
        """Return float64 of shape (n, n_terms)."""
        return sp.csr_matrix(self._vectoriser.transform(rows.texts[self.source]) * self.weight)

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` needs."""
        low, high = self._vectoriser.ngram_range
        terms = [str(t) for t in self._vectoriser.get_feature_names_out()]
        return {
            "kind": "text",
            "source": self.source,
            "weight": self.weight,
            "ngrams": [low, high],
            "terms": terms,
            "idf": [float(v) for v in self._vectoriser.idf_],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TextBlock:
        """Invert :meth:`to_json`."""
        vectoriser = _vectoriser(*value["ngrams"])
        vectoriser.set_params(vocabulary={term: i for i, term in enumerate(value["terms"])})
        vectoriser.idf_ = np.array(value["idf"], dtype=np.float64)
        return cls(value["source"], value["weight"], vectoriser)


def _vectoriser(low: int, high: int) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char", ngram_range=(low, high), sublinear_tf=True, lowercase=False)


class DenseBlock:
    """Vectors of one source, of length ``weight`` (0 where there is none)."""

    def __init__(self, source: DenseSource, weight: float, dim: int) -> None:
        self.source = source
        self.weight = weight
        self.dim = dim

    @classmethod
    def fit(cls, source: DenseSource, weight: float, rows: Rows, settings: ProbeSettings) -> DenseBlock | None:
        """Learn the dimension; None if no row has a vector."""
        del settings
        dims = [v.shape[0] for v in rows.vectors[source] if v is not None]
        return cls(source, weight, dims[0]) if dims else None

    def transform(self, rows: Rows) -> Matrix:
        """Return float64 of shape (n, dim).

        Raises:
            ArtifactError: vectors of another dimension than the probe learnt from.
        """
        out = np.zeros((rows.size, self.dim))
        for row, vector in enumerate(rows.vectors[self.source]):
            if vector is not None and vector.shape != (self.dim,):
                raise ArtifactError(
                    f"{self.source} vectors of dimension {vector.shape[0]}: the classifier learnt from {self.dim}; "
                    "use the feature extractors it was trained with, or run fit_intent again."
                )
            if vector is not None:
                out[row] = vector
        return sp.csr_matrix(out * self.weight)

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` needs."""
        return {"kind": "dense", "source": self.source, "weight": self.weight, "dim": self.dim}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DenseBlock:
        """Invert :meth:`to_json`."""
        return cls(value["source"], value["weight"], value["dim"])


Block = TextBlock | DenseBlock


def fit_blocks(rows: Rows, settings: ProbeSettings) -> list[Block]:
    """Learn every block that has a weight and something to say."""
    weights = settings.weights.model_dump()
    text = [TextBlock.fit(s, weights[s], rows, settings) for s in TEXT_SOURCES if weights[s] > 0]
    dense = [DenseBlock.fit(s, weights[s], rows, settings) for s in DENSE_SOURCES if weights[s] > 0]
    return [block for block in (*text, *dense) if block is not None]


def transform_blocks(blocks: Sequence[Block], rows: Rows) -> Matrix:
    """Return the examples' rows, float64 of shape (n, n_features)."""
    if not blocks:
        return sp.csr_matrix((rows.size, 0))
    return sp.hstack([block.transform(rows) for block in blocks]).tocsr()


@dataclass(frozen=True)
class Head:
    """A linear head: logits = rows @ coef.T + intercept; float32, shapes (n_labels, n_features) and (n_labels,)."""

    coef: NDArray[np.float32]
    intercept: NDArray[np.float32]

    def logits(self, rows: Matrix) -> Logits:
        """Return float64 of shape (n, n_labels)."""
        return np.asarray(rows @ self.coef.T.astype(np.float64) + self.intercept, dtype=np.float64)


def fit_head(rows: Matrix, targets: NDArray[np.int64], weights: Logits, n_labels: int, c: float) -> Head:
    """Fit multinomial logistic regression with balanced classes; labels without a row get a hopeless logit.

    With fewer rows than features the problem is solved in the span of the rows: by the representer theorem the L2
    solution lies there, so rotating the rows to an orthonormal basis of it changes nothing but the time.
    """
    coef = np.zeros((n_labels, rows.shape[1]))
    intercept = np.full(n_labels, _ABSENT_LOGIT)
    seen = np.unique(targets)
    if seen.size == 1 or rows.shape[1] == 0:
        intercept[seen] = 0.0
        return Head(coef.astype(np.float32), intercept.astype(np.float32))
    inside, back = _span(rows)
    model = LogisticRegression(C=c, max_iter=1_000, class_weight="balanced")
    with warnings.catch_warnings():
        # Few shots of many labels are what this is for; scikit-learn would take them for a regression problem.
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        model.fit(inside, targets, sample_weight=weights)
    inner, bias = model.coef_, model.intercept_
    if seen.size == 2:  # scikit-learn then keeps only the second label's side
        inner, bias = np.vstack([np.zeros_like(inner), inner]), np.array([0.0, bias[0]])
    coef[seen] = inner if back is None else inner @ back
    intercept[seen] = bias
    return Head(coef.astype(np.float32), intercept.astype(np.float32))


def _span(rows: Matrix) -> tuple[Any, NDArray[np.float64] | None]:
    """Return rows in an orthonormal basis of their span, and that basis, shape (rank, n_features).

    Large problems come back as they are, with None.
    """
    n, d = rows.shape
    if n >= d or n > _DUAL_MAX_ROWS:
        return rows, None
    values, vectors = np.linalg.eigh((rows @ rows.T).toarray())
    keep = values > values[-1] * 1e-10
    scale = np.sqrt(values[keep])
    basis = np.asarray((rows.T @ (vectors[:, keep] / scale)).T)
    return vectors[:, keep] * scale, basis


def fit_temperature(logits: Logits, targets: NDArray[np.int64]) -> float:
    """Return the temperature in [0.05, 20] that minimises the log loss of softmax(logits / temperature)."""

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(targets)), targets]))

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


@dataclass(frozen=True)
class FittedProbe:
    """A probe and what its like, fitted without an example's fold, says of that example.

    ``held_out`` are calibrated probabilities, float64 of shape (n_examples, n_labels).
    """

    classifier: ProbeClassifier
    held_out: NDArray[np.float64]


class ProbeClassifier:
    """Calibrated linear classifier of one task over frozen features; see the module's text.

    Args:
        task: the task it answers.
        labels: its labels; the order of every distribution.
        blocks: fitted feature blocks.
        head: linear head over the blocks' columns.
        temperature: divides the logits.
    """

    def __init__(
        self, task: str, labels: tuple[str, ...], blocks: Sequence[Block], head: Head, temperature: float
    ) -> None:
        self.task = task
        self.labels = labels
        self.blocks = tuple(blocks)
        self.head = head
        self.temperature = temperature

    @property
    def needs(self) -> frozenset[str]:
        """The sources it reads, so that callers extract no more: members of TEXT_SOURCES and DENSE_SOURCES."""
        return frozenset(block.source for block in self.blocks)

    def probabilities(self, examples: Sequence[IntentExample]) -> NDArray[np.float64]:
        """Return float64 of shape (n_examples, n_labels), rows summing to 1."""
        logits = self.head.logits(transform_blocks(self.blocks, Rows.of_examples(examples)))
        return np.asarray(softmax(logits / self.temperature, axis=1))

    def predict(self, examples: Sequence[IntentExample]) -> list[Probabilities]:
        """Return one distribution an example, in order."""
        if not examples:
            return []
        return [Probabilities(self.labels, tuple(map(float, row))) for row in self.probabilities(examples)]

    def save(self, writer: ArtifactWriter, folder: str) -> None:
        """Write ``probe.json`` and ``probe.safetensors`` under a folder of an artefact."""
        content = {
            "format_version": FORMAT_VERSION,
            "task": self.task,
            "labels": list(self.labels),
            "temperature": self.temperature,
            "blocks": [block.to_json() for block in self.blocks],
        }
        writer.write_bytes(f"{folder}/probe.json", json.dumps(content, ensure_ascii=False).encode())
        tensors = {"coef": np.ascontiguousarray(self.head.coef), "intercept": self.head.intercept}
        writer.write_bytes(f"{folder}/probe.safetensors", save_tensors(tensors))

    @classmethod
    def load(cls, artifact: Artifact, folder: str) -> ProbeClassifier:
        """Invert :meth:`save`.

        Raises:
            ArtifactError: no such probe, or one of another format.
        """
        content = artifact.read_json(f"{folder}/probe.json")
        if content.get("format_version") != FORMAT_VERSION:
            raise ArtifactError(
                f"{artifact.ref}: {folder}/probe.json has format {content.get('format_version')}, this mmd reads "
                f"{FORMAT_VERSION}; run fit_intent again."
            )
        tensors = load_tensors(artifact.read_bytes(f"{folder}/probe.safetensors"))
        blocks: list[Block] = [
            TextBlock.from_json(b) if b["kind"] == "text" else DenseBlock.from_json(b) for b in content["blocks"]
        ]
        head = Head(tensors["coef"], tensors["intercept"])
        return cls(content["task"], tuple(content["labels"]), blocks, head, content["temperature"])


def fit_probe(
    task: str,
    examples: Sequence[IntentExample],
    labels: Sequence[str],
    settings: ProbeSettings,
    folds: NDArray[np.int64],
    *,
    label_vectors: Mapping[str, Vector] = NO_VECTORS,
) -> FittedProbe:
    """Fit a probe on labelled examples, and its temperature on predictions held out fold by fold.

    Args:
        task: the task.
        examples: training examples, each with a label.
        labels: the task's whole label set; some may have no example.
        settings: weights and regularisation.
        folds: fold of each example (:func:`mmd.intent.folds.assign_folds`), shape (n_examples,).
        label_vectors: sentence vectors of the labels' names, as far as there are any.

    Raises:
        ValueError: no examples, or one whose label is not of the set.
    """
    targets = label_indices(examples, labels)
    names = Rows.of_names(labels, label_vectors)
    rows = Rows.of_examples(examples)
    held_out = np.zeros((len(examples), len(labels)))
    for fold in np.unique(folds):
        inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if inside.size == 0:
            inside = outside  # a single example: there is nothing else to learn from
        blocks, head = _fit(rows.take(inside), targets[inside], names, settings)
        held_out[outside] = head.logits(transform_blocks(blocks, rows.take(outside)))
    temperature = fit_temperature(held_out, targets)
    blocks, head = _fit(rows, targets, names, settings)
    classifier = ProbeClassifier(task, tuple(labels), blocks, head, temperature)
    return FittedProbe(classifier, np.asarray(softmax(held_out / temperature, axis=1)))


def label_indices(examples: Sequence[IntentExample], labels: Sequence[str]) -> NDArray[np.int64]:
    """Return each example's place in ``labels``, int64 of shape (n_examples,).

    Raises:
        ValueError: no examples, or one whose label is not of the set.
    """
    if not examples:
        raise ValueError("no examples; a classifier needs labelled training examples.")
    place = {label: i for i, label in enumerate(labels)}
    for example in examples:
        if example.label not in place:
            raise ValueError(f"dialogue {example.dialogue_id}: label {example.label!r} is not one of the task's.")
    return np.array([place[str(example.label)] for example in examples], dtype=np.int64)


def _fit(rows: Rows, targets: NDArray[np.int64], names: Rows, settings: ProbeSettings) -> tuple[list[Block], Head]:
    """Fit blocks and head on examples and, as one weighted example a label, the labels' names."""
    weights = np.ones(rows.size)
    if settings.label_name_weight > 0:
        rows = rows.plus(names)
        targets = np.concatenate([targets, np.arange(names.size)])
        weights = np.concatenate([weights, np.full(names.size, settings.label_name_weight)])
    n_labels = names.size
    blocks = fit_blocks(rows, settings)
    return blocks, fit_head(transform_blocks(blocks, rows), targets, weights, n_labels, settings.c)


# ---------------------------------------------------------------- several tasks


def save_probes(writer: ArtifactWriter, probes: Mapping[str, ProbeClassifier]) -> None:
    """Write one probe a task, each in a folder named after its task."""
    for task, probe in probes.items():
        probe.save(writer, task)


def load_probes(artifact: Artifact) -> dict[str, ProbeClassifier]:
    """Return task → probe for every task that the artefact has one for."""
    tasks = [name.removesuffix("/probe.json") for name in artifact.manifest.files if name.endswith("/probe.json")]
    return {task: ProbeClassifier.load(artifact, task) for task in sorted(tasks)}
