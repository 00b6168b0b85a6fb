"""The large model as it is: a linear head on its hidden states names the intent, and nothing is trained but the head.

A text of the dialogue (earlier turns, fired rules, printed text, last user turn, reply) is read once. The hidden states
of some layer in the middle, averaged over the tokens of each span, are standardised on the training examples, scaled to
unit length and weighted; a class-balanced kernel ridge (Hoerl & Kennard 1970, in its dual form) maps them to labels.
Each label's name is one more training row: it stands where the customer's words would. Causal models read from left to
right, so what the last turn's tokens know includes everything before it, a hint as well.

There are two heads: one for texts without hint, one for texts that tell fired rules, fitted on the samples' held-out
hints. A forward pass an example is all that it costs, so every fold is held out in turn.

Models that see pictures are given the text alone; printed text speaks for the picture, as for text-only models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from scipy.special import log_softmax

from mmd.artifacts import Artifact, ArtifactWriter
from mmd.errors import ArtifactError
from mmd.intent.mllm import HeldOutScore, calibrated
from mmd.intent.probe import fit_temperature, label_indices
from mmd.intent.prompts import WORDING, Lang, prompt_language
from mmd.intent.samples import Sample
from mmd.intent.settings import FrozenSettings
from mmd.intent.types import TAG, ImageFacts, IntentExample, Probabilities, has_words
from mmd.models.hidden import Piece, SpanStates, Vector, stack_spans
from mmd.models.likelihood import LogLikelihoods
from mmd.models.mllm import Mllm
from mmd.schema import OcrLine, Turn

FORMAT_VERSION = 1
HEAD_FILE, TENSORS_FILE = "head.json", "head.safetensors"
Span = Literal["last_user", "reply", "printed", "shown", "hint"]
SPANS: tuple[Span, ...] = ("last_user", "reply", "printed", "shown", "hint")
_SCALE = 10.0  # ridge scores lie in about [-.1, 1]; a temperature of order 1 then fits them
_NUMBER = re.compile(r"[¥￥$€]?\d[\d.,:：\-/*%]*")
_LEAST_LINE = 2  # characters; shorter lines of printed text are mostly icons

SpanRows = Mapping[str, Vector]
"""Span → mean hidden states, float32 (n_rows, dim); all zero in rows without the span."""
States = Callable[[Sequence[Sequence[Piece]]], Sequence[Mapping[str, Vector]]]
"""Texts in pieces → span → mean hidden state, one mapping a text: :meth:`mmd.models.hidden.SpanStates.means`."""


# ---------------------------------------------------------------- what is read


@dataclass(frozen=True, slots=True)
class _Words:
    """The text's own words in one language."""

    talk: str
    screenshot: str
    printed: str
    nothing: str


_WORDS: Mapping[Lang, _Words] = {
    "en": _Words("Customer service chat.\n", "A screenshot.\n", "Printed text: ", "(none)"),
    "zh": _Words("电商客服对话。", "电商截图识别。", "图片文字：", "（无文字）"),
}


def dialogue_pieces(
    example: IntentExample, settings: FrozenSettings, *, labels: Sequence[str], hint: str = ""
) -> list[Piece]:
    """Return the text of an example.

    The order is: turns before the last user turn, hint, printed text, last user turn, reply. Where the user says
    nothing in words the printed text is the message, and comes last.

    Args:
        example: what is asked about.
        settings: how much is read.
        labels: the task's; they decide the language where the turns have no letters.
        hint: rules that fired (:mod:`mmd.intent.hints`).
    """
    lang = prompt_language(example, labels)
    words, prompt_words = _WORDS[lang], WORDING[lang]
    asked = [i for i, turn in enumerate(example.turns) if turn.speaker == "user" and has_words(turn.text)]
    last = asked[-1] if asked else len(example.turns)
    pieces = [Piece(words.talk if asked else words.screenshot)]
    for turn in example.turns[max(0, last - settings.context_turns) : last]:
        if text := plain_words(turn.text):
            pieces += [
                Piece(prompt_words.speakers[turn.speaker]),
                Piece(text, "", settings.context_tokens),
                Piece("\n"),
            ]
    if hint:
        told = "\n".join(" ".join(line.split()) for line in hint.splitlines())
        pieces += [Piece(f"{prompt_words.hint}\n"), Piece(told, "hint", settings.hint_tokens), Piece("\n")]
    printed = "|".join(printed_lines(example))
    if not asked:
        return [*pieces, Piece(words.printed), Piece(printed or words.nothing, "shown", settings.shown_tokens)]
    if printed and settings.printed_tokens:
        pieces += [Piece(words.printed), Piece(printed, "printed", settings.printed_tokens), Piece("\n")]
    said = plain_words(example.turns[last].text)
    pieces += [Piece(prompt_words.speakers["user"])]
    pieces += [Piece(said, "last_user", settings.message_tokens), Piece("\n", "last_user")]
    if reply := plain_words(example.text("reply")):
        pieces += [Piece(prompt_words.speakers["agent"], "reply")]
        pieces += [Piece(reply, "reply", settings.message_tokens), Piece("\n", "reply")]
    return pieces


def name_pieces(task: str, label: str, settings: FrozenSettings) -> tuple[list[Piece], list[Piece]]:
    """Return two texts that say nothing but a label's name: as the user's words, and as printed text."""
    facts = ImageFacts("name", 1, 1, ocr=(OcrLine(label, 1.0, (0.0, 0.0, 1.0, 1.0)),))
    said = IntentExample(label, task, None, (Turn("user", label),))
    shown = IntentExample(label, task, None, (), images=(facts,))
    return (
        dialogue_pieces(said, settings, labels=(label,)),
        dialogue_pieces(shown, settings, labels=(label,)),
    )


def plain_words(text: str) -> str:
    """Return a text as one line, without tags such as ``<http>``; each number, price or date is one 0."""
    return _NUMBER.sub("0", " ".join(TAG.sub(" ", text).split()))


def printed_lines(example: IntentExample) -> list[str]:
    """Return the lines of all pictures' printed text as plain words, those of a single character left out."""
    lines = (plain_words(line.text) for image in example.images for line in image.ocr)
    return [line for line in lines if len(line) >= _LEAST_LINE]


def read_examples(
    states: States, dim: int, examples: Sequence[IntentExample], hints: Sequence[str], task: FrozenTask
) -> SpanRows:
    """Return the span rows of examples, each read with its hint (one an example, empty for none)."""
    texts = [
        dialogue_pieces(example, task.settings, labels=task.labels, hint=hint)
        for example, hint in zip(examples, hints, strict=True)
    ]
    return stack_spans(states(texts), SPANS, dim)


def read_names(states: States, dim: int, task: FrozenTask) -> SpanRows:
    """Return the span rows of the labels' names, one a label: as the last user turn, and as printed text."""
    texts = [name_pieces(task.task, label, task.settings) for label in task.labels]
    said, shown = states([said for said, _ in texts]), states([shown for _, shown in texts])
    merged = [{**{k: v for k, v in a.items() if k == "last_user"}, **b} for a, b in zip(said, shown, strict=True)]
    return stack_spans(merged, SPANS, dim)


# ---------------------------------------------------------------- the head


@dataclass(frozen=True)
class FrozenTask:
    """A task, its labels in the order of every distribution, and the settings of its head."""

    task: str
    labels: tuple[str, ...]
    settings: FrozenSettings


@dataclass(frozen=True)
class SpanBlock:
    """How one span's states become columns: standardised, unit length, weighted. ``mean`` and ``std``: (dim,)."""

    span: str
    weight: float
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def columns(self, rows: Vector) -> NDArray[np.float64]:
        """Return float64 (n, dim); rows without the span stay zero."""
        there = np.any(rows != 0, axis=1, keepdims=True)
        columns = np.where(there, (rows - self.mean) / self.std, 0.0)
        return np.asarray(self.weight * _unit(columns))


@dataclass(frozen=True)
class FrozenHead:
    """A fitted head. ``coef`` has shape (n_labels, blocks x dim); ``temperature`` divides its scores."""

    blocks: tuple[SpanBlock, ...]
    coef: NDArray[np.float64]
    temperature: float = 1.0

    def scores(self, rows: SpanRows) -> NDArray[np.float64]:
        """Return scores before calibration, float64 (n, n_labels)."""
        return np.asarray(_SCALE * columns_of(self.blocks, rows) @ self.coef.T)

    def log_likelihoods(self, rows: SpanRows) -> LogLikelihoods:
        """Return calibrated log P(label), float64 (n, n_labels)."""
        return np.asarray(log_softmax(self.scores(rows) / self.temperature, axis=1), dtype=np.float64)


def columns_of(blocks: Sequence[SpanBlock], rows: SpanRows) -> NDArray[np.float64]:
    """Return the blocks' columns side by side, each row of unit length, float64 (n, blocks x dim)."""
    if not blocks:
        return np.zeros((len(next(iter(rows.values()))), 0))
    return _unit(np.hstack([block.columns(rows[block.span]) for block in blocks]))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9))


def fit_blocks(rows: SpanRows, settings: FrozenSettings) -> tuple[SpanBlock, ...]:
    """Return the blocks of spans that have a weight and occur in the rows; absent rows do not count."""
    blocks = []
    for span, weight in settings.weights.model_dump().items():
        found = rows[span][np.any(rows[span] != 0, axis=1)].astype(np.float64)
        if weight > 0 and len(found):
            blocks.append(SpanBlock(span, weight, found.mean(0), found.std(0) + 1e-6))
    return tuple(blocks)


def fit_head(rows: SpanRows, targets: NDArray[np.int64], names: SpanRows, settings: FrozenSettings) -> FrozenHead:
    """Fit a head on examples and, as one weighted row a label, the labels' names.

    Every label weighs the same, whatever its number of rows. Labels without a row, and without a name, score low.

    Args:
        rows: the examples' span rows.
        targets: the examples' places among the labels, (n_rows,).
        names: span rows of the labels' names, in the labels' order.
        settings: weights and regularisation.
    """
    from sklearn.linear_model import Ridge  # noqa: PLC0415 (slow to import)

    n_labels = len(next(iter(names.values())))
    blocks = fit_blocks(rows, settings)
    columns, weights = columns_of(blocks, rows), np.ones(len(targets))
    if settings.name_weight > 0:
        columns = np.vstack([columns, columns_of(blocks, names)])
        targets = np.concatenate([targets, np.arange(n_labels)])
        weights = np.concatenate([weights, np.full(n_labels, settings.name_weight)])
    if not columns.size:
        return FrozenHead(blocks, np.zeros((n_labels, columns.shape[1])))
    weights /= np.bincount(targets, weights, minlength=n_labels)[targets]
    goals = np.eye(n_labels)[targets]
    # Few rows of many columns: scikit-learn then solves the kernel form, a system as large as the rows are many.
    ridge = Ridge(alpha=settings.ridge, fit_intercept=False, solver="cholesky")
    ridge.fit(columns, goals - goals.mean(0), sample_weight=weights / weights.mean())
    return FrozenHead(blocks, np.asarray(ridge.coef_, dtype=np.float64).reshape(n_labels, -1))


# ---------------------------------------------------------------- fitting a task


@dataclass(frozen=True)
class TaskRows:
    """What a task's heads are fitted on, one row a sample; ``hinted`` equals ``plain`` where a sample has no hint."""

    plain: SpanRows
    hinted: SpanRows
    names: SpanRows


@dataclass(frozen=True)
class FittedFrozen:
    """A task's heads, and what their like, fitted without a dialogue's fold, say of it (calibrated)."""

    plain: FrozenHead
    hinted: FrozenHead
    held_out: dict[str, HeldOutScore]


def read_samples(states: States, dim: int, samples: Sequence[Sample], task: FrozenTask) -> TaskRows:
    """Read a task's samples without and with their hints, and the labels' names."""
    examples = [sample.example for sample in samples]
    plain = read_examples(states, dim, examples, [""] * len(samples), task)
    told = [i for i, sample in enumerate(samples) if sample.hint]
    again = read_examples(states, dim, [examples[i] for i in told], [samples[i].hint for i in told], task)
    hinted: dict[str, Vector] = {span: plain[span].copy() for span in SPANS}
    for span in SPANS:
        hinted[span][told] = again[span]
    return TaskRows(plain, hinted, read_names(states, dim, task))


def fit_frozen(samples: Sequence[Sample], rows: TaskRows, task: FrozenTask) -> FittedFrozen:
    """Fit a task's heads on all samples, and their temperatures on scores held out fold by fold.

    Args:
        samples: originals, each with a label and a fold.
        rows: theirs, by :func:`read_samples`.
        task: the task.

    Raises:
        ValueError: no samples, or one whose label is not of the set.
    """
    targets = label_indices([sample.example for sample in samples], task.labels)
    folds = np.array([sample.fold for sample in samples])
    told = np.array([bool(sample.hint) for sample in samples])
    known = np.array([bool(np.any(folds != fold)) for fold in folds])  # somebody else to learn from
    plain = held_out_scores(rows.plain, targets, folds, rows.names, task.settings)
    hinted = held_out_scores(rows.hinted, targets, folds, rows.names, task.settings)
    heads, logs = [], []
    for scores, own, judged in ((plain, rows.plain, known), (hinted, rows.hinted, known & told)):
        rows_judged = judged if judged.any() else known
        temperature = fit_temperature(scores[rows_judged], targets[rows_judged]) if rows_judged.any() else 1.0
        head = fit_head(own, targets, rows.names, task.settings)
        heads.append(FrozenHead(head.blocks, head.coef, temperature))
        logs.append(log_softmax(scores / temperature, axis=1))
    held_out = {
        sample.id: HeldOutScore(
            fold=sample.fold,
            plain=tuple(map(float, logs[0][i])),
            hinted=tuple(map(float, logs[1 if sample.hint else 0][i])),
        )
        for i, sample in enumerate(samples)
        if known[i]
    }
    return FittedFrozen(heads[0], heads[1], held_out)


def held_out_scores(
    rows: SpanRows, targets: NDArray[np.int64], folds: NDArray[np.int64], names: SpanRows, settings: FrozenSettings
) -> NDArray[np.float64]:
    """Return each row's scores by a head fitted without its fold, (n_rows, n_labels); 0 where nothing else is there."""
    out = np.zeros((len(targets), len(next(iter(names.values())))))
    for fold in np.unique(folds):
        inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if inside.size:
            head = fit_head(_take(rows, inside), targets[inside], names, settings)
            out[outside] = head.scores(_take(rows, outside))
    return out


def _take(rows: SpanRows, places: NDArray[np.int64]) -> SpanRows:
    return {span: values[places] for span, values in rows.items()}


# ---------------------------------------------------------------- the classifier


class FrozenMllmClassifier:
    """One task's classifier on a model as it is; safe to call from several threads.

    Args:
        task: the task, its labels and settings.
        states: of the model; tasks may share them.
        plain: the head of texts without hint.
        hinted: the head of texts with one.
    """

    needs_pictures = False

    def __init__(self, task: FrozenTask, states: SpanStates, plain: FrozenHead, hinted: FrozenHead) -> None:
        self.task = task.task
        self.labels = task.labels
        self.states = states
        self.plain = plain
        self.hinted = hinted
        self._task = task

    def log_likelihoods(self, examples: Sequence[IntentExample], hints: Sequence[str] = ()) -> LogLikelihoods:
        """Return calibrated log P(label), float64 of shape (n_examples, n_labels).

        Args:
            examples: what to classify.
            hints: one an example, or none at all; an empty one asks the head of texts without.

        Raises:
            ValueError: examples and hints differ in number.
        """
        hints = hints or [""] * len(examples)
        rows = read_examples(self.states.means, self.states.dim, examples, hints, self._task)
        told = np.array([bool(hint) for hint in hints], dtype=bool)[:, None]
        return np.where(told, self.hinted.log_likelihoods(rows), self.plain.log_likelihoods(rows))

    def predict(self, examples: Sequence[IntentExample]) -> list[Probabilities]:
        """Return one distribution an example, in order."""
        return self.predict_hinted(examples, [""] * len(examples))

    def predict_hinted(self, examples: Sequence[IntentExample], hints: Sequence[str]) -> list[Probabilities]:
        """Return one distribution an example, in order; its hint, where not empty, is read, too."""
        if not examples:
            return []
        return calibrated(self.log_likelihoods(examples, hints), self.labels, 1.0)

    def warm_up(self) -> None:
        """Do nothing: there is nothing to find out before the first call."""

    @classmethod
    def load(cls, artifact: Artifact, folder: str, mllm: Mllm) -> FrozenMllmClassifier:
        """Load what :func:`save_heads` wrote.

        Raises:
            ArtifactError: another format, or made for a model of another size.
        """
        content = artifact.read_json(f"{folder}/{HEAD_FILE}")
        if content.get("format_version") != FORMAT_VERSION:
            raise ArtifactError(
                f"{artifact.ref}: {folder}/{HEAD_FILE} has format {content.get('format_version')}, this mmd reads "
                f"{FORMAT_VERSION}; run `mmd finetune_mllm` again."
            )
        task = FrozenTask(content["task"], tuple(content["labels"]), FrozenSettings(**content["settings"]))
        states = SpanStates(mllm, task.settings.layer)
        tensors = load_tensors(artifact.read_bytes(f"{folder}/{TENSORS_FILE}"))
        heads = {name: _head_from(content["heads"][name], name, tensors) for name in ("plain", "hinted")}
        for head in heads.values():
            if any(block.mean.shape != (states.dim,) for block in head.blocks) or content["layer"] != states.layer:
                raise ArtifactError(
                    f"{artifact.ref}: {folder}/{HEAD_FILE} was fitted on layer {content['layer']} of another model "
                    f"than {mllm.name!r} is here; run `mmd finetune_mllm` again."
                )
        return cls(task, states, heads["plain"], heads["hinted"])


def save_heads(writer: ArtifactWriter, folder: str, fitted: FittedFrozen, task: FrozenTask, layer: int) -> None:
    """Write ``head.json`` and ``head.safetensors`` under a folder of an artefact; ``layer`` is what was read."""
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "task": task.task,
        "labels": list(task.labels),
        "settings": task.settings.model_dump(mode="json"),
        "layer": layer,
        "heads": {},
    }
    tensors = {}
    for name, head in (("plain", fitted.plain), ("hinted", fitted.hinted)):
        content["heads"][name] = {
            "temperature": head.temperature,
            "blocks": [{"span": block.span, "weight": block.weight} for block in head.blocks],
        }
        tensors[f"{name}.coef"] = np.ascontiguousarray(head.coef)
        for block in head.blocks:
            tensors[f"{name}.{block.span}.mean"], tensors[f"{name}.{block.span}.std"] = block.mean, block.std
    writer.write_json(f"{folder}/{HEAD_FILE}", content)
    writer.write_bytes(f"{folder}/{TENSORS_FILE}", save_tensors(tensors))


def _head_from(content: Mapping[str, Any], name: str, tensors: Mapping[str, NDArray[np.float64]]) -> FrozenHead:
    blocks = tuple(
        SpanBlock(b["span"], b["weight"], tensors[f"{name}.{b['span']}.mean"], tensors[f"{name}.{b['span']}.std"])
        for b in content["blocks"]
    )
    return FrozenHead(blocks, tensors[f"{name}.coef"], content["temperature"])
