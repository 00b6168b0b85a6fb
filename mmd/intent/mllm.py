"""The ``mllm`` classifier: a fine-tuned multimodal model that can answer nothing but a label of its task.

Every label's log-likelihood after the prompt is computed exactly (:mod:`mmd.models.likelihood`), divided by a
temperature that makes held-out probabilities honest (Guo et al. 2017), and normalised over the label set.

An ``adapter`` artefact holds::

    mllm.json        format_version, base, method, prompt, tasks: {task: {folder, labels, temperature,
                     hinted_temperature}}
    <folder>/        what training made: a PEFT adapter, a whole model in Hugging Face's layout, or the head of a model
                     that stays as it is (mmd.intent.frozen; its scores come calibrated)
    held_out.json    {task: {dialogue_id: {fold, plain, hinted}}}: log-likelihoods of a model that never saw the fold
"""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.special import softmax

from mmd.artifacts import Artifact, ArtifactWriter
from mmd.errors import ArtifactError
from mmd.intent.probe import fit_temperature
from mmd.intent.prompts import build_prompt
from mmd.intent.settings import PromptSettings
from mmd.intent.types import IntentExample, Probabilities, PromptedClassifier
from mmd.models.likelihood import LabelModel, LogLikelihoods
from mmd.models.resolve import publish_folder
from mmd.models.settings import ModelSettings
from mmd.models.tiny import PREFIX

FORMAT_VERSION = 1
INDEX_FILE = "mllm.json"
HELD_OUT_FILE = "held_out.json"
Method = Literal["lora", "full", "frozen"]
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def task_folder(task: str) -> str:
    """Return the name of the folder (and adapter) of a task's weights: the task itself where its name is plain.

    Tasks are named by whoever labelled the corpus, with spaces, dots, slashes, in any script; a path or the name of a
    torch module cannot be.
    """
    return task if _PLAIN_NAME.fullmatch(task) else f"task-{hashlib.sha256(task.encode()).hexdigest()[:12]}"


class MllmTask(BaseModel):
    """One task's model: where its weights are in the artefact, its labels in the order of every distribution."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="Of the weights; tasks trained jointly share it.")
    labels: tuple[str, ...] = Field(min_length=1)
    temperature: float = Field(gt=0, description="Divides the log-likelihoods.")
    hinted_temperature: float | None = Field(
        default=None, gt=0, description="The same where a hint is in the prompt; None: as without one."
    )


class MllmIndex(BaseModel):
    """``mllm.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: int = FORMAT_VERSION
    base: str = Field(description="Name of the model that was fine-tuned (mmd.models.resolve).")
    method: Method
    prompt: PromptSettings
    tasks: dict[str, MllmTask]


class HeldOutScore(BaseModel):
    """What a model trained without a dialogue's fold says of it: one log-likelihood a label, without and with hint.

    Both are the same numbers where there is no hint to tell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    fold: int
    plain: tuple[float, ...]
    hinted: tuple[float, ...]

    @property
    def told(self) -> bool:
        """Whether there was a hint."""
        return self.hinted != self.plain


@dataclass(frozen=True)
class HeldOut:
    """Calibrated held-out distributions of one task, by dialogue id."""

    plain: Mapping[str, Probabilities]
    hinted: Mapping[str, Probabilities]


class MllmClassifier:
    """One task's classifier; safe to call from several threads.

    Args:
        task: the task it answers.
        labels: its labels; the order of every distribution.
        mllm: the model; tasks' adapters may share one base.
        temperature: divides the log-likelihoods.
        prompt: what the model is shown.
        adapter: the adapter on ``mllm`` that answers this task; None: the model as it is.
        hinted_temperature: divides the log-likelihoods of prompts with a hint; None: ``temperature``.
    """

    def __init__(
        self,
        task: str,
        labels: Sequence[str],
        mllm: LabelModel,
        temperature: float,
        prompt: PromptSettings,
        *,
        adapter: str | None = None,
        hinted_temperature: float | None = None,
    ) -> None:
        self.task = task
        self.labels = tuple(labels)
        self.mllm = mllm
        self.temperature = temperature
        self.hinted_temperature = hinted_temperature or temperature
        self.prompt = prompt
        self.adapter = adapter
        self.needs_pictures = mllm.sees_pictures and prompt.max_images > 0
        self._scorer = mllm.label_scorer(self.labels)

    def warm_up(self) -> None:
        """Find out how labels can be scored, which the first call would else do; seconds for a large model on a CPU."""
        with self.mllm.turn(self.adapter):
            self._scorer.prepare()

    def log_likelihoods(self, examples: Sequence[IntentExample], hints: Sequence[str] = ()) -> LogLikelihoods:
        """Return log P(label | prompt), float64 of shape (n_examples, n_labels), before calibration.

        Args:
            examples: what to classify.
            hints: one an example, or none at all.

        Raises:
            ValueError: examples and hints differ in number.
        """
        hints = hints or [""] * len(examples)
        prompts = [
            build_prompt(example, self.prompt, labels=self.labels, hint=hint, sees_pictures=self.mllm.sees_pictures)
            for example, hint in zip(examples, hints, strict=True)
        ]
        with self.mllm.turn(self.adapter):
            return self._scorer.log_likelihoods(prompts)

    def predict(self, examples: Sequence[IntentExample]) -> list[Probabilities]:
        """Return one distribution an example, in order."""
        return self.predict_hinted(examples, [""] * len(examples))

    def predict_hinted(self, examples: Sequence[IntentExample], hints: Sequence[str]) -> list[Probabilities]:
        """Return one distribution an example, in order; its hint, where not empty, is in the prompt."""
        if not examples:
            return []
        temperatures = [self.hinted_temperature if hint else self.temperature for hint in hints]
        return calibrated(self.log_likelihoods(examples, hints), self.labels, temperatures)


def calibrated(
    scores: LogLikelihoods, labels: Sequence[str], temperature: float | Sequence[float]
) -> list[Probabilities]:
    """Return softmax(scores / temperature) of each row; ``scores`` has shape (n, n_labels).

    The temperature is one for all rows, or one a row.
    """
    divisor = np.reshape(np.asarray(temperature, dtype=np.float64), (-1, 1))
    rows = softmax(np.asarray(scores, dtype=np.float64).reshape(-1, len(labels)) / divisor, axis=1)
    return [Probabilities(tuple(labels), tuple(map(float, row))) for row in rows]


def calibrate(scores: LogLikelihoods, labels: Sequence[str], gold: Sequence[str]) -> float:
    """Return the temperature that fits held-out log-likelihoods, shape (n, n_labels), to the right labels; 1 for none.

    Raises:
        ValueError: a gold label is not of the set.
    """
    if not len(gold):
        return 1.0
    place = {label: i for i, label in enumerate(labels)}
    if unknown := sorted(set(gold) - set(labels)):
        raise ValueError(f"calibrate: label {unknown[0]!r} is not one of the task's")
    return fit_temperature(np.asarray(scores, dtype=np.float64), np.array([place[g] for g in gold], dtype=np.int64))


# ---------------------------------------------------------------- the artefact


def save_mllm_task(writer: ArtifactWriter, folder: str, trained: Path) -> None:
    """Copy what training saved into ``folder`` of an artefact; the store may be remote."""
    for path in sorted(p for p in trained.rglob("*") if p.is_file()):
        with writer.open(f"{folder}/{path.relative_to(trained).as_posix()}") as out, path.open("rb") as handle:
            shutil.copyfileobj(handle, out, 1 << 20)


def save_mllm_index(writer: ArtifactWriter, index: MllmIndex) -> None:
    """Write ``mllm.json``."""
    writer.write_json(INDEX_FILE, index.model_dump(mode="json"))


def load_mllm_index(artifact: Artifact) -> MllmIndex:
    """Read ``mllm.json``.

    Raises:
        ArtifactError: not an adapter artefact, one of another format, or without the weights that it names.
    """
    content = artifact.of_kind("adapter", "open adapter/NAME, made by `mmd finetune_mllm`.").read_json(INDEX_FILE)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{artifact.ref}: {INDEX_FILE} has format {version}, this mmd reads {FORMAT_VERSION}; "
            "run `mmd finetune_mllm` again."
        )
    try:
        index = MllmIndex.model_validate(content)
    except ValidationError as err:
        raise ArtifactError(f"{artifact.ref}: {INDEX_FILE} is malformed ({err.errors()[0]['msg']}).") from err
    for task, entry in index.tasks.items():
        if not artifact.has(entry.folder):
            raise ArtifactError(f"{artifact.ref}: has no weights {entry.folder}/ of task {task}; run the job again.")
    return index


def load_mllm_classifiers(artifact: Artifact, settings: ModelSettings | None = None) -> dict[str, PromptedClassifier]:
    """Return task → classifier; adapters and heads of all tasks, and of other artefacts, share one base in memory.

    Where ``models.mllm_url`` names a server, it runs the model (:mod:`mmd.intent.remote`) and no weights are loaded.

    Args:
        artifact: of kind ``adapter``; its weights are copied to ``models.cache_dir`` where the store is remote.
        settings: device, arithmetic, cache folder, and whether a hub may be asked for the base.

    Raises:
        ArtifactError: see :func:`load_mllm_index`.
        ModelError: the base model is not here; the message names the ways to get it.
    """
    from mmd.models.lora import load_trained  # noqa: PLC0415 (loads torch)
    from mmd.models.shared import shared_mllm  # noqa: PLC0415 (the same)

    settings = settings or ModelSettings()
    index = load_mllm_index(artifact)
    if settings.mllm_url is not None:
        from mmd.intent.remote import remote_classifiers  # noqa: PLC0415 (imports this module)

        return dict(remote_classifiers(artifact, index, settings))
    if index.base.startswith(PREFIX) and settings.dtype == "auto":
        # What was trained in float32 stays in it; a whole model's folder no longer tells that it was a tiny one.
        settings = settings.model_copy(update={"dtype": "float32"})
    if index.method == "frozen":
        from mmd.intent.frozen import FrozenMllmClassifier  # noqa: PLC0415 (imports this module)

        mllm = shared_mllm(index.base, settings)
        return {task: FrozenMllmClassifier.load(artifact, entry.folder, mllm) for task, entry in index.tasks.items()}
    folders = {entry.folder: local_folder(artifact, entry.folder, settings) for entry in index.tasks.values()}
    base = shared_mllm(index.base, settings) if index.method == "lora" else index.base
    models = load_trained(base, folders, settings)
    tuned = {
        task: MllmClassifier(
            task,
            entry.labels,
            models[entry.folder],
            entry.temperature,
            index.prompt,
            adapter=entry.folder if index.method == "lora" else None,
            hinted_temperature=entry.hinted_temperature,
        )
        for task, entry in index.tasks.items()
    }
    for classifier in tuned.values():
        classifier.warm_up()
    return dict(tuned)


def local_folder(artifact: Artifact, folder: str, settings: ModelSettings) -> Path:
    """Return a folder of an artefact as a local path: itself, or a copy by the artefact's digest in the cache."""
    if artifact.protocol == "file":
        return Path(artifact.path(folder))
    target = Path(settings.cache_dir).expanduser() / "adapters" / artifact.manifest.digest / folder
    if target.is_dir():
        return target
    aside = target.with_name(f"{folder}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        for relative in sorted(f for f in artifact.manifest.files if f.startswith(f"{folder}/")):
            path = aside / relative.removeprefix(f"{folder}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            with artifact.fs.open(f"{artifact.root}/{relative}", "rb") as handle, path.open("wb") as out:
                shutil.copyfileobj(handle, out, 1 << 20)
        publish_folder(aside, target)
    except OSError as err:
        raise ArtifactError(
            f"{artifact.ref}: cannot be copied into {target.parent} ({err}); set models.cache_dir to another folder."
        ) from err
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def save_held_out(writer: ArtifactWriter, scores: Mapping[str, Mapping[str, HeldOutScore]]) -> None:
    """Write ``held_out.json``: task → dialogue id → log-likelihoods in the order of the task's labels."""
    content: dict[str, Any] = {
        task: {dialogue_id: score.model_dump(mode="json") for dialogue_id, score in sorted(of_task.items())}
        for task, of_task in sorted(scores.items())
    }
    writer.write_json(HELD_OUT_FILE, content)


def load_held_out(artifact: Artifact, task: str) -> HeldOut | None:
    """Return the calibrated held-out distributions of a task; None where the artefact has none.

    Raises:
        ArtifactError: malformed, or scores of other labels than the task's.
    """
    index = load_mllm_index(artifact)
    if task not in index.tasks or not artifact.has(HELD_OUT_FILE):
        return None
    entry = index.tasks[task]
    try:
        scores = {
            dialogue_id: HeldOutScore.model_validate(score)
            for dialogue_id, score in artifact.read_json(HELD_OUT_FILE).get(task, {}).items()
        }
    except ValidationError as err:
        raise ArtifactError(f"{artifact.ref}: {HELD_OUT_FILE} is malformed ({err.errors()[0]['msg']}).") from err
    for dialogue_id, score in scores.items():
        if {len(score.plain), len(score.hinted)} != {len(entry.labels)}:
            raise ArtifactError(
                f"{artifact.ref}: {HELD_OUT_FILE} scores other than {len(entry.labels)} labels of task {task} for "
                f"dialogue {dialogue_id}; run `mmd finetune_mllm` again."
            )
    if not scores:
        return None
    hinted = entry.hinted_temperature or entry.temperature
    return HeldOut(
        plain=_distributions({i: (s.plain, entry.temperature) for i, s in scores.items()}, entry.labels),
        hinted=_distributions(
            {i: (s.hinted, hinted if s.told else entry.temperature) for i, s in scores.items()}, entry.labels
        ),
    )


def _distributions(
    scores: Mapping[str, tuple[tuple[float, ...], float]], labels: Sequence[str]
) -> dict[str, Probabilities]:
    """Return id → distribution, from id → (log-likelihoods, temperature)."""
    values, temperatures = zip(*scores.values(), strict=True)
    return dict(zip(scores, calibrated(np.array(values), labels, temperatures), strict=True))
