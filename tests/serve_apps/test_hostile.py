"""Whatever is sent: a clear answer in time, nothing read, nobody called, little memory.

The cases are made in ``hostile.py``; one test a family, which lists every case that went wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import psutil
import pytest
from starlette.types import ASGIApp, Message

from mmd.config import ServeSettings
from serve_apps.http import create_app
from serve_apps.keys import hash_key
from tests.serve_apps.hostile import FAMILIES
from tests.serve_apps.hostile_addresses import TRUSTED
from tests.serve_apps.hostile_case import ASKING, CHAT, RECOMMEND, TAKEN, Case, Service, got, says, sent
from tests.serve_apps.hostile_headers import KEY, ORIGIN
from tests.serve_apps.hostile_wire import CLOSED, Wire, heads, lengths

LONGEST_S = 5.0  # of computing: on a machine that others load, the clock goes on meanwhile
HANGS_S = 30.0
MOST_BYTES = 300 * 2**20  # more than before: at any time within a family, and kept after all of them
MOST_TOLD = 2_000  # bytes of a refusal: what came is not sent back
LEAST_CASES = 300
ROOT = Path(__file__).resolve().parents[2]
INSIDE = ("Traceback", 'File "', str(ROOT), sys.prefix, sysconfig.get_path("stdlib"), tempfile.gettempdir() + "/pytest")
ADDRESS = re.compile(r"\b0x[0-9a-f]{8,}")


# ---------------------------------------------------------------- what a request does to the machine


@dataclass
class Watch:
    """What Python reports of files opened, addresses called and programs started while it looks (PEP 578).

    Attributes:
        store: folder that may be read.
        others: threads that were there before the test, Ray's say; they do not count.
        looking: whether it does.
        seen: events.
    """

    store: Path
    others: frozenset[int | None] = frozenset()
    looking: bool = False
    seen: list[str] = field(default_factory=list)

    _CALLS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
    _PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an event; an audit hook stays for good, so that it must cost nothing while it does not look."""
        if not self.looking or threading.get_ident() in self.others:
            return
        if event in self._CALLS or event in self._PROGRAMS or (event == "open" and not self._fine(args[0])):
            self.seen.append(f"{event} {args[:2]!a}"[:200])

    def _fine(self, path: Any) -> bool:
        """Say whether a file belongs to the store, or is a module that Python imports late."""
        importing = sys._getframe(2).f_code.co_filename.startswith("<frozen importlib")
        return importing or (isinstance(path, str) and path.startswith(str(self.store)))

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """Look for a while."""
        self.looking = True
        try:
            yield
        finally:
            self.looking = False

    def take(self) -> list[str]:
        """Return what was seen, and forget it."""
        seen, self.seen = self.seen, []
        return seen


@pytest.fixture(scope="session")
def hooked(full_store: Path) -> Watch:
    watch = Watch(full_store)
    sys.addaudithook(watch)
    return watch


@pytest.fixture
def watch(hooked: Watch) -> Watch:
    hooked.others = frozenset(thread.ident for thread in threading.enumerate()) - {threading.get_ident()}
    return hooked


def resident() -> int:
    """Return the bytes that this process holds."""
    return int(psutil.Process().memory_info().rss)


class Peak:
    """The most memory that this process has held since this was made, above what it held then."""

    def __init__(self) -> None:
        self._start = resident()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): the peak begins anew

    def growth(self) -> int:
        """Return bytes."""
        status = Path("/proc/self/status").read_text(encoding="ascii")
        (peak_kb,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        return int(peak_kb) * 1024 - self._start


# ---------------------------------------------------------------- asking as a server does


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    computed_s: float = 0.0

    def header(self, name: bytes) -> list[bytes]:
        """Return the values of a header."""
        return [value for key, value in self.headers if key == name]


async def exchange(app: ASGIApp, case: Case) -> Answer:
    """Ask an application by a scope and a body that no HTTP library has looked at."""
    target, _, query = case.path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": case.method,
        "scheme": "http",
        "path": unquote(target),  # as uvicorn does
        "raw_path": target.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": list(case.headers),
        "client": ("203.0.113.9", 4711),
        "server": ("127.0.0.1", 8000),
    }
    answer, done = Answer(), asyncio.Event()
    messages = pieces_of(case)

    async def receive() -> Message:
        for message in messages:
            return message
        await done.wait()  # also where more was announced: a client that goes away says so
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], tuple(message["headers"])
            return
        answer.body += message.get("body", b"")
        if not message.get("more_body", False):
            done.set()

    started = time.process_time()
    with contextlib.suppress(TimeoutError):  # then there is no status
        async with asyncio.timeout(HANGS_S):
            await app(scope, receive, send)
    answer.computed_s = time.process_time() - started
    return answer


def pieces_of(case: Case) -> Iterator[Message]:
    """Yield the messages that a body comes in."""
    last = len(case.pieces) - 1
    for number, piece in enumerate(case.pieces):
        more = number < last or not case.ends or case.leaves
        yield {"type": "http.request", "body": piece, "more_body": more}
    if case.leaves:
        yield {"type": "http.disconnect"}
    elif not case.pieces and case.ends:
        yield {"type": "http.request"}


# ---------------------------------------------------------------- what is wrong with an answer


def faults(case: Case, answer: Answer) -> Iterator[str]:
    """Yield what is wrong with an answer."""
    text = answer.body.decode("utf-8", "replace")
    if answer.status not in case.statuses:
        yield f"{answer.status}, not {sorted(case.statuses)}"
    if answer.computed_s > LONGEST_S:
        yield f"{answer.computed_s:.1f} s"
    yield from (f"tells {inside!r}" for inside in INSIDE if inside in text)
    yield from (f"tells an address in memory, {found}" for found in ADDRESS.findall(text))
    if case.secret and (case.secret in answer.body or ascii(case.secret)[2:-1] in text):
        yield "tells a picture's bytes"
    if answer.status >= 400:
        yield from error_faults(case, answer)
    elif any(kind.startswith(b"text/event-stream") for kind in answer.header(b"content-type")):
        yield from stream_faults(text)
    yield from header_faults(case, answer)


def error_faults(case: Case, answer: Answer) -> Iterator[str]:
    """Yield how a refusal differs from OpenAI's shape."""
    if len(answer.body) > MOST_TOLD:
        yield f"{len(answer.body)} bytes to say no"
    if not case.shaped:
        return
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, LookupError):
        yield "not the API's shape"
        return
    kinds = {key: type(value).__name__ for key, value in error.items()}
    param = kinds.pop("param", "absent")
    if kinds != dict.fromkeys(("message", "type", "code"), "str") or param not in ("NoneType", "str"):
        yield f"not the API's shape: {kinds}, param {param}"


def stream_faults(text: str) -> Iterator[str]:
    """Yield how a stream ended badly."""
    *_, last = text.strip().split("\n\n")
    if last != "data: [DONE]" and not last.startswith("event: end\n"):
        yield f"the stream ends with {last[:100]}"
    if any(not re.fullmatch(r"(event: \w+\n)?data: [^\n]+", block) for block in text.strip().split("\n\n")):
        yield "an event is no line of data"


def header_faults(case: Case, answer: Answer) -> Iterator[str]:
    """Yield what is wrong with the headers."""
    if case.shaped and answer.header(b"x-content-type-options") != [b"nosniff"]:
        yield "no security headers"
    if any(b"\n" in part or b"\r" in part for pair in answer.headers for part in pair):
        yield "a header has lines"
    if answer.header(b"set-cookie") or answer.header(b"location"):
        yield "sets a cookie or leads away"
    allowed = answer.header(b"access-control-allow-origin")
    if allowed and not (case.service == "cors" and dict(case.headers)[b"origin"] == ORIGIN and allowed == [ORIGIN]):
        yield f"lets {allowed} in"
    if answer.header(b"access-control-allow-credentials"):
        yield "allows credentials"


# ---------------------------------------------------------------- the corpus


USUAL = (
    got("page", "/", TAKEN),
    *(sent("whole", says(path, "Where is my refund?"), TAKEN, path) for path in ASKING),
    *(sent("stream", says(path, "Where is my refund?", stream=True), TAKEN, path) for path in (CHAT, RECOMMEND)),
)
"""Asked first: what is imported, read and allocated once is no case's doing."""


@pytest.fixture(scope="module")
def held() -> list[int]:
    """Bytes that the process held before the first family."""
    return []


@pytest.fixture
def services(full_backend: Any, tmp_path: Path) -> Mapping[Service, ASGIApp]:
    """The application as it is deployed, with each way in that settings open."""
    file = tmp_path / "keys"
    file.write_text(f"{hash_key(KEY)} shop\n", encoding="ascii")
    settings: dict[Service, ServeSettings] = {
        "open": ServeSettings(),
        "keyed": ServeSettings(api_keys_file=str(file), rate_limit_burst=10_000),
        "cors": ServeSettings(cors_origins=(ORIGIN.decode(),)),
        "fetching": ServeSettings(image_hosts=(TRUSTED,)),
        "hurried": ServeSettings(request_timeout_s=0.1),
    }
    return {name: create_app(full_backend, given) for name, given in settings.items()}


def test_the_corpus_is_large_and_no_case_is_twice(full_backend: Any):
    document = create_app(full_backend, ServeSettings()).openapi()
    names = {family: Counter(case.name for case in make(document)) for family, make in FAMILIES.items()}
    assert [(family, name) for family, counts in names.items() for name, n in counts.items() if n > 1] == []
    assert sum(map(len, names.values())) >= LEAST_CASES


def test_the_watch_sees_files_calls_and_memory(watch: Watch, free_port: Callable[[], int], tmp_path: Path):
    peak = Peak()
    with watch.look():
        (tmp_path / "read.py").write_bytes(b"x" * 2**26)
        (watch.store / "corpus").exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", free_port()))
    seen = [event.split()[0] for event in watch.take()]
    assert {"open", "socket.connect"} <= set(seen)
    assert peak.growth() > 2**25


@pytest.mark.parametrize("family", FAMILIES)
def test_what_means_harm_is_answered_or_refused_and_does_none(
    services: Mapping[Service, ASGIApp], watch: Watch, held: list[int], record: dict[str, Any], family: str
):
    document = services["open"].openapi()
    wrong: list[str] = []
    statuses: Counter[int] = Counter()
    longest_s, most_bytes = 0.0, 0

    async def ask_all() -> None:
        nonlocal longest_s, most_bytes
        for usual in USUAL:
            assert (await exchange(services["open"], usual)).status == 200
        held.extend([] if held else [resident()])
        peak = Peak()
        for case in FAMILIES[family](document):
            with watch.look():
                answer = await exchange(services[case.service], case)
            found = [*faults(case, answer), *watch.take()]
            statuses[answer.status] += 1
            longest_s, most_bytes = max(longest_s, answer.computed_s), max(most_bytes, peak.growth())
            if peak.growth() > MOST_BYTES:
                found.append(f"{peak.growth() / 2**20:.0f} MiB")
                peak = Peak()
            if found:
                wrong.append(f"{case.name}: {'; '.join(found)} | {answer.status} {answer.body[:200]!a}")

    asyncio.run(ask_all())
    record.setdefault("families", {})[family] = {
        "cases": statuses.total(),
        "wrong": len(wrong),
        "status": {str(status): count for status, count in sorted(statuses.items())},
        "longest_computed_s": round(longest_s, 3),
        "memory_above_start_mib": round(most_bytes / 2**20, 1),
        "kept_mib": round((resident() - held[0]) / 2**20, 1),
    }
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
    assert resident() - held[0] < MOST_BYTES


@pytest.mark.parametrize("service", ["open", "keyed"])
@pytest.mark.parametrize("path", ["/", CHAT, "/static/words.js"])
def test_a_websocket_is_closed(services: Mapping[Service, ASGIApp], service: Service, path: str):
    """Nothing here speaks it; the guard, which lets such connections by, need not know them."""
    sent: list[Message] = []

    async def connect() -> None:
        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": path, "headers": [], "query_string": b"", "scheme": "ws"}
        await services[service](scope, receive, send)

    asyncio.run(connect())
    assert [message["type"] for message in sent] == ["websocket.close"]


# ---------------------------------------------------------------- over a socket


def first_status(client: socket.socket) -> int:
    """Return the status that comes back, CLOSED where none does."""
    heard = b""
    while b"\r\n" not in heard:
        piece = client.recv(4_096)
        if not piece:
            return CLOSED
        heard += piece
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", heard)
    return int(found[1]) if found else -1


@pytest.mark.parametrize("family", [heads, lengths])
def test_whatever_comes_over_a_socket_the_server_goes_on(
    full_backend: Any,
    serving: Callable[..., str],
    watch: Watch,
    record: dict[str, Any],
    family: Callable[[], Iterator[Wire]],
):
    """A refusal in time, or the line is closed; who comes next is answered."""
    port = int(serving(full_backend, ServeSettings(request_timeout_s=1)).rsplit(":", 1)[1].strip("/"))
    wrong: list[str] = []
    statuses: Counter[int] = Counter()
    for case in family():
        with socket.create_connection(("127.0.0.1", port), timeout=HANGS_S) as client, watch.look():
            try:
                client.sendall(case.sent)
                status = CLOSED if case.leaves else first_status(client)
            except TimeoutError:
                status = -1
            except OSError:  # hung up while we were sending
                status = CLOSED
        statuses[status] += 1
        found = [] if status in case.statuses else [f"{status}, not {sorted(case.statuses)}"]
        if found := [*found, *watch.take()]:
            wrong.append(f"{case.name}: {'; '.join(found)}")
    record.setdefault("over a socket", {})[family.__name__] = {
        "cases": statuses.total(),
        "wrong": len(wrong),
        "status": {"closed" if status == CLOSED else str(status): n for status, n in sorted(statuses.items())},
    }
    last = httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=HANGS_S)
    if wrong or last.status_code != 200:
        pytest.fail("\n".join([*wrong, str(last)]), pytrace=False)
