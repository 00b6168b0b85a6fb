"""Measure the assistant on the turns that the agent of the test split answered, against each of its parts.

Makes the artefact report/NAME-assistant with report.html (self-contained), metrics.json and the table replies: right
modality, right response (among all, and in a pool of 50 a modality), right product, F1 of words and share of turns
answered, of the policy with all parts, with each of them absent, and with each of them alone; F1 of the intents of
labelled dialogues; example turns with the reasons of every decision.

    mmd evaluate_assistant                        the newest policy of the built-in shop corpus
    mmd evaluate_assistant --split validation     the held-out part of the training split, on which it was chosen
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pyarrow as pa
from rich.table import Column

from jobs.evaluate import pictures_of
from jobs.glue.assistant import Stand, lineage_of
from jobs.glue.entry import JobContext, console, main
from jobs.glue.reporting import add_artifact, add_split, reported
from mmd.artifacts import Artifact, version_for
from mmd.assistant.assistant import Assistant
from mmd.assistant.gather import gather
from mmd.assistant.turns import AskedTurn
from mmd.errors import CorpusError
from mmd.evaluation.assistant import ANSWERED, METRICS, WORDS, AssistantFindings, measure
from mmd.evaluation.assistant_report import AssistantContent, render_assistant
from mmd.evaluation.metrics import Confusion, overall
from mmd.evaluation.recommend_systems import Judged
from mmd.evaluation.retrieval_systems import make_questions
from mmd.intent.showcase import query_of
from mmd.retrieval.pools import Source
from mmd.retrieval.samples import find_samples
from mmd.tables import plain_table

_SHOWN = {"show_dialogues", "examples", "bootstrap_resamples"}
REPLIES = pa.schema(
    [
        ("system", pa.dictionary(pa.int32(), pa.string())),
        ("turn_id", pa.string()),
        ("right_modality", pa.string()),
        ("modality", pa.string()),
        ("speaker", pa.string()),
        ("right_response_ids", pa.list_(pa.string())),
        ("response_ids", pa.list_(pa.string())),
        ("right_item_ids", pa.list_(pa.string())),
        ("item_ids", pa.list_(pa.string())),
        ("words_f1", pa.float32()),
    ]
)
"""What every system made of every turn, without a word of it."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add which policy, and on what."""
    add_artifact(parser, "policy")
    add_split(parser)


def run(context: JobContext) -> Artifact:
    """Write report/NAME-assistant unless the same policy was reported before.

    Raises:
        CorpusError: the split has no answered turn.
    """
    asked = reported(context, "policy", "assistant")
    context, split, name = asked.context, asked.split, asked.name
    inputs, config = lineage_of(context.open("policy"), context), context.config
    settings = {
        "split": split,
        "assistant": config.assistant.model_dump(mode="json", include={"candidates", "cards"}),
        "generation": config.recommend.generation.model_dump(mode="json"),
        "pools": config.retrieval.pools.model_dump(mode="json", include={"size", "seed"}),
        "evaluation": config.evaluation.model_dump(mode="json", include=_SHOWN),
    }
    seeds = {"bootstrap": config.seed}
    if found := context.existing("report", settings, inputs, seeds, name):
        return found
    stand = Stand(context, inputs)
    findings, turns = evaluate(stand, split)
    content = content_of(stand, findings, turns)
    with context.store.write(
        "report", name, settings=settings, inputs=inputs, seeds=seeds, replace=context.force
    ) as writer:
        writer.write_bytes("report.html", render_assistant(content, config.seed).encode())
        writer.write_json("metrics.json", findings.to_json() | {"made_from": {r: a.ref for r, a in inputs.items()}})
        writer.metrics = {"turns": findings.turns, **findings.headline}
        writer.write_table("replies", reply_table(findings, turns))
    print_findings(findings)
    report = context.store.open(f"report/{name}@{version_for('report', settings, inputs, seeds)}")
    console.print(report.path("report.html"), markup=False, soft_wrap=True)
    return report


def evaluate(stand: Stand, split: Judged) -> tuple[AssistantFindings, list[AskedTurn]]:
    """Measure everything; return the turns, too.

    Raises:
        CorpusError: the split has no answered turn.
    """
    turns = stand.turns(split)
    if not turns:
        raise CorpusError(
            f"{stand.corpus.artifact.ref}: no dialogue of the split {split} has an answer of the agent; give some "
            "records that split (docs/data.md), or hold more out."
        )
    evaluation, seed = stand.context.config.evaluation, stand.context.config.seed
    pools = pools_of(stand, turns, split) if stand.assistant.retrieval else None
    gathered = gather(stand.assistant, turns, pools)
    findings = measure(
        stand.assistant.policy,
        gathered,
        split,
        recognised(stand, stand.assistant, split),
        resamples=evaluation.bootstrap_resamples,
        seed=seed,
    )
    return findings, turns


def content_of(stand: Stand, findings: AssistantFindings, turns: Sequence[AskedTurn]) -> AssistantContent:
    """Return what the page is made of."""
    evaluation, plan = stand.context.config.evaluation, stand.assistant.policy.plan
    votes = ", ".join(f"{part} {weight:g}" for part, weight in plan.votes.items())
    fitting = f"known from {plan.min_seen} uses on" if plan.min_seen else "all"
    return AssistantContent(
        name=stand.context.name,
        findings=findings,
        turns=turns,
        chosen={
            "votes on the modality": f"{votes}; retrieval's at temperature {plan.temperature:g}",
            "responses that fit an intent": fitting,
            "words by": "the student" if plan.words == "student" else "retrieval",
            "products by": "the student" if plan.products == "student" else "retrieval",
        },
        provenance={role: artifact.ref for role, artifact in stand.inputs.items()},
        resamples=evaluation.bootstrap_resamples,
        examples=evaluation.examples,
        show=pictures_of(stand.context, stand.corpus) is not None,
    )


def pools_of(stand: Stand, turns: Sequence[AskedTurn], split: Judged) -> list[frozenset[str]]:
    """Return the responses that each turn's right ones are ranked among: its pool, the right ones in it."""
    source: Source = "test" if split == "test" else "train"
    given = find_samples(stand.corpus.dialogues(None if source == "test" else "train"), stand.facts, stand.samples)
    wanted = {turn.id for turn in turns}
    samples = [sample for sample in given.samples if sample.id in wanted]
    questions = make_questions(given, samples, stand.context.config.retrieval.pools, source)
    ids = questions.layout.ids
    drawn = {
        sample.id: frozenset(ids[column] for column in columns)
        for sample, columns in zip(questions.samples, questions.pools["union"], strict=True)
    }
    return [drawn[turn.id] | {response.id for response in turn.right} for turn in turns]


def recognised(stand: Stand, assistant: Assistant, split: str) -> dict[str, Confusion]:
    """Return task → true against recognised intent, on the test split's labelled dialogues.

    The gate learnt from those of the training split, held out for the other parts or not: there is nothing to measure.
    """
    if assistant.intent is None or split != "test":
        return {}
    found: dict[str, Confusion] = {}
    for task in stand.corpus.tasks:
        labelled = [dialogue for dialogue in stand.corpus.dialogues("test") if task in dialogue.labels]
        answers = assistant.intent.answer([query_of(dialogue, task, stand.images) for dialogue in labelled])
        if labelled:
            told = [answer.predictions[0].label for answer in answers]
            found[task] = Confusion.of([dialogue.labels[task] for dialogue in labelled], told)
    return found


def reply_table(findings: AssistantFindings, turns: Sequence[AskedTurn]) -> pa.Table:
    """Return every reply as rows of :data:`REPLIES`."""
    rows = [
        {
            "system": system.name,
            "turn_id": turn.id,
            "right_modality": turn.modality,
            "modality": told.choice.modality,
            "speaker": told.choice.speaker,
            "right_response_ids": [response.id for response in turn.right],
            "response_ids": [part.response_id for part in told.parts if part.response_id],
            "right_item_ids": list(turn.items),
            "item_ids": [part.item_id for part in told.parts if part.item_id],
            "words_f1": told.verdict.words,
        }
        for system in findings.systems
        for turn, told in zip(turns, system.told, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=REPLIES)


def print_findings(findings: AssistantFindings) -> None:
    """Print the table of systems, intervals being in the report, and the F1 of intents."""
    printed = (*METRICS[:-1], WORDS, ANSWERED)  # as many as 80 columns hold; all are in the report
    names = [name for name in printed if any(name in row.shares for row in findings.rows)]
    width = max(len(row.system) for row in findings.rows)
    table = plain_table(
        Column("system", overflow="fold", min_width=width),
        *(Column(name, justify="right", overflow="fold", min_width=8, max_width=8) for name in names),
        title=f"{findings.turns} answered turns, {findings.split} split",
    )
    for row in findings.rows:
        shares = [row.shares.get(name) for name in names]
        table.add_row(row.system, *("" if share is None else f"{share.value:.3f}" for share in shares))
    console.print(table)
    right = findings.rows[0].shares["right modality"]
    interval = f"95 % interval [{right.low:.3f}, {right.high:.3f}] over dialogues"
    console.print(f"right modality, assistant: {right.value:.3f}, {interval}", markup=False, soft_wrap=True)
    if findings.intents:
        parts = ", ".join(f"{task} {found.weighted_f1:.3f}" for task, found in findings.intents.items())
        console.print(f"intents, weighted F1: {overall(findings.intents):.3f} ({parts})", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main("evaluate_assistant", __doc__, run, add_options=add_options))
