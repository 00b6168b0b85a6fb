"""`mmd chat`: a conversation in the terminal with a running service."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from starlette.applications import Starlette
from starlette.routing import Mount

from mmd.assistant.plan import Plan
from mmd.assistant.policy import Policy
from mmd.config import ServeSettings
from mmd.errors import RequestError
from serve_apps.assistant import ServedPolicy
from serve_apps.chat_cli import Conversation, Session, main
from serve_apps.client import ServiceClient
from serve_apps.http import create_app

KEYLESS = ServeSettings()


@pytest.fixture
def url(full_backend: Any, serving: Callable[..., str]) -> str:
    full_backend.policy = ServedPolicy(Policy(plan=Plan(words="retrieval", products="retrieval")), "tiny")
    return serving(full_backend, KEYLESS).rstrip("/")


@pytest.fixture
def talk(url: str) -> Conversation:
    return Conversation(ServiceClient(KEYLESS, url))


def led(talk: Conversation, *lines: str) -> tuple[str, bool]:
    """Return what a session prints on lines typed, and whether all were answered."""
    console = Console(file=io.StringIO(), highlight=False, width=120)
    good = Session(talk, console).run(lines)
    return console.file.getvalue(), good  # type: ignore[attr-defined]


def test_a_reply_is_what_the_service_says_whole(talk: Conversation, url: str):
    said = "".join(talk.say("Where is my refund?"))
    asked = {"messages": [{"role": "user", "content": "Where is my refund?"}]}
    whole = json.loads(ServiceClient(KEYLESS, url).post("/v1/chat/completions", asked))
    assert said == whole["choices"][0]["message"]["content"] != ""
    assert talk.last is not None
    assert [p.model_dump() for p in talk.last.parts] == whole["mmd"]["parts"]


def test_the_conversation_so_far_goes_with_every_question(talk: Conversation):
    first = "".join(talk.say("Where is my refund?"))
    second = "".join(talk.say("Do you have this dress in blue?"))
    assert [(m["role"], m["content"]) for m in talk.messages] == [
        ("user", "Where is my refund?"),
        ("assistant", first),
        ("user", "Do you have this dress in blue?"),
        ("assistant", second),
    ]
    talk.forget()
    assert (talk.messages, talk.last) == ([], None)


def test_a_picture_goes_with_the_next_words_once(talk: Conversation, tmp_path: Path, data_url: Callable[..., str]):
    kept, url = tmp_path / "dress.png", data_url()
    kept.write_bytes(base64.b64decode(url.partition(",")[2]))
    talk.show(kept)
    list(talk.say("Do you have this dress in blue?"))
    assert talk.messages[0]["content"] == [
        {"type": "text", "text": "Do you have this dress in blue?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    assert talk.pictures == []


def test_a_picture_that_is_refused_goes_with_no_other_words(talk: Conversation, tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    out, good = led(talk, f"/image {broken}", "What is this?", "Where is my refund?")
    assert not good
    assert out.count("HTTP 400") == out.count("The pictures are dropped; ask again without, or /image others.") == 1
    assert [m["content"] for m in talk.messages if m["role"] == "user"] == ["Where is my refund?"]


def test_a_picture_waits_where_the_service_is_only_away(tmp_path: Path, data_url: Callable[..., str]):
    kept = tmp_path / "dress.png"
    kept.write_bytes(base64.b64decode(data_url().partition(",")[2]))
    away = Conversation(ServiceClient(KEYLESS, "http://127.0.0.1:9"))
    away.show(kept)
    out, _ = led(away, "What is this?")
    assert "no answer" in out
    assert away.pictures == [data_url()]


def test_a_picture_s_address_has_the_prefix_of_the_service_once(
    full_backend: Any, serving: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    def mounted(*args: Any) -> Starlette:
        return Starlette(routes=[Mount("/mmd", create_app(*args))])

    monkeypatch.setitem(serving.__globals__, "create_app", mounted)  # type: ignore[attr-defined]
    full_backend.policy = ServedPolicy(Policy(plan=Plan(words="retrieval", products="retrieval")), "tiny")
    address = serving(full_backend, KEYLESS) + "mmd"
    out, good = led(Conversation(ServiceClient(KEYLESS, address)), "Do you have this dress in blue?")
    assert good
    (place,) = re.findall(r"http://\S+", out)
    assert place.startswith(f"{address}/v1/images/")
    assert httpx.get(place).is_success


def test_commands_tell_why_and_begin_anew(talk: Conversation):
    out, good = led(talk, "/why", "Where is my refund?", "/why", "/new", "/why", "/quit", "never asked")
    assert not good
    assert out.count("/why: nothing has been answered yet.") == 2
    assert re.search(r"^speaker: retrieval – \S", out, re.MULTILINE)
    assert re.search(r"^ms: decode \d", out, re.MULTILINE)
    assert talk.messages == []
    out, good = led(talk, "/what")
    assert (out.strip(), good) == ("no such command; there are /image, /why, /new, /quit.", False)


def test_reasons_are_told_in_the_language_that_was_chosen(url: str):
    out, good = led(Conversation(ServiceClient(KEYLESS, url), "zh"), "Where is my refund?", "/why")
    assert good
    assert re.search(r"^speaker: retrieval – [^\x00-\x7f]", out, re.MULTILINE)


def test_what_failed_is_as_if_it_had_not_been_said(talk: Conversation, full_backend: Any, tmp_path: Path):
    list(talk.say("Where is my refund?"))
    with pytest.raises(RequestError, match=r"gone\.png: cannot be read .*; name a picture"):
        talk.show(tmp_path / "gone.png")
    with pytest.raises(RequestError, match="not a picture by its name"):
        talk.show(tmp_path / "letter.txt")
    full_backend.failure = RuntimeError("broken")
    broken = Conversation(ServiceClient(KEYLESS, "http://127.0.0.1:9"), messages=list(talk.messages))
    with pytest.raises(RequestError, match="no answer"):
        list(broken.say("Anything?"))
    assert broken.messages == talk.messages


def test_questions_from_a_pipe_are_answered_and_the_exit_code_tells(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stdin", io.StringIO("Where is my refund?\n\nSomething blue\n"))
    assert main(["--url", url]) == 0
    assert capsys.readouterr().out.count("assistant: ") == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("/nothing\n"))
    assert main(["--url", url]) == 1


@pytest.mark.parametrize("wrong", ["ftp://here", "localhost:8000", "http://x:port", "http://"])
def test_an_address_that_is_none_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]):
    assert main(["--url", wrong]) == 2
    assert "give one like http://127.0.0.1:8000" in " ".join(capsys.readouterr().out.split())


def test_a_service_that_is_not_there_shows_before_the_first_question(
    free_port: Callable[[], int], capsys: pytest.CaptureFixture[str]
):
    assert main(["--set", f"serve.port={free_port()}"]) == 2
    assert "no answer (ConnectionRefusedError" in capsys.readouterr().out
