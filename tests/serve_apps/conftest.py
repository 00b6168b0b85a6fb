"""The HTTP application over an engine in this process."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest
import uvicorn
from starlette.testclient import TestClient

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.errors import RequestError
from mmd.intent.engine import IntentAnswer, IntentEngine, IntentQuery
from mmd.retrieval.online import OnlineRetrieval
from mmd.schema import Image
from serve_apps.answers import RetrievalResult, to_ready
from serve_apps.api import ApiError, ExamplesResponse, ReadyResponse, TasksResponse
from serve_apps.examples import pick_examples
from serve_apps.http import create_app
from serve_apps.ingress import accepted
from serve_apps.intent import to_status, to_tasks
from serve_apps.limits import RetrievalQuery
from serve_apps.replica import PartStatus, absent_part
from serve_apps.retrieval import rank_one, status_of, unknown_picture

LIMITS = ServeSettings(
    max_turns=20,
    max_text_chars=1_000,
    max_item_ids=30,
    max_images=4,
    max_image_mb=0.3,
    max_request_megapixels=1.0,
    max_body_mb=0.5,
)


NO_INDEX = "index/tiny: there is none; run `mmd build_index`."


class EngineBackend:
    """Answers from an engine in this process, as the deployments do from theirs."""

    def __init__(self, engine: IntentEngine, corpus: Corpus, retrieval: OnlineRetrieval | None = None) -> None:
        self.engine = engine
        self.corpus = corpus
        self.retrieval = retrieval
        self.failure: Exception | None = None  # raised instead of an answer

    async def answer(self, query: IntentQuery) -> IntentAnswer:
        if self.failure:
            raise self.failure
        try:
            return self.engine.answer([query])[0]
        except RequestError as err:
            raise ApiError(400, "unknown_task", str(err), "task") from err

    async def retrieve(self, query: RetrievalQuery) -> RetrievalResult:
        if self.failure:
            raise self.failure
        return accepted(rank_one(self._retrieval(), query))

    async def picture(self, image_id: str) -> Image:
        return accepted(self._retrieval().pictures.get(image_id) or unknown_picture(image_id))

    def _retrieval(self) -> OnlineRetrieval:
        if self.retrieval is None:
            raise absent_part("retrieval", NO_INDEX).error()
        return self.retrieval

    async def tasks(self) -> TasksResponse:
        return to_tasks(self.engine.model)

    async def examples(self) -> ExamplesResponse:
        return ExamplesResponse(examples=pick_examples(self.corpus, "auto"))

    async def ready(self) -> ReadyResponse:
        absent = PartStatus("retrieval", absent=NO_INDEX)
        return to_ready([to_status(self.engine.model), status_of(self.retrieval) if self.retrieval else absent])


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

    def start(backend: EngineBackend, settings: ServeSettings, port: int | None = None) -> str:
        port = port or free_port()
        config = uvicorn.Config(create_app(backend, settings), port=port, log_level="warning", ws="none")
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
