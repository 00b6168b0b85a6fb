"""Pictures from the web: nothing is asked that the operator does not trust, and nothing private whatever is trusted."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import io
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import PIL.Image
import pytest

from mmd.config import ServeSettings
from serve_apps import remote
from serve_apps.api import ApiError, IntentRequest
from serve_apps.limits import fetches, read_intent_query

HOST = "pictures.example.com"
TRUSTING = ServeSettings(image_hosts=(HOST,), image_fetch_s=0.5, max_image_mb=0.1)


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 12), "teal").save(buffer, "png")
    return buffer.getvalue()


class Pages(http.server.BaseHTTPRequestHandler):
    """A host on the web."""

    def do_GET(self) -> None:
        if "creeps" in self.path:
            self._creep()
            return
        kind = "text/html; charset=utf-8" if "page" in self.path else "image/png"
        body = b"x" * 200_000 if "large" in self.path else png()
        self.send_response(302 if "moved" in self.path else 404 if "gone" in self.path else 200)
        if "moved" in self.path:
            self.send_header("Location", "http://169.254.169.254/secret")
        self.send_header("Content-Type", kind)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the reader has seen enough
            for byte in body if "slow" in self.path else ():
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.02)
            self.wfile.write(body)

    def _creep(self) -> None:
        """Send a head that never ends, a piece well within every limit."""
        with contextlib.suppress(OSError):  # until the reader has had enough
            for piece in itertools.chain([b"HTTP/1.0 200 OK\r\nX-Long: "], itertools.repeat(b"a", 1_500)):
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(0.02)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """The web is one server of this process; what connections were opened to, by host and address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    asked: list[tuple[str, str]] = []

    def open_connection(host: str, address: str, timeout_s: float) -> http.client.HTTPConnection:
        asked.append((host, address))
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=timeout_s)
        connection.connect()
        return connection

    monkeypatch.setattr(remote, "open_connection", open_connection)
    resolve_to(monkeypatch, "93.184.216.34")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    monkeypatch.setattr(remote, "addresses_of", lambda _: list(addresses))


def fetch(path: str, limits: ServeSettings = TRUSTING) -> bytes:
    return remote.fetch_picture(f"https://{HOST}{path}", "turns[0].images[0]", limits)


def test_a_picture_of_a_trusted_host_is_that_of_a_data_url(opened: list[tuple[str, str]], data_url: Callable[..., str]):
    def read(url: str) -> Any:
        request = IntentRequest.model_validate({"turns": [{"speaker": "user", "images": [url]}]})
        return read_intent_query(request, "1", TRUSTING)

    assert read(f"https://{HOST}/dress.png") == read(data_url())
    assert opened == [(HOST, "93.184.216.34")]


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/a.png",
        f"https://{HOST}:8443/a.png",
        f"https://{HOST}:99999/a.png",
        f"https://me:secret@{HOST}/a.png",
        f"https://{HOST}.evil.example/a.png",
        f"https://evil.example/{HOST}",
        f"https://evil.example#@{HOST}/",
        f"https://evil.example\\@{HOST}/",
        "https://127.0.0.1/a.png",
        "https://[::1]/a.png",
        "https://[::1/a.png",
        "https://2130706433/a.png",
        "https:///a.png",
        f"https://{HOST}/a b.png",
        f"https://{HOST}/é.png",
    ],
)
def test_what_is_not_trusted_is_not_asked(url: str, opened: list[tuple[str, str]]):
    with pytest.raises(ApiError, match="Send the picture itself as a data URL") as caught:
        remote.fetch_picture(url, "turns[0].images[0]", TRUSTING)
    assert (caught.value.status, caught.value.code) == (400, "remote_image")
    assert opened == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "0.0.0.0",  # noqa: S104 (nothing is bound)
        "::1",
        "fe80::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",  # NAT64 of 169.254.169.254
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "::127.0.0.1",
        "fec0::1",
        "224.0.0.1",
    ],
)
def test_a_trusted_name_with_a_private_address_is_not_asked(
    address: str, opened: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
):
    """Even where a public one stands beside it."""
    resolve_to(monkeypatch, "93.184.216.34", address)
    with pytest.raises(ApiError, match="is not on the public network"):
        fetch("/a.png")
    assert opened == []


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/moved.png", "HTTP 302, and redirects are not followed"),
        ("/gone.png", "HTTP 404"),
        ("/page.png", "no picture but text/html"),
        ("/slow.png", "did not come in time"),
    ],
)
def test_what_is_no_picture_is_refused(path: str, told: str, opened: list[tuple[str, str]]):
    with pytest.raises(ApiError, match=told) as caught:
        fetch(path)
    assert caught.value.code == "remote_image"
    assert len(opened) == 1


@pytest.mark.usefixtures("opened")
def test_too_many_bytes_are_not_read_to_their_end():
    with pytest.raises(ApiError, match=r"more than 0\.1 MiB") as caught:
        fetch("/large.png")
    assert caught.value.status == 413


def test_a_host_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch):
    resolve_to(monkeypatch, "93.184.216.34")

    def nobody(*_: Any) -> http.client.HTTPConnection:
        raise TimeoutError

    monkeypatch.setattr(remote, "open_connection", nobody)
    with pytest.raises(ApiError, match=f"{HOST} gave no picture \\(TimeoutError\\)"):
        fetch("/a.png")


def test_a_host_is_trusted_however_it_is_capitalised(opened: list[tuple[str, str]]):
    trusting = TRUSTING.model_copy(update={"image_hosts": (HOST.title(),)})
    assert fetch("/a.png", trusting) == remote.fetch_picture(f"HTTPS://{HOST.upper()}/a.png", "x", trusting) == png()
    assert len(opened) == 2


def test_nothing_is_fetched_by_default(opened: list[tuple[str, str]]):
    with pytest.raises(ApiError, match="pictures are not fetched from the network"):
        fetch("/a.png", ServeSettings())
    assert opened == []


@pytest.mark.usefixtures("opened")
def test_a_head_that_never_ends_is_not_waited_for():
    """Every piece comes in time, and the whole does not."""
    with pytest.raises(ApiError, match="did not come in time"):
        fetch("/creeps.png", TRUSTING.model_copy(update={"image_fetch_s": 0.3}))


@pytest.mark.parametrize(("url", "fetched"), [(f"https://{HOST}/a.png", True), ("data:image/png;base64,AA==", False)])
def test_who_waits_for_a_slow_host_keeps_no_decoder(url: str, fetched: bool):  # noqa: FBT001
    request = IntentRequest.model_validate({"turns": [{"speaker": "user", "images": [url]}]})
    assert fetches(request, TRUSTING) is fetched
    assert not fetches(request, ServeSettings())
