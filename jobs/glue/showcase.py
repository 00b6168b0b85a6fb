"""Answered conversations, printed: what the trained service says to test dialogues, and how to serve it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.padding import Padding

from jobs.glue.entry import JobContext, console
from mmd.artifacts import Artifact
from mmd.config import AppConfig
from mmd.corpora.store import Corpus
from mmd.intent.engine import IntentAnswer, IntentEngine
from mmd.intent.online import OnlineSettings
from mmd.intent.showcase import choose_dialogues, picture_ids, query_of
from mmd.recommend.conversations import Conversations
from mmd.recommend.online import RecommendQuery
from mmd.recommend.samples import response_samples
from mmd.schema import Turn

_RULES_SHOWN, _ITEMS_SHOWN = 3, 3
_TURNS_BEFORE = 4


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
        _print_turns(dialogue.turns)
        for query, answer in zip(queries, engine.answer(queries), strict=True):
            _print_answer(answer, truth=dialogue.labels[str(query.task)])


def show_reply(context: JobContext) -> None:
    """Let the student answer one test dialogue in which the agent recommends, as the service does, and print it."""
    from mmd.recommend.loading import load_online

    student = context.open("student")
    recommender = load_online(
        context.store,
        context.name,
        {"student": student.ref},
        context.config.recommend.generation,
        context.config.models,
    )
    turns = _turns_before_recommending(context, context.made_from(student)["graph"])
    if not turns:
        return
    [answer] = recommender.answer([recommender.prepare(RecommendQuery("showcase", turns, k=_ITEMS_SHOWN))])
    console.rule("a reply of the student", align="left")
    _print_turns(turns)
    said = "".join(f"[bold]{escape(piece.text)}[/]" if piece.item_id else escape(piece.text) for piece in answer.pieces)
    sure = "" if answer.mode_probability is None else f", {answer.mode_probability:.2f}"
    console.print(f"  → ({'recommends' if answer.mode == 'rec' else 'talks'}{sure})  {said}")
    likeliest = "likeliest products there" if answer.items_from == "reply" else "likeliest products if it recommended"
    console.print(f"      {likeliest}:", markup=False)
    for item in answer.items:
        console.print(Padding(f"{item.probability:.3f} {escape(item.title)}", (0, 0, 0, 8)), style="green")


def _turns_before_recommending(context: JobContext, graph: Artifact) -> tuple[Turn, ...]:
    """Return what was said before a turn of the agent's that names an item, of a readable length; none: no such one."""
    settings, conversations = context.config.recommend.conversations, Conversations(graph)
    found = [
        (sample.dialogue_id, int(sample.id.rpartition("#")[2]))
        for dialogue in conversations.dialogues("test")
        for sample in response_samples(dialogue, settings)
        if sample.mode == "rec"
    ]
    if not found:
        return ()
    dialogue_id, index = min(found, key=lambda one: (abs(one[1] - _TURNS_BEFORE), one[0]))
    corpus = Corpus(context.made_from(graph)["corpus"])
    return next(dialogue.turns[:index] for dialogue in corpus.dialogues("test") if dialogue.id == dialogue_id)


def show_command(context: JobContext) -> None:
    """Print how to serve what was trained."""
    console.rule(align="left")
    options = "" if context.name == "shop" else f" --corpus {context.name}"
    options += "" if context.config.store == AppConfig().store else f" --set store={context.config.store}"
    console.print(
        f"Serve it:  .venv/bin/mmd serve{options}{'' if options else '   (or `make serve`)'}, then open "
        f"http://{context.config.serve.host}:{context.config.serve.port}/",
        markup=False,
        soft_wrap=True,
    )


def _print_turns(turns: Sequence[Turn]) -> None:
    for turn in turns:
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
