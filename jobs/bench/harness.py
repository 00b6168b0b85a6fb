"""A service of this machine to be measured: started, asked new questions, deployed anew, its memory watched."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from jobs.glue.cluster import ray_cluster
from mmd.artifacts import ArtifactStore
from mmd.config import AppConfig, ServeSettings, load_config
from mmd.corpora.store import Corpus
from mmd.errors import ConfigError
from mmd.loadtest.generator import Load, Outcome, Request
from mmd.loadtest.questions import CHAT, asked_of, renewed, request_of, text_dialogues
from mmd.schema import Turn

if TYPE_CHECKING:  # Ray comes with it
    from serve_apps.app import AppArgs

APP = "bench"
WARMUP = 40
WITHOUT: Mapping[str, tuple[str, ...]] = {
    "retrieval": ("index", "retriever"),
    "recommendation": ("student", "teacher"),
}
"""Part → kinds of artefacts without which it is not served."""


class Bench:
    """Questions, and services that answer them."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.rate: float = options["rate"]
        self.seconds: float | None = options["seconds"]
        self.turns, self.corpus = int(options["turns"]), str(options["corpus"])
        self.store = ArtifactStore(str(Path(options["store"]).resolve()))
        self.config: AppConfig = load_config()
        dialogues = text_dialogues(Corpus(self.store.open(f"corpus/{self.corpus}")))
        self._questions = [asked_of(dialogue) for dialogue in dialogues]
        self._asked = itertools.count()

    def questions(self, count: int) -> list[tuple[Turn, ...]]:
        """Return conversations of texts that no earlier one had."""
        numbers = itertools.islice(self._asked, count)
        return [renewed(self._questions[number % len(self._questions)], number) for number in numbers]

    def requests(self, count: int, *, stream: bool = False) -> list[Request]:
        """Return requests of texts that no earlier one had."""
        return [request_of(turns, CHAT, stream=stream) for turns in self.questions(count)]

    @contextmanager
    def service(
        self, store: ArtifactStore | None = None, variables: Mapping[str, str] | None = None
    ) -> Iterator[Service]:
        """Serve the corpus's artefacts, warmed up, for the length of the ``with``.

        Args:
            store: of the artefacts, if another.
            variables: of Serve's processes, if others than ``mmd serve`` gives them.
        """
        with served(self.config, store or self.store, self.corpus, variables) as service:
            self.load(service, rate=5.0, seconds=WARMUP / 5.0)
            yield service

    def load(self, service: Service, *, rate: float, seconds: float, retries: int = 0) -> list[Outcome]:
        """Send new questions at a rate."""
        return Load(service.url, rate, retries).run(self.requests(max(1, round(rate * seconds))))

    @contextmanager
    def without(self, part: str) -> Iterator[ArtifactStore]:
        """Yield a copy of the store that lacks what a part answers with."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "store"
            shutil.copytree(self.store.root, place, ignore=shutil.ignore_patterns(".*", "report", *WITHOUT[part]))
            yield ArtifactStore(str(place))


@dataclass(frozen=True)
class Service:
    """A running application on a local cluster.

    Attributes:
        url: where it listens.
        config: its settings.
        store: of its artefacts.
        corpus: whose artefacts answer.
    """

    url: str
    config: AppConfig
    store: ArtifactStore
    corpus: str

    def deploy(self, **refs: str) -> None:
        """Deploy the application as ``serve deploy`` does a file; of one that runs, artefacts are swapped in place.

        Args:
            refs: kind → reference; the newest of other kinds.

        Raises:
            ConfigError: it does not answer with them.
        """
        from ray import serve
        from ray.serve.schema import ServeDeploySchema

        from serve_apps.app import refs_from

        intent, retrieval, recommendation, policy = refs_from(list(refs.values()))
        named = {"ingress": policy, "intent": intent, "retrieval": retrieval, "recommendation": recommendation}
        application = {
            "name": APP,
            "import_path": "serve_apps.app:build",
            "args": self._arguments().model_dump(mode="json"),
            "deployments": [{"name": name, "user_config": given.model_dump()} for name, given in named.items()],
        }
        schema = ServeDeploySchema.model_validate({"applications": [application]})
        client: Any = serve.context._get_global_client()  # noqa: SLF001 (what the command line's own server calls)
        client.deploy_apps(schema)
        for _ in range(600):
            with suppress(httpx.TransportError):
                ready = httpx.get(f"{self.url}/readyz", timeout=60)
                if ready.is_success and set(refs.values()) <= set(ready.json()["artifacts"].values()):
                    return
            time.sleep(0.2)
        raise ConfigError(f"{', '.join(refs.values())}: not served within two minutes; see Ray's logs for the reason.")

    def _arguments(self) -> AppArgs:
        """Return the application's, with the fewest replicas a model that the settings allow: scaling blurs nothing."""
        from serve_apps.app import AppArgs

        return AppArgs(
            store=self.store.root,
            corpus=self.corpus,
            serve=self.config.serve.model_copy(update={"max_replicas": self.config.serve.min_replicas}),
            features=self.config.features,
            models=self.config.models,
            assistant=self.config.assistant,
            generation=self.config.recommend.generation,
        )

    def versions(self, kind: str) -> list[str]:
        """Return what the store has of a kind for the corpus, the oldest first."""
        return [a.ref for a in self.store.find(kind) if a.ref.startswith(f"{kind}/{self.corpus}@")]

    def pids(self, deployment: str) -> list[int]:
        """Return the processes of a deployment's replicas."""
        title = f"ray::ServeReplica:{APP}:{deployment}"
        running = psutil.process_iter(["cmdline"])
        return [one.pid for one in running if (one.info["cmdline"] or [""])[0].startswith(title)]


def loop_variables(settings: ServeSettings) -> dict[str, str]:
    """Return what ``mmd serve`` puts into the environment of Ray's processes; here for all benches."""
    from serve_apps import run

    return run.loop_variables(settings)


@contextmanager
def served(
    config: AppConfig, store: ArtifactStore, corpus: str, variables: Mapping[str, str] | None = None
) -> Iterator[Service]:
    """Serve a corpus's artefacts on a local cluster for the length of the ``with``."""
    from ray import serve

    from serve_apps import run

    given = loop_variables(config.serve) if variables is None else variables
    cluster = config.cluster.model_copy(update={"logical_cpus": run.cpus_for(config)})
    with environment(given), ray_cluster(cluster):
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        try:
            service = Service(f"http://127.0.0.1:{port}", config, store, corpus)
            service.deploy()
            yield service
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]  # upstream has no annotation


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for the length of the ``with``; processes that start in it inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def ways() -> dict[str, dict[str, str]]:
    """Return how requests can reach the models: name → variables of Ray Serve. ``mmd serve`` has one loop."""
    loop = loop_variables(ServeSettings(one_loop=True))
    proxy, throughput = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}, {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    return {
        "Ray's defaults": {},
        "one loop": loop,
        "throughput settings": throughput,
        "HA proxy": proxy,
        "HA proxy, one loop": proxy | loop,
        "HA proxy, throughput settings": proxy | throughput,
    }


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do something in a thread until the ``with`` ends; what it raises is raised there."""
    over, failed = threading.Event(), []

    def guarded() -> None:
        try:
            work(over)
        except Exception as err:  # noqa: BLE001 (raised below, in the caller's thread)
            failed.append(err)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


_STEEPEST = 5


@dataclass
class Memory:
    """Memory of all of this machine's Ray processes, over time; this one, which keeps what it sent, is none of them.

    Attributes:
        rows: seconds from the start, and MiB of each process by its name, those of the same name together.
    """

    rows: list[tuple[float, Mapping[str, float]]] = field(default_factory=list)

    def watch(self, over: threading.Event) -> None:
        """Look every second."""
        start = time.monotonic()
        while not over.wait(1.0):
            self.rows.append((time.monotonic() - start, _memory_mib()))

    def told(self) -> dict[str, Any]:
        """Return the largest sum, how fast it grew over the second half, and the processes that grew fastest then."""
        half = self.rows[len(self.rows) // 2 :]
        times = [at for at, _ in half]
        names = {name for _, row in half for name in row}
        slopes = {name: slope_a_minute(times, [row.get(name, 0.0) for _, row in half]) for name in names}
        steepest = sorted(slopes, key=lambda name: -slopes[name])[:_STEEPEST]
        return {
            "peak_mib": round(max((sum(row.values()) for _, row in self.rows), default=0.0), 1),
            "slope_mib_a_minute": round(slope_a_minute(times, [sum(row.values()) for _, row in half]), 2),
            "slope_by_process": {name: round(slopes[name], 2) for name in steepest},
        }


def slope_a_minute(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Return how fast values grow, by least squares; 0 of less than three."""
    return statistics.linear_regression(times_s, values).slope * 60 if len(values) > 2 else 0.0


def _memory_mib() -> dict[str, float]:
    found: dict[str, float] = {}
    for one in psutil.process_iter(["name", "cmdline", "memory_info"]):
        title, memory = " ".join(one.info["cmdline"] or ()), one.info["memory_info"]
        if memory and one.pid != os.getpid() and (title.startswith("ray::") or "/ray/" in title):
            # A worker is called by what it does just now, too: ray::ServeReplica:bench:intent.answer
            name = title.split()[0].split(".")[0] if title.startswith("ray::") else one.info["name"]
            found[name] = found.get(name, 0.0) + (memory.rss - memory.shared) / 2**20
    return found
