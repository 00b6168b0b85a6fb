"""Training: what it learns, resumes and refuses, and that neither workers nor GradCache change a step."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from mmd.errors import ConfigError, ModelError
from mmd.features.extract import ExtractorInfo
from mmd.models.threads import torch_threads
from mmd.models.weights import put_trained
from mmd.models.workers import Alone, ProcessGroup, Workers
from mmd.retrieval.batches import BatchPlan, key_of, recipe_for
from mmd.retrieval.inputs import InputMaker
from mmd.retrieval.settings import RetrievalSettings
from mmd.retrieval.steps import ChunkMaker
from mmd.retrieval.training import (
    RetrieverTraining,
    TrainState,
    build_retriever,
    divide,
    make_judge,
    make_miner,
    plain_rows,
    train_plain,
)
from mmd.retrieval.types import Query, Response, Sample, SampleSet
from mmd.schema import Turn, text_id

DIM = 16
MODALITIES = ("text", "image")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


class NoisySources:
    """Texts and pictures as noisy marks of what they are about; the first word of a text, the first part of an id."""

    text_dim = picture_dim = DIM
    extractors = MappingProxyType({role: ExtractorInfo("noisy", DIM) for role in ("text", "vision")})

    def text_vectors(self, texts: Sequence[str]):
        return np.stack([_vector(text.split(" ")[0], text) for text in texts]) if texts else np.zeros((0, DIM), "f4")

    def picture_vectors(self, ids: Sequence[str]):
        vectors = [_vector("seen-" + image_id.split("-")[0], image_id) for image_id in ids]
        return (np.stack(vectors) if vectors else np.zeros((0, DIM), "f4")), np.ones(len(ids), bool)

    def picture_bytes(self, ids: Sequence[str]):
        return [None for _ in ids]


def _vector(topic: str, seed: str) -> np.ndarray:
    draw = [np.random.default_rng(list(word.encode())).normal(size=DIM) for word in (topic, seed)]
    mixed = draw[0] + 0.3 * draw[1]
    return (mixed / np.linalg.norm(mixed)).astype(np.float32)


def make_samples(n: int = 60) -> SampleSet:
    """Every third answer is a picture of the topic that was asked for, the others are texts of it."""
    samples, responses = [], {}
    for i in range(n):
        topic = f"topic{i % 20}"
        if i % 3:
            text = f"answer-{topic} number {i}"
            response = Response(f"text:{text_id(text)}", "text", text, text)
        else:
            response = Response(f"image:{topic}-{i}", "image", f"picture {i}", f"picture {i}", f"{topic}-{i}")
        responses[response.id] = response
        asked = f"{'show-' if i % 3 == 0 else ''}{topic} please {i}"
        query = Query((Turn("user", asked),))
        samples.append(Sample(f"d{i}#1", f"d{i}", "train", query, response.modality, response.id))
    return SampleSet(tuple(samples), responses, MODALITIES)


def make_settings(method: str = "mdr", dropout: float = 0.1, **training: object) -> RetrievalSettings:
    return RetrievalSettings.model_validate(
        {
            "method": method,
            "samples": {"modalities": list(MODALITIES), "validation_fraction": 0.2},
            "towers": {"dim": 8, "hidden": 16, "dropout": dropout},
            "training": {"epochs": 3, "batch": 10, "threads": 1, "patience": 0, "dtype": "float32"} | training,
            "pools": {"size": 4},
        }
    )


def make_maker(settings: RetrievalSettings) -> InputMaker:
    return InputMaker(settings.towers, MODALITIES, NoisySources(), {})


def make_loop(
    settings: RetrievalSettings, samples: SampleSet, workers: Workers | None = None
) -> tuple[RetrieverTraining, list[Sample]]:
    workers = workers or Alone()
    division = divide(samples.samples, 0.2, 0)
    chunks = ChunkMaker(make_maker(settings), settings.training.micro_batch, on_cpu=True)
    plan = BatchPlan(tuple(key_of(s) for s in division.train), recipe_for(settings.training, settings.towers), 0)
    loop = RetrieverTraining(
        plan,
        build_retriever(settings, make_maker(settings), None, "cpu", 0),
        chunks,
        settings.training,
        judge=make_judge(division, samples, settings, chunks, workers, "cpu"),
        miner=make_miner(division.train, samples.responses, settings.training, chunks, workers, "cpu"),
        workers=workers,
    )
    return loop, list(division.train)


@pytest.mark.parametrize("method", ["dr", "sdr", "sdr-separate", "mdr"])
def test_every_method_learns(method: str):
    samples = make_samples(90)
    found = train_plain(make_settings(method, epochs=8, learning_rate=0.01), samples, make_maker(make_settings()), 0)
    first, last = found.state.history[0]["loss"], found.state.history[-1]["loss"]
    assert last < 0.7 * first
    assert not found.retriever.training
    assert found.state.best_value("r1") == max(v["r1"] for v in found.state.validations) > 0.2  # chance is 1/8
    assert (found.state.validations[-1]["intent_accuracy"] is None) == (method == "mdr")


def test_equal_trainings_are_equal():
    samples, settings = make_samples(), make_settings("sdr")
    first, second = (train_plain(settings, samples, make_maker(settings), 3) for _ in range(2))
    assert first.state == second.state
    for name, weight in first.retriever.state_dict().items():
        assert torch.equal(weight, second.retriever.state_dict()[name])


@pytest.mark.parametrize("hard_negatives", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_one_dropout_and_mining_included(tmp_path: Path, hard_negatives: int):
    samples, settings = make_samples(), make_settings("sdr", hard_negatives=hard_negatives, checkpoint_every=6)
    whole, train = make_loop(settings, samples)
    whole.train(plain_rows(whole.plan, train, samples.responses), on_checkpoint=lambda loop: loop.save(tmp_path))
    resumed, _ = make_loop(settings, samples)
    resumed.restore(tmp_path)
    assert 0 < resumed.state.step < resumed.plan.total_steps
    resumed.train(plain_rows(resumed.plan, train, samples.responses, resumed.state.step))
    assert resumed.state == whole.state
    for loop in (whole, resumed):
        loop.take_best()
    for name, weight in whole.retriever.state_dict().items():
        assert torch.equal(weight, resumed.retriever.state_dict()[name])


def test_the_best_validation_counts_and_not_the_last_step():
    samples, settings = make_samples(), make_settings(epochs=6, learning_rate=0.3)
    loop, train = make_loop(settings, samples)
    seen = {}

    def on_step(row: dict[str, object]) -> None:
        if "validation" in row:
            seen[row["step"]] = {n: w.clone() for n, w in loop.retriever.state_dict().items()}

    loop.train(plain_rows(loop.plan, train, samples.responses), on_step=on_step)
    loop.take_best()
    best = max(loop.state.validations, key=lambda v: (v["r1"], -v["step"]))
    assert loop.state.best_step == best["step"]
    for name, weight in seen[best["step"]].items():
        assert torch.equal(weight, loop.retriever.state_dict()[name])


def test_training_stops_when_validation_no_longer_gets_better():
    """A rate of nearly 0 changes no rank: the first validation stays the best, and two more end it."""
    settings = make_settings(epochs=50, learning_rate=1e-12, patience=2)
    found = train_plain(settings, make_samples(), make_maker(settings), 0)
    assert found.state.stopped
    assert len(found.state.validations) == 3
    assert found.state.best_step == found.state.validations[0]["step"]


def test_dialogues_and_not_samples_are_held_out():
    samples = [
        Sample(f"d{i // 2}#{i % 2 + 1}", f"d{i // 2}", "train", Query((Turn("user", "a"),)), "text", f"text:{i}")
        for i in range(200)
    ]
    division = divide(samples, 0.2, 0)
    train, held_out = ({s.dialogue_id for s in part} for part in (division.train, division.held_out))
    assert train.isdisjoint(held_out)
    assert len(division.train) + len(division.held_out) == 200
    assert 0.1 < len(held_out) / 100 < 0.3


def test_a_diverging_training_is_told():
    settings = make_settings(learning_rate=1e30)
    with pytest.raises(ModelError, match="learning_rate"):
        train_plain(settings, make_samples(), make_maker(settings), 0)


def test_too_few_samples_are_refused():
    settings = make_settings()
    with pytest.raises(ConfigError, match="training samples"):
        train_plain(settings, SampleSet((), {}, MODALITIES), make_maker(settings), 0)


def test_a_checkpoint_of_another_retriever_is_refused():
    settings = make_settings()
    retriever = build_retriever(settings, make_maker(settings), None, "cpu", 0)
    with pytest.raises(ModelError, match="other weights"):
        put_trained(retriever, {"x": torch.zeros(1)}, "retriever")


# ---------------------------------------------------------------- steps


def test_gradcache_leaves_the_gradients_of_a_plain_step_dropout_included():
    """Both passes of GradCache draw the same dropout; learnt temperature and intent head get their gradients too."""
    samples = make_samples()
    settings = make_settings("sdr", dropout=0.3, micro_batch=4, learn_temperature=True, hard_negatives=1)
    found = []
    for cached in (False, True):
        loop, train = make_loop(settings, samples)
        loop._steps._cached = cached
        step = first_step(loop, train, samples)
        found.append(({n: p.grad for n, p in loop.retriever.named_parameters() if p.grad is not None}, step))
    (plain, plain_loss), (cached_grads, cached_loss) = found
    assert plain.keys() == cached_grads.keys()
    assert {"log_temperature", "intent_head.weight"} < plain.keys()
    assert plain_loss == cached_loss
    for name, gradient in plain.items():
        torch.testing.assert_close(cached_grads[name], gradient, rtol=0, atol=1e-6)


def first_step(loop: RetrieverTraining, train: list[Sample], samples: SampleSet) -> dict[str, float]:
    if loop._miner is not None:
        loop._mined = loop._miner(loop.retriever)
    loop.retriever.train()
    share, keys = next(loop._shares(plain_rows(loop.plan, train, samples.responses, 0, loop.workers.rank), 0))
    return loop._steps.gradients(0, share, keys)


@pytest.mark.parametrize("method", ["dr", "sdr", "mdr"])
def test_chunks_of_any_size_take_the_same_steps(method: str):
    samples = make_samples()
    losses = []
    for size in (0, 1, 3):
        settings = make_settings(method, dropout=0.0, micro_batch=size)
        losses.append([row["loss"] for row in train_plain(settings, samples, make_maker(settings), 0).state.history])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)


def test_a_response_that_answers_twice_in_a_batch_is_no_negative():
    """Two samples of one response in a batch of two: nothing is left to tell apart, so the loss is exactly 0."""
    samples = make_samples(10)
    one = samples.samples[1]
    twins = [replace(one, id=f"twin{i}", dialogue_id=f"twin{i}") for i in range(2)]
    settings = make_settings(dropout=0.0, batch=2)
    plan = BatchPlan(tuple(map(key_of, twins)), recipe_for(settings.training, settings.towers), 0)
    chunks = ChunkMaker(make_maker(settings), 0, on_cpu=True)
    retriever = build_retriever(settings, make_maker(settings), None, "cpu", 0)
    loop = RetrieverTraining(plan, retriever, chunks, settings.training)
    assert first_step(loop, twins, samples)["loss"] == 0.0


class Together:
    """Workers that are threads: what they gather is exchanged in a list, at a barrier."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, table: dict[int, object]) -> None:
        self.rank, self.world = rank, world
        self._barrier, self._table = barrier, table

    def _all(self, own: object) -> list[Any]:
        self._table[self.rank] = own
        self._barrier.wait()
        found = [self._table[rank] for rank in range(self.world)]
        self._barrier.wait()
        return found

    def gather(self, own: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        assert len(own) == rows[self.rank]
        return torch.cat(self._all(own.detach()))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        own = list(parameters)
        for parameter, gradients in zip(own, zip(*self._all([p.grad for p in own]), strict=True), strict=True):
            held = [gradient for gradient in gradients if gradient is not None]
            parameter.grad = sum(held) if held else None  # type: ignore[assignment]


@pytest.mark.parametrize(("method", "world"), [("mdr", 2), ("dr", 2), ("sdr", 3)])
def test_many_workers_take_the_steps_of_one(method: str, world: int):
    """A batch of 10 over 3 workers: unequal shares. Sums in another order: 1e-5."""
    samples = make_samples()
    settings = make_settings(method, dropout=0.0, workers=world, hard_negatives=1, learn_temperature=True)
    alone = train_plain(settings, samples, make_maker(settings), 0).state
    barrier, table = threading.Barrier(world), {}

    loops = [make_loop(settings, samples, Together(rank, world, barrier, table)) for rank in range(world)]

    def work(rank: int) -> TrainState:
        loop, train = loops[rank]
        loop.train(plain_rows(loop.plan, train, samples.responses, 0, rank))
        return loop.state

    with ThreadPoolExecutor(world) as pool:
        states = list(pool.map(work, range(world)))
    for state in states:
        assert [row["loss"] for row in state.history] == pytest.approx([row["loss"] for row in alone.history], abs=1e-5)
        assert [v["r1"] for v in state.validations] == [v["r1"] for v in alone.validations]


def _process(rank: int, world: int, port: int, settings: RetrievalSettings, folder: str) -> None:
    import json

    from torch import distributed

    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    samples = make_samples()
    loop, train = make_loop(settings, samples, ProcessGroup())
    loop.train(plain_rows(loop.plan, train, samples.responses, 0, rank))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(loop.state.to_json()))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path):
    import json
    import socket

    from torch import multiprocessing

    samples = make_samples()
    settings = make_settings("sdr", dropout=0.0, workers=2, hard_negatives=1, learn_temperature=True, micro_batch=3)
    alone = train_plain(settings, samples, make_maker(settings), 0).state
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_process, (2, port, settings, str(tmp_path)), nprocs=2)
    for rank in range(2):
        history = json.loads((tmp_path / f"{rank}.json").read_text())["history"]
        assert [row["loss"] for row in history] == pytest.approx([row["loss"] for row in alone.history], abs=1e-5)
