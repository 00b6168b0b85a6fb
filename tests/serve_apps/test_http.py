"""The HTTP application: answers, limits, errors in one shape, pages that load nothing from elsewhere."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest
from httpx import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from starlette.types import Message

from jobs.ingest import version_settings
from mmd.config import ServeSettings
from mmd.corpora.images import check_image
from mmd.corpora.registry import build_reader
from mmd.corpora.settings import DataSettings, LimitSettings, ShopSettings
from mmd.corpora.store import Corpus
from mmd.intent.engine import IntentEngine, IntentQuery
from mmd.schema import Dialogue
from serve_apps import http, limits
from serve_apps.api import ApiError, IntentResponse
from serve_apps.examples import data_url as data_url_of
from serve_apps.examples import pick_examples
from serve_apps.guard import Guard
from serve_apps.http import create_app, explain_validation, field_path

Turns = list[dict[str, Any]]
DataUrl = Callable[..., str]
LIMITS = ServeSettings(max_images=4)
STATIC = sorted((Path(http.__file__).parent / "static").iterdir())


def user(text: str = "", *images: str) -> dict[str, Any]:
    return {"speaker": "user", "text": text, "images": list(images)}


def ask(client: TestClient, turns: Turns, **fields: Any) -> Response:
    return client.post("/v1/intent", json={"turns": turns, **fields})


def error_of(response: Response, status: int) -> dict[str, Any]:
    """Check the one shape of errors and return what is inside."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    assert response.headers["x-request-id"]
    return dict(error)


def turns_of(dialogue: Dialogue, corpus: Corpus) -> Turns:
    images = {image.id: data_url_of(image) for image in corpus.images()}
    return [
        {"speaker": t.speaker, "text": t.text, "images": [images[i] for i in t.image_ids], "item_ids": t.item_ids}
        for t in dialogue.turns
    ]


# ---------------------------------------------------------------- answers


def test_a_fired_rule_is_told_in_words(client: TestClient):
    answer = IntentResponse.model_validate(ask(client, [user("Where is my refund?")]).json())
    (prediction,) = answer.predictions
    assert (prediction.task, prediction.label, prediction.arm) == ("dialogue_intent", "refund_status", "rules")
    rule = prediction.fired[0]
    assert "contains “refund”" in rule.words.en
    assert "refund" in rule.words.zh
    assert (rule.precision, rule.support) == (0.875, 8)  # 7 of 8
    assert answer.artifacts["rulebase"].startswith("rulebase/tiny@")
    assert set(answer.timings_ms) == {"decode", "pictures", "texts", "decide", "wait", "total"}


@pytest.mark.parametrize("task", ["dialogue_intent", "image_scene"])
def test_served_answers_equal_the_engines(
    client: TestClient, tiny_engine: IntentEngine, tiny_corpus: Corpus, task: str
):
    images = {image.id: image for image in tiny_corpus.images()}
    dialogues = [d for d in tiny_corpus.dialogues("test") if task in d.labels]
    assert dialogues
    for dialogue in dialogues:
        wanted = {i: images[i] for turn in dialogue.turns for i in turn.image_ids}
        (expected,) = tiny_engine.predict([IntentQuery(dialogue, task, wanted)])
        served = ask(client, turns_of(dialogue, tiny_corpus), task=task).json()["predictions"][0]
        assert served["label"] == expected.label
        assert served["confidence"] == pytest.approx(expected.confidence)
        assert [rule["id"] for rule in served["fired"]] == [rule.rule_id for rule in expected.fired]


def test_messages_and_turns_are_one_dialogue(client: TestClient, data_url: DataUrl):
    picture = data_url()
    turns = [user("It is broken", picture), {"speaker": "agent", "text": "Oh no."}, user("Can I have a refund?")]
    parts = [{"type": "text", "text": "It is broken"}, {"type": "image_url", "image_url": {"url": picture}}]
    messages = [
        {"role": "system", "content": "You help with refunds and coupons."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Oh no."},
        {"role": "user", "content": "Can I have a refund?"},
    ]
    by_turns = ask(client, turns).json()["predictions"]
    by_messages = client.post("/v1/intent", json={"messages": messages}).json()["predictions"]
    assert by_turns == by_messages


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp"])
def test_every_announced_format_is_read(client: TestClient, data_url: DataUrl, kind: str):
    answer = ask(client, [user("", data_url(kind))])
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["task"] == "image_scene"


def test_a_request_id_is_kept_when_it_is_harmless(client: TestClient):
    body = {"turns": [user("hi")]}
    named = client.post("/v1/intent", json=body, headers={"x-request-id": "abc-1"})
    assert named.json()["id"] == "abc-1"
    assert "x-request-id" not in named.headers  # whoever named it returns it; two would be one too many
    forged = client.post("/v1/intent", json=body, headers={"x-request-id": "a b<script>"})
    assert re.fullmatch(r"[0-9a-f]{32}", forged.json()["id"])
    assert forged.headers["x-request-id"] == forged.json()["id"]


def test_the_page_has_words_for_every_arm(client: TestClient):
    """Twice each: in English and in Chinese."""
    words, schema = client.get("/static/words.js").text, client.get("/openapi.json").json()
    told = schema["components"]["schemas"]["PredictionOut"]["properties"]["arm"]["description"]
    for arm in ("rules", "classifier", "vote", "prompt", "mllm", "default"):
        assert words.count(f"\n    {arm}: ") == 2
        assert arm in told


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("turns", "code"),
    [
        ([], "empty_dialogue"),
        ([user("  ")], "empty_dialogue"),
        ([{"speaker": "agent", "text": "How can I help?"}], "empty_dialogue"),
        ([user("hi")] * 21, "too_many_turns"),
        ([user("x" * 1_001)], "text_too_long"),
        ([user("hi") | {"item_ids": ["a"] * 31}], "too_many_item_ids"),
        ([user("hi") | {"item_ids": [""] * 16}, user("ho") | {"item_ids": [""] * 15}], "too_many_item_ids"),
        ([user("x" * 500) | {"item_ids": ["a" * 501]}], "text_too_long"),
        ([user("\ud800")], "invalid_unicode"),
        ([user("", "https://example.com/a.png")], "remote_image"),
        ([user("", "HTTP://example.com/a.png")], "remote_image"),
        ([user("", "file:///etc/passwd")], "not_a_data_url"),
        ([user("", "")], "not_a_data_url"),
        ([user("", "data:image/svg+xml;base64,AAAA")], "unsupported_media_type"),
        ([user("", "data:text/html;base64,AAAA")], "unsupported_media_type"),
        ([user("", "data:image/png,AAAA")], "not_base64"),
        ([user("", "data:image/png;base64,A A A A")], "not_base64"),
        ([user("", "data:image/png;base64,AAA")], "not_base64"),
        ([user("", "data:image/png;base64,")], "image_empty"),
        ([user("", "data:image/png;base64,AAAAAAAA")], "not_an_image"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(client: TestClient, turns: Turns, code: str):
    # json.dumps writes lone surrogates as escapes, which is how they get past HTTP
    response = client.post("/v1/intent", content=json.dumps({"turns": turns}), headers=JSON)
    assert error_of(response, 400)["code"] == code


JSON = {"content-type": "application/json"}


def test_an_error_names_the_field(client: TestClient, data_url: DataUrl):
    turns = [user("hi"), user("look", data_url(), "data:image/png;base64,####")]
    error = error_of(ask(client, turns), 400)
    assert error["param"] == "turns[1].images[1]"
    assert error["message"].startswith("turns[1].images[1]: not valid base64")


def test_too_many_pictures_are_refused_before_any_is_decoded(client: TestClient):
    assert error_of(ask(client, [user("", *["junk"] * 5)]), 400)["code"] == "too_many_images"


def test_a_truncated_picture_is_refused(client: TestClient):
    buffer = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 60).save(buffer, "png")
    half = base64.b64encode(buffer.getvalue()[: len(buffer.getvalue()) // 2]).decode()
    assert error_of(ask(client, [user("", f"data:image/png;base64,{half}")]), 400)["code"] == "image_truncated"


def test_a_bomb_is_refused_by_its_header(client: TestClient):
    """A PNG of 57 bytes that claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    error = error_of(ask(client, [user("", f"data:image/png;base64,{base64.b64encode(bomb).decode()}")]), 400)
    assert error["code"] == "image_bomb"
    assert "serve.max_image_megapixels" in error["message"]


def test_a_picture_over_its_limit_is_refused_by_its_length(client: TestClient):
    heavy = "A" * 480_000  # 360,000 bytes; the fixture takes 0.3 MiB
    assert error_of(ask(client, [user("", f"data:image/png;base64,{heavy}")]), 413)["code"] == "image_too_large"


def test_pictures_over_the_requests_pixels_are_refused_by_their_headers(
    client: TestClient, data_url: DataUrl, monkeypatch: pytest.MonkeyPatch
):
    """0.6 megapixels each where a request may have 1.0; a picture sent twice counts once."""
    wide, tall = data_url(size=(1_000, 600)), data_url(size=(600, 1_000))
    assert ask(client, [user("look", wide, wide), user("again", wide)]).status_code == 200
    monkeypatch.setattr(limits, "check_image", lambda *_: pytest.fail("decoded"))
    error = error_of(ask(client, [user("look", wide), user("and", tall)]), 400)
    assert (error["code"], error["param"]) == ("too_many_pixels", "turns[1].images[0]")
    assert "1.2 megapixels" in error["message"]


def test_each_distinct_picture_is_decoded_once(client: TestClient, data_url: DataUrl, monkeypatch: pytest.MonkeyPatch):
    decoded = []

    def counting(data: bytes, bounds: LimitSettings) -> tuple[str, int, int]:
        decoded.append(len(data))
        return check_image(data, bounds)

    monkeypatch.setattr(limits, "check_image", counting)
    small, large = data_url(), data_url(size=(40, 30))
    assert ask(client, [user("look", small, large), user("again", small, small)]).status_code == 200
    assert len(decoded) == 2


def test_health_is_answered_while_pictures_are_being_read(
    backend: Any, data_url: DataUrl, monkeypatch: pytest.MonkeyPatch
):
    """Reading waits for the health check, which an event loop busy reading could not answer."""
    reading, answered = threading.Event(), threading.Event()

    def held(*args: Any) -> IntentQuery:
        reading.set()
        assert answered.wait(30)
        return limits.read_intent_query(*args)

    monkeypatch.setattr(http, "read_intent_query", held)

    async def both() -> tuple[int, int]:
        transport = httpx.ASGITransport(create_app(backend, LIMITS))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = asyncio.create_task(client.post("/v1/intent", json={"turns": [user("look", data_url())]}))
            await asyncio.to_thread(reading.wait, 30)
            health = await client.get("/healthz")
            answered.set()
            return health.status_code, (await asked).status_code

    assert asyncio.run(both()) == (200, 200)


def test_pictures_that_take_too_long_to_read_are_504(backend: Any, data_url: DataUrl, monkeypatch: pytest.MonkeyPatch):
    over = threading.Event()
    monkeypatch.setattr(http, "read_intent_query", lambda *_: over.wait(30))
    hurried = LIMITS.model_copy(update={"request_timeout_s": 0.2})
    with TestClient(create_app(backend, hurried)) as client:
        assert error_of(ask(client, [user("look", data_url())]), 504)["code"] == "timeout"
    over.set()


def test_a_body_over_its_limit_is_refused_whether_announced_or_not(client: TestClient):
    heavy = json.dumps({"turns": [user("x" * 600_000)]}).encode()
    assert error_of(client.post("/v1/intent", content=heavy, headers=JSON), 413)["code"] == "body_too_large"
    pieces = (heavy[i : i + 50_000] for i in range(0, len(heavy), 50_000))  # chunked: no Content-Length
    assert error_of(client.post("/v1/intent", content=pieces, headers=JSON), 413)["code"] == "body_too_large"


def test_a_trickle_of_a_body_is_cut_off():
    """Pieces that each come soon enough, without end: the time is the whole body's."""

    async def trickle() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def never(*_: object) -> None:
        pytest.fail("the application was asked")

    async def exchange() -> list[Message]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        guard = Guard(never, max_body_bytes=10**6, body_timeout_s=0.2)
        scope = {"type": "http", "method": "POST", "path": "/v1/intent", "headers": []}
        await asyncio.wait_for(guard(scope, trickle, send), 30)
        return sent

    start, body = asyncio.run(exchange())
    assert start["status"] == 408
    assert json.loads(body["body"])["error"]["code"] == "body_timeout"


@pytest.mark.parametrize("media", ["text/plain", "multipart/form-data; boundary=x", ""])
def test_other_media_types_are_refused(client: TestClient, media: str):
    response = client.post("/v1/intent", content=b'{"turns": []}', headers={"content-type": media})
    assert error_of(response, 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"", "missing_field", None),
        (b"\xff\xfe", "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b"[]", "invalid_value", None),
        (b"{}", "invalid_value", None),
        (b'{"turns": [], "messages": []}', "invalid_value", None),
        (b'{"turns": [{"speaker": "bot", "text": "hi"}]}', "invalid_value", "turns[0].speaker"),
        (b'{"turns": [{"text": "hi"}]}', "missing_field", "turns[0].speaker"),
        (b'{"turns": [{"speaker": "user", "txt": "hi"}]}', "unknown_field", "turns[0].txt"),
        (b'{"turns": [{"speaker": "user", "text": 7}]}', "invalid_value", "turns[0].text"),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
            "missing_field",
            "messages[0].content[0].text",
        ),
    ],
)
def test_malformed_bodies_are_400_with_the_fields_path(client: TestClient, body: bytes, code: str, param: str | None):
    error = error_of(client.post("/v1/intent", content=body, headers=JSON), 400)
    assert (error["code"], error["param"]) == (code, param)


def test_an_unknown_task_is_refused_with_the_known_ones(client: TestClient):
    error = error_of(ask(client, [user("hi")], task="mood"), 400)
    assert error["code"] == "unknown_task"
    assert "dialogue_intent, image_scene" in error["message"]


def test_what_is_not_there_has_the_same_shape(client: TestClient):
    assert error_of(client.get("/v2"), 404)["code"] == "not_found"
    assert error_of(client.get("/static/../api.py"), 404)["code"] == "not_found"
    assert error_of(client.get("/static/secret.txt"), 404)["code"] == "not_found"
    assert error_of(client.get("/v1/intent"), 405)["code"] == "method_not_allowed"


def test_overload_says_when_to_come_back(client: TestClient, backend: Any):
    backend.failure = ApiError(429, "overloaded", "too many requests are waiting; try again in 1 s.", retry_after_s=1)
    response = ask(client, [user("hi")])
    assert error_of(response, 429)["type"] == "overloaded_error"
    assert response.headers["retry-after"] == "1"


def test_a_bug_is_a_500_without_its_traceback(client: TestClient, backend: Any, capfd: pytest.CaptureFixture[str]):
    backend.failure = ZeroDivisionError("secret detail")
    error = error_of(ask(client, [user("hi")]), 500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]
    out = "".join(capfd.readouterr())
    assert "ZeroDivisionError" in out
    assert "secret" not in out


def test_no_word_of_a_dialogue_reaches_the_log(client: TestClient, capfd: pytest.CaptureFixture[str]):
    ask(client, [user("my secret address is 5 Elm Street and I want a refund")])
    error_of(ask(client, [user("my secret address")] * 21), 400)
    error_of(client.post("/v1/intent", content=b'{"turns": "my secret address"}', headers=JSON), 400)
    out = "".join(capfd.readouterr())
    assert "http_request" in out
    assert "secret" not in out


# ---------------------------------------------------------------- security, pages, operation


@pytest.mark.parametrize("path", ["/", "/docs", "/static/try.js", "/healthz", "/nothing"])
def test_every_response_carries_the_security_headers(client: TestClient, path: str):
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_other_origins_get_no_permission(client: TestClient):
    preflight = client.options(
        "/v1/intent", headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
    )
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control-")]


PAGES = ("/", "/try", "/sweeps", "/docs")


@pytest.mark.parametrize("path", [*PAGES, *(f"/static/{p.name}" for p in STATIC if p.suffix != ".svg")])
def test_pages_name_no_other_host(client: TestClient, path: str):
    response = client.get(path)
    assert response.status_code == 200
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", response.text)


def test_the_page_and_its_words_agree(client: TestClient):
    """Both languages have the same words, and every word that page and script ask for is there."""
    english: set[str] = set()
    for name in ("words.js", "sweep_words.js"):
        words = client.get(f"/static/{name}").text
        own, chinese = (set(re.findall(r"^    (\w+):", part, re.MULTILINE)) for part in words.split("  zh: {"))
        assert own == chinese
        assert not own & english  # one page's words do not change another's
        english |= own
    files = [client.get(path).text for path in ("/", "/try", "/sweeps")]
    files += [path.read_text() for path in STATIC if path.suffix == ".js"]
    asked = {word for file in files for word in re.findall(r'(?:data-text="|\bsay\(\s*")(\w+)"', file)}
    assert asked <= english


def test_unchanged_files_are_not_sent_again(client: TestClient):
    etag = client.get("/static/app.css").headers["etag"]
    assert client.get("/static/app.css", headers={"if-none-match": etag}).status_code == 304


def test_examples_come_from_training_dialogues_of_the_shop(client: TestClient, tiny_corpus: Corpus):
    examples = client.get("/v1/examples").json()["examples"]
    training = {dialogue.id for dialogue in tiny_corpus.dialogues("train")}
    assert len(examples) >= 4
    assert {example["id"] for example in examples} <= training
    assert all(any(turn["images"] for turn in example["turns"]) for example in examples)
    again = ask(client, examples[0]["turns"])
    assert again.status_code == 200


def test_a_shop_over_somebodys_catalogue_is_not_shown_unless_switched_on(tiny_corpus: Corpus, tmp_path: Path):
    """The manifest tells the catalogue by the fingerprint of its files, whatever the dialogues' source is called."""
    table = tmp_path / "products.csv"
    table.write_text("id,category\na1,Mugs\n", encoding="utf-8")
    shop = DataSettings(shop=ShopSettings(catalogue_csv=str(table)))
    for data, shown in [(DataSettings(), True), (shop, False)]:
        told = version_settings(data, build_reader(DataSettings(), 0))
        artifact = tiny_corpus.artifact
        corpus = Corpus(replace(artifact, manifest=artifact.manifest.model_copy(update={"settings": told})))
        assert corpus.simulated is shown
        assert bool(pick_examples(corpus, "auto")) is shown
        assert pick_examples(corpus, "on")


def test_tasks_tell_labels_and_shapes(client: TestClient, tiny_corpus: Corpus):
    tasks = {task["name"]: task for task in client.get("/v1/tasks").json()["tasks"]}
    assert tuple(tasks["image_scene"]["labels"]) == tiny_corpus.tasks["image_scene"]
    assert tasks["image_scene"]["takes"] == ["picture"]


def test_health_and_readiness(client: TestClient):
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["answers"] == ["intent"]
    assert ready["degraded"] == [
        "retrieval: index/tiny: there is none; run `mmd build_index`.",
        "recommendation: student/tiny: there is none; run `mmd distill`.",
    ]
    assert set(ready["artifacts"]) == {"corpus", "features", "rulebase", "classifier", "gate"}


def test_the_openapi_document_tells_errors_as_they_are(client: TestClient):
    document = client.get("/openapi.json").json()
    asked = {"/v1/intent", "/v1/retrieve", "/v1/recommend", "/v1/chat/completions"}
    told = {"/v1/images/{image_id}", "/v1/tasks", "/v1/examples", "/v1/models", "/v1/models/{model}"}
    assert set(document["paths"]) == asked | told | {"/healthz", "/readyz", "/metrics"}
    for path in asked:
        responses = document["paths"][path]["post"]["responses"]
        assert "422" not in responses
        assert {"400", "413", "415", "429", "504"} <= set(responses)
    assert document["components"]["schemas"]["ErrorDetail"]["required"] == ["message", "type", "param", "code"]


# ---------------------------------------------------------------- anything at all

_KEYS = st.sampled_from(["turns", "messages", "speaker", "text", "images", "role", "content"])
_JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(value=_JSON_VALUES)
def test_any_json_gets_an_answer_or_a_clear_refusal(client: TestClient, value: object):
    response = client.post("/v1/intent", content=json.dumps(value), headers=JSON)
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        error_of(response, 400)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    text=st.text(max_size=60),
    url=st.text(max_size=60)
    | st.binary(max_size=60).map(lambda data: "data:image/png;base64," + base64.b64encode(data).decode()),
)
def test_any_text_and_any_address_get_an_answer_or_a_clear_refusal(client: TestClient, text: str, url: str):
    response = ask(client, [user(text, url)])
    assert response.status_code == 400
    error_of(response, 400)


def test_field_paths_leave_out_the_names_of_union_members():
    union = "tuple[union[TextPart,ImagePart],...]"
    assert field_path(("turns", 0, "text")) == "turns[0].text"
    by_part = field_path(("messages", 2, "content", union, 1, "image_url", "image_url", "url"))
    assert by_part == "messages[2].content[1].image_url.url"
    assert field_path(("messages", 0, "content", "str")) == "messages[0].content"


def test_the_most_specific_complaint_is_told():
    at = ("body", "messages", 0, "content")
    errors = [
        {"type": "string_type", "loc": (*at, "str"), "msg": "Input should be a valid string"},
        {"type": "missing", "loc": (*at, "tuple[x]", 0, "text", "text"), "msg": "Field required"},
    ]
    error = explain_validation(errors)
    assert (error.code, error.param) == ("missing_field", "messages[0].content[0].text")
