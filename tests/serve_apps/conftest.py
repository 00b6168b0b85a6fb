"""The HTTP application over an engine in this process."""

from __future__ import annotations

import base64
import io
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import PIL.Image
import pyarrow as pa
import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

from mmd.artifacts import Artifact, ArtifactStore
from mmd.assistant.fits import Answered
from mmd.assistant.loading import save_policy
from mmd.assistant.plan import Plan
from mmd.assistant.policy import Policy
from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.errors import RequestError
from mmd.features.settings import FeatureSettings
from mmd.features.store import Features
from mmd.intent.engine import IntentAnswer, IntentEngine, IntentQuery
from mmd.models.settings import ModelSettings
from mmd.recommend.conversations import (
    DIALOGUES,
    LINKED,
    LINKING_FILE,
    Conversations,
    linked_to_row,
    titles_are_mentions,
)
from mmd.recommend.generate import Generator
from mmd.recommend.graph import build_item_graph, save_graph
from mmd.recommend.kgsf import KgsfBackbone
from mmd.recommend.linking import Linker, link_dialogue
from mmd.recommend.loading import load_online as load_recommender
from mmd.recommend.online import OnlineRecommender, RecommendQuery
from mmd.recommend.samples import response_samples
from mmd.recommend.saving import STUDENT, Talker, load_student, save_talker
from mmd.recommend.settings import BackboneSettings, ConversationSettings, GenerationSettings, GraphSettings
from mmd.recommend.teachers import DialogueTask
from mmd.recommend.words import WordTokenizer
from mmd.retrieval.bases import load_bases
from mmd.retrieval.encode import encode_responses
from mmd.retrieval.facts import Facts
from mmd.retrieval.index import ResponseIndex
from mmd.retrieval.loading import load_online
from mmd.retrieval.methods import Retriever, spec_of
from mmd.retrieval.online import OnlineRetrieval
from mmd.retrieval.samples import load_samples
from mmd.retrieval.saving import encoder_hash, load_maker, load_retriever, save_retriever
from mmd.retrieval.settings import Method, RetrievalSettings, TowerSettings
from mmd.retrieval.sources import build_maker, training_sources
from mmd.retrieval.types import RESPONSES, Response
from mmd.schema import IMAGES, Image, image_to_row
from serve_apps.answers import RecommendResult, RetrievalResult, StreamPiece, to_ready
from serve_apps.api import ApiError, ExamplesResponse, Part, ReadyResponse, TasksResponse
from serve_apps.assistant import ServedPolicy
from serve_apps.examples import pick_examples
from serve_apps.http import create_app
from serve_apps.ingress import accepted
from serve_apps.intent import to_status, to_tasks
from serve_apps.limits import RetrievalQuery
from serve_apps.recommend import recommend_one, stream_one
from serve_apps.recommend import status_of as status_of_student
from serve_apps.replica import PartStatus, absent_part, unknown_picture
from serve_apps.retrieval import rank_one, status_of
from serve_apps.sweeps import SweepDesk

LIMITS = ServeSettings(
    max_turns=20,
    max_text_chars=1_000,
    max_item_ids=30,
    max_images=4,
    max_image_mb=0.3,
    max_request_megapixels=1.0,
    max_body_mb=0.5,
)


DESCRIPTOR = FeatureSettings(ocr="none", vision="descriptor", text="none")
READ = ConversationSettings(min_word_count=1)
BACKBONE = BackboneSettings(dim=32, hidden=64, layers=1, dropout=0.0, graph="embedding")
NO_INDEX = "index/tiny: there is none; run `mmd build_index`."
NO_STUDENT = "student/tiny: there is none; run `mmd distill`."


class EngineBackend:
    """Answers from an engine in this process, as the deployments do from theirs."""

    def __init__(
        self,
        engine: IntentEngine,
        corpus: Corpus,
        retrieval: OnlineRetrieval | None = None,
        recommender: OnlineRecommender | None = None,
    ) -> None:
        self.engine = engine
        self.corpus = corpus
        self.retrieval = retrieval
        self.recommender = recommender
        self.serves_intent = True
        self.policy = ServedPolicy(Policy(), "tiny")
        self.failure: Exception | None = None  # raised instead of an answer

    async def answer(self, query: IntentQuery) -> IntentAnswer:
        if self.failure:
            raise self.failure
        try:
            return self.engine.answer([query])[0]
        except RequestError as err:
            raise ApiError(400, "unknown_task", str(err), "task") from err

    async def reach(self, part: Part) -> None:
        """Be there: this process is."""

    async def retrieve(self, query: RetrievalQuery) -> RetrievalResult:
        if self.failure:
            raise self.failure
        return accepted(rank_one(self._retrieval(), query))

    async def recommend(self, query: RecommendQuery) -> RecommendResult:
        if self.failure:
            raise self.failure
        return accepted(recommend_one(self._recommender(), query))

    async def stream(self, query: RecommendQuery) -> AsyncGenerator[StreamPiece]:
        async with aclosing(stream_one(self._recommender(), query)) as pieces:
            async for piece in pieces:
                yield accepted(piece)
                if self.failure:
                    raise self.failure

    async def picture(self, image_id: str) -> Image:
        if self.recommender and image_id in self.recommender.pictures:
            return self.recommender.pictures[image_id]
        return accepted(self._retrieval().pictures.get(image_id) or unknown_picture(image_id))

    def _recommender(self) -> OnlineRecommender:
        if self.recommender is None:
            raise absent_part("recommendation", NO_STUDENT).error()
        return self.recommender

    def _retrieval(self) -> OnlineRetrieval:
        if self.retrieval is None:
            raise absent_part("retrieval", NO_INDEX).error()
        return self.retrieval

    async def tasks(self) -> TasksResponse:
        return to_tasks(self.engine.model) if self.serves_intent else TasksResponse(tasks=())

    async def examples(self) -> ExamplesResponse:
        return ExamplesResponse(examples=pick_examples(self.corpus, "auto"))

    async def ready(self) -> ReadyResponse:
        no_intent = PartStatus("intent", absent="rulebase/tiny: there is none; run `mmd mine_rules`.")
        intent = to_status(self.engine.model) if self.serves_intent else no_intent
        no_retriever = PartStatus("retrieval", absent=NO_INDEX)
        retrieval = status_of(self.retrieval) if self.retrieval else no_retriever
        no_student = PartStatus("recommendation", absent=NO_STUDENT)
        return to_ready([intent, retrieval, status_of_student(self.recommender) if self.recommender else no_student])


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def tiny_corpus(tiny_store: Path) -> Corpus:
    return Corpus(ArtifactStore(str(tiny_store)).open("corpus/tiny"))


@pytest.fixture(scope="session")
def tiny_engine(tiny_store: Path) -> IntentEngine:
    return IntentEngine.from_store(ArtifactStore(str(tiny_store)), "tiny")


@pytest.fixture(scope="session")
def retrieval_store(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store with an untrained mdr retriever (tiny-bert and the descriptor) and an index of all responses."""
    folder = tmp_path_factory.mktemp("retrieval") / "store"
    shutil.copytree(tiny_store, folder)
    store = ArtifactStore(str(folder))
    write_index(store, write_retriever(store, "mdr", seed=1))
    return folder


def write_retriever(store: ArtifactStore, method: Method, *, seed: int) -> Artifact:
    """Write a retriever with random weights."""
    inputs = {kind: store.open(f"{kind}/tiny") for kind in ("corpus", "features")}
    corpus, features = Corpus(inputs["corpus"]), Features(inputs["features"])
    settings = RetrievalSettings(method=method, towers=TowerSettings(text="tiny-bert", dim=16, hidden=16))
    bases = load_bases(settings.towers)
    sources = training_sources(corpus, features, settings.towers, DESCRIPTOR, ModelSettings())
    samples = load_samples(corpus, features, settings.samples)
    maker = build_maker(
        settings.towers, samples.modalities, Facts.load(corpus, features, settings.samples), sources, bases
    )
    retriever = Retriever(spec_of(settings, maker, bases), bases, seed=seed)
    with store.write("retriever", "tiny", settings={"method": method}, inputs=inputs, seeds={"seed": seed}) as writer:
        save_retriever(writer, retriever, bases)
    return store.open("retriever/tiny")


def write_index(store: ArtifactStore, artifact: Artifact, skip: int = 0) -> Artifact:
    """Write the index of a retriever's responses, all but the first ``skip`` of each modality."""
    corpus, features = Corpus(store.open("corpus/tiny")), Features(store.open("features/tiny"))
    retriever = load_retriever(artifact)
    spec = retriever.spec
    sources = training_sources(corpus, features, spec.towers, DESCRIPTOR, ModelSettings())
    maker = load_maker(artifact, Facts.load(corpus, features, spec.samples), sources)
    found = load_samples(corpus, features, spec.samples).responses.values()
    settings = {"skip": skip}
    with store.write("index", "tiny", settings=settings, inputs={"retriever": artifact}) as writer:
        kept: list[Response] = []
        for modality in spec.modalities:
            some = [response for response in found if response.modality == modality][skip:]
            kept += some
            index = ResponseIndex(spec.towers.dim, encoder=encoder_hash(artifact))
            index.add([response.id for response in some], encode_responses(retriever, maker, some))
            index.save(writer, modality)
        writer.write_table("responses", pa.Table.from_pylist([asdict(r) for r in kept], schema=RESPONSES))
        shown = {r.image_id for r in kept if r.image_id}
        rows = [image_to_row(image) for image in corpus.images(shown)]
        writer.write_table("images", pa.Table.from_pylist(rows, schema=IMAGES))
    return store.open("index/tiny")


@pytest.fixture(scope="session")
def make_index() -> Callable[..., Artifact]:
    return write_index


@pytest.fixture(scope="session")
def make_retriever() -> Callable[[Path, Path, Method], OnlineRetrieval]:
    def make(source: Path, target: Path, method: Method) -> OnlineRetrieval:
        """Return an engine over a copy of a store, with a retriever of another method."""
        shutil.copytree(source, target)
        store = ArtifactStore(str(target))
        write_index(store, write_retriever(store, method, seed=2))
        return load_online(store, "tiny")

    return make


@pytest.fixture(scope="session")
def tiny_retrieval(retrieval_store: Path) -> OnlineRetrieval:
    return load_online(ArtifactStore(str(retrieval_store)), "tiny")


def write_graph(store: ArtifactStore) -> Artifact:
    """Write graph/tiny from corpus/tiny."""
    corpus, settings = Corpus(store.open("corpus/tiny")), GraphSettings()
    graph = build_item_graph(corpus.graph(), corpus.items(), settings)
    titles = titles_are_mentions(settings, corpus)
    linker = Linker(graph, settings, titles=titles)
    rows = [linked_to_row(link_dialogue(dialogue, linker)) for dialogue in corpus.dialogues()]
    with store.write("graph", "tiny", settings={}, inputs={"corpus": corpus.artifact}) as writer:
        save_graph(writer, graph)
        writer.write_json(LINKING_FILE, {"settings": settings.model_dump(mode="json"), "titles": titles})
        writer.write_table(DIALOGUES, pa.Table.from_pylist(rows, schema=LINKED))
    return store.open("graph/tiny")


def learn(conversations: Conversations, *, seed: int = 0, steps: int = 60) -> Talker:
    """Return a student that knows the training responses more or less by heart."""
    samples = [s for dialogue in conversations.dialogues("train") for s in response_samples(dialogue, READ)]
    tokenizer = WordTokenizer.build(samples, conversations.graph.item_ids, READ)
    student = Talker(KgsfBackbone(tokenizer.space, conversations.graph, BACKBONE, seed), tokenizer, READ)
    task, batch = DialogueTask(student.backbone, student.maker, []), student.maker(samples)
    optimizer = torch.optim.Adam(student.backbone.parameters(), 1e-2)
    for _ in range(steps):
        loss, count = task.loss(batch)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    return student


def write_student(store: ArtifactStore, *, seed: int = 0, steps: int = 60) -> Artifact:
    """Write a student of graph/tiny."""
    graph = store.open("graph/tiny")
    conversations, settings = Conversations(graph), {"steps": steps}
    student = learn(conversations, seed=seed, steps=steps)
    with store.write("student", "tiny", settings=settings, inputs={"graph": graph}, seeds={"seed": seed}) as writer:
        save_talker(writer, STUDENT, student, conversations.graph)
    return store.open("student/tiny")


@pytest.fixture(scope="session")
def student_store(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store with an item graph, dialogues linked to it, and a student that learnt them."""
    folder = tmp_path_factory.mktemp("student") / "store"
    shutil.copytree(tiny_store, folder)
    store = ArtifactStore(str(folder))
    write_graph(store)
    write_student(store)
    return folder


@pytest.fixture(scope="session")
def full_store(retrieval_store: Path, student_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the full backend answers from."""
    folder = tmp_path_factory.mktemp("full") / "store"
    shutil.copytree(retrieval_store, folder)
    for kind in ("graph", "student"):
        shutil.copytree(student_store / kind, folder / kind)
    return folder


@pytest.fixture(scope="session")
def make_student() -> Callable[..., Artifact]:
    return write_student


def write_policy(store: ArtifactStore, **plan: Any) -> Artifact:
    counts = Counter({Answered((("dialogue_intent", "refund_status"),), "text", ("text:0",), "It is on its way."): 3})
    with store.write("policy", "tiny", settings=plan) as writer:
        save_policy(writer, Plan(**plan), counts, {})
    return store.open("policy/tiny")


@pytest.fixture(scope="session")
def make_policy() -> Callable[..., Artifact]:
    """Write the policy of a store; arguments are its plan's."""
    return write_policy


@pytest.fixture(scope="session")
def conversations(student_store: Path) -> Conversations:
    return Conversations(ArtifactStore(str(student_store)).open("graph/tiny"))


@pytest.fixture(scope="session")
def generator(student_store: Path, conversations: Conversations) -> Generator:
    """What evaluation would decode with."""
    student = load_student(ArtifactStore(str(student_store)).open("student/tiny"), conversations.graph)
    return Generator(student.backbone, student.tokenizer, conversations.graph, GenerationSettings(), READ)


@pytest.fixture(scope="session")
def tiny_recommender(student_store: Path) -> OnlineRecommender:
    return load_recommender(ArtifactStore(str(student_store)), "tiny")


@pytest.fixture
def full_backend(
    tiny_engine: IntentEngine,
    tiny_corpus: Corpus,
    tiny_retrieval: OnlineRetrieval,
    tiny_recommender: OnlineRecommender,
) -> EngineBackend:
    """Answers every question."""
    return EngineBackend(tiny_engine, tiny_corpus, tiny_retrieval, tiny_recommender)


@pytest.fixture
def backend(tiny_engine: IntentEngine, tiny_corpus: Corpus) -> EngineBackend:
    return EngineBackend(tiny_engine, tiny_corpus)


@pytest.fixture
def client(backend: EngineBackend) -> Iterator[TestClient]:
    with TestClient(create_app(backend, LIMITS), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def data_url() -> Callable[..., str]:
    def make(kind: str = "png", size: tuple[int, int] = (16, 12)) -> str:
        buffer = io.BytesIO()
        PIL.Image.new("RGB", size, "teal").save(buffer, kind)
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

    return make


@pytest.fixture
def serving(free_port: Callable[[], int]) -> Iterator[Callable[[EngineBackend, ServeSettings], str]]:
    """A real HTTP server in a thread of this process; returns its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(
        backend: EngineBackend, settings: ServeSettings, port: int | None = None, sweeps: SweepDesk | None = None
    ) -> str:
        port = port or free_port()
        config = uvicorn.Config(create_app(backend, settings, sweeps), port=port, log_level="warning", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.02)
        return f"http://127.0.0.1:{port}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def opened() -> Callable[..., AbstractContextManager[Any]]:
    """Opens a page in headless Chromium; the test fails on script errors and on requests to other hosts."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium found; apt-get install chromium")

    @contextmanager
    def open_page(url: str, script: str = "", **context: Any) -> Iterator[Any]:
        """Open ``url``; ``script`` runs before the page's own, ``context`` are options of the browser's context."""
        faults: list[str] = []
        own = f"http://{urlsplit(url).netloc}/"
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER)
            options = {"locale": "en-GB", "viewport": {"width": 390, "height": 844}, **context}
            page = browser.new_context(**options).new_page()
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda m: faults.append(m.text) if "Content Security" in m.text else None)
            page.on("request", lambda r: None if r.url.startswith((own, "data:")) else faults.append(r.url))
            if script:
                page.add_init_script(script)
            page.goto(url)
            yield page
            browser.close()
        assert faults == []

    return open_page
