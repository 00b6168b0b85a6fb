"""Whatever is sent: a clear answer in time, nothing read, nobody called, little memory.

The cases are made in ``hostile.py``; one test a family, which lists every case that went wrong.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil
import pytest
from starlette.types import ASGIApp, Message

from mmd.config import ServeSettings
from serve_apps.http import create_app
from serve_apps.keys import hash_key
from tests.serve_apps.hostile import FAMILIES
from tests.serve_apps.hostile_case import CHAT, RECOMMEND, Case, Service, says, sent
from tests.serve_apps.hostile_headers import KEY, ORIGIN

LONGEST_S = 5.0
MOST_BYTES = 300 * 2**20
MOST_TOLD = 2_000  # bytes of a refusal: what came is not sent back
LEAST_CASES = 300
ROOT = Path(__file__).resolve().parents[2]
INSIDE = ("Traceback", 'File "', str(ROOT), sys.prefix, sysconfig.get_path("stdlib"), tempfile.gettempdir() + "/pytest")
ADDRESS = re.compile(r"\b0x[0-9a-f]{8,}")


# ---------------------------------------------------------------- what a request does to the machine


@dataclass
class Watch:
    """What Python reports of files opened, addresses called and programs started while it looks (PEP 578)."""

    store: Path
    looking: bool = False
    seen: list[str] = field(default_factory=list)

    _CALLS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
    _PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an event; an audit hook stays for good, so that it must cost nothing while it does not look."""
        if not self.looking:
            return
        if event in self._CALLS or event in self._PROGRAMS or (event == "open" and not self._fine(args[0])):
            self.seen.append(f"{event} {args[:2]!a}"[:200])

    def _fine(self, path: Any) -> bool:
        """Say whether a file is one of Python's own modules, which are imported late, or belongs to the store."""
        if not isinstance(path, str):
            return False
        return path.startswith(str(self.store)) or path.endswith((".py", ".pyc", ".so"))

    @contextmanager
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
def watch(full_store: Path) -> Watch:
    watch = Watch(full_store)
    sys.addaudithook(watch)
    return watch


class Peak:
    """The most memory that this process has held since it was last asked to forget."""

    def __init__(self) -> None:
        self._start = psutil.Process().memory_info().rss
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
    elapsed_s: float = 0.0

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
        if not case.ends:
            await done.wait()
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], tuple(message["headers"])
            return
        answer.body += message.get("body", b"")
        if not message.get("more_body", False):
            done.set()

    started = time.perf_counter()
    async with asyncio.timeout(10 * LONGEST_S):
        await app(scope, receive, send)
    answer.elapsed_s = time.perf_counter() - started
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
    if answer.elapsed_s > LONGEST_S:
        yield f"{answer.elapsed_s:.1f} s"
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


@pytest.fixture(scope="module")
def peak() -> list[Peak]:
    """Holds the peak of the whole corpus once the first family has begun."""
    return []


@pytest.fixture
def services(full_backend: Any, tmp_path: Path) -> Mapping[Service, ASGIApp]:
    """The application as it is deployed, four ways."""
    file = tmp_path / "keys"
    file.write_text(f"{hash_key(KEY)} shop\n", encoding="ascii")
    settings: dict[Service, ServeSettings] = {
        "open": ServeSettings(),
        "keyed": ServeSettings(api_keys_file=str(file), rate_limit_burst=10_000),
        "cors": ServeSettings(cors_origins=(ORIGIN.decode(),)),
        "hurried": ServeSettings(request_timeout_s=0.1),
    }
    return {name: create_app(full_backend, given) for name, given in settings.items()}


def test_the_corpus_is_large_and_no_case_is_twice(full_backend: Any):
    document = create_app(full_backend, ServeSettings()).openapi()
    names = {family: Counter(case.name for case in make(document)) for family, make in FAMILIES.items()}
    assert [(family, name) for family, counts in names.items() for name, n in counts.items() if n > 1] == []
    assert sum(map(len, names.values())) >= LEAST_CASES


@pytest.mark.parametrize("family", FAMILIES)
def test_what_means_harm_is_answered_or_refused_and_does_none(
    services: Mapping[Service, ASGIApp], watch: Watch, peak: list[Peak], family: str
):
    document = services["open"].openapi()
    wrong: list[str] = []

    async def ask_all() -> None:
        for usual in USUAL:  # what is imported and allocated once is no case's
            assert (await exchange(services["open"], usual)).status == 200
        peak.extend([] if peak else [Peak()])
        for case in FAMILIES[family](document):
            with watch.look():
                answer = await exchange(services[case.service], case)
            found = [*faults(case, answer), *watch.take()]
            if peak[0].growth() > MOST_BYTES:
                found.append(f"{peak[0].growth() / 2**20:.0f} MiB")
                peak[0] = Peak()
            if found:
                wrong.append(f"{case.name}: {'; '.join(found)} | {answer.status} {answer.body[:200]!a}")

    asyncio.run(ask_all())
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


USUAL = tuple(
    sent(
        "usual", says(path, "Where is my refund?", **({"stream": True} if path in (CHAT, RECOMMEND) else {})), path=path
    )
    for path in ("/v1/intent", "/v1/retrieve", RECOMMEND, CHAT)
)
