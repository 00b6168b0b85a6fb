"""The jobs that :mod:`jobs.bench.nodes` tries: their small settings, when each is midway, and what is compared."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.bench.node_trials import Lab, Trial, ending, lose_node, newest
from jobs.bench.sharded import TOLD
from jobs.glue.entry import console
from mmd.models.course import STATE_FILE

SMALL: Mapping[str, object] = {
    "data.shop.dialogues": 240,
    "data.shop.items": 24,
    "data.shop.image_side_px": 96,
    "features.ocr": "none",
    "features.vision": "descriptor",
    "features.text": "none",
    "intent.folds": 2,
    "intent.search.rollouts": 60,
    "intent.search.seeds": 1,
    "intent.augment.copies": 1,
    "intent.prompt.max_turns": 2,
    "intent.prompt.max_dialogue_chars": 60,
    "intent.prompt.image_side_px": 56,
    "intent.prompt.hints": 1,
    "intent.finetune.method": "full",
    "intent.finetune.tasks": "joint",
    "intent.finetune.epochs": 2,
    "intent.finetune.batch": 8,
    "intent.finetune.workers": 2,
    "intent.finetune.threads": 1,
    "intent.finetune.deepspeed.stage": 3,
    "intent.finetune.checkpoint_every": 5,
    "models.mllm": "tiny-qwen2-vl",
    "models.dtype": "float32",
    "models.device": "cpu",
    "retrieval.towers.text": "tiny-bert",
    "retrieval.towers.dim": 32,
    "retrieval.towers.hidden": 32,
    "retrieval.training.epochs": 1,
    "retrieval.training.batch": 32,
    "retrieval.training.threads": 1,
    "retrieval.training.dtype": "float32",
    "retrieval.index.shards": 3,
    "retrieval.index.threads": 1,
    "recommend.recommender.dim": 16,
    "recommend.recommender.steps.epochs": 1,
    "recommend.recommender.steps.min_steps": 0,
    "recommend.backbone.dim": 16,
    "recommend.backbone.layers": 1,
    "recommend.backbone.hidden": 32,
    "recommend.dialogue.epochs": 1,
    "recommend.dialogue.min_steps": 0,
    "recommend.student.epochs": 1,
    "recommend.student.min_steps": 0,
    "recommend.train.threads": 1,
    "recommend.train.dtype": "float32",
    "evaluation.bootstrap_resamples": 50,
    "evaluation.latency_samples": 5,
    "tune.searches_per_trial": 4,
}
"""A shop on which every job takes seconds; one thread a process, so that sums come in one order."""
_CHAT_FILES, _CHATS_A_FILE, _CHAT_SIDE_PX = 30, 40, 640
_BAD_EVERY = 13
_STATES = f".train/*/*/checkpoint_*/{STATE_FILE}"
_STAGED, _SEARCHED, _SEARCHES = 5, 5, 200
"""Pieces of work after which ingest, the rule search and the search of an index are midway."""


def as_options(settings: Mapping[str, object]) -> list[str]:
    """Return settings as options of a job."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


# ---------------------------------------------------------------- the five


def ingest_trial(chats: Path) -> Trial:
    """Return the trial of reading a folder of chats; midway, some parts are staged and none of the tables is whole."""

    def midway(store: Path) -> bool:
        return len(list(store.glob("corpus/*/*/w-*/staging/*"))) >= _STAGED

    options = ("--corpus", f"chats:chat={chats}", "--set", "data.max_bad_fraction=0.2")
    return Trial("ingest", options, "corpus", midway, "StageWorker")


def write_chats(folder: Path) -> None:
    """Write chats with a picture each, of which one in thirteen is bad, unless they are there."""
    import numpy as np
    from PIL import Image

    if folder.is_dir():
        return
    draw = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    for number in range(_CHAT_FILES * _CHATS_A_FILE):
        pixels = draw.integers(0, 256, (_CHAT_SIDE_PX, _CHAT_SIDE_PX, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"pictures/{number:05d}.jpg", quality=80)
    for file in range(_CHAT_FILES):
        lines = [chat_line(number) for number in range(file * _CHATS_A_FILE, (file + 1) * _CHATS_A_FILE)]
        (folder / f"chats-{file:02d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def chat_line(number: int) -> str:
    """Return a chat as a line; a bad one has broken JSON, an unknown speaker or a missing picture, in turn."""
    picture = {"type": "image_url", "image_url": {"url": f"pictures/{number:05d}.jpg"}}
    asked = {"role": "user", "content": [{"type": "text", "text": f"What is this, number {number}?"}, picture]}
    record: dict[str, Any] = {"id": f"c{number}", "messages": [asked, {"role": "assistant", "content": "Noise."}]}
    if number % _BAD_EVERY:
        return json.dumps(record)
    kind = number // _BAD_EVERY % 3
    if kind == 1:
        asked["role"] = "parrot"
    if kind == 2:
        picture["image_url"] = {"url": "pictures/nowhere.jpg"}
    return json.dumps(record)[: -9 if kind == 0 else None]


def rules_trial() -> Trial:
    """Return the trial of mining rules; midway, a tenth of the searches are done."""

    def midway(store: Path) -> bool:
        records = store.glob(".sweeps/*/trials.json")  # each is exchanged whole
        return any(len(json.loads(path.read_text(encoding="utf-8"))) >= _SEARCHED for path in records)

    return Trial("mine_rules", as_options(SMALL), "rulebase", midway, "Trainable")


def finetune_trial() -> Trial:
    """Return the trial of fine-tuning on two workers, each on a node of its own; midway, a checkpoint is kept."""

    def midway(store: Path) -> bool:
        return any(store.glob(_STATES))

    options = [*as_options(SMALL), "--set", "cluster.placement=STRICT_SPREAD"]
    return Trial("finetune_mllm", options, "adapter", midway, "RayTrainWorker", kept=checkpoints)


def checkpoints(store: Path) -> list[int]:
    """Return the steps of the checkpoints that a training keeps in a store, without one that is being written."""
    steps = []
    for path in store.glob(_STATES):
        with suppress(OSError, ValueError):  # gone, or half there
            steps.append(int(json.loads(path.read_text(encoding="utf-8"))["step"]))
    return sorted(steps)


# ---------------------------------------------------------------- index


def try_sharded(lab: Lab) -> dict[str, Any]:
    """Search in parts on several nodes, undisturbed and with a node lost when half of the searches are done."""
    place = lab.store("report")
    parts = newest(place, "index")
    console.print("the same index in one …", markup=False)
    undivided = as_options({**SMALL, "retrieval.index.shards": 1})
    told: dict[str, Any] = {"build_index": lab.send("build_index", *undivided, store=place)}
    if told["build_index"]["exit_code"]:
        return told
    whole = newest(place, "index")
    asked = ["--store", str(place), "--parts", parts.ref, "--whole", whole.ref, "--pause-s", "0.05"]
    for name, disturbed in (("undisturbed", False), ("node lost", True)):
        console.print(f"sharded, {name} …", markup=False)
        out = lab.work / name.replace(" ", "-")
        told[name] = _search(lab, [*asked, "--batches", str(2 * _SEARCHES), "--out", str(out)], disturbed=disturbed)
        if not told[name]["exit_code"]:
            told[name] |= json.loads(max(out.glob("*.json")).read_text(encoding="utf-8"))
    return told


def _search(lab: Lab, asked: Sequence[str], *, disturbed: bool) -> dict[str, Any]:
    started = time.monotonic()
    job = lab.cluster.submit("bench", "sharded", *asked)
    if not disturbed:
        return ending(job, started)
    half = f"{TOLD} {_SEARCHES} of"
    loss = lose_node(lab.cluster, job, lambda: half in job.log(), "IndexShard", started)
    told = ending(job, started) | {"lost": loss.told() if loss else None}
    lab.cluster.wait_for(3)
    return told
