"""train_teachers and distill: the job against the plain call, resumed against uninterrupted, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from jobs import build_graph, distill, train_teachers
from jobs.glue.entry import JobContext
from jobs.glue.outputs import OutputsPlan, OutputsWriter, parts_of, write_outputs
from jobs.glue.recommend import RecommendJob, event_rows, read_outputs, trained_settings
from jobs.glue.train import RunPlace
from mmd import schema
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import AppConfig, build_config
from mmd.errors import ArtifactError, ConfigError
from mmd.models.course import TrainState
from mmd.recommend.cache import TeacherOutputs, TeacherSpeaker, by_length
from mmd.recommend.conversations import Conversations
from mmd.recommend.recommender import load_recommender, save_recommender
from mmd.recommend.runs import (
    Ground,
    dialogue_task,
    new_talker,
    ranked_mentions,
    recommender_task,
    speaker_of,
    student_talker,
    student_task,
)
from mmd.recommend.saving import DIALOGUE, STUDENT, Talker, load_dialogue_teacher, load_student, save_talker
from mmd.recommend.training import Training
from mmd.schema import Dialogue, Item, Turn
from tests.jobs.killing import steps_gone_on_after, steps_kept, training_worker, wait_for_checkpoints

ROOT = Path(__file__).resolve().parents[2]
NAME = "films"
FILMS = 12


def write_corpus(store: ArtifactStore) -> Artifact:
    """60 dialogues of four turns, 12 of them for tests; the last answer names the film after the one that is liked."""
    dialogues = []
    for i in range(60):
        turns = (
            Turn("user", f"hello, I liked @{i % FILMS}", item_ids=(f"{i % FILMS}",)),
            Turn("agent", "what do you like of it?"),
            Turn("user", "the music" if i % 2 else "the end"),
            Turn("agent", f"then see @{(i + 1) % FILMS}", item_ids=(f"{(i + 1) % FILMS}",)),
        )
        dialogues.append(Dialogue(f"d{i}", "films", "test" if i % 5 == 4 else "train", turns))
    with store.write("corpus", NAME, settings={}) as writer:
        writer.write_json("tasks.json", {})
        rows = [schema.dialogue_to_row(d) for d in dialogues]
        writer.write_table("dialogues", pa.Table.from_pylist(rows, schema=schema.DIALOGUES), rows_per_shard=17)
        rows = [schema.item_to_row(Item(f"{i}", f"Film {i}")) for i in range(FILMS)]
        writer.write_table("items", pa.Table.from_pylist(rows, schema=schema.ITEMS))
    return store.open(f"corpus/{NAME}")


CHECKPOINT_EVERY = 5
STEPS = {"epochs": 4, "batch": 8, "patience": 0, "warmup": 0.0, "min_steps": 0}
SMALL: dict[str, Any] = {
    "conversations": {"min_word_count": 1, "validation_fraction": 0.2},
    "recommender": {"dim": 8, "bases": 2, "dropout": 0.0, "steps": STEPS},
    "backbone": {"dim": 16, "layers": 1, "hidden": 32, "dropout": 0.0, "graph": "embedding"},
    "dialogue": STEPS,
    "student": STEPS,
    "train": {"threads": 1, "checkpoint_every": CHECKPOINT_EVERY, "dtype": "float32"},
}


def make_config(store: Path, **changes: Any) -> AppConfig:
    recommend = {key: {**value, **changes.get(key, {})} for key, value in SMALL.items()}
    recommend |= {key: value for key, value in changes.items() if key not in SMALL}
    return build_config(
        {
            "store": str(store),
            "data": {"corpus": {"name": NAME}},
            "models": {"device": "cpu"},
            "recommend": recommend,
        }
    )


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with corpus, graph and untrained teachers."""
    folder = tmp_path_factory.mktemp("films")
    config = make_config(folder)
    write_corpus(ArtifactStore(str(folder)))
    build_graph.run(JobContext(config))
    untrained_teachers(config)
    return folder


def untrained_teachers(config: AppConfig, seed: int = 0) -> Artifact:
    """Write teachers of random weights, in the place of those that are there."""
    store = ArtifactStore(config.store)
    graph = store.open(f"graph/{NAME}")
    ground = replace(ground_of(config, graph), seed=seed)
    settings = trained_settings(config, *train_teachers.PARTS)
    inputs, seeds = {"graph": graph}, {"teacher": 0}
    with store.write("teacher", NAME, settings=settings, inputs=inputs, seeds=seeds, replace=True) as writer:
        save_recommender(writer, recommender_task(ground).model)
        save_talker(writer, DIALOGUE, new_talker(ground), ground.graph)
    return store.open(f"teacher/{NAME}")


def ground_of(config: AppConfig, graph: Artifact) -> Ground:
    return Ground(Conversations(graph), config.recommend, config.seed, config.models, config.seed)


def job_of(config: AppConfig, folder: str | None = None) -> RecommendJob:
    store = ArtifactStore(config.store)
    inputs = {role: store.open(f"{role}/{NAME}").ref for role in ("graph", "teacher")}
    return RecommendJob("student", config, config.store, inputs, folder)


def test_how_a_run_is_spread_does_not_change_what_it_makes(tmp_path: Path):
    one, other = make_config(tmp_path), make_config(tmp_path, train={"workers": 2, "threads": 3, "max_failures": 0})
    assert trained_settings(one, "student") == trained_settings(other, "student")
    rounded = make_config(tmp_path, train={"dtype": "bfloat16"})
    assert trained_settings(one, "student") != trained_settings(rounded, "student")


def test_parts_of_the_outputs_are_what_the_teachers_say_plainly(ready: Path, tmp_path: Path):
    job = job_of(make_config(ready))
    ground = job.ground()
    speaker, maker = speaker_of(ground, job.open("teacher"))
    place = RunPlace(str(tmp_path), "outputs")
    write_outputs(OutputsPlan(job, place.path), place, ground, maker)
    outputs = read_outputs(place.path)
    samples = ground.responses.train
    assert outputs.index.keys() == {sample.id for sample in samples}
    for sample in samples[:5]:
        [alone] = speaker([sample])["masses"].to_pylist()
        row = outputs.index[sample.id]
        kept = outputs.masses[outputs.starts[row] : outputs.starts[row + 1]]
        np.testing.assert_allclose(kept, alone, atol=1e-6)
    made = {path: path.stat().st_mtime_ns for path in Path(place.path).glob("*.parquet")}
    OutputsWriter(OutputsPlan(job, place.path)).write(0)
    assert {path: path.stat().st_mtime_ns for path in made} == made  # what is there is not made again
    assert sum(len(batch) for part in parts_of(ground, maker) for batch in part) == len(samples)


def test_teachers_made_anew_are_asked_anew(tmp_path: Path):
    """Under the same reference, another ψ and φ: what the earlier ones said is not taken."""
    config = make_config(tmp_path)
    write_corpus(ArtifactStore(str(tmp_path)))
    build_graph.run(JobContext(config))
    told = []
    for seed in (0, 1):
        teacher = untrained_teachers(config, seed)
        job = job_of(config)
        told.append(distill.ask_teachers(JobContext(config), job, job.ground()))
    assert teacher.ref == job.inputs["teacher"]
    assert len(set(told)) == 2
    first, second = map(read_outputs, told)
    assert not np.array_equal(first.item_log_probs, second.item_log_probs)
    assert distill.ask_teachers(JobContext(config), job, job.ground()) == told[1]


def test_force_asks_the_teachers_again(ready: Path):
    job = job_of(make_config(ready))
    ground = job.ground()
    folder = Path(distill.ask_teachers(JobContext(job.config), job, ground))
    made = (folder / "part-00000.parquet").stat().st_mtime_ns
    distill.ask_teachers(JobContext(job.config), job, ground)
    assert (folder / "part-00000.parquet").stat().st_mtime_ns == made
    distill.ask_teachers(JobContext(job.config, force=True), job, ground)
    assert (folder / "part-00000.parquet").stat().st_mtime_ns > made


def test_a_student_of_another_vocabulary_is_refused(ready: Path):
    job = job_of(make_config(ready, backbone={"kind": "lm"}))
    with pytest.raises(ArtifactError, match=r"vocabulary mismatch: teacher/films@\w+ has \d+ words"):
        student_talker(job.ground(), job.open("teacher"))


@pytest.mark.parametrize(("key", "value"), [("validation_fraction", 0.4), ("context_turns", 2), ("max_entities", 1)])
def test_a_student_that_reads_or_holds_out_otherwise_than_its_teachers_is_refused(ready: Path, key: str, value: float):
    """Else it would be judged on what they learnt, or ask them about contexts unlike those of their training."""
    job = job_of(make_config(ready, conversations={key: value}))
    trained_with = make_config(ready).recommend.conversations.model_dump()[key]
    for use in (student_talker, speaker_of):
        with pytest.raises(ConfigError, match=rf"was trained with {key}={trained_with}, .* with {key}={value};"):
            use(job.ground(), job.open("teacher"))


def test_a_student_of_another_shape_cannot_start_as_its_teacher(ready: Path):
    wider = {"dim": 24}
    job = job_of(make_config(ready, backbone=wider, distill={"start": "teacher"}))
    with pytest.raises(ConfigError, match="start to scratch"):
        student_talker(job.ground(), job.open("teacher"))
    job = job_of(make_config(ready, backbone=wider, distill={"start": "scratch"}))
    assert student_talker(job.ground(), job.open("teacher")).backbone.settings.dim == 24


def test_a_student_that_starts_as_its_teacher_says_the_same(ready: Path):
    import torch

    job = job_of(make_config(ready, distill={"start": "teacher"}))
    ground = job.ground()
    ground = replace(ground, seed=5)
    student = student_talker(ground, job.open("teacher"))
    speaker, maker = speaker_of(ground, job.open("teacher"))
    samples = ground.responses.validation[:3]
    rows = speaker(samples)
    batch = maker(samples)
    with torch.no_grad():
        probs = student.backbone.eval().token_logits(batch).softmax(1)
    mass = probs[:, student.tokenizer.space.items].sum(1)
    flat = np.concatenate([np.array(found) for found in rows["masses"].to_pylist()])
    np.testing.assert_allclose(mass.numpy(), flat, atol=1e-6)


def test_neither_teacher_changes_while_its_student_learns(ready: Path):
    """The student starts as φ and learns from both; what was loaded stays as it was, gradients included."""
    job = job_of(make_config(ready))
    ground, teacher = job.ground(), job.open("teacher")
    phi, psi = load_dialogue_teacher(teacher, ground.graph), load_recommender(teacher, ground.graph)
    networks = (phi.backbone, psi.model)
    before = [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in networks]
    speaker = TeacherSpeaker(phi.backbone, psi, phi.maker, ground.settings.distill)
    samples = ground.responses.train
    outputs = TeacherOutputs.from_tables([speaker(batch) for batch in by_length(samples, phi.maker, 16)])
    student = student_talker(ground, teacher)
    Training(student_task(ground, student, outputs), samples, ground.settings.student, 0).train()
    for network, weights in zip(networks, before, strict=True):
        assert not network.training
        assert all(parameter.grad is None for parameter in network.parameters())
        for name, tensor in network.state_dict().items():
            assert tensor.equal(weights[name]), name
    learnt = student.backbone.state_dict()
    assert not all(tensor.equal(learnt[name]) for name, tensor in phi.backbone.state_dict().items())


def test_the_validation_part_of_a_student_is_its_teachers(ready: Path):
    config = make_config(ready).model_copy(update={"seed": 3})
    job = job_of(config)
    plain = ground_of(make_config(ready), job.open("graph"))
    assert job.ground().responses.validation == plain.responses.validation
    assert not {s.dialogue_id for s in plain.responses.train} & {s.dialogue_id for s in plain.responses.validation}
    assert {s.split for s in plain.responses.train} == {"train"}


def test_a_language_model_teaches_a_student_of_its_vocabulary(ready: Path, tmp_path: Path):
    """The whole path over a model of transformers with low-rank updates: taught, saved, loaded."""
    import torch

    few = {**STEPS, "epochs": 0.5}
    config = make_config(ready, backbone={"kind": "lm", "model": "tiny-llama", "lora_rank": 2}, student=few)
    ground = ground_of(config, ArtifactStore(str(ready)).open(f"graph/{NAME}"))
    store = ArtifactStore(str(tmp_path))
    with store.write("teacher", NAME, settings={}, inputs={"graph": ground.conversations.artifact}) as writer:
        save_recommender(writer, recommender_task(ground).model)
        save_talker(writer, DIALOGUE, new_talker(ground), ground.graph)
    teacher = store.open(f"teacher/{NAME}")
    speaker, maker = speaker_of(ground, teacher)
    samples = ground.responses.train
    outputs = TeacherOutputs.from_tables([speaker(batch) for batch in by_length(samples, maker, 16)])
    talker = student_talker(ground, teacher)
    loop = Training(student_task(ground, talker, outputs), samples, config.recommend.student, 0)
    loop.train()
    loop.take_best()
    with store.write("student", NAME, settings={}, inputs={"graph": ground.conversations.artifact}) as writer:
        save_talker(writer, STUDENT, talker, ground.graph)
    loaded = load_student(store.open(f"student/{NAME}"), ground.graph)
    batch = loaded.maker(samples[:3])
    with torch.no_grad():
        torch.testing.assert_close(loaded.backbone.token_logits(batch), talker.backbone.token_logits(batch))


def test_losses_and_judgements_are_scalars_of_their_step():
    history = [{"step": 1, "epoch": 0.5, "loss": 2.0, "rate": 0.1, "norm": 1.0}]
    state = TrainState(1, history, [{"step": 1, "epoch": 0.5, "score": -2.0}], 1)
    assert list(event_rows(state)) == [
        (1, {"train/loss": 2.0, "train/rate": 0.1, "train/norm": 1.0}),
        (1, {"validation/score": -2.0}),
    ]


# ---------------------------------------------------------------- jobs


def losses(artifact: Artifact, what: str) -> list[float]:
    return [row["loss"] for row in artifact.read_json("training.json")[what]["history"]]


def says(talker: Talker, ground: Ground) -> NDArray[np.float32]:
    """Return log-probabilities of every token at every place of held-out responses."""
    import torch

    with torch.inference_mode():
        batch = talker.maker(ground.responses.validation)
        return talker.backbone.eval().token_logits(batch).log_softmax(1).numpy()


def plain_losses(loop: Training[Any]) -> list[float]:
    loop.train()
    return [row["loss"] for row in loop.state.history]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "train", [{}, {"workers": 2}, {"workers": 2, "deepspeed_stage": 2}], ids=["one_worker", "two_workers", "zero_2"]
)
def test_the_jobs_learn_what_plain_calls_learn(tmp_path: Path, ray_local: None, train: dict[str, int]):
    """Differences come from the order of sums."""
    config = make_config(tmp_path, train=train)
    write_corpus(ArtifactStore(str(tmp_path)))
    context = JobContext(config)
    graph = build_graph.run(context)
    teacher = train_teachers.run(context)
    ground = ground_of(config, graph)
    ranking = recommender_task(ground)
    mentions = Training(ranking, ranked_mentions(ground), config.recommend.recommender.steps, 0)
    assert losses(teacher, "recommender") == pytest.approx(plain_losses(mentions), abs=1e-5)
    mentions.take_best()
    worth = ranking.finish()
    assert teacher.read_json("training.json")["calibrated"] == pytest.approx(worth)
    assert teacher.manifest.metrics["recommender_all_r1"] == pytest.approx(worth["all_r1"])
    contexts = [sample.context for sample in ground.mentions.validation]
    written = load_recommender(teacher, ground.graph).item_log_probs(contexts)
    np.testing.assert_allclose(written, ranking.scores(contexts), atol=1e-3)
    words = Training(dialogue_task(ground, new_talker(ground)), ground.responses.train, config.recommend.dialogue, 0)
    assert losses(teacher, "dialogue") == pytest.approx(plain_losses(words), abs=1e-5)

    student = distill.run(context)
    speaker, maker = speaker_of(ground, teacher)
    parts = [speaker(batch) for part in parts_of(ground, maker) for batch in part]
    talker = student_talker(ground, teacher)
    task = student_task(ground, talker, TeacherOutputs.from_tables(parts))
    taught = Training(task, ground.responses.train, config.recommend.student, 0)
    assert losses(student, "student") == pytest.approx(plain_losses(taught), abs=1e-4)
    taught.take_best()
    written, plain = load_student(student, ground.graph), says(talker, ground)
    np.testing.assert_allclose(says(written, ground), plain, atol=1e-3)
    phi = load_dialogue_teacher(teacher, ground.graph)  # as which the student started
    assert np.abs(says(phi, ground) - plain).max() > 0.02
    assert not [file for file in student.manifest.files if "recommender" in file or "dialogue" in file]
    assert distill.run(context).manifest.created_unix_s == student.manifest.created_unix_s  # unchanged: skipped
    assert not list((tmp_path / ".train").glob("distill-*"))  # checkpoints are gone


JOB = "import sys; from jobs.glue.entry import main; from jobs.distill import run; sys.exit(main('x', '', run))"
LONG = {"student": {**STEPS, "epochs": 60, "validate_every": 5}, "backbone": {"dropout": 0.2}}


def start_job(store: Path, log: Path) -> subprocess.Popen[bytes]:
    chosen = make_config(store, **LONG).recommend.model_dump(mode="json")
    sets = [f"store={store}", f"data.corpus.name={NAME}", "models.device=cpu"]
    for part in ("conversations", "backbone", "student", "train"):
        sets += [f"recommend.{part}.{key}={json.dumps(value)}" for key, value in chosen[part].items()]
    sets += ["recommend.distill.start=scratch"]
    with log.open("ab") as handle:
        return subprocess.Popen(
            [sys.executable, "-c", JOB, *(part for each in sets for part in ("--set", each))],
            cwd=ROOT,
            stdout=handle,
            stderr=handle,
            start_new_session=True,
        )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_killed_run_ends_with_the_losses_of_an_uninterrupted_one(ready: Path):
    """First the training worker is killed, then the driver; dropout is on."""
    job = start_job(ready, ready / "log")
    wait_for_checkpoints(ready, job, ready / "log", 4 * CHECKPOINT_EVERY)
    training_worker(job).kill()
    time.sleep(1)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    kept = steps_kept(ready)
    again = start_job(ready, ready / "log2")
    assert again.wait(900) == 0, (ready / "log2").read_text()
    [went_on] = steps_gone_on_after((ready / "log2").read_text())
    assert 0 < went_on <= max(kept)  # not started over
    config = make_config(ready, **LONG, distill={"start": "scratch"})
    plan = job_of(config)
    ground = plan.ground()
    place = RunPlace(str(ready / "plain"), "outputs")
    _, maker = speaker_of(ground, plan.open("teacher"))
    write_outputs(OutputsPlan(plan, place.path), place, ground, maker)
    task = student_task(ground, student_talker(ground, plan.open("teacher")), read_outputs(place.path))
    whole = Training(task, ground.responses.train, config.recommend.student, 0)
    found = losses(ArtifactStore(str(ready)).open(f"student/{NAME}"), "student")
    assert found == pytest.approx(plain_losses(whole), abs=1e-5)
