"""Fixtures shared by all tests: the real data folder, and one Ray cluster for the whole run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import hypothesis
import pytest
import structlog

from jobs.glue.records import hardware
from mmd.artifacts import Artifact, ArtifactStore, code_revision

# A loaded machine is not a fault: nothing in a test depends on time.
hypothesis.settings.register_profile(
    "mmd", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("mmd")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, metavar="FILE", help="write what tests counted and measured, as JSON")


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What tests counted; written with ``--record``."""
    counted: dict[str, Any] = {}
    yield counted
    if file := request.config.getoption("--record"):
        about = {
            "code": code_revision(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": hardware(),
            "load_average": os.getloadavg(),
            "failed": request.session.testsfailed,
        }
        file.write_text(json.dumps(about | counted, indent=2) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def _plain_logging() -> Iterator[None]:
    """Undo what an entry point under test configured: its loggers hold the captured stream of that test."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of third-party data beside the checkout; tests that need it skip without it."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data not found at {REAL_DATA}; see docs/data.md for where it comes from")
    return REAL_DATA


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray cluster a test run; more logical CPUs than cores, so that actor pools never starve."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    import ray

    from mmd.config import ServeSettings
    from serve_apps.run import loop_variables

    for name, value in loop_variables(ServeSettings()).items():
        os.environ.setdefault(name, value)
    ray.init(address="local", num_cpus=8, object_store_memory=512 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


TINY = "tiny"
RULE_WORDS = {"refund": "refund", "coupon": "coupon", "broken": "damage", "退款": "refund"}  # word → part of a label


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact store with everything trained on 90 dialogues of the simulated shop, without Ray, in seconds.

    Features are the built-in picture descriptor alone; the rules are written by hand.
    """
    folder = tmp_path_factory.mktemp("tiny_store")
    write_tiny_model(ArtifactStore(str(folder)), write_tiny_corpus(ArtifactStore(str(folder))))
    return folder


def write_tiny_corpus(store: ArtifactStore) -> Artifact:
    import pyarrow as pa

    from mmd import schema
    from mmd.corpora.images import ImageLoader
    from mmd.corpora.settings import LimitSettings, ShopSettings
    from mmd.corpora.shop import ShopReader
    from mmd.corpora.validate import validate_item, validate_record

    reader = ShopReader(ShopSettings(dialogues=90, items=12, image_side_px=96), seed=7)
    limits, tasks = LimitSettings(), reader.tasks()
    records = [validate_record(reader, raw, limits, tasks) for part in reader.plan() for raw in reader.read(part)]
    items = [validate_item(entry, limits, ImageLoader(reader.root, limits)) for entry in reader.items()]
    images = {image.id: image for checked in (*records, *items) for image in checked.images}
    with store.write("corpus", TINY, settings={"reader": "shop"}) as writer:
        writer.write_json("tasks.json", {task: list(labels) for task, labels in tasks.items()})
        rows = [schema.dialogue_to_row(record.dialogue) for record in records]
        writer.write_table("dialogues", pa.Table.from_pylist(rows, schema=schema.DIALOGUES))
        rows = [schema.image_to_row(image) for image in images.values()]
        writer.write_table("images", pa.Table.from_pylist(rows, schema=schema.IMAGES))
        rows = [schema.item_to_row(entry.item) for entry in items]
        writer.write_table("items", pa.Table.from_pylist(rows, schema=schema.ITEMS))
    return store.open(f"corpus/{TINY}")


def write_tiny_model(store: ArtifactStore, corpus_artifact: Artifact) -> None:
    import pyarrow as pa

    from mmd.corpora.store import Corpus
    from mmd.features.extract import build_extractors, build_stage
    from mmd.features.settings import FeatureSettings
    from mmd.features.store import INFO_FILE, Features
    from mmd.intent.examples import load_examples
    from mmd.intent.folds import assign_folds
    from mmd.intent.gate import TaskGate, save_gates
    from mmd.intent.probe import fit_probe
    from mmd.intent.rulebase import RuleBase
    from mmd.intent.rules import Predicate, Rule, measure
    from mmd.intent.settings import ProbeSettings

    corpus, inputs = Corpus(corpus_artifact), {"corpus": corpus_artifact}
    extractors = build_extractors(FeatureSettings(ocr="none", vision="descriptor", text="none"))
    info = {role: found and asdict(found) for role, found in extractors.describe().items()}
    with store.write("features", TINY, settings={"extractors": info}, inputs=inputs) as writer:
        writer.write_json(INFO_FILE, {"extractors": info})
        pictures = corpus.image_table(["id", "data"])
        writer.write_table("image_vectors", pa.table(build_stage("vision", extractors)(pictures)))
    inputs["features"] = store.open(f"features/{TINY}")
    examples = {task: load_examples(corpus, Features(inputs["features"]), task, "train") for task in corpus.tasks}

    intents = corpus.tasks["dialogue_intent"]
    words = {word: next(label for label in intents if part in label) for word, part in RULE_WORDS.items()}
    record = measure(support=8, hits=7, examples=100)  # made up: mining is not under test
    rules = tuple(
        Rule(f"r-{word}", "dialogue_intent", label, (Predicate("text", "any", word),), record)
        for word, label in words.items()
    )
    defaults = {task: labels[0] for task, labels in corpus.tasks.items()}
    with store.write("rulebase", TINY, settings={}, inputs=inputs) as writer:
        RuleBase(rules, defaults=defaults).save(writer)
    inputs["rulebase"] = store.open(f"rulebase/{TINY}")

    with store.write("classifier", TINY, settings={}, inputs=inputs) as writer:
        for task, known in examples.items():
            labels = [str(e.label) for e in known]
            folds = assign_folds([e.dialogue_id for e in known], labels, 2, 0)
            fit_probe(task, known, corpus.tasks[task], ProbeSettings(), folds).classifier.save(writer, task)
    inputs["classifier"] = store.open(f"classifier/{TINY}")
    with store.write("gate", TINY, settings={}, inputs=inputs) as writer:
        save_gates(writer, {task: TaskGate(task, "override", tau=0.0) for task in corpus.tasks}, {})


@pytest.fixture(scope="session")
def mllm_store(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store, its newest gate asking a large model: random weights of Qwen2-VL's architecture.

    Scenes are the large model's alone; intents are voted on by rules and a pool of probe and large model.
    """
    import shutil

    folder = tmp_path_factory.mktemp("mllm") / "store"
    shutil.copytree(tiny_store, folder)
    store = ArtifactStore(str(folder))
    write_mllm_gate(store, write_adapter(store, seed=1))
    return folder


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Artifact]:
    return write_adapter


@pytest.fixture(scope="session")
def make_mllm_gate() -> Callable[..., Artifact]:
    return write_mllm_gate


def write_adapter(
    store: ArtifactStore,
    *,
    seed: int,
    base: str = "tiny-qwen2-vl",
    saved_as: str = "",
    std: float = 0.5,
    method: Literal["lora", "full"] = "lora",
) -> Artifact:
    """Write a fine-tuned model with random weights, large enough to change answers; ``saved_as`` names another base."""
    import tempfile

    import torch

    from mmd.intent.mllm import MllmIndex, MllmTask, save_mllm_index, save_mllm_task
    from mmd.intent.settings import LoraSettings, PromptSettings
    from mmd.models.lora import add_lora, save_trained
    from mmd.models.mllm import load_mllm

    corpus = store.open(f"corpus/{TINY}")
    tasks = {task: tuple(labels) for task, labels in corpus.read_json("tasks.json").items()}
    mllm = load_mllm(base)
    if method == "lora":
        add_lora(mllm, LoraSettings(rank=4, dropout=0.0), seed)
    changed = "lora_B" if method == "lora" else "mlp.down_proj.weight"  # the former is zero in a new adapter
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, weight in mllm.model.named_parameters():
            if changed in name:
                weight.normal_().mul_(std)
    # Labels differ in length by many tokens; the heat keeps untrained answers from being sure of the shortest.
    entries = {task: MllmTask(folder="joint", labels=labels, temperature=20.0) for task, labels in tasks.items()}
    settings = {"seed": seed, "base": saved_as or base, "std": str(std), "method": method}
    with (
        tempfile.TemporaryDirectory() as trained,
        store.write("adapter", TINY, settings=settings, inputs={"corpus": corpus}) as writer,
    ):
        save_trained(mllm, Path(trained), method)
        save_mllm_task(writer, "joint", Path(trained))
        save_mllm_index(writer, MllmIndex(base=saved_as or base, method=method, prompt=PromptSettings(), tasks=entries))
    return store.open(f"adapter/{TINY}")


def write_mllm_gate(store: ArtifactStore, adapter: Artifact) -> Artifact:
    """Write a gate that asks the adapter, over what the newest gate was made from."""
    from mmd.intent.gate import TaskGate, save_gates

    before = store.open(f"gate/{TINY}").manifest.inputs
    inputs = {role: store.open(ref.split()[0]) for role, ref in before.items()} | {"adapter": adapter}
    gates = {
        "image_scene": TaskGate("image_scene", "mllm_only", mllm=1.0),
        "dialogue_intent": TaskGate("dialogue_intent", "vote", tau=0.0, weight=3.0, mllm=0.4),
    }
    with store.write("gate", TINY, settings={"mllm": True}, inputs=inputs) as writer:
        save_gates(writer, gates, {})
    return store.open(f"gate/{TINY}")


@pytest.fixture(scope="session")
def make_tiny_retriever() -> Callable[..., Artifact]:
    return write_tiny_retriever


def write_tiny_retriever(store: ArtifactStore, method: str = "mdr", *, seed: int = 0) -> Artifact:
    """Write an untrained retriever (tiny-bert and the descriptor's vectors) into a copy of the tiny store."""
    from mmd.corpora.store import Corpus
    from mmd.features.settings import FeatureSettings
    from mmd.features.store import Features
    from mmd.models.settings import ModelSettings
    from mmd.retrieval.bases import load_bases
    from mmd.retrieval.facts import Facts
    from mmd.retrieval.methods import Retriever, spec_of
    from mmd.retrieval.samples import find_samples
    from mmd.retrieval.saving import save_retriever
    from mmd.retrieval.settings import RetrievalSettings
    from mmd.retrieval.sources import build_maker, training_sources

    inputs = {"corpus": store.open(f"corpus/{TINY}"), "features": store.open(f"features/{TINY}")}
    corpus, features = Corpus(inputs["corpus"]), Features(inputs["features"])
    settings = RetrievalSettings.model_validate(
        {"method": method, "towers": {"text": "tiny-bert", "dim": 16, "hidden": 16}}
    )
    facts = Facts.load(corpus, features, settings.samples)
    samples = find_samples(corpus.dialogues(), facts, settings.samples)
    drawn = FeatureSettings(ocr="none", vision="descriptor", text="none")
    sources = training_sources(corpus, features, settings.towers, drawn, ModelSettings())
    bases = load_bases(settings.towers)
    maker = build_maker(settings.towers, samples.modalities, facts, sources, bases)
    retriever = Retriever(spec_of(settings, maker, bases), bases, seed=seed)
    how = {"method": method, "samples": settings.samples.model_dump(mode="json")}
    with store.write("retriever", TINY, settings=how, inputs=inputs, seeds={"retriever": seed}) as writer:
        save_retriever(writer, retriever, bases)
    return store.open(f"retriever/{TINY}")
