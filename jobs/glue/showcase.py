"""Answered conversations, printed: what the trained service says to test dialogues, and how to serve it."""

from __future__ import annotations

from rich.markup import escape
from rich.padding import Padding

from jobs.glue.entry import JobContext, console
from mmd.config import AppConfig
from mmd.corpora.store import Corpus
from mmd.intent.engine import IntentAnswer, IntentEngine
from mmd.intent.online import OnlineSettings
from mmd.intent.showcase import choose_dialogues, picture_ids, query_of
from mmd.schema import Dialogue

_RULES_SHOWN = 3


def show_conversations(context: JobContext, count: int) -> None:
    """Answer ``count`` test dialogues from their raw text and pictures, the way the service does, and print them."""
    lineage = context.lineage("gate")
    corpus = Corpus(lineage["corpus"])
    chosen = list(choose_dialogues(corpus.dialogues("test"), count))
    images = {image.id: image for image in corpus.images(picture_ids(chosen))}
    engine = IntentEngine.from_store(
        context.store,
        context.name,
        refs={"gate": lineage["gate"].ref},
        settings=OnlineSettings(features=context.config.features, models=context.config.models),
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
            f"decided by {prediction.arm}{_share(answer, prediction.task)}; {escape(right)})"
        )
        for fired in prediction.fired[:_RULES_SHOWN]:
            console.print(Padding(f"rule: {escape(fired.words)}", (0, 0, 0, 6)), style="green")
    for problem in answer.degraded:
        console.print(f"  degraded: {problem}", style="yellow", markup=False)


def _share(answer: IntentAnswer, task: str) -> str:
    share = answer.mllm_shares[task]
    return f", large model's share {share:.0%}" if share else ""
