"""API keys: hashed, taken back by deleting a line, limited by key; other sites' pages; closed by default."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mmd.config import ServeSettings
from mmd.errors import ConfigError
from serve_apps import keys, keys_cli
from serve_apps.guard import SECURITY_HEADERS
from serve_apps.http import create_app
from serve_apps.keys import Buckets, KeyRing, hash_key, read_keys
from serve_apps.keys_cli import add_key

BODY = {"messages": [{"role": "user", "content": "Where is my refund?"}]}


@pytest.fixture
def keyed(tmp_path: Path, backend: Any) -> Callable[..., tuple[TestClient, str]]:
    def make(**fields: Any) -> tuple[TestClient, str]:
        """Return a client of a service with keys, and a key."""
        key = add_key(tmp_path / "keys.txt", "shop")
        settings = ServeSettings(api_keys_file=str(tmp_path / "keys.txt"), **fields)
        return TestClient(create_app(backend, settings), raise_server_exceptions=False), key

    return make


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---------------------------------------------------------------- at the door


def test_only_who_has_a_key_is_answered(keyed: Callable[..., tuple[TestClient, str]]):
    client, key = keyed()
    assert client.post("/v1/chat/completions", json=BODY, headers=bearer(key)).status_code == 200
    for headers in ({}, bearer("mmd-wrong"), bearer(hash_key(key)), bearer(""), {"Authorization": f"Basic {key}"}):
        refused = client.post("/v1/chat/completions", json=BODY, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert refused.json()["error"]["type"] == "authentication_error"
        assert {name.lower() for name in SECURITY_HEADERS} <= set(refused.headers)
        assert refused.headers["x-request-id"]
        assert key not in refused.text


def test_whatever_is_not_public_needs_a_key(keyed: Callable[..., tuple[TestClient, str]]):
    """By the application's own routes, so that a new one is closed."""
    client, _ = keyed()
    for path in ("/metrics", "/v1/models", "/v1/models/mmd/tiny", "/v1/tasks", "/v1/examples", "/nowhere"):
        assert client.get(path).status_code == 401, path
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):
        assert client.get(path).status_code == 200, path
    assert client.get("/v1/images/" + "0" * 64).status_code in (404, 503)
    for path in client.get("/openapi.json").json()["paths"]:
        closed = client.request("POST", path, json={}).status_code == 401
        assert closed == (path not in keys.PUBLIC and not path.startswith(keys.PUBLIC_FOLDERS)), path


def test_a_body_is_not_read_before_the_key_is_known(keyed: Callable[..., tuple[TestClient, str]]):
    client, key = keyed(max_body_mb=0.001)
    large = {"messages": [{"role": "user", "content": "x" * 5_000}]}
    assert client.post("/v1/chat/completions", json=large).status_code == 401
    assert client.post("/v1/chat/completions", json=large, headers=bearer(key)).status_code == 413


def test_a_key_that_asks_too_often_is_told_when_to_come_back(keyed: Callable[..., tuple[TestClient, str]]):
    client, key = keyed(rate_limit_per_minute=1, rate_limit_burst=2)
    statuses = [client.get("/v1/models", headers=bearer(key)) for _ in range(3)]
    assert [response.status_code for response in statuses] == [200, 200, 429]
    assert 1 <= int(statuses[2].headers["retry-after"]) <= 60
    assert client.get("/healthz").status_code == 200


def test_pictures_without_a_key_have_one_bucket_for_all_and_no_part_in_that_of_a_key(
    keyed: Callable[..., tuple[TestClient, str]],
):
    client, key = keyed(rate_limit_per_minute=1, rate_limit_burst=2)
    asked = [client.get(f"/v1/images/{name * 64}").status_code for name in "012"]
    assert asked[2] == 429
    assert 429 not in asked[:2]
    assert client.get("/v1/models", headers=bearer(key)).status_code == 200
    assert [client.get("/readyz").status_code for _ in range(4)] == [200] * 4


def test_a_bucket_refills_evenly_and_no_further_than_its_size():
    """6 a minute: one in 10 s."""
    now = [0.0]
    buckets = Buckets(6, 2, clock=lambda: now[0])
    assert [buckets.take("a"), buckets.take("a")] == [0, 0]
    assert buckets.take("a") == pytest.approx(10)
    assert buckets.take("b") == 0  # another key's bucket is its own
    now[0] = 4.0
    assert buckets.take("a") == pytest.approx(6)
    now[0] = 10.0
    assert buckets.take("a") == 0
    now[0] = 1_000.0
    assert [buckets.take("a"), buckets.take("a"), buckets.take("a") > 0] == [0, 0, True]


# ---------------------------------------------------------------- the file


def test_the_file_has_no_key_and_is_its_owners(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "keys.txt"
    assert keys_cli.main(["new", "shop", "--file", str(path)]) == 0
    key = capsys.readouterr().out.strip()
    assert len(key) == len("mmd-") + 43  # 32 bytes in base64
    assert key not in path.read_text()
    assert path.read_text() == f"{hash_key(key)} shop\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys_cli.main(["new", "desk", "--file", str(path)]) == 0
    assert list(read_keys(path).values()) == ["shop", "desk"]
    assert keys_cli.main(["new", "shop", "--file", str(path)]) == 2
    assert "already" in capsys.readouterr().err
    assert keys_cli.main(["new", "a b", "--file", str(path)]) == 2


def test_a_key_is_added_behind_a_last_line_without_an_end(tmp_path: Path):
    path = tmp_path / "keys"
    add_key(path, "one")
    path.write_text(path.read_text().rstrip("\n"))
    add_key(path, "two")
    assert sorted(read_keys(path).values()) == ["one", "two"]


def test_keys_come_and_go_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keys, "_LOOK_S", 0.0)
    path = tmp_path / "keys.txt"
    first = add_key(path, "first")
    ring = KeyRing(path)
    second = add_key(path, "second")
    assert [ring.name_of(first), ring.name_of(second), ring.name_of("x")] == ["first", "second", None]
    path.write_text(f"# first is taken back\n\n{hash_key(second)} second\n")
    assert [ring.name_of(first), ring.name_of(second)] == [None, "second"]
    path.write_text("half a li")
    assert ring.name_of(second) == "second"  # what cannot be read changes nothing


@pytest.mark.parametrize("line", ["mmd-secret shop", "0" * 64, "0" * 63 + " shop", "0" * 64 + " a b"])
def test_a_line_that_is_no_hash_is_refused_without_telling_it(tmp_path: Path, line: str):
    path = tmp_path / "keys.txt"
    path.write_text(f"{'0' * 64} ok\n{line}\n")
    with pytest.raises(ConfigError, match="line 2") as refused:
        read_keys(path)
    assert line not in str(refused.value)


def test_a_missing_file_is_refused_at_the_start(tmp_path: Path, backend: Any):
    with pytest.raises(ConfigError, match="mmd keys new"):
        create_app(backend, ServeSettings(api_keys_file=str(tmp_path / "none.txt"))).build_middleware_stack()


# ---------------------------------------------------------------- other sites


def test_pages_of_named_sites_may_ask_and_read_refusals(keyed: Callable[..., tuple[TestClient, str]]):
    client, key = keyed(cors_origins=("https://shop.example",))
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for origin, allowed in (("https://shop.example", True), ("https://other.example", False)):
        preflight = client.options("/v1/chat/completions", headers={"Origin": origin, **asks})
        assert (preflight.headers.get("access-control-allow-origin") == origin) == allowed
        answered = client.post("/v1/chat/completions", json=BODY, headers={"Origin": origin, **bearer(key)})
        refused = client.post("/v1/chat/completions", json=BODY, headers={"Origin": origin})
        assert (answered.status_code, refused.status_code) == (200, 401)
        for response in (answered, refused):
            assert ("access-control-allow-origin" in response.headers) == allowed
            assert "access-control-allow-credentials" not in response.headers
