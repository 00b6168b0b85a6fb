"""Try recommendation out: ask a running service for what the agent said next in test dialogues."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from mmd.artifacts import ArtifactStore
from mmd.errors import RequestError
from mmd.recommend.conversations import Conversations
from mmd.schema import Dialogue, Image, Turn
from serve_apps.api import ReadyResponse
from serve_apps.client import ServiceClient
from serve_apps.examples import turns_in
from serve_apps.recommend_api import RecommendResponse
from serve_apps.trial_parts import Trial

K = 10
"""Products that are asked for."""
_ITEMS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Question:
    """What was said before a turn of the agent's, and the products that the turn names."""

    turns: tuple[Turn, ...]
    items: tuple[str, ...]


def find_questions(dialogues: Sequence[Dialogue], store: ArtifactStore, ready: ReadyResponse) -> dict[str, Question]:
    """Return dialogue id → the agent's last turn that names products, or else its last; none where it only opens."""
    conversations = Conversations(store.open(ready.artifacts["graph"], verify=False))
    questions: dict[str, Question] = {}
    for dialogue in dialogues:
        for index, turn in enumerate(dialogue.turns):
            if index == 0 or turn.speaker != "agent":
                continue
            named = conversations.linker.turn(turn).items
            if named or not (dialogue.id in questions and questions[dialogue.id].items):
                items = tuple(conversations.graph.item_ids[item] for item in named)
                questions[dialogue.id] = Question(dialogue.turns[:index], items)
    return questions


def try_recommendation(
    client: ServiceClient, question: Question, images: Mapping[str, Image], console: Console
) -> Trial:
    """Ask for the agent's next turn, and print the reply.

    It is right when one of the agent's products is among the first :data:`K`, or when neither names any.
    """
    known = [turn.model_dump() for turn in turns_in(question.turns, images)]
    started = time.perf_counter()
    try:
        answer = client.ask("/v1/recommend", {"turns": known, "k": K}, RecommendResponse)
    except RequestError as err:
        console.print(f"  → no reply: {err}", style="red", markup=False, soft_wrap=True)
        return Trial(asked=1)
    latency_ms = (time.perf_counter() - started) * 1000
    found = [item.id for item in answer.items]
    named = answer.items_from == "reply"
    right = bool(set(found) & set(question.items)) if question.items else not named
    console.print(
        f"  → after {len(question.turns)} turns the student says ([bold]{_verdict(question, found, named=named)}[/]; "
        f"{latency_ms:.0f} ms): [italic]{escape(answer.reply.text)}[/]"
    )
    for item in answer.items[:_ITEMS_SHOWN]:
        console.print(Padding(f"{item.score:.3f} {escape(item.title)}", (0, 0, 0, 6)), style="green")
    return Trial(1, int(right), int(bool(answer.degraded)), (latency_ms,))


def _verdict(question: Question, found: Sequence[str], *, named: bool) -> str:
    if not question.items:
        return "no product named, as by the agent" if not named else "products named, the agent named none"
    ranks = [rank for rank, item in enumerate(found, 1) if item in question.items]
    return f"right product at rank {ranks[0]}" if ranks else f"right product not in the first {K}"
