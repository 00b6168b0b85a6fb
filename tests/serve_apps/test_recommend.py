"""/v1/recommend: the student's own replies over HTTP, whole and piece by piece, and clear refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from httpx import Response
from starlette.testclient import TestClient

from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.recommend.conversations import Conversations
from mmd.recommend.engine import UnknownItemError
from mmd.recommend.generate import Generator
from mmd.recommend.online import OnlineRecommender, PreparedRecommendation, RecommendQuery
from mmd.recommend.samples import response_samples
from mmd.recommend.settings import ConversationSettings, GenerationSettings
from mmd.schema import Dialogue, Turn
from serve_apps.api import MAX_HITS
from serve_apps.http import create_app
from serve_apps.recommend_api import RecommendResponse

READ = ConversationSettings(min_word_count=1)
LIMITS = ServeSettings(max_images=8, max_turns=20)


@pytest.fixture
def client(full_backend: Any) -> Iterator[TestClient]:
    with TestClient(create_app(full_backend, LIMITS), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def asked(tiny_corpus: Corpus, conversations: Conversations) -> list[tuple[Dialogue, int]]:
    """Dialogues with the index of a turn of the agent's: those that name items first, then some that name none."""
    stored = {dialogue.id: dialogue for dialogue in tiny_corpus.dialogues()}
    linked = [sample for d in conversations.dialogues() for sample in response_samples(d, READ)]
    named = [sample for sample in linked if sample.mode == "rec"]
    others = [sample for sample in linked if sample.mode == "gen"]
    return [(stored[s.dialogue_id], int(s.id.rpartition("#")[2])) for s in (*named[:12], *others[:12])]


def turns_of(dialogue: Dialogue, end: int) -> list[dict[str, Any]]:
    return [
        {"speaker": t.speaker, "text": t.text, "item_ids": list(t.item_ids), "images": ["data:"] * len(t.image_ids)}
        for t in dialogue.turns[:end]
    ]


def user(text: str = "", **fields: Any) -> dict[str, Any]:
    return {"speaker": "user", "text": text, **fields}


def ask(client: TestClient, *turns: dict[str, Any], **fields: Any) -> Response:
    return client.post("/v1/recommend", json={"turns": list(turns), **fields})


def error_of(response: Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Read server-sent events: kind and data."""
    events = []
    for block in text.strip().split("\n\n"):
        kind, data = block.split("\n")
        events.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def said(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on the clock and on names of requests."""
    return {name: value for name, value in answer.items() if name not in ("id", "timings_ms")}


# ---------------------------------------------------------------- answers


def test_served_replies_are_those_of_evaluation(
    client: TestClient, asked: list[tuple[Dialogue, int]], conversations: Conversations, generator: Generator
):
    """A dialogue sent over HTTP is linked and answered as the stored one is."""
    samples = {s.id: s for d in conversations.dialogues() for s in response_samples(d, READ)}
    modes = set()
    for dialogue, turn in asked:
        (expected,) = generator.replies([samples[f"{dialogue.id}#{turn}"]])
        answer = RecommendResponse.model_validate(ask(client, *turns_of(dialogue, turn), k=3).json())
        assert answer.reply.text == expected.text
        assert answer.mode.name == expected.mode
        assert answer.mode.probability == pytest.approx(expected.mode_probability, abs=1e-5)
        assert [t.item_mass for t in answer.item_mass] == pytest.approx(list(expected.item_mass), abs=1e-5)
        items = [part.item for part in answer.reply.parts if part.item]
        assert items == [conversations.graph.item_ids[item] for item in expected.items]
        modes.add(answer.mode.name)
    assert modes == {"rec", "gen"}


def test_a_reply_in_a_batch_is_the_reply_alone(tiny_recommender: OnlineRecommender, asked: list[tuple[Dialogue, int]]):
    """Modes that are asked for are decoded beside the others."""
    queries = [
        tiny_recommender.prepare(RecommendQuery("q", d.turns[:end], 3, mode))
        for d, end in asked
        for mode in (None, "rec", "gen")
    ]
    for entry, answer in zip(queries, tiny_recommender.answer(queries), strict=True):
        (alone,) = tiny_recommender.answer([entry])
        assert (answer.text, answer.mode) == (alone.text, alone.mode)
        assert [item.id for item in answer.items] == [item.id for item in alone.items]


def test_the_parts_of_a_reply_join_to_its_text_and_items_stand_where_they_say(
    client: TestClient, asked: list[tuple[Dialogue, int]], conversations: Conversations
):
    graph, named = conversations.graph, 0
    for dialogue, end in asked:
        answer = ask(client, *turns_of(dialogue, end), k=4).json()
        parts, text = answer["reply"]["parts"], answer["reply"]["text"]
        assert "".join(part["text"] for part in parts) == text
        for part in parts:
            assert text[part["start"] : part["end"]] == part["text"]
            if part["item"]:
                named += 1
                assert part["text"] == graph.title(graph.item_at[part["item"]])
        scores = [item["score"] for item in answer["items"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) <= 1 + 1e-6
        first = next((part["item"] for part in parts if part["item"]), None)
        assert [item["id"] for item in answer["items"] if item["named"]][:1] == ([first] if first else [])
        assert len(answer["items"]) == 4
        assert answer["items_from"] == ("reply" if first else "context")
    assert named >= 5


def test_a_product_comes_with_its_picture(client: TestClient, asked: list[tuple[Dialogue, int]]):
    dialogue, end = asked[0]
    items = ask(client, *turns_of(dialogue, end)).json()["items"]
    pictured = [item["image"] for item in items if item["image"]]
    assert pictured
    assert client.get(pictured[0]).headers["content-type"].startswith("image/")


def test_the_mode_can_be_asked_for(client: TestClient, asked: list[tuple[Dialogue, int]]):
    for dialogue, end in asked[:3]:
        free = ask(client, *turns_of(dialogue, end)).json()
        given = {mode: ask(client, *turns_of(dialogue, end), mode=mode).json() for mode in ("rec", "gen")}
        assert [given[mode]["mode"]["name"] for mode in ("rec", "gen")] == ["rec", "gen"]
        assert sum(answer["mode"]["probability"] for answer in given.values()) == pytest.approx(1)
        assert said(given[free["mode"]["name"]]) == said(free)
        assert given["gen"]["items_from"] == "context"


def test_a_student_without_modes_names_nothing_where_talk_is_asked_for(
    asked: list[tuple[Dialogue, int]], conversations: Conversations, generator: Generator
):
    modeless = READ.model_copy(update={"mode_tokens": False})
    graph = conversations.graph
    plain = Generator(generator.backbone, generator.tokenizer, graph, GenerationSettings(), modeless)
    engine = OnlineRecommender(plain, conversations.linker)
    answers = {}
    for mode in (None, "rec", "gen"):
        queries = [RecommendQuery("q", d.turns[:end], mode=mode) for d, end in asked]
        prepared = [engine.prepare(query) for query in queries]
        answers[mode] = engine.answer(prepared)
        assert all(bool(entry.problems) == (mode == "rec") for entry in prepared), "what cannot be had is told"
        kinds = [event.kind for event in engine.stream(prepared[0])]
        assert ("mode" in kinds) == (mode is not None)
    assert any(piece.item_id for answer in answers[None] for piece in answer.pieces)
    assert not any(piece.item_id for answer in answers["gen"] for piece in answer.pieces)
    assert {answer.mode for answer in answers["gen"]} == {"gen"}


def test_a_reply_without_a_product_comes_with_those_that_would_be_named_first(
    client: TestClient, asked: list[tuple[Dialogue, int]], conversations: Conversations, generator: Generator
):
    """By the scores that evaluation ranks items by."""
    samples = {s.id: s for d in conversations.dialogues() for s in response_samples(d, READ)}
    for dialogue, end in asked[:6]:
        scores = generator.first_items([samples[f"{dialogue.id}#{end}"].context])[0]
        expected = sorted(range(len(scores)), key=lambda item: -scores[item])[:3]
        items = ask(client, *turns_of(dialogue, end), mode="gen", k=3).json()["items"]
        assert [item["id"] for item in items] == [conversations.graph.item_ids[item] for item in expected]
        ratio = items[0]["score"] / items[1]["score"]
        assert ratio == pytest.approx(float(np.exp(scores[expected[0]] - scores[expected[1]])), rel=1e-3)


def test_the_trace_tells_each_token_and_the_students_own_item_mass(
    client: TestClient, asked: list[tuple[Dialogue, int]]
):
    dialogue, end = asked[0]
    answer = ask(client, *turns_of(dialogue, end)).json()
    trace = answer["item_mass"]
    assert trace[0]["token"] == {"rec": "[REC]", "gen": "[GEN]"}[answer["mode"]["name"]]
    by_token = {entry["token"]: entry["item_mass"] for entry in trace}
    assert list(by_token)[-1] == "[END]"
    said = "".join(answer["reply"]["text"].split())
    assert "".join("".join(entry["token"].split()) for entry in trace[1:-1]) == said
    title = next(part["text"] for part in answer["reply"]["parts"] if part["item"])
    assert by_token[title] == max(by_token.values()) > 0.5


def test_messages_and_turns_are_one_dialogue(client: TestClient):
    turns = [user("Hello"), {"speaker": "agent", "text": "Hi there."}, user("Something blue?")]
    messages = [
        {"role": "system", "content": "Sell."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi there."},
        {"role": "user", "content": [{"type": "text", "text": "Something blue?"}]},
    ]
    assert said(ask(client, *turns).json()) == said(client.post("/v1/recommend", json={"messages": messages}).json())


@pytest.mark.parametrize("text", ["zzz qqq", "有人吗", "…", "👍"])
def test_a_dialogue_without_entities_or_known_words_is_answered(client: TestClient, text: str):
    answer = ask(client, user(text)).json()
    assert answer["reply"]["text"]


def test_pictures_are_left_out_and_told(client: TestClient, data_url: Callable[..., str]):
    """They count towards the limits; a dialogue of pictures alone is answered as one that says nothing."""
    answer = ask(client, user("Something like this?", images=[data_url()])).json()
    assert said(answer) | {"degraded": []} == said(ask(client, user("Something like this?")).json())
    assert answer["degraded"] == ["pictures: left out, the student reads words and products only"]
    assert error_of(ask(client, user("hi", images=[data_url()] * 9)), 400)["code"] == "too_many_images"
    assert ask(client, user(images=[data_url()])).json()["reply"]["text"]


# ---------------------------------------------------------------- refusals


def test_an_unknown_product_is_refused_with_its_field(client: TestClient):
    turns = [user("hi"), {"speaker": "agent", "text": "hello"}, user("this", item_ids=["no-such-item"])]
    for fields in ({}, {"stream": True}):
        error = error_of(ask(client, *turns, **fields), 400)
        assert (error["code"], error["param"]) == ("unknown_item", "turns[2].item_ids[0]")
        assert "no-such-item" in error["message"]


def test_an_unknown_product_is_refused_by_the_engine(tiny_recommender: OnlineRecommender):
    with pytest.raises(UnknownItemError, match="nothing-like-it"):
        tiny_recommender.prepare(RecommendQuery("q", (Turn("user", "hi", (), ("nothing-like-it",)),)))


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
@pytest.mark.parametrize("turns", [[], [user("  ")], [user(), {"speaker": "agent", "text": ""}]])
def test_an_empty_dialogue_is_refused(client: TestClient, turns: list[dict[str, Any]], fields: dict[str, Any]):
    assert error_of(ask(client, *turns, **fields), 400)["code"] == "empty_dialogue"


@pytest.mark.parametrize("fields", [{"k": 0}, {"k": MAX_HITS + 1}, {"mode": "sing"}, {"beams": 3}])
def test_fields_out_of_range_are_refused(client: TestClient, fields: dict[str, Any]):
    error = error_of(ask(client, user("hi"), **fields), 400)
    assert error["param"] == next(iter(fields))


def test_without_a_student_the_way_out_is_told(backend: Any):
    with TestClient(create_app(backend, LIMITS)) as client:
        for fields in ({}, {"stream": True}):
            error = error_of(ask(client, user("hi"), **fields), 503)
            assert error["code"] == "no_student"
            assert "mmd distill" in error["message"]


# ---------------------------------------------------------------- streams


def test_a_stream_joined_is_the_whole_reply(client: TestClient, asked: list[tuple[Dialogue, int]]):
    for dialogue, end in asked[::4]:
        whole = ask(client, *turns_of(dialogue, end), k=3).json()
        response = ask(client, *turns_of(dialogue, end), k=3, stream=True)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        (first, mode), *pieces, (last, end_data) = events_of(response.text)
        assert (first, last) == ("mode", "end")
        assert mode["mode"]["name"] == whole["mode"]["name"]
        assert said(end_data["response"]) == said(whole)
        assert set(end_data["response"]["timings_ms"]) == {"decode", "link", "generate", "wait", "total"}
        assert "".join(data["part"]["text"] for _, data in pieces) == whole["reply"]["text"]
        assert all((kind == "item") == (data["part"]["item"] is not None) for kind, data in pieces)
        at = 0
        for _, data in pieces:
            assert data["part"]["start"] == at
            at = data["part"]["end"]
        items = [data["part"] for kind, data in pieces if kind == "item"]
        assert items == [part for part in whole["reply"]["parts"] if part["item"]]


def test_a_stream_that_breaks_off_says_so(client: TestClient, full_backend: Any):
    full_backend.failure = ValueError("a secret of the dialogue")
    kinds = events_of(ask(client, user("hi"), stream=True).text)
    assert kinds[-1][0] == "error"
    assert kinds[-1][1]["error"]["code"] == "internal_error"
    assert "secret" not in json.dumps(kinds[-1])


def test_a_stream_that_comes_late_is_ended(full_backend: Any):
    """The first piece is there in time, the rest is not."""
    slow = Slow(full_backend.recommender, 0.4)
    full_backend.recommender = slow
    with TestClient(create_app(full_backend, ServeSettings(request_timeout_s=1))) as client:
        events = events_of(ask(client, user("hi"), stream=True).text)
    assert events[0][0] == "mode"
    assert events[-1][1]["error"]["code"] == "timeout"


class Slow:
    """A student that takes its time before each piece."""

    def __init__(self, student: OnlineRecommender, pause_s: float) -> None:
        self._student = student
        self._pause_s = pause_s
        self.told = 0
        self.ended = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._student, name)

    def stream(self, prepared: PreparedRecommendation) -> Iterator[Any]:
        try:
            for event in self._student.stream(prepared):
                time.sleep(self._pause_s)
                self.told += 1
                yield event
        finally:
            self.ended.set()


def test_decoding_stops_when_the_client_goes_away(full_backend: Any, serving: Callable[..., str]):
    slow = Slow(full_backend.recommender, 0.2)
    full_backend.recommender = slow
    url = serving(full_backend, ServeSettings())
    with httpx.stream("POST", f"{url}v1/recommend", json={"turns": [user("有人吗")], "stream": True}) as response:
        assert next(response.iter_text()).startswith("event: mode")
    assert slow.ended.wait(5)
    assert slow.told < 5


# ---------------------------------------------------------------- the student alone


def test_a_student_answers_without_its_teachers():
    """Nor what trains either, nor what caches what teachers say."""
    code = (
        "import sys\n"
        "import serve_apps.app, mmd.recommend.loading, mmd.recommend.kgsf\n"
        "taught = ('recommender', 'teachers', 'distill', 'cache', 'losses', 'gates', 'training', 'popularity')\n"
        "print([name for name in taught if f'mmd.recommend.{name}' in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
