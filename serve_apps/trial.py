"""Try a running service: ask it test dialogues over HTTP, as a client would, and print what it says (``--try``)."""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError, RequestError
from mmd.intent.showcase import choose_dialogues, picture_ids
from mmd.schema import Dialogue, Image
from serve_apps.api import IntentResponse, PredictionOut, ReadyResponse
from serve_apps.examples import turns_in

_RULES_SHOWN = 2


class ServiceClient:
    """A client of a running service, one connection a request.

    Args:
        settings: where it listens, and how long it may take.
    """

    def __init__(self, settings: ServeSettings) -> None:
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (what it listens on; asked on the loopback)
        self._host = everywhere.get(settings.host, settings.host)
        self._port = settings.port
        self._timeout_s = settings.request_timeout_s + 5

    def get(self, path: str) -> str:
        """Return the body of a page.

        Raises:
            RequestError: the service cannot be reached, or refuses.
        """
        return self._exchange("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> str:
        """Return the body of the answer to a JSON body.

        Raises:
            RequestError: the service cannot be reached, or refuses.
        """
        return self._exchange("POST", path, json.dumps(body))

    def _exchange(self, method: str, path: str, body: str | None) -> str:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException) as err:
            raise RequestError(f"{self._host}:{self._port}{path}: no answer ({type(err).__name__}: {err}).") from err
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise RequestError(f"{self._host}:{self._port}{path}: HTTP {response.status}: {text[:300]}")
        return text


@dataclass(frozen=True, slots=True)
class Trial:
    """How questions fared; ``latencies_ms`` are of the answered ones, in order, from request to answer."""

    asked: int
    right: int
    degraded: int
    latencies_ms: tuple[float, ...]

    @property
    def all_answered(self) -> bool:
        """Whether every question got an answer."""
        return len(self.latencies_ms) == self.asked


def try_service(client: ServiceClient, store: ArtifactStore, count: int, console: Console) -> Trial:
    """Ask ``count`` test dialogues of the corpus that the service answers with; print question, answer and why.

    Raises:
        CorpusError: the corpus has no labelled test dialogue.
        RequestError: the service does not say what it serves.
    """
    ready = ReadyResponse.model_validate_json(client.get("/readyz"))
    corpus = Corpus(store.open(ready.artifacts["corpus"], verify=False))
    chosen = list(choose_dialogues(corpus.dialogues("test"), count))
    if not chosen:
        raise CorpusError(f"{ready.artifacts['corpus']}: has no labelled test dialogue to ask; ingest one that has.")
    images = {image.id: image for image in corpus.images(picture_ids(chosen))}
    asked = right = degraded = 0
    latencies_ms: list[float] = []
    for number, dialogue in enumerate(chosen, start=1):
        console.rule(f"test dialogue {number} of {len(chosen)}", align="left")
        _print_turns(console, dialogue)
        for task, truth in dialogue.labels.items():
            asked += 1
            started = time.perf_counter()
            try:
                answer = _ask(client, dialogue, task, images)
            except RequestError as err:
                console.print(f"  → no answer: {err}", style="red", markup=False, soft_wrap=True)
                continue
            latencies_ms.append((time.perf_counter() - started) * 1000)
            right += answer.predictions[0].label == truth
            degraded += bool(answer.degraded)
            _print_answer(console, answer, truth, latencies_ms[-1])
    trial = Trial(asked, right, degraded, tuple(latencies_ms))
    _print_summary(console, trial, ready)
    return trial


def _ask(client: ServiceClient, dialogue: Dialogue, task: str, images: Mapping[str, Image]) -> IntentResponse:
    turns = [turn.model_dump() for turn in turns_in(dialogue, images)]
    text = client.post("/v1/intent", {"task": task, "turns": turns})
    try:
        answer = IntentResponse.model_validate_json(text)
    except ValidationError as err:
        raise RequestError(f"/v1/intent: not an answer ({err.error_count()} fields are wrong): {text[:300]}") from err
    if [p.task for p in answer.predictions] != [task]:
        raise RequestError(f"/v1/intent: asked {task!r}, answered {[p.task for p in answer.predictions]}.")
    return answer


# ---------------------------------------------------------------- printing


def _print_turns(console: Console, dialogue: Dialogue) -> None:
    for turn in dialogue.turns:
        pictures = "".join(f" [picture {image_id[:8]}]" for image_id in turn.image_ids)
        style = "cyan" if turn.speaker == "user" else "dim"
        text = escape(turn.text.replace("\n", " ") + pictures)
        console.print(Padding(f"[{style}]{turn.speaker:>5}[/]  {text}", (0, 0, 0, 2)))


def _print_answer(console: Console, answer: IntentResponse, truth: str, latency_ms: float) -> None:
    (prediction,) = answer.predictions
    verdict = "right" if prediction.label == truth else f"labelled {truth}"
    console.print(
        f"  → [bold]{escape(prediction.label)}[/]  ({prediction.task}: {escape(verdict)}; confidence "
        f"{prediction.confidence:.2f}; decided by {who_decided(prediction)}; {latency_ms:.0f} ms)"
    )
    for rule in prediction.fired[:_RULES_SHOWN]:
        console.print(Padding(f"rule: {escape(rule.words.en)}", (0, 0, 0, 6)), style="green")
    for problem in answer.degraded:
        console.print(f"  degraded: {problem}", style="yellow", markup=False, soft_wrap=True)


def who_decided(prediction: PredictionOut) -> str:
    """Return the arm and, where a pool with the large model had a say, the large model's share."""
    pooled = prediction.arm in ("classifier", "vote", "prompt") and prediction.mllm_share > 0
    return f"{prediction.arm}, large model {prediction.mllm_share:.0%}" if pooled else prediction.arm


def _print_summary(console: Console, trial: Trial, ready: ReadyResponse) -> None:
    console.rule(align="left")
    answered = len(trial.latencies_ms)
    line = f"{answered} of {trial.asked} questions answered"
    if answered:
        line += (
            f", {trial.right} right ({trial.right / answered:.0%}), {trial.degraded} without a part; "
            f"median {statistics.median(trial.latencies_ms):.0f} ms, slowest {max(trial.latencies_ms):.0f} ms"
        )
    console.print(line)
    console.print("answered by " + ", ".join(ready.artifacts.values()), markup=False, soft_wrap=True)
