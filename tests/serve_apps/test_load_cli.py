"""`mmd load`: a running service is loaded, and the report says what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmd.config import ServeSettings
from serve_apps.load_cli import main


@pytest.fixture
def url(full_backend: Any, serving: Callable[..., str]) -> str:
    return serving(full_backend, ServeSettings()).rstrip("/")


def load(url: str, store: Path, *words: str) -> int:
    common = ["--url", url, "--set", f"store={store}", "--corpus", "tiny", "--rate", "20", "--seconds", "0.3"]
    return main([*common, *words])


@pytest.mark.parametrize("path", ["/v1/intent", "/v1/retrieve", "/v1/recommend", "/v1/chat/completions"])
def test_every_request_is_answered_and_reported(url: str, tiny_store: Path, tmp_path: Path, path: str):
    out = tmp_path / "deep" / "load.json"
    assert load(url, tiny_store, "--path", path, "--out", str(out)) == 0
    record = json.loads(out.read_text())
    assert (record["requests"], record["answered"], record["failed"]) == (6, 6, 0)
    assert record["config"]["path"] == path
    assert record["stage_ms_median"]["total"] > 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_streams_of_questions_from_a_file_time_their_first_words(
    url: str, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    questions = tmp_path / "questions.txt"
    questions.write_text("Where is my refund?\n\nSomething blue\n")
    assert load(url, tiny_store, "--stream", "--questions", str(questions)) == 0
    out = capsys.readouterr().out
    assert "of 6: 6 answered" in out
    assert "first words" in out


def test_failures_make_the_exit_code(url: str, tiny_store: Path, full_backend: Any, capsys: pytest.CaptureFixture[str]):
    full_backend.failure = RuntimeError("broken")
    assert load(url, tiny_store, "--path", "/v1/intent", "--retries", "0") == 1
    assert "6 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--stream", "--path", "/v1/recommend"), "only streams of /v1/chat/completions are read"),
        (("--questions", "gone.txt"), "gone.txt: cannot be read"),
        (("--corpus", "nobody"), "corpus/nobody"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    url: str, tiny_store: Path, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
):
    assert load(url, tiny_store, *words) == 2
    assert told in capsys.readouterr().out
