"""Answered conversations, printed: what the trained service says to test dialogues, and how to serve it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.padding import Padding

from jobs.glue.entry import JobContext, console
from mmd.config import AppConfig
from mmd.corpora.store import Corpus
from mmd.intent.engine import IntentAnswer, IntentEngine, IntentQuery
from mmd.schema import Dialogue, Image

_RULES_SHOWN = 3
_TURNS_SHOWN = 4


def show_conversations(context: JobContext, count: int) -> None:
    """Answer ``count`` test dialogues from their raw text and pictures, the way the service does, and print them."""
    lineage = context.lineage("gate")
    corpus = Corpus(lineage["corpus"])
    chosen = list(choose_dialogues(corpus.dialogues("test"), count))
    wanted = {image_id for dialogue in chosen for turn in dialogue.turns for image_id in turn.image_ids}
    images = {image.id: image for image in corpus.images(wanted)}
    engine = IntentEngine.from_store(
        context.store, context.name, refs={role: artifact.ref for role, artifact in lineage.items()}
    )
    for number, dialogue in enumerate(chosen, start=1):
        queries = [query_of(dialogue, task, images) for task in dialogue.labels]
        console.rule(f"conversation {number} of {len(chosen)}", align="left")
        _print_turns(dialogue)
        for query, answer in zip(queries, engine.answer(queries), strict=True):
            _print_answer(answer, truth=dialogue.labels[str(query.task)])
    console.rule(align="left")
    options = "" if context.name == "shop" else f" --corpus {context.name}"
    options += "" if context.config.store == AppConfig().store else f" --set store={context.config.store}"
    console.print(
        f"Serve it:  .venv/bin/mmd serve{options}{'' if options else '   (or `make serve`)'}, then open "
        f"http://{context.config.serve.host}:{context.config.serve.port}/",
        markup=False,
        soft_wrap=True,
    )


def choose_dialogues(dialogues: list[Dialogue], count: int) -> Iterator[Dialogue]:
    """Yield labelled dialogues, one of each task in turn, those of a readable length and with pictures first."""
    by_task: dict[str, list[Dialogue]] = {}
    for dialogue in sorted(dialogues, key=_readability):
        for task in dialogue.labels:
            by_task.setdefault(task, []).append(dialogue)
    queues = [iter(found) for found in by_task.values()]
    while queues and count > 0:
        queue = queues.pop(0)
        for dialogue in queue:
            yield dialogue
            count -= 1
            queues.append(queue)
            break


def _readability(dialogue: Dialogue) -> tuple[int, bool, str]:
    pictured = any(turn.image_ids for turn in dialogue.turns)
    return abs(len(dialogue.turns) - _TURNS_SHOWN), not pictured, dialogue.id


def query_of(dialogue: Dialogue, task: str, images: dict[str, Image]) -> IntentQuery:
    """Return the question that the service would get for a stored dialogue."""
    named = {i: images[i] for turn in dialogue.turns for i in turn.image_ids if i in images}
    return IntentQuery(dialogue, task=task, images=named)


def _print_turns(dialogue: Dialogue) -> None:
    for turn in dialogue.turns:
        pictures = "".join(f" [picture {image_id[:8]}]" for image_id in turn.image_ids)
        style = "cyan" if turn.speaker == "user" else "dim"
        text = escape(turn.text.replace("\n", " ") + pictures)
        console.print(Padding(f"[{style}]{turn.speaker:>5}[/]  {text}", (0, 0, 0, 2)))


def _print_answer(answer: IntentAnswer, truth: str) -> None:
    for prediction in answer.predictions:
        right = "right" if prediction.label == truth else f"labelled {truth}"
        console.print(
            f"  → [bold]{escape(prediction.label)}[/]  ({prediction.task}, confidence {prediction.confidence:.2f}, "
            f"decided by {prediction.arm}; {escape(right)})"
        )
        for fired in prediction.fired[:_RULES_SHOWN]:
            console.print(Padding(f"rule: {escape(fired.words)}", (0, 0, 0, 6)), style="green")
    for problem in answer.degraded:
        console.print(f"  degraded: {problem}", style="yellow", markup=False)
