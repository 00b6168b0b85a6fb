"""Fine-tuning the multimodal model to name intents: the training loop, without Ray.

The loop is the same for every engine (:mod:`mmd.models.engines`) and for every way of loading samples: it asks for one
micro-batch after the other in the plan's order (:mod:`mmd.intent.training_plan`), makes optimizer steps, validates on
the held-out fold's originals, and hands out checkpoints. ``finetune_plain`` runs it in one process;
``jobs.finetune_mllm`` under Ray Train. The loss is on the answers' tokens only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ConfigError, ModelError
from mmd.evaluation.metrics import Confusion
from mmd.intent.engines import PlainEngine, parts_of, recompute_activations
from mmd.intent.mllm import HeldOutScore, MllmClassifier
from mmd.intent.prompts import build_prompt
from mmd.intent.samples import Sample
from mmd.intent.settings import IntentSettings, PromptSettings
from mmd.intent.training_plan import (
    Method,
    Recipe,
    SampleKey,
    StepPlan,
    TrainingRun,
    divide,
    recipe_for,
    step_tokens,
)
from mmd.models.course import TrainState
from mmd.models.encoder import PromptEncoder
from mmd.models.engines import Engine
from mmd.models.lora import add_lora, save_trained
from mmd.models.mllm import Mllm, load_mllm
from mmd.models.settings import ModelSettings
from mmd.models.threads import torch_threads
from mmd.models.weights import put_trained

if TYPE_CHECKING:
    import torch

    Batch = Mapping[str, torch.Tensor]
    Tensors = dict[str, torch.Tensor]

Labels = Mapping[str, Sequence[str]]
StepReport = Callable[[dict[str, Any]], None]
OUTCOME_FILE = "outcome.json"
_TRAINED_FILE, _BEST_FILE = "trained.safetensors", "best.safetensors"
LAST, BEST = "last", "best"
_DROPOUT = 3  # stream of random numbers
_ROWS_KEPT_BYTES = 1 << 29


HeldOutScores = dict[str, dict[str, HeldOutScore]]
"""Task → dialogue id → what a model that never saw the dialogue says of it, without and with its hint."""


class Collator:
    """Makes batches of samples: prompts in the model's format, pictures decoded and processed, answers labelled.

    Encoded rows are kept up to a limit, since a small set comes round in every epoch and encoding a row again may cost
    more than learning from it.

    Args:
        encoder: the model's; one of its own where a loader runs beside the model (tokenizers are not thread-safe).
        plan: says which positions tell their hint.
        labels: task → its labels.
        prompt: what a prompt shows.
    """

    def __init__(self, encoder: PromptEncoder, plan: StepPlan, labels: Labels, prompt: PromptSettings) -> None:
        self._encoder, self._plan, self._labels, self._prompt = encoder, plan, labels, prompt
        self._rows: dict[tuple[str, str, str], dict[str, torch.Tensor]] = {}
        self._kept_bytes = 0

    def __call__(self, rows: Sequence[tuple[int, Sample]]) -> Batch:
        """Return the batch of (position, sample) rows, on the CPU."""
        return self._encoder.collate([self._row(position, sample) for position, sample in rows])

    def _row(self, position: int, sample: Sample) -> dict[str, torch.Tensor]:
        hint = sample.hint if self._plan.tells_hint(position) else ""
        key = (sample.example.task, sample.id, hint)
        if key in self._rows:
            return self._rows[key]
        row = self._encode(sample, hint)
        size = sum(tensor.nbytes for tensor in row.values())
        if self._kept_bytes + size <= _ROWS_KEPT_BYTES:
            self._kept_bytes += size
            self._rows[key] = row
        return row

    def _encode(self, sample: Sample, hint: str) -> dict[str, torch.Tensor]:
        prompt = build_prompt(
            sample.example,
            self._prompt,
            labels=tuple(self._labels[sample.example.task]),
            hint=hint,
            sees_pictures=self._encoder.sees_pictures,
        )
        return self._encoder.encode_one(prompt, str(sample.example.label))


class HeldOutJudge:
    """Scores the labels of held-out originals with the model as it is.

    Args:
        mllm: the model in training.
        samples: held-out originals.
        labels: task → its labels.
        prompt: what a prompt shows.
    """

    def __init__(self, mllm: Mllm, samples: Sequence[Sample], labels: Labels, prompt: PromptSettings) -> None:
        tasks = sorted({sample.example.task for sample in samples})
        ordered = sorted(samples, key=lambda sample: sample.id)
        self._samples = {task: [s for s in ordered if s.example.task == task] for task in tasks}
        self._labels = labels
        self._classifiers = {task: MllmClassifier(task, tuple(labels[task]), mllm, 1.0, prompt) for task in tasks}

    def weighted_f1(self, engine: Engine) -> dict[str, float]:
        """Return task → weighted F1 of the likeliest labels, hints untold."""
        out = {}
        for task, samples in self._samples.items():
            best = self._score(engine, task, range(len(samples)), hinted=False).argmax(axis=1)
            answers = [self._labels[task][i] for i in best]
            out[task] = Confusion.of([str(s.example.label) for s in samples], answers).weighted_f1
        return out

    def scores(self, engine: Engine) -> HeldOutScores:
        """Return what the model says of every held-out original, without and with its hint."""
        out: HeldOutScores = {}
        for task, samples in self._samples.items():
            plain = self._score(engine, task, range(len(samples)), hinted=False)
            hinted = plain.copy()
            told = [i for i, sample in enumerate(samples) if sample.hint]
            if told:
                hinted[told] = self._score(engine, task, told, hinted=True)
            out[task] = {
                s.example.dialogue_id: HeldOutScore(fold=s.fold, plain=tuple(p.tolist()), hinted=tuple(h.tolist()))
                for s, p, h in zip(samples, plain, hinted, strict=True)
            }
        return out

    def _score(self, engine: Engine, task: str, rows: Sequence[int], *, hinted: bool) -> NDArray[np.float64]:
        """Return log-likelihoods, shape (len(rows), n_labels); workers share the rows where each can run alone."""
        own = range(len(rows)) if engine.every_rank_evaluates else range(engine.rank, len(rows), engine.world)
        chosen = [self._samples[task][rows[i]] for i in own]
        out = np.zeros((len(rows), len(self._labels[task])))
        if chosen:
            examples = [sample.example for sample in chosen]
            hints = [sample.hint if hinted else "" for sample in chosen]
            classifier = self._classifiers[task]
            out[list(own)] = engine.evaluate(lambda: classifier.log_likelihoods(examples, hints))
        return out if engine.every_rank_evaluates else engine.add_up(out)


class Finetuning:
    """One run's loop.

    Args:
        plan: samples and rates of every step.
        mllm: the model that the engine trains.
        engine: makes the steps.
        judge: validates; None where nothing is held out.
        validate_every: epochs between validations; None: a tenth of the run, at least 1.
        state: where an interrupted run stood.
        best: trained weights of the best validation so far.
    """

    def __init__(
        self,
        plan: StepPlan,
        mllm: Mllm,
        engine: Engine,
        judge: HeldOutJudge | None,
        *,
        validate_every: float | None,
        state: TrainState | None = None,
        best: Tensors | None = None,
    ) -> None:
        self.plan, self.mllm, self.engine, self.judge = plan, mllm, engine, judge
        self.state = state or TrainState()
        self._validate_every = validate_every or max(1.0, plan.epoch(plan.total_steps) / 10)
        self._best = best
        self._answer_tokens = {label: len(mllm.encoder.answer_ids(label)) for label in {key.label for key in plan.keys}}

    def train(
        self,
        batches: Iterator[Batch],
        *,
        on_step: StepReport | None = None,
        checkpoint_every: int | None = None,
        on_checkpoint: Callable[[Finetuning], None] | None = None,
    ) -> None:
        """Make the steps that are left.

        Args:
            batches: this worker's micro-batches from the state's step on, in the plan's order.
            on_step: called with a row of the history after each step, with ``validation`` where there was one.
            checkpoint_every: steps between calls of ``on_checkpoint``; the end is not one.
            on_checkpoint: saves what is needed to go on from here.

        Raises:
            ModelError: the loss or the gradient is no number any more; nothing of that step is kept.
        """
        for step in range(self.state.step, self.plan.total_steps):
            rate = self.plan.rate(step)
            loss, norm = self.engine.step(parts_of(self.mllm, self._micro_batches(step, batches)), rate)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise ModelError(
                    f"model {self.mllm.name!r}: training diverged in step {step + 1} of {self.plan.total_steps} (loss "
                    f"{loss:g}, gradient {norm:g}); lower intent.finetune.learning_rate, or set models.dtype=float32."
                )
            epoch = self.plan.epoch(step + 1)
            row = {"step": step + 1, "epoch": epoch, "loss": loss, "rate": rate, "norm": norm}
            self.state.add_step(row)
            report: dict[str, Any] = dict(row)
            if self.judge is not None and self.plan.is_due(step + 1, self._validate_every):
                report["validation"] = self._validate(self.judge)
            if on_step:
                on_step(report)
            if on_checkpoint and checkpoint_every and (step + 1) % checkpoint_every == 0:
                on_checkpoint(self)

    def _micro_batches(self, step: int, batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
        import torch

        total = step_tokens(self.plan, step, self._answer_tokens)
        for micro in range(self.plan.recipe.accumulate):
            positions = self.plan.micro_positions(step, micro, self.engine.rank)
            tokens = sum(self._answer_tokens[self.plan.keys[self.plan.sample(p)].label] for p in positions)
            batch = next(batches)
            # Dropout then depends on the place in the run alone: a resumed run draws what the first one drew.
            draw = np.random.SeedSequence([self.plan.seed, _DROPOUT, step, micro, self.engine.rank])
            torch.manual_seed(int(draw.generate_state(1)[0]))
            yield batch, tokens / total

    def _validate(self, judge: HeldOutJudge) -> dict[str, float]:
        scores = judge.weighted_f1(self.engine)
        overall = float(np.mean(list(scores.values())))
        found = {"weighted_f1": scores, "overall": overall}
        if self.state.add_validation(self.plan.epoch(self.state.step), found, by="overall"):
            self._best = self.engine.trained()
        return scores

    def save(self, folder: Path) -> None:
        """Save this worker's part of a checkpoint; every worker calls it with a folder of its own or a shared one."""
        from safetensors.torch import save_file

        trained = self.engine.trained()
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.engine.optimizer_state(), folder / _optimizer_file(self.engine))
        if self.engine.rank == 0:
            save_file(trained, folder / _TRAINED_FILE)
            if self._best is not None:
                save_file(self._best, folder / _BEST_FILE)
            self.state.save(folder)

    def finish(self, folder: Path, method: Method) -> HeldOutScores:
        """Predict the held-out fold with the last weights and write the run's outcome; all workers call it.

        The folder gets ``outcome.json``, ``last`` and, where another step validated better, ``best``: each loads with
        plain PEFT or transformers. The held-out predictions are the last weights', whose step nothing has chosen.
        """
        scores = self.judge.scores(self.engine) if self.judge else {}
        trained = self.engine.trained()
        if self.engine.rank == 0:
            save_trained(self.mllm, folder / LAST, method, state_dict=trained)
            if self._best is not None and self.state.best_step != self.state.step:
                save_trained(self.mllm, folder / BEST, method, state_dict=self._best)
            _write_json(folder / OUTCOME_FILE, {"state": self.state.to_json(), "held_out": held_out_to_json(scores)})
        return scores


def load_state(folder: Path) -> tuple[TrainState, Tensors | None]:
    """Read a checkpoint's state and the best weights so far."""
    from safetensors.torch import load_file

    state = TrainState.load(folder)
    best = folder / _BEST_FILE
    return state, load_file(best) if best.is_file() else None


def read_outcome(folder: Path) -> tuple[TrainState, HeldOutScores]:
    """Read what :meth:`Finetuning.finish` wrote of a run's course and its held-out fold."""
    found = json.loads((folder / OUTCOME_FILE).read_text(encoding="utf-8"))
    return TrainState.from_json(found["state"]), held_out_from_json(found["held_out"])


def restore_weights(mllm: Mllm, folder: Path) -> None:
    """Put a checkpoint's trained weights into the model; before an engine is made of it."""
    from safetensors.torch import load_file

    put_trained(mllm.model, load_file(folder / _TRAINED_FILE), f"model {mllm.name!r}")


def restore_optimizer(engine: Engine, folder: Path) -> None:
    """Put a checkpoint's optimizer state into this worker's engine.

    Raises:
        ModelError: the checkpoint was made with another number of workers.
    """
    from safetensors.torch import load_file

    path = folder / _optimizer_file(engine)
    if not path.is_file():
        raise ModelError(
            f"{folder}: has no optimizer state of worker {engine.rank} of {engine.world}; the run was started with "
            "another number of workers. Start it with that number, or remove the run's folder."
        )
    engine.load_optimizer_state(load_file(path))


def _optimizer_file(engine: Engine) -> str:
    return f"optimizer-{engine.rank}-of-{engine.world}.safetensors"


def prepare_mllm(base: str, recipe: Recipe, intent: IntentSettings, models: ModelSettings, seed: int) -> Mllm:
    """Load the base model ready to be trained: adapters in place, or all weights trainable."""
    mllm = load_mllm(base, models, trainable=recipe.method == "full")
    if recipe.method == "lora":
        add_lora(mllm, intent.finetune.lora, seed)
    if intent.finetune.recompute:
        recompute_activations(mllm)
    return mllm


def require_base(models: ModelSettings) -> str:
    """Return the base model's name.

    Raises:
        ConfigError: the settings name none.
    """
    if models.mllm is None:
        raise ConfigError("models.mllm: names no model to fine-tune; set models.mllm=NAME (`mmd models` lists names).")
    return models.mllm


def key_of(sample: Sample) -> SampleKey:
    """Return what the planner needs of a sample."""
    example = sample.example
    return SampleKey(example.task, sample.id, sample.parent_id, sample.made_by, str(example.label), sample.fold)


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned model, how it got there, and what it says of its held-out fold."""

    mllm: Mllm
    state: TrainState
    held_out: HeldOutScores


def finetune_plain(
    samples: Sequence[Sample],
    run: TrainingRun,
    labels: Labels,
    intent: IntentSettings,
    models: ModelSettings,
    seed: int,
    *,
    steps: int | None = None,
    on_step: StepReport | None = None,
) -> Finetuned:
    """Run one fine-tuning in this process, with plain torch.

    ``finetune.workers`` only widens the step here: the one process takes the workers' micro-batches in turn, so the
    losses are those of that many workers.

    Args:
        samples: all samples; the run takes its own.
        run: which model, and what is held out.
        labels: task → its labels.
        intent: settings of prompts and training.
        models: base model, device and arithmetic.
        seed: of adapters, order, hints and dropout.
        steps: optimizer steps, instead of ``finetune.epochs``.
        on_step: called with a row of the history after each step.

    Raises:
        ConfigError: no base model is named.
        ModelError: it cannot be loaded.
        ArtifactError: no sample is left to train on.
    """
    base = require_base(models)
    recipe = recipe_for(intent.finetune, base)
    recipe = Recipe(**(asdict(recipe) | {"workers": 1, "accumulate": recipe.accumulate * recipe.workers}))
    by_key = {key_of(sample): sample for sample in samples}
    division = divide(list(by_key), run)
    plan = StepPlan(division.train, recipe, seed, intent.finetune.hint_share, steps)
    with torch_threads(models.threads):
        mllm = prepare_mllm(base, recipe, intent, models, seed)
        held_out = [by_key[key] for key in division.held_out]
        judge = HeldOutJudge(mllm, held_out, labels, intent.prompt) if held_out else None
        engine = PlainEngine(mllm, recipe)
        loop = Finetuning(plan, mllm, engine, judge, validate_every=intent.finetune.validate_every)
        collate = Collator(mllm.encoder, plan, labels, intent.prompt)
        loop.train(_plain_batches(plan, collate, by_key), on_step=on_step)
        scores = judge.scores(engine) if judge else {}
    mllm.model.eval()
    return Finetuned(mllm, loop.state, scores)


def _plain_batches(plan: StepPlan, collate: Collator, by_key: Mapping[SampleKey, Sample]) -> Iterator[Batch]:
    for step in range(plan.total_steps):
        for micro in range(plan.recipe.accumulate):
            positions = plan.micro_positions(step, micro, 0)
            yield collate([(p, by_key[plan.keys[plan.sample(p)]]) for p in positions])


def held_out_to_json(scores: HeldOutScores) -> dict[str, dict[str, dict[str, Any]]]:
    """Return task → dialogue id → fold and log-likelihoods."""
    return {task: {name: row.model_dump(mode="json") for name, row in by_id.items()} for task, by_id in scores.items()}


def held_out_from_json(value: Mapping[str, Mapping[str, Any]]) -> HeldOutScores:
    """Invert :func:`held_out_to_json`."""
    return {
        task: {name: HeldOutScore.model_validate(row) for name, row in by_id.items()} for task, by_id in value.items()
    }


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
