"""/v1/chat/completions: OpenAI's own client over the whole assistant, whole and streamed, with parts that fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from httpx import Response
from starlette.testclient import TestClient

from mmd.assistant.assistant import Assistant
from mmd.assistant.plan import Plan
from mmd.assistant.policy import Policy
from mmd.assistant.types import AssistantQuery
from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.intent.engine import IntentEngine
from mmd.recommend.conversations import Conversations
from mmd.recommend.online import OnlineRecommender
from mmd.recommend.samples import response_samples
from mmd.recommend.settings import ConversationSettings
from mmd.retrieval.online import OnlineRetrieval
from mmd.schema import Turn
from serve_apps.api import ApiError
from serve_apps.assistant import ServedPolicy
from serve_apps.chat_api import ChatChunk, ChatResponse, Sampling
from serve_apps.http import create_app
from serve_apps.presence import Presence

TEXTS = ("Where is my refund?", "Do you have this dress in blue?", "有没有好看的马克杯？", "zzz qqq", "Something blue")
SPEAKERS = {"student": Plan(words="student"), "retrieval": Plan(words="retrieval", products="retrieval")}
LIMITS = ServeSettings()
READ = ConversationSettings(min_word_count=1)
HOWS = ("whole", "stream")


def policy(speaker: str) -> ServedPolicy:
    return ServedPolicy(Policy(plan=SPEAKERS[speaker]), "tiny")


@pytest.fixture(params=sorted(SPEAKERS))
def chat_backend(full_backend: Any, request: pytest.FixtureRequest) -> Any:
    """Everything is served, with either way of speaking."""
    full_backend.policy = policy(request.param)
    return full_backend


@pytest.fixture
def client(chat_backend: Any) -> Iterator[TestClient]:
    with TestClient(create_app(chat_backend, LIMITS), raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, text: str, **fields: Any) -> Response:
    return client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": text}], **fields})


def events_of(text: str) -> list[Any]:
    """Read OpenAI's server-sent events: data alone, the last of them no JSON."""
    blocks = [block.removeprefix("data: ") for block in text.strip().split("\n\n")]
    return [block if block == "[DONE]" else json.loads(block) for block in blocks]


def content_of(events: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content", "") for event in events if event != "[DONE]" for choice in event["choices"]
    )


def lasting(turn: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on the clock and on names of requests."""
    return {name: value for name, value in turn.items() if name not in ("request_id", "timings_ms")}


# ---------------------------------------------------------------- OpenAI's client


def test_openais_client_holds_a_conversation(full_backend: Any, serving: Callable[..., str], data_url: Any):
    """Whole and streamed, with a picture, over a real server; models, errors and usage are as it expects them."""
    url = serving(full_backend, LIMITS)
    with openai.OpenAI(base_url=f"{url}v1", api_key="none", max_retries=0) as client:
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id).id == model.id == "mmd/tiny"
        picture = {"type": "image_url", "image_url": {"url": data_url()}}
        messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": TEXTS[0]}, picture]}]
        whole = client.chat.completions.create(model=model.id, messages=messages, extra_body={"mmd": {"k": 2}})
        said = whole.choices[0].message
        assert (whole.object, said.role, whole.choices[0].finish_reason) == ("chat.completion", "assistant", "stop")
        assert said.content
        assert whole.usage is not None
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert whole.usage.prompt_tokens == 5  # Where is my refund ?
        turn = whole.model_extra["mmd"] if whole.model_extra else {}
        assert turn["intents"][0]["label"] == "refund_status"
        assert len(turn["retrieved"]) == len(turn["recommended"]) == 2
        chunks = list(
            client.chat.completions.create(
                model=model.id, messages=messages, stream=True, stream_options={"include_usage": True}
            )
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == said.content
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
        again = [*messages, said, {"role": "user", "content": TEXTS[4]}]  # the client's own message goes on
        called = {"role": "assistant", "content": None, "tool_calls": [], "annotations": []}
        dumped = [
            *messages,
            said.model_dump(),
            called,
            {"role": "user", "content": TEXTS[4]},
        ]  # with all its nulls, too
        assert client.chat.completions.create(model=model.id, messages=dumped).choices[0].message.content
        assert client.chat.completions.create(model=model.id, messages=again).choices[0].message.content
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="gpt-9", messages=messages)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as many:
            client.chat.completions.create(model=model.id, messages=messages, n=2)
        assert many.value.param == "n"


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("text", TEXTS)
def test_a_served_turn_is_that_of_the_parts_in_process(
    client: TestClient,
    chat_backend: Any,
    tiny_engine: IntentEngine,
    tiny_retrieval: OnlineRetrieval,
    tiny_recommender: OnlineRecommender,
    text: str,
):
    parts: Any = {"intent": tiny_engine, "retrieval": tiny_retrieval, "recommendation": tiny_recommender}
    expected = Assistant(chat_backend.policy.policy, **parts).answer(AssistantQuery("q", (Turn("user", text),), k=5))
    answer = ChatResponse.model_validate(ask(client, text).json())
    assert answer.choices[0].message.content == expected.text
    assert [(d.step, d.choice, d.reason.en) for d in answer.mmd.decisions] == [
        (d.step, d.choice, d.reason["en"]) for d in expected.decisions
    ]
    assert [part.kind for part in answer.mmd.parts] == [part.kind for part in expected.parts]
    assert answer.mmd.degraded == expected.degraded
    assert answer.mmd.artifacts == dict(expected.artifacts)
    chosen = [hit.response.id for hit in expected.choice.hits][:5]
    assert [hit.id for hit in answer.mmd.retrieved][: len(chosen)] == chosen
    assert expected.recommended is not None
    assert [item.id for item in answer.mmd.recommended] == [item.id for item in expected.recommended.items]
    assert set(answer.mmd.timings_ms) >= {"decode", "intent", "retrieval", "retrieval.search", "policy", "total"}


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_joined_is_the_whole_reply(client: TestClient, text: str):
    whole = ask(client, text).json()
    response = ask(client, text, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done = events_of(response.text)
    assert done == "[DONE]"
    assert content_of(events) == whole["choices"][0]["message"]["content"]
    chunks = [ChatChunk.model_validate(event) for event in events]
    assert {(c.id, c.model, c.object) for c in chunks} == {(chunks[0].id, "mmd/tiny", "chat.completion.chunk")}
    assert [c.choices[0].finish_reason for c in chunks] == [*[None] * (len(chunks) - 1), "stop"]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-1]["choices"][0]["delta"] == {}
    assert lasting(events[-1]["mmd"]) == lasting(whole["mmd"])
    for event in events[1:-1]:
        if "mmd" in event:
            assert event["mmd"]["span"]["title"] in event["choices"][0]["delta"]["content"]


def test_named_products_are_told_as_they_are_named(
    full_backend: Any, tiny_corpus: Corpus, conversations: Conversations
):
    """With id, title and picture; the picture can be fetched."""
    full_backend.policy = ServedPolicy(Policy(plan=Plan(votes={"recommendation": 1.0}, words="student")), "tiny")
    stored = {dialogue.id: dialogue for dialogue in tiny_corpus.dialogues()}
    linked = [s for d in conversations.dialogues() for s in response_samples(d, READ) if s.mode == "rec"][:8]
    roles, spans = {"user": "user", "agent": "assistant"}, 0
    with TestClient(create_app(full_backend, LIMITS)) as client:
        for sample in linked:
            turns = stored[sample.dialogue_id].turns[: int(sample.id.rpartition("#")[2])]
            said = [{"role": roles[turn.speaker], "content": turn.text} for turn in turns]
            response = client.post("/v1/chat/completions", json={"messages": said, "stream": True})
            *events, end, _ = events_of(response.text)
            named = [event["mmd"]["span"] for event in events if "mmd" in event]
            cards = {part["item_id"]: part for part in end["mmd"]["parts"] if part["kind"] == "item"}
            for span in named:
                assert span["title"] == cards[span["item_id"]]["title"]
                assert span["url"] == cards[span["item_id"]]["url"]
                assert client.get(span["url"]).headers["content-type"].startswith("image/")
            spans += len(named)
    assert spans >= 3


def test_the_service_speaks_the_customers_language(full_backend: Any):
    """Where nothing can be answered, which is the one sentence of its own."""
    full_backend.retrieval = full_backend.recommender = None
    with TestClient(create_app(full_backend, LIMITS)) as client:
        said = {text: ask(client, text).json()["choices"][0]["message"]["content"] for text in (TEXTS[2], TEXTS[4])}
        asked = ask(client, TEXTS[4], mmd={"language": "zh"}).json()["choices"][0]["message"]["content"]
    assert said[TEXTS[2]] == asked != said[TEXTS[4]]
    assert said[TEXTS[4]].isascii()


def test_what_changes_nothing_is_named(client: TestClient):
    given = {"temperature": 0.2, "max_tokens": 5, "seed": 1, "stop": ["x"], "user": "u", "response_format": None}
    answer = ask(client, TEXTS[0], **given).json()
    assert answer["mmd"]["ignored"] == ["max_tokens", "seed", "stop", "temperature"]
    assert set(answer["mmd"]["ignored"]) <= set(Sampling.model_fields)
    assert lasting(answer["mmd"]) | {"ignored": []} == lasting(ask(client, TEXTS[0]).json()["mmd"])


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"n": 2}, 400, "n"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format.type"),
        ({"mmd": {"k": 0}}, 400, "mmd.k"),
        ({"mmd": {"language": "fr"}}, 400, "mmd.language"),
        ({"model": "other"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "system", "content": "Sell."}]}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "Hi."}]}, 400, "messages"),
    ],
)
@pytest.mark.parametrize("how", HOWS)
def test_what_is_wrong_is_refused_before_anything_is_said(
    client: TestClient, fields: dict[str, Any], status: int, param: str, how: str
):
    response = client.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "hi"}], "stream": how == "stream", **fields},
    )
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param


# ---------------------------------------------------------------- parts that fail


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("absent", ["retrieval", "recommendation", "both"])
def test_a_part_that_is_not_there_degrades_the_turn(full_backend: Any, absent: str, how: str):
    if absent in ("retrieval", "both"):
        full_backend.retrieval = None
    if absent in ("recommendation", "both"):
        full_backend.recommender = None
    with TestClient(create_app(full_backend, LIMITS)) as client:
        response = ask(client, TEXTS[1], stream=how == "stream")
        assert response.status_code == 200, response.text
        turn = events_of(response.text)[-2]["mmd"] if how == "stream" else response.json()["mmd"]
        assert turn["parts"]
        told = [problem for problem in turn["degraded"] if "not served" in problem]
        wanted = ["retrieval", "recommendation"] if absent == "both" else [absent]
        assert [problem.partition(":")[0] for problem in told] == wanted
        metrics = client.get("/metrics").text
        assert all(f'mmd_turns_degraded_total{{part="{part}"}} 1.0' in metrics for part in wanted)


class Broken:
    """A part whose methods raise, or never come back."""

    def __init__(self, part: Any, *, hangs: bool = False) -> None:
        self._part = part
        self._hangs = hangs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    async def _fail(self) -> Any:
        if self._hangs:
            await asyncio.sleep(60)
        raise ValueError("a secret of the dialogue")

    async def answer(self, _: Any) -> Any:
        return await self._fail()

    async def retrieve(self, _: Any) -> Any:
        return await self._fail()

    async def recommend(self, _: Any) -> Any:
        return await self._fail()

    async def stream(self, _: Any) -> Any:
        yield await self._fail()


class Mixed:
    """A backend some of whose parts are taken from another one."""

    def __init__(self, sound: Any, broken: Any, *names: str) -> None:
        self._sound, self._broken, self._names = sound, broken, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broken if name in self._names else self._sound, name)


PART_OF = {"answer": "intent", "retrieve": "retrieval", "recommend": "recommendation"}


@pytest.mark.parametrize("failing", ["raises", "hangs"])
@pytest.mark.parametrize("name", sorted(PART_OF))
@pytest.mark.parametrize("how", HOWS)
def test_a_part_that_fails_or_hangs_degrades_the_turn(full_backend: Any, name: str, how: str, failing: str):
    names = (name, "stream") if name == "recommend" else (name,)
    backend = Mixed(full_backend, Broken(full_backend, hangs=failing == "hangs"), *names)
    settings = ServeSettings(request_timeout_s=5, part_timeout_s=0.5 if failing == "hangs" else 2)
    with TestClient(create_app(backend, settings)) as client:
        response = ask(client, TEXTS[1], stream=how == "stream")
    assert response.status_code == 200, response.text
    turn = events_of(response.text)[-2]["mmd"] if how == "stream" else response.json()["mmd"]
    (problem,) = [told for told in turn["degraded"] if told.startswith(PART_OF[name])]
    assert ("no answer within" if failing == "hangs" else "ValueError") in problem
    assert "secret" not in response.text
    assert turn["parts"]


@pytest.mark.parametrize("how", HOWS)
def test_without_any_part_the_turn_is_refused(full_backend: Any, how: str):
    """503 with the ways out; 429 where one of them is only too busy."""
    full_backend.retrieval = full_backend.recommender = None
    for failure, status in (
        (ApiError(503, "no_intent", "intent is not served: run `mmd mine_rules`."), 503),
        (ApiError(429, "overloaded", "too many requests are waiting.", retry_after_s=1), 429),
    ):
        full_backend.failure = failure
        backend: Any = Mixed(full_backend, NeverMade(full_backend), "retrieve", "recommend")
        with TestClient(create_app(backend, LIMITS)) as client:
            response = ask(client, TEXTS[0], stream=how == "stream")
        assert response.status_code == status, response.text
        assert ("retry-after" in response.headers) == (status == 429)
        assert "mmd distill" in response.json()["error"]["message"]


class NeverMade:
    """Parts without their artefacts."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    async def retrieve(self, _: Any) -> Any:
        return self._backend._retrieval()

    async def recommend(self, _: Any) -> Any:
        return self._backend._recommender()


def test_a_student_that_breaks_off_before_its_first_word_is_replaced(full_backend: Any):
    """Within a sentence it cannot be: the stream ends with an error."""
    full_backend.policy = policy("student")
    broken = BreaksOff(full_backend)
    with TestClient(create_app(Mixed(full_backend, broken, "stream"), LIMITS)) as client:
        seen = set()
        for broken.after in (1, 3):
            for text in TEXTS:
                events = events_of(ask(client, text, stream=True).text)
                ended = "error" if "error" in events[-1] else "done"
                seen.add((broken.after, ended))
                if ended == "done":
                    assert any(told.startswith("recommendation:") for told in events[-2]["mmd"]["degraded"])
                    assert content_of(events)
                else:
                    assert events[-1]["error"]["type"] == "server_error"
    assert seen == {(1, "done"), (3, "error")}


def test_a_student_that_falls_silent_after_its_mode_is_replaced_within_its_limit(full_backend: Any):
    """Who was to speak does not: the policy decides again, and its reasons tell of who spoke."""
    full_backend.policy = policy("student")
    silent = BreaksOff(full_backend, hangs=True)
    limits = ServeSettings(request_timeout_s=20, part_timeout_s=0.5)
    with TestClient(create_app(Mixed(full_backend, silent, "stream"), limits)) as client:
        for text in TEXTS:
            events = events_of(ask(client, text, stream=True).text)
            turn = events[-2]["mmd"]
            (problem,) = [told for told in turn["degraded"] if told.startswith("recommendation:")]
            assert "within 0.5 s" in problem
            assert content_of(events)
            assert turn["timings_ms"]["total"] < 10_000
            (speaker,) = [decision["choice"] for decision in turn["decisions"] if decision["step"] == "speaker"]
            assert speaker != "student"


@pytest.mark.parametrize("how", HOWS)
def test_a_student_that_is_gone_when_asked_for_the_other_mode_is_replaced(
    full_backend: Any, monkeypatch: pytest.MonkeyPatch, how: str
):
    """What it began to say in the mode that nobody wants is not said."""
    full_backend.policy = policy("student")
    asked: list[str] = []
    answer = Presence.answer

    async def gone_at_the_second_time(self: Presence, part: Any, *args: Any) -> Any:
        asked.append(part)
        if asked.count("recommendation") == 2:
            raise ApiError(503, "unavailable", "it does not answer now.")
        return await answer(self, part, *args)

    monkeypatch.setattr(Presence, "answer", gone_at_the_second_time)
    monkeypatch.setattr("serve_apps.assistant.speaks_otherwise", lambda _, evidence: evidence.has("recommendation"))
    with TestClient(create_app(full_backend, LIMITS)) as client:
        response = ask(client, TEXTS[0], stream=how == "stream")
    if how == "stream":
        events = events_of(response.text)
        said, turn = content_of(events), events[-2]["mmd"]
    else:
        said, turn = response.json()["choices"][0]["message"]["content"], response.json()["mmd"]
    assert asked.count("recommendation") == 2
    assert any(told.startswith("recommendation: it does not answer now") for told in turn["degraded"])
    (speaker,) = [decision["choice"] for decision in turn["decisions"] if decision["step"] == "speaker"]
    assert speaker != "student"
    assert said == "\n".join(part["text"] for part in turn["parts"] if part["kind"] == "text")


class SaysDots:
    """A student that has seen too little to say a word."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    async def recommend(self, query: Any) -> Any:
        return self._dotted(await self._backend.recommend(query))

    async def stream(self, query: Any) -> Any:
        async for told in self._backend.stream(query):
            piece = told.event.piece and replace(told.event.piece, text=". ", item_id=None)
            result = told.result and self._dotted(told.result)
            yield replace(told, event=replace(told.event, piece=piece), result=result)

    def _dotted(self, result: Any) -> Any:
        return replace(result, answer=replace(result.answer, text=". . .", pieces=()))


@pytest.mark.parametrize("how", HOWS)
def test_a_student_without_words_lets_others_speak(full_backend: Any, how: str):
    full_backend.policy = policy("student")
    with TestClient(create_app(Mixed(full_backend, SaysDots(full_backend), "recommend", "stream"), LIMITS)) as client:
        for text in TEXTS:
            response = ask(client, text, stream=how == "stream")
            if how == "stream":
                said = content_of(events_of(response.text))
            else:
                said = response.json()["choices"][0]["message"]["content"]
            assert any(char.isalpha() for char in said)


def test_what_a_student_fails_of_in_the_middle_is_logged_without_the_dialogue(
    full_backend: Any, capsys: pytest.CaptureFixture[str]
):
    full_backend.policy = policy("student")
    failing = BreaksOff(full_backend, error=ValueError("a secret of the dialogue"))
    with TestClient(create_app(Mixed(full_backend, failing, "stream"), LIMITS)) as client:
        response = ask(client, TEXTS[2], stream=True)
    assert "secret" not in response.text
    logged = capsys.readouterr()
    assert "part_failed" in logged.out + logged.err
    assert "secret" not in logged.out + logged.err


class BreaksOff:
    """A student whose stream ends in an error after some pieces."""

    def __init__(self, backend: Any, *, hangs: bool = False, error: Exception | None = None) -> None:
        self._backend = backend
        self._hangs = hangs
        self._error = error or ApiError(503, "unavailable", "a model is being replaced.")
        self.after = 1

    async def stream(self, query: Any) -> Any:
        count = 0
        async for piece in self._backend.stream(query):
            yield piece
            count += 1
            if count == self.after:
                if self._hangs:
                    await asyncio.sleep(60)
                raise self._error


def test_a_stream_is_given_up_with_its_client(full_backend: Any, serving: Callable[..., str]):
    full_backend.policy = policy("student")
    url = serving(full_backend, LIMITS)
    body = {"messages": [{"role": "user", "content": TEXTS[2]}], "stream": True}
    with httpx.Client(base_url=url, timeout=30) as client:
        with client.stream("POST", "v1/chat/completions", json=body) as response:
            assert next(response.iter_text()).startswith("data: {")
        assert client.post("v1/chat/completions", json=body | {"stream": False}).status_code == 200


# ---------------------------------------------------------------- counts


def test_metrics_tell_requests_by_route_and_nothing_of_what_was_asked(client: TestClient):
    ask(client, TEXTS[0])
    ask(client, TEXTS[0], n=2)
    client.get("/nowhere/at-all")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    text = response.text
    assert 'mmd_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'mmd_http_requests_total{method="POST",route="/v1/chat/completions",status="400"} 1.0' in text
    assert 'mmd_http_requests_total{method="GET",route="none",status="404"} 1.0' in text
    assert 'mmd_http_request_seconds_count{route="/v1/chat/completions"} 2.0' in text
    assert 'mmd_turn_stage_seconds_count{stage="intent"} 1.0' in text
    assert "refund" not in text
    assert "at-all" not in text


def test_another_policy_answers_from_the_next_turn_on(full_backend: Any):
    full_backend.policy = replace(policy("retrieval"), artifacts={"policy": "policy/tiny@1"})
    with TestClient(create_app(full_backend, LIMITS)) as client:
        assert ask(client, TEXTS[0]).json()["mmd"]["artifacts"]["policy"] == "policy/tiny@1"
        full_backend.policy = replace(policy("student"), artifacts={"policy": "policy/tiny@2"})
        assert ask(client, TEXTS[0]).json()["mmd"]["artifacts"]["policy"] == "policy/tiny@2"
