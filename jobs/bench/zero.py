"""Losses of DeepSpeed's ZeRO stages on several CPU workers beside those of plain torch in one process.

All train the same tiny vision-language model on the same dialogues and pictures of the simulated shop with equal global
batches, so the losses must agree up to the order of sums. Each stage also stops halfway, starts afresh from its
checkpoint, and must end as if it had not stopped. Workers are processes joined by gloo, without Ray.

    python -m jobs.bench zero
    python -m jobs.bench zero --method lora --workers 2 --stages 2 3
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmd.corpora.settings import LimitSettings, ShopSettings
from mmd.corpora.shop import ShopReader
from mmd.corpora.validate import validate_record
from mmd.errors import MmdError
from mmd.intent.examples import make_example
from mmd.intent.finetune import (
    Collator,
    Finetuning,
    HeldOutJudge,
    finetune_plain,
    key_of,
    load_state,
    prepare_mllm,
    restore_optimizer,
    restore_weights,
)
from mmd.intent.samples import ORIGINAL, Sample
from mmd.intent.settings import IntentSettings
from mmd.intent.training_plan import StepPlan, TrainingRun, divide, recipe_for
from mmd.intent.types import ImageFacts
from mmd.models.settings import ModelSettings

TASK = "image_scene"
RUN = TrainingRun(f"{TASK}-fold0", (TASK,), 0)
_SEED = 0


class StageError(MmdError):
    """A worker of a stage failed."""


@dataclass(frozen=True)
class Setup:
    """What all stages and the plain run share."""

    base: str
    method: str
    epochs: float
    batch: int
    accumulate: int
    dialogues: int
    workers: int

    def intent(self, stage: int) -> IntentSettings:
        """Return the settings; without dropout, whose draws differ between workers."""
        return IntentSettings.model_validate(
            {
                "finetune": {
                    "method": self.method,
                    "epochs": self.epochs,
                    "batch": self.batch,
                    "accumulate": self.accumulate,
                    "workers": self.workers,
                    "validate_every": 2.0,
                    "lora": {"dropout": 0.0},
                    "deepspeed": {"stage": stage},
                }
            }
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add model, method, stages, workers and sizes."""
    parser.add_argument("--base", default="tiny-qwen2-vl", help="model (default: %(default)s)")
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 2, 3])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--dialogues", type=int, default=150, help="dialogues simulated; a part of them asks the task")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Compare and return the losses side by side."""
    names = ("stages", "workers", "method", "base", "epochs", "dialogues")
    return compare(**{name: options[name] for name in names})


def compare(
    *,
    stages: Sequence[int] = (0, 2, 3),
    workers: int = 2,
    method: str = "full",
    base: str = "tiny-qwen2-vl",
    epochs: float = 4.0,
    dialogues: int = 150,
) -> dict[str, Any]:
    """Train plainly and with each stage; return losses, differences, and whether resuming changed anything."""
    setup = Setup(base, method, epochs, batch=2, accumulate=2, dialogues=dialogues, workers=workers)
    samples, labels = shop_samples(dialogues)
    plain = finetune_plain(samples, RUN, labels, setup.intent(0), ModelSettings(mllm=base, device="cpu"), _SEED)
    losses = [row["loss"] for row in plain.state.history]
    f1 = [v["overall"] for v in plain.state.validations]
    found = {}
    for stage in stages:
        outcome = run_stage(setup, stage)
        gaps = [abs(a - b) / abs(b) for a, b in zip(outcome["losses"], losses, strict=True)]
        found[str(stage)] = outcome | {
            "largest_relative_difference": max(gaps),
            "weighted_f1_equal": outcome["f1"] == f1,
        }
    return {
        "config": setup.__dict__ | {"task": TASK, "samples": len(samples), "dtype": "float32", "threads_a_worker": 1},
        "repeats": 1,
        "plain": {"workers": 1, "losses": losses, "f1": f1},
        "stages": found,
    }


def shop_samples(dialogues: int) -> tuple[list[Sample], dict[str, tuple[str, ...]]]:
    """Return the simulated shop's dialogues that ask for the scene of a picture, with labels; four folds."""
    reader = ShopReader(ShopSettings(dialogues=dialogues, items=12, image_side_px=96), seed=_SEED)
    limits, tasks = LimitSettings(), reader.tasks()
    records = [validate_record(reader, raw, limits, tasks) for part in reader.plan() for raw in reader.read(part)]
    images = {
        image.id: ImageFacts(image.id, image.width, image.height, data=image.data)
        for record in records
        for image in record.images
    }
    known = [r.dialogue for r in records if TASK in r.dialogue.labels and r.dialogue.split == "train"]
    samples = [
        Sample(d.id, d.id, ORIGINAL, i % 4, "", make_example(d, TASK, images=images)) for i, d in enumerate(known)
    ]
    return samples, {TASK: tuple(tasks[TASK])}


def run_stage(setup: Setup, stage: int) -> dict[str, Any]:
    """Train with one stage, whole and resumed, in processes of its own; return the first worker's outcome.

    Raises:
        StageError: a worker failed; its trace is on the error stream.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            spawn.Process(target=_worker, args=(setup, stage, rank, port, folder)) for rank in range(setup.workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise StageError(f"ZeRO stage {stage}: a worker ended with {[p.exitcode for p in processes]}.")
        outcome: dict[str, Any] = json.loads((Path(folder) / "outcome.json").read_text(encoding="utf-8"))
    return outcome


def _worker(setup: Setup, stage: int, rank: int, port: int, folder: str) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": setup.workers, "LOCAL_SIZE": setup.workers}
    os.environ |= {key: str(value) for key, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=setup.workers)
    checkpoint = Path(folder) / "checkpoint"
    whole = _train(setup, stage, rank, save_to=checkpoint)
    distributed.barrier()
    resumed = _train(setup, stage, rank, start_from=checkpoint)
    if rank == 0:
        outcome = {
            "losses": [row["loss"] for row in whole.state.history],
            "f1": [v["overall"] for v in whole.state.validations],
            "resumed_at_step": resumed.plan.total_steps // 2,
            "resumed_equals_uninterrupted": resumed.state == whole.state,
        }
        (Path(folder) / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()


def _train(
    setup: Setup, stage: int, rank: int, *, save_to: Path | None = None, start_from: Path | None = None
) -> Finetuning:
    """Train to the end; on the way, save a checkpoint halfway, or start from one."""
    from mmd.intent.engines import DeepSpeedEngine

    intent = setup.intent(stage)
    samples, labels = shop_samples(setup.dialogues)
    by_key = {key_of(sample): sample for sample in samples}
    division, recipe = divide(list(by_key), RUN), recipe_for(intent.finetune, setup.base)
    plan = StepPlan(division.train, recipe, _SEED, intent.finetune.hint_share)
    mllm = prepare_mllm(setup.base, recipe, intent, ModelSettings(device="cpu"), _SEED)
    state, best = load_state(start_from) if start_from else (None, None)
    if start_from:
        restore_weights(mllm, start_from)
    engine = DeepSpeedEngine(mllm, recipe, intent.finetune.deepspeed)
    if start_from:
        restore_optimizer(engine, start_from)
    judge = HeldOutJudge(mllm, [by_key[key] for key in division.held_out], labels, intent.prompt)
    every = intent.finetune.validate_every
    loop = Finetuning(plan, mllm, engine, judge, validate_every=every, state=state, best=best)
    collate = Collator(mllm.encoder, plan, labels, intent.prompt)
    batches = (
        collate([(p, by_key[plan.keys[plan.sample(p)]]) for p in plan.micro_positions(step, micro, rank)])
        for step in range(loop.state.step, plan.total_steps)
        for micro in range(recipe.accumulate)
    )
    half = plan.total_steps // 2

    def save(at: Finetuning) -> None:
        if save_to is not None and at.state.step == half:
            at.save(save_to)

    loop.train(batches, checkpoint_every=half, on_checkpoint=save)
    return loop
