"""Headers that lie or never end, requests without their key, other sites' origins."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

from tests.serve_apps.hostile_case import EITHER, INTENT, JSON, REFUSED, TAKEN, Case, Header, got, raw, says

KEY = "mmd-" + "k" * 40
ORIGIN = b"https://shop.example"
NO_KEY = frozenset({401})
_HELLO = json.dumps(says(INTENT, "Where is my refund?")).encode()

# ---------------------------------------------------------------- headers


def headers(_: Any) -> Iterator[Case]:
    """Content types, encodings and lengths that lie; headers without end; hosts that are not ours."""
    for number, media in enumerate(_MEDIA):
        yield Case(
            f"media_{number}_{media[:30]!a}",
            pieces=(_HELLO,),
            headers=((b"content-type", media),),
            statuses=frozenset({415}),
        )
    for number, media in enumerate(_JSON_MEDIA):
        yield Case(
            f"json_{number}_{media[:30]!a}", pieces=(_HELLO,), headers=((b"content-type", media),), statuses=TAKEN
        )
    yield Case("no_media", pieces=(_HELLO,), headers=(), statuses=frozenset({415}))
    two = ((b"content-type", b"text/plain"), *JSON)
    yield Case("two_media", pieces=(_HELLO,), headers=two, statuses=frozenset({200, 415}))
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    inflated = b"".join(bomb.compress(bytes(2**20)) for _ in range(100)) + bomb.flush()  # 100 MiB in 0.1
    for coding, body in (
        ("gzip", inflated),
        ("gzip", gzip.compress(_HELLO)),
        ("br", b"\x0b"),
        ("deflate", zlib.compress(_HELLO)),
    ):
        told = (*JSON, (b"content-encoding", coding.encode()))
        yield Case(f"packed_{coding}_{len(body)}", pieces=(body,), headers=told)
    yield from _with("encoding", b"content-encoding", (b"gzip, gzip, gzip", b"identity", b"x" * 9_999), TAKEN)
    lengths = (
        b"0",
        b"1",
        b"-1",
        b"+5",
        b"0x10",
        b"1e9",
        b"5, 5",
        b"abc",
        b"",
        b"\xb2",
        b"\xb9\xb2",
        b"1" * 9,
        b"9" * 5_000,
    )
    yield from _with("length", b"content-length", lengths, frozenset({200, 400, 413}))
    yield from _with(
        "transfer",
        b"transfer-encoding",
        (b"chunked", b"chunked, chunked", b"gzip, chunked", b"\x0bchunked", b"x"),
        TAKEN,
    )
    yield from _with("host", b"host", _HOSTS, TAKEN)
    ids = (b"", b"x" * 65, b"a\r\nb: c", b"<script>", b"..", b"\xff", b"a b", b"x" * 60_000, b"'; --", b"${x}")
    yield from _with("id", b"x-request-id", ids, TAKEN)
    yield from _with(
        "forwarded", b"x-forwarded-for", (b"127.0.0.1", b"::1", b"x" * 60_000, b"127.0.0.1, " * 999), TAKEN
    )
    for name in (
        b"x-forwarded-prefix",
        b"x-original-url",
        b"x-rewrite-url",
        b"x-forwarded-proto",
        b"forwarded",
        b"x-http-method-override",
    ):
        yield from _with(name.decode(), name, (b"/metrics", b"javascript:"), TAKEN)
    yield from _with("range", b"range", (b"bytes=0-", b"bytes=" + b"0-," * 9_999, b"bytes=9-1"), TAKEN)
    yield from _with(
        "accept", b"accept", (b"text/html", b"*/*;q=" + b"9" * 9_999, b"text/event-stream", b"\xff"), TAKEN
    )
    yield from _with("expect", b"expect", (b"100-continue", b"200-ok"), TAKEN)
    yield from _with("upgrade", b"upgrade", (b"websocket", b"h2c", b"TLS/1.0"), TAKEN)
    yield from _with("cookie", b"cookie", (b"session=admin", b"a=" + b"x" * 60_000), TAKEN)
    yield from _with("etag", b"if-none-match", (b"*", b'"' + b"x" * 60_000), TAKEN)
    yield from _with("trace", b"traceparent", (b"00-0-0-0", b"\xff" * 99), TAKEN)
    flood = tuple((b"x-%d" % number, b"y" * 100) for number in range(10_000))
    yield Case("flood", pieces=(_HELLO,), headers=(*JSON, *flood), statuses=TAKEN)
    yield Case("one_name_often", pieces=(_HELLO,), headers=(*JSON, *[(b"x", b"y")] * 10_000), statuses=TAKEN)
    yield Case(
        "odd_names",
        pieces=(_HELLO,),
        headers=(*JSON, (b"", b""), (b"\xff\x00", b"\x00"), (b"a b", b"\r\n")),
        statuses=TAKEN,
    )
    for path in ("/static/words.js", "/", "/v1/tasks"):
        for etag in (b"*", b'"x"', b"W/", b"\xff" * 999):
            yield got(f"etag_{path}_{etag[:3]!a}", path, TAKEN, headers=((b"if-none-match", etag),))


_MEDIA = (
    b"",
    b";",
    b"json",
    b"text/plain",
    b"text/json",
    b"application/jsonp",
    b"application/json5",
    b"application/json, text/plain",
    b"application/json text/plain",
    b"application/json\x00",
    b"application/problem+json",
    b"application/x-www-form-urlencoded",
    b"application/x-ndjson",
    b"application/xml",
    b"application/octet-stream",
    b"application/x-python-pickle",
    b"multipart/form-data",
    b"multipart/form-data; boundary=" + b"x" * 60_000,
    b"text/plain; application/json",
    b"image/png",
    b"\xff\xfe",
    b"x" * 60_000,
)
_JSON_MEDIA = (
    b"application/json; charset=utf-7",
    b"application/json; charset=\xff",
    b"application/json; charset=" + b"x" * 60_000,
    b"application/json;;;;",
    b" APPLICATION/JSON ",
    b"application/json; boundary=x",
)
_HOSTS = (
    b"",
    b"evil.example",
    b"127.0.0.1:99999",
    b"[::1",
    b"a b",
    b"a@b",
    b"x" * 60_000,
    b"\xff",
    b"evil.example\r\nx: y",
    b"../..",
    b"localhost/admin",
)


def _with(kind: str, name: bytes, values: tuple[bytes, ...], statuses: frozenset[int]) -> Iterator[Case]:
    """Ask a sound question with a header of these values."""
    for number, value in enumerate(values):
        told: tuple[Header, ...] = (*JSON, (name, value))
        yield Case(f"{kind}_{number}_{value[:20]!a}", pieces=(_HELLO,), headers=told, statuses=statuses)


# ---------------------------------------------------------------- keys and origins


def keys(_: Any) -> Iterator[Case]:
    """Requests without the key, however they say that they had it, and paths that look as if they needed none."""
    key = KEY.encode()
    values = (
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer  \t ",
        key,
        b"Basic " + key,
        b"Token " + key,
        b"Bearer" + key,
        b"Bearer\t" + key,
        b"Bearer " + key[:-1],
        b"Bearer " + key + b"x",
        b"Bearer " + key.upper(),
        b"Bearer " + key + b", Bearer x",
        b"Bearer " + key + b"\x00",
        b'Bearer "' + key + b'"',
        b"Bearer Bearer " + key,
        b"Bearer *",
        b"Bearer null",
        b"Bearer " + b"0" * 64,
        b"Bearer \xff\xfe",
        b"Bearer " + b"x" * 1_000_000,
        b"Bearer ' OR 1=1 --",
    )
    for number, value in enumerate(values):
        told = (*JSON, (b"authorization", value))
        yield Case(f"value_{number}", pieces=(_HELLO,), headers=told, statuses=NO_KEY, service="keyed")
    wrong = ((b"authorization", b"Bearer x"), (b"authorization", b"Bearer " + key))
    yield Case("second_is_right", pieces=(_HELLO,), headers=(*JSON, *wrong), statuses=NO_KEY, service="keyed")
    many = ((b"authorization", b"Bearer x"),) * 5_000
    yield Case("many", pieces=(_HELLO,), headers=(*JSON, *many), statuses=NO_KEY, service="keyed")
    for name in (b"x-api-key", b"api-key", b"proxy-authorization", b"cookie", b"x-forwarded-user", b"authorization "):
        told = (*JSON, (name, b"Bearer " + key))
        yield Case(f"in_{name.decode()}", pieces=(_HELLO,), headers=told, statuses=NO_KEY, service="keyed")
    yield raw("in_query", _HELLO, NO_KEY, f"{INTENT}?api_key={KEY}&authorization=Bearer%20{KEY}", service="keyed")
    yield Case("before_the_body", pieces=(), ends=False, statuses=NO_KEY, service="keyed")
    around = (
        "/static/../v1/tasks",
        "/static/%2e%2e/v1/tasks",
        "/static/..%2fv1%2ftasks",
        "/static//v1/tasks",
        "/v1/images/../tasks",
        "/v1/images/%2e%2e/tasks",
        "/healthz/../v1/tasks",
        "/healthz/",
        "/docs/../v1/tasks",
        "/docs;/v1/tasks",
        "//v1/tasks",
        "/v1//tasks",
        "/V1/TASKS",
        "/v1/tasks/",
        "/v1/tasks;x",
        "/v1/tasks%00",
        "/v1/tasks%20",
        "/v1/tasks?/static/",
        "/metrics?/healthz",
        "/openapi.json/",
        "/%76%31/tasks",
        "/v1/tasks%23/healthz",
        "http://x/healthz/v1/tasks",
    )
    for path in around:
        yield got(f"around_{path}", path, frozenset({401, 404}), service="keyed")
    for name in (b"x-original-url", b"x-rewrite-url", b"x-forwarded-prefix"):
        yield got(f"{name.decode()}", "/v1/tasks", NO_KEY, service="keyed", headers=((name, b"/healthz"),))


_ORIGINS = (
    b"null",
    b"",
    b"*",
    b"https://evil.example",
    b"http://shop.example",
    b"https://shop.example.evil.example",
    b"https://evil-shop.example",
    b"https://evil.example/https://shop.example",
    b"https://shop.example@evil.example",
    b"https://a.shop.example",
    b"https://shop.example:8443",
    b"https://shop.example/",
    b"https://shop.example.",
    b"HTTPS://SHOP.EXAMPLE",
    b"https://shop.example, https://evil.example",
    b"https://shop.example\x00",
    b"https://shop.example%60.evil.example",
    b"file://",
    b"x" * 60_000,
    b"\xff",
)


def origins(_: Any) -> Iterator[Case]:
    """Other sites, before and while they ask, where one is let in and where none is."""
    for number, origin in enumerate(_ORIGINS):
        told = (*JSON, (b"origin", origin))
        yield Case(f"asks_{number}", pieces=(_HELLO,), headers=told, statuses=TAKEN, service="cors")
        yield Case(f"asks_closed_{number}", pieces=(_HELLO,), headers=told, statuses=TAKEN)
        before = ((b"origin", origin), (b"access-control-request-method", b"POST"))
        # The refusal of a preflight is for the browser, which shows it to nobody.
        yield got(f"before_{number}", INTENT, REFUSED, method="OPTIONS", headers=before, service="cors", shaped=False)
        yield got(f"before_closed_{number}", INTENT, frozenset({405}), method="OPTIONS", headers=before)
    for name, value in (
        (b"method", b"DELETE"),
        (b"method", b"x" * 9_999),
        (b"method", b"\xff"),
        (b"private-network", b"true"),
    ):
        before = (
            (b"origin", ORIGIN),
            (b"access-control-request-method", b"POST"),
            (b"access-control-request-" + name, value),
        )
        if name == b"method":
            before = (before[0], before[2])
        case = got(
            f"wants_{name.decode()}_{value[:9]!a}",
            INTENT,
            EITHER,
            method="OPTIONS",
            headers=before,
            service="cors",
            shaped=False,
        )
        yield case
    simple = ((b"origin", ORIGIN), (b"content-type", b"text/plain"))
    yield Case("simple_request", pieces=(_HELLO,), headers=simple, statuses=frozenset({415}), service="cors")
