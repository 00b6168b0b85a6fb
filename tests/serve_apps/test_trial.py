"""Trying a service out: real HTTP questions, printed answers, and an exit code that tells."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError, RequestError
from mmd.intent.engine import IntentEngine
from mmd.intent.showcase import choose_dialogues
from mmd.schema import Dialogue, Turn
from serve_apps.api import PredictionOut, ReadyResponse
from serve_apps.client import ServiceClient
from serve_apps.run import build_parser
from serve_apps.trial import Trial, Trials, try_service, who_decided
from serve_apps.trial_recommend import Question, find_questions


def attempt(store: Path, port: int, count: int) -> tuple[Trials, str]:
    """Try the service on a port; return how it fared and what was printed."""
    console = Console(file=io.StringIO(), width=200, highlight=False)
    client = ServiceClient(ServeSettings(port=port, host="0.0.0.0"))  # noqa: S104 (nothing is bound: where a client asks)
    trial = try_service(client, ArtifactStore(str(store)), count, console)
    return trial, console.file.getvalue()  # type: ignore[attr-defined]


def test_answers_are_the_engines_and_counted(
    backend: Any, tiny_store: Path, serving: Callable[..., str], free_port: Callable[[], int]
):
    port = free_port()
    serving(backend, ServeSettings(), port)
    trials, printed = attempt(tiny_store, port, 4)
    trial = trials.intent
    assert trials.retrieval.asked == 0
    assert trial.asked == len(trial.latencies_ms) == 4  # the shop's dialogues have one task each
    assert trial.all_answered
    assert trial.right == printed.count(": right;")
    assert printed.count("labelled ") == 4 - trial.right
    assert "4 of 4 questions answered" in printed
    assert "gate/tiny@" in printed


def test_a_large_models_answers_say_so(
    backend: Any, mllm_store: Path, serving: Callable[..., str], free_port: Callable[[], int]
):
    port = free_port()
    backend.engine = IntentEngine.from_store(ArtifactStore(str(mllm_store)), "tiny")
    serving(backend, ServeSettings(), port)
    trial, printed = attempt(mllm_store, port, 2)
    assert trial.all_answered
    assert "large model 40%" in printed
    assert "decided by mllm;" in printed
    assert "adapter/tiny@" in printed


def test_what_is_not_answered_is_told_and_counted(
    backend: Any, tiny_store: Path, serving: Callable[..., str], free_port: Callable[[], int]
):
    port = free_port()
    backend.failure = RuntimeError("broken")
    serving(backend, ServeSettings(), port)
    trial, printed = attempt(tiny_store, port, 2)
    assert trial == Trials(Trial(asked=2, right=0, degraded=0, latencies_ms=()), Trial(), Trial())
    assert not trial.all_answered
    assert printed.count("no answer: http://127.0.0.1:") == 2
    assert "HTTP 500" in printed


def test_a_corpus_without_test_dialogues_cannot_be_tried(
    backend: Any, tiny_store: Path, serving: Callable[..., str], free_port: Callable[[], int]
):
    port = free_port()
    serving(backend, ServeSettings(), port)
    with pytest.raises(CorpusError, match="no labelled test dialogue"):
        attempt(tiny_store, port, 0)


def test_a_service_whose_corpus_is_gone_cannot_be_tried_and_says_so(tiny_store: Path):
    ready = ReadyResponse(
        status="ready",
        answers=("recommendation",),
        modalities=(),
        artifacts={"student": "student/tiny@0123456789ab", "graph": "graph/tiny@0123456789ab"},
        degraded=("pictures: the corpus is not in the store any more, products come without",),
        rejected_update=None,
    )

    class CorpusGone(ServiceClient):
        def get(self, path: str) -> str:
            assert path == "/readyz"
            return ready.model_dump_json()

    with pytest.raises(CorpusError, match=r"corpus .* is not in the store any more; make it again with `mmd ingest`"):
        try_service(CorpusGone(ServeSettings()), ArtifactStore(str(tiny_store)), 1, Console(file=io.StringIO()))


def test_a_service_that_is_not_there_is_told(free_port: Callable[[], int]):
    with pytest.raises(RequestError, match="/readyz: no answer"):
        ServiceClient(ServeSettings(port=free_port())).get("/readyz")


def test_a_dialogue_with_labels_of_two_tasks_is_tried_once():
    turns = (Turn("user", "hi"),)
    both = Dialogue("a", "s", "test", turns, {"mood": "glad", "intent": "greet"})
    one = Dialogue("b", "s", "test", turns, {"intent": "greet"})
    assert [d.id for d in choose_dialogues([both, one], 4)] == ["a", "b"]


def test_retrieval_is_tried_where_it_is_served(
    full_backend: Any, retrieval_store: Path, serving: Callable[..., str], free_port: Callable[[], int]
):
    """With intents, and alone."""
    full_backend.recommender = None
    port = free_port()
    serving(full_backend, ServeSettings(), port)
    both, printed = attempt(retrieval_store, port, 3)
    assert both.all_answered
    assert both.intent.asked == 3
    assert 0 < both.retrieval.asked <= 3  # a dialogue of a single turn has nothing before it
    assert printed.count("right one at rank") == both.retrieval.right
    assert f"{both.retrieval.asked} of {both.retrieval.asked} searches answered" in printed
    full_backend.serves_intent = False
    alone, printed = attempt(retrieval_store, port, 3)
    assert alone.all_answered
    assert (alone.intent.asked, alone.retrieval.asked) == (0, 3)
    assert "intent: rulebase/tiny" in printed


def test_recommendation_is_tried_where_it_is_served(
    full_backend: Any, full_store: Path, serving: Callable[..., str], free_port: Callable[[], int]
):
    """With the other parts, each of its questions printed with a verdict; and what is refused is counted."""
    port = free_port()
    serving(full_backend, ServeSettings(), port)
    trials, printed = attempt(full_store, port, 6)
    trial = trials.recommendation
    assert trials.all_answered
    assert 0 < trial.asked <= 6
    assert printed.count("the student says") == trial.asked
    assert printed.count("right product at rank") + printed.count("as by the agent") == trial.right
    assert f"{trial.asked} of {trial.asked} replies given" in printed
    full_backend.failure = RuntimeError("broken")
    broken, printed = attempt(full_store, port, 2)
    assert not broken.all_answered
    assert printed.count("no reply: http://127.0.0.1:") == broken.recommendation.asked


def test_of_a_dialogue_the_last_turn_that_names_a_product_is_asked_for(student_store: Path):
    ready = ReadyResponse(
        status="ready",
        answers=("recommendation",),
        modalities=(),
        degraded=(),
        rejected_update=None,
        artifacts={"graph": ArtifactStore(str(student_store)).open("graph/tiny").ref},
    )
    store = ArtifactStore(str(student_store))
    item = next(iter(Corpus(store.open("corpus/tiny")).items()))
    turns = (
        Turn("agent", "hello", (), (item,)),
        Turn("user", "hi"),
        Turn("agent", "this", (), (item,)),
        Turn("agent", "?"),
    )
    plain = Dialogue("b", "s", "test", (Turn("user", "hi"), Turn("agent", "hello"), Turn("agent", "yes?")))
    questions = find_questions([Dialogue("a", "s", "test", turns), plain], store, ready)
    assert questions == {"a": Question(turns[:2], (item,)), "b": Question(plain.turns[:2], ())}


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_only_whole_numbers_can_be_tried(text: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--try", text])
    assert "--try" in capsys.readouterr().err


def test_shares_are_told_where_a_pool_had_a_say():
    pooled = PredictionOut(task="t", label="l", confidence=0.5, arm="vote", mllm_share=0.25, fired=(), alternatives=())
    assert who_decided(pooled) == "vote, large model 25%"
    assert who_decided(pooled.model_copy(update={"arm": "rules"})) == "rules"
    assert who_decided(pooled.model_copy(update={"mllm_share": 0.0})) == "vote"


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_tries_itself_and_stops(mllm_store: Path, tmp_path: Path, free_port: Callable[[], int]):
    config = tmp_path / "settings.yaml"
    config.write_text(f"store: {mllm_store}\nserve: {{port: {free_port()}}}\n", encoding="utf-8")
    command = [sys.executable, "-m", "serve_apps.run", "--config", str(config), "--corpus", "tiny", "--try", "2"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 questions answered" in done.stdout
