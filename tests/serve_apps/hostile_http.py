"""Paths and queries that lead elsewhere, methods that a path does not take, bodies that arrive as none should."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.serve_apps.hostile_case import ASKING, INTENT, JSON, TAKEN, Case, got, raw, says

ABSENT = frozenset({404})
_HELLO = json.dumps(says(INTENT, "Where is my refund?")).encode()
_HASH = "0" * 64

# ---------------------------------------------------------------- paths

_CLIMBS = (
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "%252e%252e%252fetc%252fpasswd",
    "..\\..\\windows\\win.ini",
    "..%5c..%5cwin.ini",
    "....//....//etc/passwd",
    "..;/..;/etc/passwd",
    "%c0%ae%c0%ae/etc/passwd",
    "%ed%a0%80",
    "%ff%fe",
    "%00",
    "a%00.png",
    "%0d%0aset-cookie:%20a=b",
    "%e2%80%ae",
    "%",
    "%zz",
    "/etc/passwd",
    "//127.0.0.1/a",
    "file:///etc/passwd",
    "http://127.0.0.1/",
    "C:%5cwin.ini",
    "~root",
    "$HOME",
    ".",
    "..",
    ".env",
    ".git/config",
    "*",
    "%3cscript%3ealert(1)%3c/script%3e",
    "'%20or%201=1--",
    "x" * 30_000,
    "%f0%9f%98%80" * 5_000,
    _HASH,
    _HASH.replace("0", "A"),
    f"{_HASH}0",
    f"{_HASH}%0a",
    f"{_HASH}/",
    f"{_HASH}.png",
    "\uff10".encode().hex() * 10,
)


def paths(_: Any) -> Iterator[Case]:
    """Ways up, out and around, wherever a path takes a name."""
    for folder in ("/v1/images/", "/v1/models/", "/static/", "/v1/", "/"):
        for number, climb in enumerate(_CLIMBS):
            if folder in ("/", "/v1/") and climb in (".", "*"):
                continue
            yield got(f"{folder}{number}_{climb[:30]}", folder + climb, ABSENT)
    for name in ("../pages.py", "words.js/", "words.js%00", "WORDS.JS", "words.js.map", "__init__.py", "app.css;x"):
        yield got(f"static_{name}", f"/static/{name}", ABSENT)
    for path in (
        "//",
        "/;",
        "/.",
        "/v1",
        "/v1/intent/",
        "//v1/tasks",
        "/V1/tasks",
        "/v1//tasks",
        "/v1/tasks%20",
        "/v1/./tasks",
    ):
        yield got(f"near_{path}", path, frozenset({404, 307}))
    for path in (
        "/redoc",
        "/docs/oauth2-redirect",
        "/admin",
        "/debug",
        "/.well-known/x",
        "/api/jobs/",
        "/-/routes",
        "/console",
    ):
        yield got(f"guess_{path}", path, ABSENT)


_QUERIES = (
    "stream=true",
    "k=99999999999999999999",
    "k=" + "9" * 5_000,
    "&" * 50_000,
    "a=1&" * 10_000,
    "%00=%00",
    "%ff=%fe",
    "a[]=1&a[b]=2",
    "__proto__[x]=1",
    "q=%0d%0ax:y",
    "url=http://169.254.169.254/",
    "file=../../etc/passwd",
    "callback=alert",
    ";a=b;c",
    "?" * 1_000,
    "a" * 60_000,
)


def queries(_: Any) -> Iterator[Case]:
    """Queries, which no path reads."""
    for number, query in enumerate(_QUERIES):
        yield raw(f"post_{number}", _HELLO, TAKEN, f"{INTENT}?{query}")
        yield got(f"get_{number}", f"{('/v1/tasks', '/v1/models', '/', '/healthz')[number % 4]}?{query}", TAKEN)


# ---------------------------------------------------------------- methods and bodies

_METHODS = (
    "PUT",
    "PATCH",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PROPFIND",
    "DEBUG",
    "get",
    "X" * 5_000,
    "A B",
    "",
)


def methods(_: Any) -> Iterator[Case]:
    """Methods that a path does not take."""
    for path in (INTENT, ASKING[3], "/v1/tasks", "/v1/models/mmd/tiny", "/", "/static/words.js"):
        for method in _METHODS:
            yield Case(f"{method[:10]}_{path}", path, (b"{}",), frozenset({405}), method)
    for path in ASKING:
        yield got(f"GET_{path}", path, frozenset({405}))
        told = ((b"x-http-method-override", b"POST"), (b"x-method-override", b"POST"))
        yield got(f"override_{path}", path, frozenset({405}), headers=told, pieces=(_HELLO,))


def bodies(_: Any) -> Iterator[Case]:
    """Bodies in pieces: very many, empty, late, lost, more than announced."""
    one = tuple(_HELLO[i : i + 1] for i in range(len(_HELLO)))
    yield Case("byte_by_byte", pieces=one, statuses=TAKEN)
    yield Case("empty_pieces", pieces=(b"",) * 5_000 + (_HELLO,), statuses=TAKEN)
    yield Case("empty_pieces_only", pieces=(b"",) * 5_000)
    yield Case("none", pieces=())
    yield Case("too_much_in_pieces", pieces=(bytes(2**20),) * 40, statuses=frozenset({413}))
    yield Case("too_much_at_once", pieces=(bytes(40 * 2**20),), statuses=frozenset({413}))
    yield Case("more_than_is_drained", pieces=(bytes(2**20),) * 80, statuses=frozenset({413}))
    late = frozenset({408})
    for path in ASKING:
        yield Case(f"never_begins_{path}", path, ends=False, statuses=late, service="hurried")
        yield Case(f"never_ends_{path}", path, (_HELLO,), ends=False, statuses=late, service="hurried")
    too_much = (*JSON, (b"content-length", b"999999999999"))
    yield Case("announced_and_never_sent", ends=False, statuses=late, headers=too_much, service="hurried")
    yield Case("gone_at_once", leaves=True)
    yield Case("gone_halfway", pieces=(_HELLO[:9],), leaves=True)
    yield Case("gone_after_too_much", pieces=(bytes(17 * 2**20),), leaves=True, statuses=frozenset({413}))
    yield got("body_with_get", "/v1/tasks", TAKEN, pieces=(bytes(10 * 2**20),), headers=JSON)
    for method in ("GET", "DELETE", "OPTIONS", "TRACE"):
        yield Case(f"body_with_{method}", pieces=(_HELLO,), method=method, statuses=frozenset({405}))
