"""Try a running service: ask it test dialogues over HTTP, as a client would, and print what it says (``--try``)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from mmd.artifacts import ArtifactStore
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError, RequestError
from mmd.intent.showcase import choose_dialogues, picture_ids, readable_dialogues
from mmd.schema import Dialogue, Image
from serve_apps.api import IntentResponse, PredictionOut, ReadyResponse
from serve_apps.client import ServiceClient
from serve_apps.examples import turns_in
from serve_apps.trial_parts import Trial, print_turns
from serve_apps.trial_recommend import find_questions as find_recommendations
from serve_apps.trial_recommend import try_recommendation
from serve_apps.trial_retrieval import K, find_questions, try_retrieval

_RULES_SHOWN = 2


@dataclass(frozen=True, slots=True)
class Trials:
    """How the questions to each part fared; nothing was asked of what is not served."""

    intent: Trial
    retrieval: Trial
    recommendation: Trial

    @property
    def all_answered(self) -> bool:
        """Whether every question got an answer."""
        return self.intent.all_answered and self.retrieval.all_answered and self.recommendation.all_answered


def try_service(client: ServiceClient, store: ArtifactStore, count: int, console: Console) -> Trials:
    """Ask ``count`` test dialogues of the corpus that the service answers with; print question, answer and why.

    Raises:
        CorpusError: the corpus is gone, has no test dialogue, or none that is labelled where intents alone are served.
        RequestError: the service does not say what it serves.
    """
    ready = ReadyResponse.model_validate_json(client.get("/readyz"))
    if "corpus" not in ready.artifacts:
        raise CorpusError(
            "there is nothing to ask: the corpus that the service was trained on is not in the store any more; make it "
            "again with `mmd ingest` and the settings that it was made with."
        )
    corpus = Corpus(store.open(ready.artifacts["corpus"], verify=False))
    choose = choose_dialogues if "intent" in ready.answers else readable_dialogues
    chosen = list(choose(corpus.dialogues("test"), count))
    if not chosen:
        raise CorpusError(f"{ready.artifacts['corpus']}: has no labelled test dialogue to ask; ingest one that has.")
    images = {image.id: image for image in corpus.images(picture_ids(chosen))}
    samples = find_questions(chosen, corpus, store, ready) if "retrieval" in ready.answers else {}
    wanted = find_recommendations(chosen, store, ready) if "recommendation" in ready.answers else {}
    intent = retrieval = recommendation = Trial()
    for number, dialogue in enumerate(chosen, start=1):
        console.rule(f"test dialogue {number} of {len(chosen)}", align="left")
        print_turns(console, dialogue.turns)
        if "intent" in ready.answers:
            for task, truth in dialogue.labels.items():
                intent += _try_intent(client, dialogue, task, truth, images, console)
        if sample := samples.get(dialogue.id):
            retrieval += try_retrieval(client, sample, images, console)
        if question := wanted.get(dialogue.id):
            recommendation += try_recommendation(client, question, images, console)
    trials = Trials(intent, retrieval, recommendation)
    _print_summary(console, trials, ready)
    return trials


def _try_intent(
    client: ServiceClient, dialogue: Dialogue, task: str, truth: str, images: Mapping[str, Image], console: Console
) -> Trial:
    started = time.perf_counter()
    try:
        answer = _ask(client, dialogue, task, images)
    except RequestError as err:
        console.print(f"  → no answer: {err}", style="red", markup=False, soft_wrap=True)
        return Trial(asked=1)
    latency_ms = (time.perf_counter() - started) * 1000
    _print_answer(console, answer, truth, latency_ms)
    return Trial(1, int(answer.predictions[0].label == truth), int(bool(answer.degraded)), (latency_ms,))


def _ask(client: ServiceClient, dialogue: Dialogue, task: str, images: Mapping[str, Image]) -> IntentResponse:
    turns = [turn.model_dump() for turn in turns_in(dialogue.turns, images)]
    answer = client.ask("/v1/intent", {"task": task, "turns": turns}, IntentResponse)
    if [p.task for p in answer.predictions] != [task]:
        raise RequestError(f"/v1/intent: asked {task!r}, answered {[p.task for p in answer.predictions]}.")
    return answer


# ---------------------------------------------------------------- printing


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


def _print_summary(console: Console, trials: Trials, ready: ReadyResponse) -> None:
    console.rule(align="left")
    if "intent" in ready.answers:
        console.print(summary(trials.intent, "questions answered", "right"))
    if "retrieval" in ready.answers:
        console.print(summary(trials.retrieval, "searches answered", f"with the right one in the first {K}"))
    if "recommendation" in ready.answers:
        good = f"with the agent's product in the first {K}, or none where the agent named none"
        console.print(summary(trials.recommendation, "replies given", good))
    console.print("answered by " + ", ".join(ready.artifacts.values()), markup=False, soft_wrap=True)
    for problem in ready.degraded:
        console.print(problem, style="yellow", markup=False, soft_wrap=True)


def summary(trial: Trial, what: str, good: str) -> str:
    """Return how questions fared, in a line."""
    answered = len(trial.latencies_ms)
    line = f"{answered} of {trial.asked} {what}"
    if answered:
        line += (
            f", {trial.right} {good} ({trial.right / answered:.0%}), {trial.degraded} without a part; "
            f"median {statistics.median(trial.latencies_ms):.0f} ms, slowest {max(trial.latencies_ms):.0f} ms"
        )
    return line
