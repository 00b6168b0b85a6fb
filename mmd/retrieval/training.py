"""Training a retriever: the loop, without Ray.

The loop is the same however samples are loaded and however many processes share a step. ``train_plain`` runs it in one
process; ``jobs.train_retriever`` under Ray Train.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmd.errors import ModelError
from mmd.models.ahead import ahead
from mmd.models.course import TrainState
from mmd.models.devices import choose_device, choose_dtype
from mmd.models.optimizer import adamw, optimized, restore_state, set_rate, state_tensors
from mmd.models.settings import ModelSettings
from mmd.models.threads import torch_threads, worker_threads
from mmd.models.weights import put_trained, trained, trained_copies
from mmd.models.workers import Alone, Workers
from mmd.retrieval.batches import BatchPlan, key_of, recipe_for
from mmd.retrieval.inputs import InputMaker
from mmd.retrieval.losses import class_weights
from mmd.retrieval.mining import NONE, Mined, Miner
from mmd.retrieval.samples import part_of
from mmd.retrieval.settings import RetrievalSettings, TrainingSettings
from mmd.retrieval.steps import ChunkMaker, Share, StepKeys, StepMaker
from mmd.retrieval.types import Response, Sample, SampleSet
from mmd.retrieval.validation import Judge, validation_set

if TYPE_CHECKING:
    import torch

    from mmd.retrieval.bases import BaseModels
    from mmd.retrieval.methods import Retriever

    Tensors = dict[str, torch.Tensor]

Row = tuple[Sample, Response]
StepReport = Callable[[dict[str, Any]], None]
_TRAINED_FILE, _BEST_FILE = "trained.safetensors", "best.safetensors"
_OPTIMIZER_FILE, _NEGATIVES_FILE = "optimizer.safetensors", "negatives.safetensors"
_SHARES_AHEAD = 4
_WHAT = "retriever"


class RetrieverTraining:
    """One run's loop; every worker has one.

    Args:
        plan: samples and rates of every step.
        retriever: on its device; trained in place.
        chunks: makes tower inputs.
        settings: of the training.
        workers: who share a step.
        judge: validates; None where nothing is held out.
        miner: finds hard negatives; None: there are none.
        device: of the retriever.
    """

    def __init__(
        self,
        plan: BatchPlan,
        retriever: Retriever,
        chunks: ChunkMaker,
        settings: TrainingSettings,
        *,
        workers: Workers | None = None,
        judge: Judge | None = None,
        miner: Miner | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.plan, self.retriever, self.settings = plan, retriever, settings
        self.workers = workers or Alone()
        self.state = TrainState()
        self._chunks, self._judge, self._miner, self._device = chunks, judge, miner, device
        parameters = trained(retriever).values()
        self._optimizer = adamw(parameters, plan.recipe.learning_rate, settings.weight_decay, fused=True)
        weights = class_weights(plan.mean_counts, retriever.spec.modalities) if retriever.two_step else None
        self._steps = StepMaker(retriever, self.workers, plan.seed, weights, cached=settings.micro_batch > 0)
        self._best: Tensors | None = None
        self._mined: Mined | None = None

    # ------------------------------------------------------------ the loop

    def train(
        self,
        rows: Iterator[Sequence[Row]],
        *,
        on_step: StepReport | None = None,
        on_checkpoint: Callable[[RetrieverTraining], None] | None = None,
    ) -> None:
        """Make the steps that are left.

        Args:
            rows: this worker's samples and right responses of each step, from the state's step on.
            on_step: called with a row of the history after each step, with ``validation`` where there was one, and
                ``stopped`` where that ended the run early.
            on_checkpoint: saves what is needed to go on from here, every ``checkpoint_every`` steps; the end is none.

        Raises:
            ModelError: the loss or the gradient is no number any more; nothing of that step is kept.
        """
        while self.state.step < self.plan.total_steps and not self.state.stopped:
            start, end = self.state.step, self._next_mining(self.state.step)
            if self._miner is not None and (self._mined is None or self.plan.begins_epoch(start)):
                self._mined = self._miner(self.retriever)
            with closing(ahead(self._shares(islice(rows, end - start), start), _SHARES_AHEAD)) as shares:
                for step, (share, keys) in enumerate(shares, start=start):
                    report = self._step(step, share, keys)
                    if on_step:
                        on_step(report)
                    if "stopped" in report:
                        return
                    if on_checkpoint and (step + 1) % self.settings.checkpoint_every == 0:
                        on_checkpoint(self)
            if self.state.step < end:
                raise ModelError(f"samples ended before step {self.state.step + 1} of {self.plan.total_steps}")

    def _next_mining(self, step: int) -> int:
        """Return the step before which negatives are mined again, or the end of the run."""
        if self._miner is None:
            return self.plan.total_steps
        later = range(step + 1, self.plan.total_steps)
        return next((s for s in later if self.plan.begins_epoch(s)), self.plan.total_steps)

    def _shares(self, rows: Iterator[Sequence[Row]], start: int) -> Iterator[tuple[Share, StepKeys]]:
        for step, own in enumerate(rows, start=start):
            negatives = self._negatives(step)
            share = Share(
                queries=self._chunks.queries([s.query for s, _ in own], [s.modality for s, _ in own]),
                positives=self._chunks.responses([response for _, response in own]),
                negatives=self._chunks.responses(negatives[self.workers.rank]),
            )
            joined = [response for each in negatives for response in each]
            keys = StepKeys(
                samples=tuple(self.plan.keys[index] for index in self.plan.samples(step)),
                shares=self.plan.shares,
                negatives=tuple(response.id for response in joined),
                negative_kinds=tuple(response.modality for response in joined),
                negative_shares=tuple(map(len, negatives)),
            )
            yield share, keys

    def _negatives(self, step: int) -> list[list[Response]]:
        """Return each worker's mined negatives of a step."""
        if self._miner is None or self._mined is None:
            return [[] for _ in self.plan.shares]
        rows = [self._mined[self.plan.own_samples(step, worker)].ravel() for worker in range(len(self.plan.shares))]
        return [[self._miner.responses[row] for row in each.tolist() if row != NONE] for each in rows]

    def _step(self, step: int, share: Share, keys: StepKeys) -> dict[str, Any]:
        import torch

        train_mode(self.retriever)
        self._optimizer.zero_grad(set_to_none=True)
        losses = self._steps.gradients(step, share.to(self._device), keys)
        norm = float(torch.nn.utils.clip_grad_norm_(optimized(self._optimizer), self.settings.clip))
        if not (math.isfinite(losses["loss"]) and math.isfinite(norm)):
            raise ModelError(
                f"training diverged in step {step + 1} of {self.plan.total_steps} (loss {losses['loss']:g}, gradient "
                f"{norm:g}); lower retrieval.training.learning_rate, or set retrieval.training.dtype=float32."
            )
        rate = self.plan.rate(step)
        set_rate(self._optimizer, rate)
        self._optimizer.step()
        row = {"step": step + 1, "epoch": self.plan.epoch(step + 1), **losses, "rate": rate, "norm": norm}
        self.state.add_step(row)
        report: dict[str, Any] = dict(row)
        if self._judge is not None and self.plan.is_due(step + 1, self.settings.validate_every):
            report["validation"] = self._validate(self._judge)
            if self.state.stopped:
                report["stopped"] = True
        return report

    def _validate(self, judge: Judge) -> dict[str, Any]:
        found = judge(self.retriever).to_json()
        if self.state.add_validation(self.plan.epoch(self.state.step), found, by="r1", patience=self.settings.patience):
            self._best = trained_copies(self.retriever)
        return found

    def take_best(self) -> None:
        """Put the weights of the best validation into the retriever, and leave it ready to answer."""
        if self._best is not None:
            put_trained(self.retriever, self._best, _WHAT)
        self.retriever.eval()

    # ------------------------------------------------------------ checkpoints

    def save(self, folder: Path) -> None:
        """Save a checkpoint; all workers hold the same, so the first one's is enough."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_copies(self.retriever), folder / _TRAINED_FILE)
        save_file(state_tensors(self._optimizer, optimized(self._optimizer)), folder / _OPTIMIZER_FILE)
        if self._best is not None:
            save_file(self._best, folder / _BEST_FILE)
        if self._mined is not None:
            import torch

            save_file({"rows": torch.from_numpy(self._mined)}, folder / _NEGATIVES_FILE)
        self.state.save(folder)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint, with any number of workers.

        Raises:
            ModelError: it is of another retriever.
        """
        from safetensors.torch import load_file

        self.state = TrainState.load(folder)
        put_trained(self.retriever, load_file(folder / _TRAINED_FILE), _WHAT)
        restore_state(self._optimizer, optimized(self._optimizer), load_file(folder / _OPTIMIZER_FILE))
        if (folder / _BEST_FILE).is_file():
            self._best = load_file(folder / _BEST_FILE)
        if (folder / _NEGATIVES_FILE).is_file():
            self._mined = np.asarray(load_file(folder / _NEGATIVES_FILE)["rows"].numpy())


def train_mode(retriever: Retriever) -> None:
    """Switch dropout on, and leave batch statistics as they were learnt: chunks of a batch have none that mean much."""
    from torch.nn.modules.batchnorm import _BatchNorm

    retriever.train()
    for module in retriever.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


# ---------------------------------------------------------------- one process


@dataclass(frozen=True)
class TrainedRetriever:
    """A trained retriever, its best weights in place, and how it got there."""

    retriever: Retriever
    state: TrainState


@dataclass(frozen=True)
class Division:
    """The samples of a run: what is learnt from, and what choices are made on."""

    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]


def divide(samples: Sequence[Sample], fraction: float, seed: int) -> Division:
    """Divide the training split by dialogues, both parts in the order of ids; test samples are in neither."""
    ordered = sorted(samples, key=lambda sample: sample.id)
    parts = [part_of(sample, fraction, seed) for sample in ordered]
    return Division(
        train=tuple(s for s, part in zip(ordered, parts, strict=True) if part == "train"),
        held_out=tuple(s for s, part in zip(ordered, parts, strict=True) if part == "validation"),
    )


def build_retriever(
    settings: RetrievalSettings, maker: InputMaker, bases: BaseModels | None, device: torch.device | str, seed: int
) -> Retriever:
    """Return an untrained retriever on its device, in the arithmetic of the settings."""
    import torch

    from mmd.retrieval.methods import Retriever, spec_of

    retriever = Retriever(spec_of(settings, maker, bases), bases, seed).to(device)
    retriever.use_dtype(choose_dtype(ModelSettings(dtype=settings.training.dtype), torch.device(device)))
    return retriever


def train_plain(
    settings: RetrievalSettings,
    samples: SampleSet,
    maker: InputMaker,
    seed: int,
    on_step: StepReport | None = None,
    *,
    part_seed: int | None = None,
    bases: BaseModels | None = None,
    models: ModelSettings | None = None,
) -> TrainedRetriever:
    """Train a retriever in this process.

    ``retrieval.training.workers`` has no say here: the one process takes every step whole, and its losses are those of
    any number of workers (but for dropout, which each worker draws for itself).

    Args:
        settings: everything.
        samples: of the corpus; the training split's are divided, the test split's not touched.
        maker: makes tower inputs.
        seed: of weights, order, dropout and the validation part.
        on_step: called with a row of the history after each step.
        part_seed: of the validation part alone, where several seeds shall be judged on one; None: ``seed``.
        bases: models that the towers start from; None where towers read vectors.
        models: device.

    Raises:
        ConfigError: there are too few samples.
        ModelError: training diverged.
    """
    training = settings.training.model_copy(update={"workers": 1})
    device = choose_device(models or ModelSettings())
    part_seed = seed if part_seed is None else part_seed
    division = divide(samples.samples, settings.samples.validation_fraction, part_seed)
    plan = BatchPlan(tuple(key_of(sample) for sample in division.train), recipe_for(training, settings.towers), seed)
    chunks = ChunkMaker(maker, training.micro_batch, on_cpu=device.type == "cpu")
    with torch_threads(worker_threads(training.threads, training.workers)):
        loop = RetrieverTraining(
            plan,
            build_retriever(settings, maker, bases, device, seed),
            chunks,
            training,
            judge=make_judge(division, samples, settings, chunks, Alone(), device),
            miner=make_miner(division.train, samples.responses, training, chunks, Alone(), device),
            device=device,
        )
        loop.train(plain_rows(plan, division.train, samples.responses), on_step=on_step)
        loop.take_best()
    return TrainedRetriever(loop.retriever, loop.state)


def make_judge(
    division: Division,
    samples: SampleSet,
    settings: RetrievalSettings,
    chunks: ChunkMaker,
    workers: Workers,
    device: torch.device | str,
) -> Judge | None:
    """Return the judge of the held-out samples; None where there are none."""
    if not division.held_out:
        return None
    held_out = validation_set(division.held_out, samples.responses, samples.modalities)
    return Judge(held_out, settings.pools, chunks, workers, device)


def make_miner(
    train: Sequence[Sample],
    responses: Mapping[str, Response],
    training: TrainingSettings,
    chunks: ChunkMaker,
    workers: Workers,
    device: torch.device | str,
) -> Miner | None:
    """Return the miner of hard negatives among the training responses; None where none are asked for."""
    if not training.hard_negatives:
        return None
    own = {sample.response_id: responses[sample.response_id] for sample in train}
    return Miner(train, list(own.values()), training.hard_negatives, chunks, workers, device)


def plain_rows(
    plan: BatchPlan, train: Sequence[Sample], responses: Mapping[str, Response], first_step: int = 0, worker: int = 0
) -> Iterator[list[Row]]:
    """Yield a worker's samples and right responses of each step, from memory."""
    for step in range(first_step, plan.total_steps):
        own = [train[index] for index in plan.own_samples(step, worker)]
        yield [(sample, responses[sample.response_id]) for sample in own]
