"""Bytes on a socket: heads that no HTTP library would send. What arrives is the server's word, or the application's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.serve_apps.hostile_case import CHAT, INTENT, says

_BODY = json.dumps(says(INTENT, "Where is my refund?")).encode()
_HEAD = b"host: x\r\ncontent-type: application/json\r\n"
_LENGTH = b"content-length: %d\r\n" % len(_BODY)
CLOSED = 0
"""Instead of a status: the server hangs up without a word."""


@dataclass(frozen=True)
class Wire:
    """What is sent to a server.

    Attributes:
        name: unique.
        sent: all of it; then the client listens, or goes away where ``leaves``.
        statuses: of the first answer, those that are right.
    """

    name: str
    sent: bytes = field(repr=False)
    statuses: frozenset[int] = frozenset({400, CLOSED})
    leaves: bool = False


def _post(name: str, headers: bytes, body: bytes, *statuses: int, path: str = INTENT) -> Wire:
    return Wire(name, b"POST %s HTTP/1.1\r\n" % path.encode() + _HEAD + headers + b"\r\n" + body, frozenset(statuses))


def _get(name: str, target: bytes, *statuses: int, headers: bytes = b"host: x\r\n") -> Wire:
    return Wire(name, b"GET " + target + b" HTTP/1.1\r\n" + headers + b"connection: close\r\n\r\n", frozenset(statuses))


def heads() -> Iterator[Wire]:
    """Request lines and headers."""
    yield Wire("nothing", b"", leaves=True)
    yield Wire("empty_lines", b"\r\n" * 10_000, frozenset({400, CLOSED}), leaves=True)
    yield Wire("noise", bytes(range(256)) * 100)
    yield Wire("nul", bytes(10_000))
    yield Wire("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))
    yield Wire("http_2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frozenset({400, 404, 405, CLOSED}))
    yield Wire("http_0_9", b"GET /\r\n\r\n", frozenset({200, 400, CLOSED}))
    yield Wire("http_9", b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", frozenset({200, 400, 505, CLOSED}))
    yield Wire("http_1_0", b"GET /healthz HTTP/1.0\r\n\r\n", frozenset({200}))
    yield Wire("no_version", b"GET /healthz HTTP\r\nhost: x\r\n\r\n")
    yield Wire("redis", b"*1\r\n$8\r\nFLUSHALL\r\n")
    yield Wire("mail", b"EHLO x\r\nMAIL FROM:<a@b>\r\n")
    yield Wire("odd_method", b"F\xff\x00 / HTTP/1.1\r\nhost: x\r\n\r\n")
    yield Wire("long_method", b"X" * 100_000 + b" / HTTP/1.1\r\n\r\n")
    yield _get("long_target", b"/" + b"x" * 300_000, 400, 404, 414, CLOSED)
    yield _get("whole_url", b"http://evil.example/healthz", 200, 400, 404)
    yield _get("star", b"*", 400, 404, CLOSED)
    yield _get("no_slash", b"healthz", 400, 404, CLOSED)
    yield _get("spaces", b"/a b c", 400, CLOSED)
    yield _get("bytes_beyond_ascii", b"/\xff\xfe\xe2\x80\xae", 400, 404, CLOSED)
    yield _get("bare_percent", b"/%%%zz%", 404)
    yield _get("nul_in_target", b"/a\x00b", 400, CLOSED)
    yield _get("fragment", b"/healthz#/v1/tasks", 200, 400, 404)
    yield Wire(
        "connect", b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: 127.0.0.1:22\r\n\r\n", frozenset({400, 404, 405, CLOSED})
    )
    yield Wire("trace", b"TRACE / HTTP/1.1\r\nhost: x\r\nx-secret: y\r\n\r\n", frozenset({400, 405}))
    yield _get("no_host", b"/healthz", 200, 400, headers=b"")
    yield _get("two_hosts", b"/healthz", 200, 400, headers=b"host: a\r\nhost: b\r\n")
    yield _get("nul_in_header", b"/healthz", 200, 400, CLOSED, headers=b"host: x\r\na: b\x00c\r\n")
    yield _get("no_name", b"/healthz", 400, CLOSED, headers=b"host: x\r\n: b\r\n")
    yield _get("no_colon", b"/healthz", 400, CLOSED, headers=b"host: x\r\nabc\r\n")
    yield _get("space_in_name", b"/healthz", 400, CLOSED, headers=b"host: x\r\na : b\r\n")
    yield _get("folded", b"/healthz", 200, 400, CLOSED, headers=b"host: x\r\na: b\r\n c\r\n")
    yield _get("carriage_return_alone", b"/healthz", 200, 400, CLOSED, headers=b"host: x\r\na: b\rc: d\r\n")
    yield _get("line_feeds_alone", b"/healthz", 200, 400, CLOSED, headers=b"host: x\na: b\n")
    yield _get("many_headers", b"/healthz", 200, 400, 431, CLOSED, headers=b"host: x\r\n" + b"a: b\r\n" * 20_000)
    yield _get(
        "long_header", b"/healthz", 200, 400, 431, CLOSED, headers=b"host: x\r\na: " + b"b" * 1_000_000 + b"\r\n"
    )
    yield _get("websocket", b"/v1/chat/completions", 400, 404, 405, 426, headers=_UPGRADE)
    yield _get("h2c", b"/healthz", 200, 400, headers=b"host: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n")


_UPGRADE = (
    b"host: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


def lengths() -> Iterator[Wire]:
    """Bodies whose length is told twice, wrongly, or not at all: what smuggles a request past a proxy."""
    hidden = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(_BODY), _BODY)
    yield _post("sound", _LENGTH, _BODY, 200)
    yield _post("chunked", b"transfer-encoding: chunked\r\n", chunked, 200)
    yield _post("both", _LENGTH + b"transfer-encoding: chunked\r\n", chunked, 200, 400, CLOSED)
    yield _post("two_lengths", _LENGTH + b"content-length: 5\r\n", _BODY, 400, CLOSED)
    yield _post("length_list", b"content-length: 5, 6\r\n", _BODY, 400, CLOSED)
    for value in (b"-1", b"+5", b"0x10", b"1e2", b"5 6", b"9" * 30, b"\xb2", b"", b"abc"):
        yield _post(f"length_{value!a}", b"content-length: " + value + b"\r\n", _BODY, 400, CLOSED)
    yield _post("shorter", b"content-length: 5\r\n", _BODY + hidden, 400)
    yield _post("longer", b"content-length: 5000\r\n", _BODY, 408)
    yield _post("much_longer", b"content-length: 999999999999\r\n", _BODY, 408)
    yield _post("no_length", b"", _BODY, 400)
    for coding in (b"chunked, chunked", b"identity", b"gzip", b"xchunked", b"chunked;q=1", b"\x0bchunked"):
        yield _post(f"coding_{coding!a}", b"transfer-encoding: " + coding + b"\r\n", chunked, 200, 400, 408, CLOSED)
    chunked_head = b"transfer-encoding: chunked\r\n"
    for name, body in {
        "no_number": b"x\r\nabc\r\n0\r\n\r\n",
        "negative": b"-1\r\nabc\r\n0\r\n\r\n",
        "huge": b"FFFFFFFFFFFFFFFFFF\r\nabc",
        "no_end": b"5\r\nabcde",
        "too_long": b"1\r\nabcde\r\n0\r\n\r\n",
        "extension": b"1;" + b"x" * 100_000 + b"\r\n{\r\n0\r\n\r\n",
        "trailer": b"1\r\n{\r\n0\r\nhost: y\r\ncontent-length: 9\r\n\r\n",
        "single_bytes": b"".join(b"1\r\n%c\r\n" % sign for sign in _BODY) + b"0\r\n\r\n",
    }.items():
        yield _post(f"chunk_{name}", chunked_head, body, 200, 400, 408, CLOSED)
    yield _post("expects", _LENGTH + b"expect: 100-continue\r\n", _BODY, 100, 200)
    yield _post("expects_oddly", _LENGTH + b"expect: 999-x\r\n", _BODY, 200, 400, 417)
    sound = b"POST %s HTTP/1.1\r\n" % INTENT.encode() + _HEAD + _LENGTH + b"\r\n" + _BODY
    yield Wire("pipelined", sound * 50, frozenset({200}))
    yield Wire("gone", sound[:-9], leaves=True)
    stream = json.dumps(says(CHAT, "hi", stream=True)).encode()
    head = b"POST %s HTTP/1.1\r\n" % CHAT.encode() + _HEAD + b"content-length: %d\r\n\r\n" % len(stream)
    yield Wire("gone_before_the_stream", head + stream, leaves=True)
